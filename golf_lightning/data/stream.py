"""An endless stream of training tokens over memory-mapped shards."""

from collections.abc import Sequence

import numpy as np

from golf_lightning.data.shards import Tokens


class TokenStream:
    """The shards of a split, one after the other, again and again.

    A position counts tokens from the start of the first epoch, so one integer says where a run has to continue. Without
    a seed the shards come in the given order, as in the contest; with one, every epoch has its own permutation.

    Args:
        shards: ``[N_i]`` uint16 tokens of each shard.
        shuffle_seed: seed of the shard permutations, or ``None`` for the given order.
    """

    def __init__(self, shards: Sequence[Tokens], shuffle_seed: int | None = None) -> None:
        self.shards = list(shards)
        self.shuffle_seed = shuffle_seed
        self.tokens_per_epoch = sum(len(shard) for shard in self.shards)

    def read(self, position: int, count: int) -> tuple[Tokens, list[int]]:
        """``count`` tokens from ``position`` on.

        Returns:
            ``[count]`` uint16 tokens, and the offsets at which two shards meet that do not follow each other: a
            document must not run across these.
        """
        parts: list[Tokens] = []
        joints: list[int] = []
        filled = 0
        while filled < count:
            epoch, offset = divmod(position + filled, self.tokens_per_epoch)
            for shard in self._epoch(epoch):
                if offset >= len(shard):
                    offset -= len(shard)
                    continue
                if filled and offset == 0 and self.shuffle_seed is not None:
                    joints.append(filled)
                part = shard[offset : offset + count - filled]
                parts.append(part)
                filled += len(part)
                offset = 0
                if filled == count:
                    break
        return np.concatenate(parts), joints

    def _epoch(self, epoch: int) -> list[Tokens]:
        if self.shuffle_seed is None:
            return self.shards
        order = np.random.default_rng((self.shuffle_seed, epoch)).permutation(len(self.shards))
        return [self.shards[i] for i in order]
