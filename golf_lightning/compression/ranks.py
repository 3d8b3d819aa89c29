"""Work of ranks whose results, or failures, all ranks must know."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from golf_lightning.errors import GolfError


def on_every_rank(work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run ``work`` on every rank and give all their results to each, in the order of ranks; alone, just run it.

    Args:
        work: what this rank does; its result is small and of plain values.

    Raises:
        GolfError: on every rank, when ``work`` raised it on one of them or a rank stopped for another reason; that of
            the first such rank.
    """
    if not dist.is_initialized():
        return [work()]
    rank = dist.get_rank()
    mine: dict[str, Any] = {"error": f"Rank {rank} stopped during the export; see its output."}
    outcomes: list[Any] = [None] * dist.get_world_size()
    try:
        mine = {"value": work()}
    except GolfError as error:
        mine = {"error": str(error)}
    finally:
        # Also when this rank fails, or the others would wait for it for ever.
        dist.all_gather_object(outcomes, mine)
    for outcome in outcomes:
        if "error" in outcome:
            raise GolfError(outcome["error"])
    return [outcome["value"] for outcome in outcomes]


def on_rank_zero(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run ``work`` on rank 0 and give its result to every rank; see :func:`on_every_rank`."""
    alone = not dist.is_initialized() or dist.get_rank() == 0
    return on_every_rank(work if alone else dict)[0]
