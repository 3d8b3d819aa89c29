"""Refuse ranks that differ at the start, instead of finding it later as a hang or a drift."""

import hashlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from golf_lightning.errors import GolfError


def assert_same_on_all_ranks(value: str, what: str = "The configuration") -> None:
    """Compare the SHA-256 of ``value`` between all ranks; without a process group there is nothing to compare.

    Every rank calls it, at the same point of the program. The hash and not the text travels, so that texts of
    different lengths compare too.

    Args:
        value: text that must be the same everywhere, such as the resolved configuration or the data's manifest.
        what: the text's name in the message, a noun phrase that begins a sentence.

    Raises:
        GolfError: on every rank, when any two differ.
    """
    differing = _ranks_unlike_rank_0(hashlib.sha256(value.encode()).digest())
    if differing:
        raise GolfError(f"{what} of ranks {differing} differs from rank 0's; start every rank with the same files.")


def assert_parameters_equal(named_parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Compare the bits of all parameters between ranks by two checksums each; 16 bytes a tensor travel.

    The checksums are the sum and the position-weighted sum of the bits, as integers, so an equal run never fails and
    a changed, moved or swapped value is found. Waits for the device: ask for it now and then, not every step.

    Raises:
        GolfError: on every rank, when any two differ.
    """
    sums = [checksum for _, parameter in named_parameters for checksum in _checksums(parameter.detach())]
    differing = _ranks_unlike_rank_0(torch.stack(sums).cpu().numpy().tobytes())
    if differing:
        raise GolfError(
            f"The parameters of ranks {differing} differ from rank 0's; results of this run cannot be trusted, "
            "continue from its last checkpoint."
        )


def _checksums(parameter: Tensor) -> tuple[Tensor, Tensor]:
    bits = parameter.contiguous().view(torch.int32).flatten().long()
    weights = torch.arange(1, bits.numel() + 1, device=bits.device)
    return bits.sum(), (bits * weights).sum()


def _ranks_unlike_rank_0(data: bytes) -> list[int]:
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    digests: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, data)
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]
