"""Bytes on disk against the contest's limit."""

from dataclasses import dataclass
from pathlib import Path

from golf_lightning.errors import GolfError

MOST_CODE_BYTES = 60_000
"""What the bundled program must not exceed, by the project's own rule; counted while nobody has measured it."""


class OverBudget(GolfError):
    """The artifact and the code together are larger than the limit; everything was written all the same."""


@dataclass(kw_only=True)
class BudgetConfig:
    """What may be submitted.

    Args:
        limit_bytes: most that artifact and code may take together, in decimal bytes.
        code_bytes: bytes of the program that loads and scores the artifact. null measures them by bundling the program
            with the run's configuration before training; where there is no run to bundle, 60,000 bytes are counted.
    """

    limit_bytes: int = 16_000_000
    code_bytes: int | None = None

    def __post_init__(self) -> None:
        code_bytes = self.code_bytes or 0
        if code_bytes < 0 or self.limit_bytes <= code_bytes:
            raise GolfError(
                f"limit_bytes is {self.limit_bytes} and code_bytes is {self.code_bytes}; "
                "code_bytes must be at least 0 and less than the limit."
            )

    @property
    def counted_code_bytes(self) -> int:
        """Bytes to subtract for the program: as given or measured, else more than it takes."""
        return MOST_CODE_BYTES if self.code_bytes is None else self.code_bytes

    @property
    def artifact_bytes(self) -> int:
        """What is left for the artifact."""
        return self.limit_bytes - self.counted_code_bytes


@dataclass(frozen=True, slots=True)
class ByteBudget:
    """A measured size against the limit.

    Attributes:
        artifact_bytes: size of the artifact file on disk.
        code_bytes: bytes counted for the program.
        limit_bytes: the limit.
    """

    artifact_bytes: int
    code_bytes: int
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        """Artifact and code."""
        return self.artifact_bytes + self.code_bytes

    @property
    def headroom_bytes(self) -> int:
        """Bytes left under the limit; negative when over it."""
        return self.limit_bytes - self.total_bytes

    def require(self) -> None:
        """Fail when over the limit. Call this last, after everything worth keeping is on disk.

        Raises:
            OverBudget: saying how many bytes too many.
        """
        if self.headroom_bytes < 0:
            raise OverBudget(
                f"The artifact of {self.artifact_bytes:,} bytes and {self.code_bytes:,} bytes of code are "
                f"{-self.headroom_bytes:,} bytes over the limit of {self.limit_bytes:,}; the files are kept, "
                "export again with a larger k or fewer bits."
            )


def measure_budget(path: str | Path, config: BudgetConfig) -> ByteBudget:
    """Measure an artifact file on disk against the limit."""
    return ByteBudget(Path(path).stat().st_size, config.counted_code_bytes, config.limit_bytes)
