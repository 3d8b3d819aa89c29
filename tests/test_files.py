"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json, write_json, write_whole


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GolfError, match="No space left on device; nothing was changed"), write_whole(path, "w") as file:
        file.write("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_folders_are_made_and_the_mode_is_ordinary(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with write_whole(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o444 == 0o444


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(("content", "sentence"), [(None, "does not exist"), ("{", "is not valid JSON")])
def test_bad_json_is_named(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(GolfError, match=sentence):
        read_json(path)
