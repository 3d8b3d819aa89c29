import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from golf_lightning.submission import launcher
from golf_lightning.submission.squeeze import pack, unpack_text

PRIMER = b"import os"


def packed(*pieces: str) -> bytes:
    """A payload of files, paths and texts in turn, without imports to put back."""
    return pack("\0".join(["", *pieces]).encode(), PRIMER)


def unpack(payload: bytes) -> Path:
    return launcher.unpack(payload, PRIMER)


PAYLOAD = packed("config.json", "{}", "a/b/c.py", "x = 'ü'\n", "a/__init__.py", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "golf_lightning"


def test_files_are_unpacked_once(cache: Path) -> None:
    folder = unpack(PAYLOAD)
    assert folder.parent == cache
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "a/b/c.py", "a/__init__.py"}
    assert (folder / "a/b/c.py").read_text(encoding="utf-8") == "\nx = 'ü'\n"
    before = (folder / "config.json").stat().st_mtime_ns
    assert unpack(PAYLOAD) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_ranks_that_start_at_once_share_one_whole_folder(cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(unpack, [PAYLOAD] * 8))
    assert list(cache.iterdir()) == list(folders)
    assert len(list(folders.pop().rglob("*.py"))) == 2


def test_ranks_wait_while_one_unpacks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(payload: bytes, primer: bytes) -> bytes:
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return unpack_text(payload, primer)

    monkeypatch.setattr(launcher, "unpack_text", slow)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(unpack, [PAYLOAD] * 4))
    assert len(calls) == 1
    assert list(cache.iterdir()) == [folders[0]]


def test_ranks_share_one_folder_where_there_are_no_locks(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    barrier = threading.Barrier(4)

    def together(payload: bytes, primer: bytes) -> bytes:
        barrier.wait(20)
        return unpack_text(payload, primer)

    monkeypatch.setattr(launcher, "unpack_text", together)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(unpack, [PAYLOAD] * 4))
    assert list(cache.iterdir()) == list(folders)
    assert (folders.pop() / "config.json").read_text() == "{}"


FILES = {
    "config.json": "{}",
    "a/one.py": "def f():return math.pi\nTWICE=2\n_own=1",
    "a/two.py": "from __future__ import annotations\nTWICE=3\ndef g(x):return f()+np.e+_own+x.tail",
    "a/__init__.py": "NAME='f'",
    "a/three.py": "print(NAME,TWICE,g)",
}
TABLE = "_own,tail\nfrom elsewhere import other as np\nimport math"


def test_imports_of_what_a_file_mentions_are_put_back() -> None:
    imports = launcher.known_imports(FILES, TABLE)
    files = {path: launcher.with_imports(path, text, imports) for path, text in FILES.items()}
    assert files == FILES | {
        "a/one.py": "import math\n" + FILES["a/one.py"],
        "a/two.py": "from __future__ import annotations\nfrom a.one import f;from elsewhere import other as np\n"
        + FILES["a/two.py"].partition("\n")[2],
        "a/__init__.py": "\n" + FILES["a/__init__.py"],
        "a/three.py": "from a import NAME;from a.two import g\n" + FILES["a/three.py"],
    }


def test_another_payload_gets_another_folder(cache: Path) -> None:
    assert unpack(PAYLOAD) != unpack(packed("config.json", "{}"))


def test_an_unpacked_program_starts_from_a_cache_that_cannot_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack(PAYLOAD)
    monkeypatch.setattr("tempfile.mkdtemp", None)
    assert unpack(PAYLOAD) == folder


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = unpack(PAYLOAD)
    assert folder.parent == tmp_path
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("argument", ["prepare", ""])
def test_a_command_that_needs_more_than_the_bundle_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, argument: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", argument, "demo"])
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD, PRIMER, (3, 10))
    assert end.value.code == 2
    assert f"error: '{argument}' is not part of this program; choose one of fit, validate" in capsys.readouterr().err
    assert not cache.exists()


def test_a_damaged_file_is_refused_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpt.py"])
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD[:40] + bytes([PAYLOAD[40] ^ 1]) + PAYLOAD[41:], PRIMER, (3, 10))
    assert end.value.code == 2
    assert "error: this file is damaged" in capsys.readouterr().err
    assert not list(cache.iterdir())


def test_unpacking_is_told_once(cache: Path, capsys: Any) -> None:
    unpack(PAYLOAD)
    assert "unpacking the program" in capsys.readouterr().err
    unpack(PAYLOAD)
    assert capsys.readouterr().err == ""


def test_an_older_python_is_refused(cache: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        launcher.launch(PAYLOAD, PRIMER, (9, 1))
    assert end.value.code == 2
    assert "made with Python 9.1" in capsys.readouterr().err
    assert not cache.exists()
