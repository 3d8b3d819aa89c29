"""Work of one rank whose result, or failure, all ranks must know."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from golf_lightning.errors import GolfError


def on_rank_zero(work: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Run ``work`` on rank 0 and give its result, JSON values, to every rank; alone, just run it.

    Args:
        work: what rank 0 does.
        device: a device the process group can send from.

    Raises:
        GolfError: on every rank, when ``work`` raised it on rank 0 or rank 0 stopped for another reason.
    """
    if not dist.is_initialized():
        return work()
    message: dict[str, Any] = {"error": "Rank 0 stopped during the export; see its output."}
    try:
        if dist.get_rank() == 0:
            message = {"value": work()}
    except GolfError as error:
        message = {"error": str(error)}
        raise
    finally:
        # Also when rank 0 fails, or the others would wait for it for ever.
        message = _broadcast_json(message, device)
    if "error" in message:
        raise GolfError(message["error"])
    return message["value"]


def _broadcast_json(value: dict[str, Any], device: torch.device) -> dict[str, Any]:
    text = json.dumps(value).encode()
    size = torch.tensor(len(text), dtype=torch.int64, device=device)
    dist.broadcast(size, src=0)
    data = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        data = torch.tensor(list(text), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return json.loads(bytes(data.tolist()))
