"""Lines for the person who watches a run, and for the run's log."""

import logging
import time
from pathlib import Path
from types import TracebackType

from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import Self

LINES = logging.getLogger(__name__)
LOGGED = ("golf_lightning", "lightning.pytorch")
"""Loggers whose records belong in a run's log: what is said, and warnings."""


@rank_zero_only
def say(line: str) -> None:
    """Print a line on rank 0, at once, and give it to an open :class:`Transcript`."""
    print(line, flush=True)
    LINES.info(line)


class Transcript:
    """Appends everything that is said, with the time in UTC, to a text file until it is closed.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self._handler = logging.FileHandler(path, encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S")
        formatter.converter = time.gmtime
        self._handler.setFormatter(formatter)
        self._level = LINES.level
        LINES.setLevel(logging.INFO)
        for name in LOGGED:
            logging.getLogger(name).addHandler(self._handler)

    def close(self) -> None:
        """Stop copying; a second call does nothing."""
        for name in LOGGED:
            logging.getLogger(name).removeHandler(self._handler)
        LINES.setLevel(self._level)
        self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
