"""The size of a run's program, found out by a process of its own beside compilation and training.

Making the text of every module takes some seconds of one core and packing it a minute; a run waits for neither.
"""

import os
import subprocess
import sys
from pathlib import Path

from golf_lightning.errors import GolfError
from golf_lightning.submission.bundle import Program, read_settings

REFUSED = 2
"""Exit status of the process where its last line is a sentence for the user."""


class Sizing:
    """Bytes of the program of ``config``, under way in another process of the lowest priority.

    Args:
        config: the resolved configuration as YAML text.

    Raises:
        GolfError: the configuration cannot be read or names a class without source.
    """

    def __init__(self, config: str) -> None:
        read_settings(config)
        self._size: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            # The classes of a configuration are found where this process finds them.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(config)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; result() tells why
        self._process.stdin = None

    def result(self, wait: bool = True) -> int | None:
        """The bytes; ``None`` if they are not there yet and are not to be waited for.

        Raises:
            GolfError: the program could not be put together or packed.
        """
        if self._size is None and (wait or self._process.poll() is not None):
            printed, told = self._process.communicate()
            if self._process.returncode != 0:
                last = (told.strip().splitlines() or [str(self._process.returncode)])[-1]
                refused = self._process.returncode == REFUSED
                raise GolfError(last if refused else f"Measuring the program's size failed ({last}).")
            self._size = int(printed)
        return self._size


def main() -> int:
    """Print the size of the program whose configuration comes in; returns the exit status."""
    try:
        print(len(Program(sys.stdin.read()).read()))
    except GolfError as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    os.nice(19)
    sys.exit(main())
