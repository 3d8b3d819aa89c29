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

    The cache is ``~/.cache/golf_lightning/packed`` (``$XDG_CACHE_HOME``), named by the hash of the texts and the coder.

    Args:
        text: what to pack.
        primer: what the unpacker knows; see :func:`~golf_lightning.submission.squeeze.pack`.
    """

    def __init__(self, text: bytes, primer: bytes) -> None:
        size = len(primer).to_bytes(4, "big")
        name = hashlib.sha256(Path(squeeze.__file__).read_bytes() + size + primer + text).hexdigest()
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
            self._process.stdin.write(size + primer + text)
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


def main(path: str, data: bytes) -> None:
    """Pack a text into a file, after making sure that it can be unpacked.

    Args:
        path: the file.
        data: size of the primer (4 bytes), primer and text.
    """
    start = 4 + int.from_bytes(data[:4], "big")
    primer, text = data[4:start], data[start:]
    payload = squeeze.pack(text, primer)
    assert squeeze.unpack_text(payload, primer) == text, "the coder must give the sources back"
    with write_whole(path) as file:
        file.write(payload)


if __name__ == "__main__":
    os.nice(19)  # a training run does not wait for it
    main(sys.argv[1], sys.stdin.buffer.read())
