"""Who opened which split when: the evidence that training never saw validation."""

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from golf_lightning.data.shards import Split

Event = Literal["training begins", "training ends", "open", "refused"]
Phase = Literal["training", "after training", "validate", "test", "no trainer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """One entry of the log.

    Attributes:
        time: when, UTC in ISO 8601.
        event: a split was opened, opening it was refused, or training began or ended.
        phase: what the run was doing.
        step: optimizer steps done.
        split: the split; null for the beginning and the end of training.
        use: what it was opened for.
    """

    time: str
    event: Event
    phase: Phase
    step: int
    split: Split | None = None
    use: str = ""


class AccessLog:
    """Entries in the order in which they were made, over all sessions of a run."""

    def __init__(self) -> None:
        self.entries: list[Access] = []

    def add(self, event: Event, *, phase: Phase, step: int, split: Split | None = None, use: str = "") -> None:
        """Make an entry with the present time."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.entries.append(Access(time=now, event=event, phase=phase, step=step, split=split, use=use))

    def to_list(self) -> list[dict[str, Any]]:
        """The entries as plain JSON values."""
        return [asdict(entry) for entry in self.entries]

    def continue_from(self, entries: list[dict[str, Any]]) -> None:
        """Add the entries of earlier sessions, from :meth:`to_list`, each once, by their time."""
        earlier = [Access(**entry) for entry in entries]
        self.entries = sorted(dict.fromkeys((*earlier, *self.entries)), key=lambda entry: entry.time)
