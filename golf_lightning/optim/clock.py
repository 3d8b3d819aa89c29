"""The training clock: monotonic seconds that can be paused and saved."""

import time
from collections.abc import Callable

from golf_lightning.errors import GolfError


class TrainingClock:
    """Counts seconds between :meth:`start` or :meth:`resume` and :meth:`pause`.

    Training may use ``train_s``, the budget less a reserve for the export; schedules run over the same span.

    Args:
        budget_s: whole budget, in seconds.
        reserve_s: seconds at the end of the budget that belong to the export.
        time: source of monotonic seconds.

    Raises:
        GolfError: the budget is not positive, or the reserve leaves nothing to train in.
    """

    def __init__(self, budget_s: float, reserve_s: float = 0.0, *, time: Callable[[], float] = time.monotonic) -> None:
        if not 0 < budget_s < float("inf"):
            raise GolfError(f"The training budget is {budget_s} s; it must be above 0 and finite.")
        if not 0 <= reserve_s < budget_s:
            raise GolfError(
                f"The export reserve is {reserve_s} s; choose 0 or more, and less than the budget of {budget_s} s."
            )
        self.budget_s = budget_s
        self.reserve_s = reserve_s
        self._time = time
        self._counted_s = 0.0
        self._running_since: float | None = None

    @property
    def train_s(self) -> float:
        """Seconds that training may use."""
        return self.budget_s - self.reserve_s

    @property
    def running(self) -> bool:
        """Whether seconds are being counted now."""
        return self._running_since is not None

    def start(self) -> None:
        """Count from zero, whatever was counted before."""
        self._counted_s = 0.0
        self._running_since = self._time()

    def pause(self) -> None:
        """Stop counting; nothing happens when the clock already stands."""
        self._counted_s = self.elapsed()
        self._running_since = None

    def resume(self) -> None:
        """Go on counting; nothing happens when the clock already runs."""
        if self._running_since is None:
            self._running_since = self._time()

    def elapsed(self) -> float:
        """Seconds counted so far."""
        if self._running_since is None:
            return self._counted_s
        return self._counted_s + (self._time() - self._running_since)

    def fraction(self, elapsed_s: float | None = None) -> float:
        """Part of ``train_s`` that has passed, in [0, 1].

        Args:
            elapsed_s: seconds to judge instead of this clock's own, such as the time all ranks agreed on.
        """
        return min(1.0, (self.elapsed() if elapsed_s is None else elapsed_s) / self.train_s)

    def state_dict(self) -> dict[str, float]:
        """The seconds counted so far; budget and reserve belong to the configuration."""
        return {"elapsed_s": self.elapsed()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over saved seconds; the clock runs on when it runs now, and stands when it stands."""
        self._counted_s = float(state["elapsed_s"])
        if self._running_since is not None:
            self._running_since = self._time()
