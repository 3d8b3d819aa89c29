"""Documents out of the files that text usually comes in.

JSON lines (plain, .gz, .xz, .zst) and Parquet hold one document per line or row in a text field; a .txt file is one
document. All text is UTF-8 and is passed on exactly as it stands.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from golf_lightning.errors import GolfError

BLOCK_BYTES = 1 << 20


class Document(NamedTuple):
    """One document and how far its file has been read.

    Attributes:
        text: the document.
        position: bytes of the file on disk read so far; for compressed files a little ahead of the document.
    """

    text: str
    position: int


def list_inputs(paths: Sequence[str | Path]) -> list[Path]:
    """The files to read, in reading order: files as given, folders replaced by their supported files in sorted order.

    Raises:
        GolfError: a path does not exist, has an unsupported suffix, or is a folder without supported files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _reader(file) is not None)
            if not inside:
                raise GolfError(f"The folder {path} holds no files of text; supported are {', '.join(_READERS)}.")
            files += inside
        elif not path.exists():
            raise GolfError(f"The input {path} does not exist; check the path.")
        elif _reader(path) is None:
            raise GolfError(f"The input {path} is of no supported kind; supported are {', '.join(_READERS)}.")
        else:
            files.append(path)
    if not files:
        raise GolfError("No input files were given; name files or folders of text.")
    return files


def read_documents(path: str | Path, text_field: str = "text") -> Iterator[Document]:
    """Read the documents of one file in order.

    Args:
        path: a file with one of the supported suffixes.
        text_field: key of the text in JSON lines, column of the text in Parquet.

    Raises:
        GolfError: the file is damaged or holds no documents, a line is not JSON, or a text is missing or is not text;
            names the line or row.
    """
    path = Path(path)
    reader = _reader(path)
    assert reader is not None, f"{path} did not come from list_inputs"
    found = False
    try:
        for document in reader(path, text_field):
            found = True
            yield document
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise GolfError(f"{path} is damaged or cut short ({error}); fetch it again.") from None
    except OSError as error:
        raise GolfError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    if not found:
        raise GolfError(f"{path} holds no documents; remove it from the inputs or fill it.")


def _reader(path: Path) -> "Callable[[Path, str], Iterator[Document]] | None":
    return next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)


def _text_file(path: Path, text_field: str) -> Iterator[Document]:
    content = path.read_bytes()
    if content:
        yield Document(_decode(content, str(path)), len(content))


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    with open(path, "rb") as raw:
        for number, line in enumerate(_lines(raw, path.suffix), start=1):
            if line.strip():
                yield Document(_text_of_line(line, text_field, f"line {number} of {path}"), raw.tell())


def _text_of_line(line: bytes, text_field: str, place: str) -> str:
    try:
        values = json.loads(_decode(line, place))
    except json.JSONDecodeError as error:
        raise GolfError(f"{place} is not JSON ({error.msg} at character {error.pos}); repair or remove it.") from None
    if not isinstance(values, dict) or text_field not in values:
        raise GolfError(f"{place} has no field {text_field!r}; choose the field of the text with --text_field.")
    return _checked(values[text_field], place)


def _checked(text: object, place: str) -> str:
    if not isinstance(text, str):
        raise GolfError(f"The text in {place} is {type(text).__name__}, not a string; repair or remove it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise GolfError(
            f"The text in {place} has half of a surrogate pair and is no Unicode text; repair it."
        ) from None
    return text


def _decode(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GolfError(f"{place} is not UTF-8 (byte {error.start}); convert it to UTF-8.") from None


def _lines(raw: IO[bytes], suffix: str) -> Iterator[bytes]:
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=raw) as lines:
            yield from lines
    elif suffix == ".xz":
        with lzma.LZMAFile(raw) as lines:
            yield from lines
    elif suffix == ".zst":
        yield from _split_lines(_zstandard_blocks(raw))
    else:
        yield from raw


def _zstandard_blocks(raw: IO[bytes]) -> Iterator[bytes]:
    # zstandard's file reader ends quietly where a file is cut short, so the end of each frame is checked here.
    frame = zstandard.ZstdDecompressor().decompressobj()
    inside = False
    while block := raw.read(BLOCK_BYTES):
        while block:
            inside = True
            yield frame.decompress(block)
            if not frame.eof:
                break
            block = frame.unused_data
            frame = zstandard.ZstdDecompressor().decompressobj()
            inside = False
    if inside:
        raise EOFError("the last frame has no end")


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for block in blocks:
        *lines, rest = block.split(b"\n")
        for line in lines:
            yield b"".join((*parts, line))
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _parquet(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    size = path.stat().st_size
    try:
        with parquet.ParquetFile(path) as table:
            if text_field not in table.schema_arrow.names:
                raise GolfError(
                    f"{path} has no column {text_field!r}; choose the column of the text with --text_field."
                )
            rows = table.metadata.num_rows
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield Document(_checked(text, f"row {row} of {path}"), size * row // rows)
    except pyarrow.ArrowInvalid as error:
        raise GolfError(
            f"{path} is damaged or is not Parquet ({str(error).splitlines()[0]}); fetch it again."
        ) from None


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".jsonl.xz": _json_lines,
    ".jsonl.zst": _json_lines,
    ".parquet": _parquet,
    ".txt": _text_file,
}
