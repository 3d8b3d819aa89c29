import os
import subprocess
import sys
from pathlib import Path

import pytest

from golf_lightning.errors import GolfError
from golf_lightning.submission import packing, squeeze
from golf_lightning.submission.packing import Packing

TEXT = b"a.py\0x = 1\n" * 20
PRIMER = b"import os\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "golf_lightning" / "packed"


def test_another_process_packs() -> None:
    assert squeeze.unpack_text(Packing(TEXT, PRIMER).result(), PRIMER) == TEXT


def test_what_was_packed_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Packing(TEXT, PRIMER).result()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    assert Packing(TEXT, PRIMER).result() == first
    assert len(list(cache.iterdir())) == 1


def test_another_primer_is_another_payload() -> None:
    assert Packing(TEXT, PRIMER).result() != Packing(TEXT, b"").result()


def test_a_failure_is_one_sentence(cache: Path) -> None:
    cache.parent.mkdir()
    cache.touch()
    with pytest.raises(GolfError, match=r"^Packing the program failed \(.*packed.*\)\.$"):
        Packing(TEXT, PRIMER).result()


def test_a_process_that_ends_at_once_does_not_leave_it_running(cache: Path) -> None:
    text = os.urandom(600)
    script = (
        "import os, sys; from golf_lightning.submission.packing import Packing; Packing(sys.stdin.buffer.read(), b''); "
    )
    root = str(Path(packing.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script + "os._exit(3)"],
        input=text,
        env=os.environ | {"PYTHONPATH": root},
        timeout=60,
    )
    assert done.returncode == 3
    assert squeeze.unpack_text(Packing(text, b"").result()) == text


def test_a_text_that_does_not_come_back_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeeze, "unpack_text", lambda payload, primer: b"")
    with pytest.raises(AssertionError, match="must give the sources back"):
        packing.main(str(cache / "x"), bytes(4) + TEXT)
    assert not cache.exists()
