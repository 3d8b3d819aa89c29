import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from golf_lightning.data.readers import list_inputs, read_documents
from golf_lightning.errors import GolfError

TEXTS = ["One.", "", "Two\nlines, and café 😀.", "  Three  "]

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


def lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts).encode()


def read(path: Path, text_field: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, text_field)]


@pytest.mark.parametrize("suffix", PACK)
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](lines(TEXTS)))
    assert read(path) == TEXTS


@pytest.mark.parametrize("suffix", PACK)
def test_position_ends_at_the_files_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](lines(TEXTS)))
    assert list(read_documents(path))[-1].position == path.stat().st_size


def test_last_line_without_newline_and_blank_lines(tmp_path: Path) -> None:
    for suffix, pack in PACK.items():
        path = tmp_path / f"a{suffix}"
        path.write_bytes(pack(b"\n" + lines(TEXTS).replace(b"\n", b"\n\n").rstrip(b"\n")))
        assert read(path) == TEXTS


def test_several_zstandard_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    whole = lines(TEXTS)
    path.write_bytes(b"".join(PACK[".jsonl.zst"](part) for part in (whole[:10], whole[10:11], whole[11:])))
    assert read(path) == TEXTS


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(max_size=50), min_size=1, max_size=20), level=st.integers(1, 5))
def test_zstandard_lines_at_any_block_boundary(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], level: int
) -> None:
    path = tmp_path_factory.mktemp("zst") / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(level=level).compress(lines(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("golf_lightning.data.readers.BLOCK_BYTES", 7)
        assert read(path) == texts


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz", ".jsonl.zst"])
def test_compressed_file_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](lines(TEXTS))[:-4])
    with pytest.raises(GolfError, match="damaged or cut short"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet"])
def test_compressed_file_of_another_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"This is plain text and not what its name says.")
    with pytest.raises(GolfError, match="damaged"):
        read(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], "text": TEXTS}), path)
    assert read(path) == TEXTS
    assert list(read_documents(path))[-1].position == path.stat().st_size


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": TEXTS}), path)
    with pytest.raises(GolfError, match="no column 'text'"):
        read(path)
    assert read(path, "body") == TEXTS


def test_parquet_with_a_null(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(GolfError, match="row 2 of .* is NoneType, not a string"):
        read(path)


def test_text_file_is_one_document_kept_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf a\r\n\r\nb \n")
    assert read(path) == ["\ufeff a\r\n\r\nb \n"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lines(["a"]) + b'{"text": "b"\n', "line 2 of .* is not JSON"),
        (lines(["a", "b"]) + b'{"body": "c"}\n', "line 3 of .* has no field 'text'"),
        (b'["a"]\n', "line 1 of .* has no field 'text'"),
        (b'\n{"text": 5}\n', "line 2 of .* is int, not a string"),
        (b'{"text": "\\ud800"}\n', "line 1 of .* half of a surrogate pair"),
        (b'{"text": "\xff"}\n', "line 1 of .* is not UTF-8"),
        (b"", "holds no documents"),
        (b"\n\n", "holds no documents"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(GolfError, match=sentence):
        read(path)


def test_empty_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(GolfError, match="holds no documents"):
        read(tmp_path / "a.txt")


def test_text_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(GolfError, match="is not UTF-8"):
        read(tmp_path / "a.txt")


def test_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.jsonl.gz", "a.jsonl", "c.parquet", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_inputs([tmp_path / "c.parquet", tmp_path])]
    assert names == ["c.parquet", "a.jsonl", "b/a.jsonl.gz", "b/z.txt", "c.parquet"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("absent.jsonl", "does not exist"), ("notes.md", "of no supported kind"), ("folder", "holds no files of text")],
)
def test_inputs_that_cannot_be_read(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "notes.md").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(GolfError, match=sentence):
        list_inputs([tmp_path / name])


def test_no_inputs() -> None:
    with pytest.raises(GolfError, match="No input files"):
        list_inputs([])
