"""Where the seconds of a run went."""

import contextlib
import time
from collections.abc import Iterator


class Ledger:
    """Wall-clock seconds by stage. Stages add up when they are entered again; nothing is counted twice by nesting."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds under ``name``; an inner stage stops the outer one's clock."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave(name)

    def enter(self, name: str) -> None:
        """Begin a stage that :meth:`leave` ends, for hooks that come in pairs."""
        self._settle()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)

    def leave(self, name: str) -> None:
        """End the innermost stage, which must be ``name``."""
        assert self._open and self._open[-1] == name, f"{name} is not the innermost of {self._open}"
        self._settle()
        self._open.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that something else has measured."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def to_dict(self) -> dict[str, float]:
        """Seconds by stage in the order in which stages first began, open ones up to now."""
        self._settle()
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
