"""Lines for the person who watches a run."""

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def say(line: str) -> None:
    """Print a line on rank 0, at once."""
    print(line, flush=True)
