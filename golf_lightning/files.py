"""Files that are written whole or not at all."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from golf_lightning.errors import GolfError


@contextlib.contextmanager
def write_whole(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it into place when the block ends without an error.

    Readers see the old content or the new content, never a part: the data is flushed to disk before the rename. When
    the block raises, the temporary file is removed and an existing ``path`` stays as it was. Parent folders are made.

    Raises:
        GolfError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise GolfError(
            f"Cannot write {path}: {error.strerror or error}; nothing was changed, free space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with write_whole(path, "w") as file:
        file.write(text)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        GolfError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GolfError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GolfError(f"{path} is not valid JSON ({error}); write it again.") from None


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
