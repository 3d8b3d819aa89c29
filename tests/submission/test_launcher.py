import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from golf_lightning.submission import launcher
from golf_lightning.submission.squeeze import pack


def packed(*pieces: str) -> bytes:
    return pack("\0".join(pieces).encode())


PAYLOAD = packed("config.json", "{}", "a/b/c.py", "x = 'ü'\n", "a/__init__.py", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "golf_lightning"


def test_files_are_unpacked_once(cache: Path) -> None:
    folder = launcher.unpack(PAYLOAD)
    assert folder.parent == cache
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "a/b/c.py", "a/__init__.py"}
    assert (folder / "a/b/c.py").read_text(encoding="utf-8") == "x = 'ü'\n"
    before = (folder / "config.json").stat().st_mtime_ns
    assert launcher.unpack(PAYLOAD) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_ranks_that_start_at_once_share_one_whole_folder(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(launcher.unpack, [PAYLOAD] * 8))
    assert list(cache.iterdir()) == list(folders)
    assert len(list(folders.pop().rglob("*.py"))) == 2


def test_another_payload_gets_another_folder(cache: Path) -> None:
    assert launcher.unpack(PAYLOAD) != launcher.unpack(packed("config.json", "{}"))


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = launcher.unpack(PAYLOAD)
    assert folder.parent == tmp_path
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("argument", ["prepare", ""])
def test_a_command_that_needs_more_than_the_bundle_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argument: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", argument, "demo"])
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD, (3, 10))
    assert end.value.code == 2
    assert f"error: '{argument}' is not part of this program; choose one of fit, validate" in capsys.readouterr().err
    assert not cache.exists()


def test_a_damaged_file_is_refused_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD[:40] + bytes([PAYLOAD[40] ^ 1]) + PAYLOAD[41:], (3, 10))
    assert end.value.code == 2
    assert "error: this file is damaged" in capsys.readouterr().err
    assert not cache.exists()


def test_unpacking_is_told_once(cache: Path, capsys: Any) -> None:
    launcher.unpack(PAYLOAD)
    assert "unpacking the program" in capsys.readouterr().err
    launcher.unpack(PAYLOAD)
    assert capsys.readouterr().err == ""


def test_an_older_python_is_refused(cache: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD, (9, 1))
    assert end.value.code == 2
    assert "made with Python 9.1" in capsys.readouterr().err
    assert not cache.exists()
