"""What an audit found: checks, as a table and as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One claim and what was found.

    Attributes:
        name: the claim in a few words.
        passed: whether it holds; ``None`` where the evidence for it was not given.
        measured: what was found.
        expected: what an honest run gives.
        sentence: what was done, and what follows from it.
        figures: the same as plain JSON values.
    """

    name: str
    passed: bool | None
    measured: str
    expected: str
    sentence: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``passed``, ``FAILED`` or ``not checked``."""
        return "not checked" if self.passed is None else "passed" if self.passed else "FAILED"


COLOURS = {"passed": "green", "FAILED": "bold red", "not checked": "yellow"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditReport:
    """All checks of one artifact on one data folder.

    Attributes:
        checks: in the order in which they were made.
        subject: what was audited, as plain JSON values: files with their hashes, settings, device.
        seconds: what the audit took.
    """

    checks: list[Check]
    subject: dict[str, Any]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed; some may not have been made, see :attr:`complete`."""
        return all(check.passed is not False for check in self.checks)

    @property
    def complete(self) -> bool:
        """Whether every check was made."""
        return all(check.passed is not None for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        checks = [{"verdict": check.verdict, **asdict(check)} for check in self.checks]
        subject = {"passed": self.passed, "complete": self.complete, "subject": self.subject}
        return {**subject, "seconds": round(self.seconds, 1), "checks": checks}

    def table(self) -> Table:
        """The checks as a table for the terminal."""
        table = Table(show_lines=True, title="Audit", title_justify="left")
        table.add_column("check", max_width=20)
        table.add_column("verdict", max_width=8)
        table.add_column("found", ratio=2)
        table.add_column("what was done", ratio=3)
        for check in self.checks:
            verdict = Text(check.verdict, style=COLOURS[check.verdict])
            found = check.measured if check.passed else f"{check.measured} (expected: {check.expected})"
            table.add_row(Text(check.name), verdict, Text(found), Text(check.sentence))
        return table

    def summary(self) -> str:
        """One line: how many checks passed, failed, and were not made."""
        verdicts = [check.verdict for check in self.checks]
        parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in COLOURS if verdict in verdicts]
        return f"{', '.join(parts)}, in {self.seconds:.0f} s"
