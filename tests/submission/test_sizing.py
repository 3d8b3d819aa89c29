import io
import os
from pathlib import Path

import pytest
import quick_coder

from golf_lightning.errors import GolfError
from golf_lightning.submission import bundle, sizing, squeeze
from golf_lightning.submission.sizing import Sizing

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_another_process_finds_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is packed quickly here the other process finds in the cache; packing would take it a minute.
    monkeypatch.setattr(squeeze, "pack", quick_coder.packed)
    monkeypatch.setattr(squeeze, "unpack_text", quick_coder.unpack_text)
    program = bundle.Program(DEMO.read_text()).read()
    size = Sizing(DEMO.read_text())
    assert size.result(wait=False) is None  # it does not wait: making the texts takes seconds
    assert size.result() == size.result(wait=False) == len(program)


def test_a_class_without_source_is_told_at_once() -> None:
    with pytest.raises(GolfError, match="package nowhere, which the configuration names, has no source"):
        Sizing("trainer: {callbacks: [{class_path: nowhere.Thing}]}")


def test_a_failure_is_told_as_soon_as_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("class Thing(\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    size = Sizing("trainer: {callbacks: [{class_path: broken.Thing}]}")
    os.waitid(os.P_PID, size._process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(GolfError, match=r"^Measuring the program's size failed \(SyntaxError: .*\)\.$"):
        size.result(wait=False)


def test_a_sentence_for_the_user_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = tmp_path / "python"
    refusing.write_text("#!/bin/sh\necho 'Packing the program failed.' >&2\nexit 2\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(sizing.sys, "executable", str(refusing))
    with pytest.raises(GolfError, match=r"^Packing the program failed\.$"):
        Sizing("{}").result()


def test_the_process_tells_what_is_wrong_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizing.sys, "stdin", io.StringIO("- 1"))
    assert sizing.main() == 2
    assert capsys.readouterr().err == "The configuration is not a mapping of options; give a run's config.yaml.\n"
