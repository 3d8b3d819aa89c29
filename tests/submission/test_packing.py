from pathlib import Path

import pytest

from golf_lightning.errors import GolfError
from golf_lightning.submission import squeeze
from golf_lightning.submission.packing import packed

TEXT = b"a.py\0x = 1\n" * 20
PRIMER = b"import os\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "golf_lightning" / "packed"


def test_what_is_packed_unpacks() -> None:
    assert squeeze.unpack_text(packed(TEXT, PRIMER), PRIMER) == TEXT


def test_what_was_packed_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed(TEXT, PRIMER)
    monkeypatch.setattr(squeeze, "pack", None)
    assert packed(TEXT, PRIMER) == first
    assert len(list(cache.iterdir())) == 1


def test_another_primer_is_another_payload() -> None:
    assert packed(TEXT, PRIMER) != packed(TEXT, b"")


def test_a_cache_that_cannot_be_written_is_one_sentence(cache: Path) -> None:
    cache.parent.mkdir()
    cache.touch()
    with pytest.raises(GolfError, match=r"^Cannot write .*packed.*choose another folder\.$"):
        packed(TEXT, PRIMER)


def test_a_text_that_does_not_come_back_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeeze, "unpack_text", lambda payload, primer: b"")
    with pytest.raises(AssertionError, match="must give the sources back"):
        packed(TEXT, PRIMER)
    assert not cache.exists()
