"""Packs a program's sources in a process of its own, since that takes about a minute, and keeps what it made."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole
from golf_lightning.submission import squeeze


class Packing:
    """The payload of ``text``, under way in another process, or taken from the user's cache.

    The cache is ``~/.cache/golf_lightning/packed`` (``$XDG_CACHE_HOME``), named by the hash of the text and the coder.

    Args:
        text: what to pack.
    """

    def __init__(self, text: bytes) -> None:
        name = hashlib.sha256(Path(squeeze.__file__).read_bytes() + text).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "golf_lightning")
        self._path = cache / "packed" / name
        self._process: subprocess.Popen[bytes] | None = None
        if self._path.is_file():
            return
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self._path)],
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; result() tells why
        self._process.stdin = None

    def result(self) -> bytes:
        """The payload; waits for it.

        Raises:
            GolfError: the process failed.
        """
        if self._process is not None:
            lines = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
            if self._process.returncode != 0:
                raise GolfError(f"Packing the program failed ({lines[-1] if lines else self._process.returncode}).")
            self._process = None
        return self._path.read_bytes()


def main(path: str, text: bytes) -> None:
    """Pack ``text`` into a file, after making sure that it can be unpacked."""
    payload = squeeze.pack(text)
    assert squeeze.unpack_text(payload) == text, "the coder must give the sources back"
    with write_whole(path) as file:
        file.write(payload)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer.read())
