"""Shards on disk to packed batches on the device."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from typing_extensions import override

from golf_lightning.data.access import AccessLog, Phase
from golf_lightning.data.batch import PackedBatch
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.packing import PackingConfig, ValidationBatches, training_batches
from golf_lightning.data.shards import SPLITS, Split, Tokens, find_shards, map_shard
from golf_lightning.data.stream import TokenStream
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.documents import DocumentStream


class GolfDataModule(pl.LightningDataModule):
    """A folder made by ``python -m golf_lightning prepare``.

    The position in the training stream is part of every checkpoint, so a resumed run continues with the next token.

    Validation shards are not opened before training ends: :attr:`access` logs every opening of a split, and an attempt
    to read validation earlier is refused. Outside a Trainer's ``fit`` nothing is refused.

    Args:
        folder: the data folder: shards, tokenizer and manifest.
        train_tokens: tokens of one training micro-batch of one rank.
        val_tokens: tokens of one validation batch of one rank; does not change any score.
        max_seqlen: longest segment in tokens; linked to the model's.
        max_segments: most segments in a batch; FlashAttention-4 needs a second kernel beyond 256.
        shuffle_seed: seed of a permutation of the training shards in every epoch; null keeps their order.
        validate_while_training: let validation be read before training ends, which the audit of the run then reports.

    Attributes:
        access: which split was opened when, and for what.

    Raises:
        GolfError: the folder is not a complete dataset, a batch shape is impossible, or validation is asked for while
            training.
    """

    def __init__(
        self,
        folder: str,
        train_tokens: int = 98_304,
        val_tokens: int = 98_304,
        max_seqlen: int = 2048,
        max_segments: int = 256,
        shuffle_seed: int | None = None,
        validate_while_training: bool = False,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.train_packing = PackingConfig(tokens=train_tokens, max_seqlen=max_seqlen, max_segments=max_segments)
        self.val_packing = dataclasses.replace(self.train_packing, tokens=val_tokens)
        self.shuffle_seed = shuffle_seed
        self.validate_while_training = validate_while_training
        self.position = 0
        self.access = AccessLog()
        self._ready: tuple[Manifest, Tokenizer, ByteTable] | None = None
        self._training_ended = False

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.manifest.verify_files(self.folder, SPLITS, unopened=["val"])
            self._training_ended = False
            self.access.add("training begins", phase="training", step=0)
        else:
            self.manifest.verify_files(self.folder, ["val"])

    def end_training(self) -> None:
        """Say that no step follows, so that validation may be read from here on."""
        if not self._training_ended:
            self._training_ended = True
            self.access.add("training ends", phase="training", step=self._step())

    @property
    def settings(self) -> str:
        """Data and batch shapes as text, equal where the same batches come out."""
        return f"{self.manifest.fingerprint()} {self.train_packing} {self.val_packing} {self.shuffle_seed}"

    @property
    def manifest(self) -> Manifest:
        """What ``prepare`` wrote down about the folder."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards."""
        return self._load()[1]

    @property
    def byte_table(self) -> ByteTable:
        """Bytes of each token."""
        return self._load()[2]

    def train_stream(self) -> TokenStream:
        """The endless training stream."""
        return TokenStream(self._open("train", "training stream"), self.shuffle_seed)

    def val_tokens(self, use: str = "all tokens") -> Tokens:
        """The whole validation split, ``[N]`` uint16.

        Args:
            use: what for, in the words of the log.

        Raises:
            GolfError: training has not ended.
        """
        return np.concatenate(self._open("val", use))

    def documents(self) -> DocumentStream:
        """The validation documents in official order.

        Raises:
            GolfError: training has not ended.
        """
        return DocumentStream(self.val_tokens("documents"), bos_id=self.tokenizer.bos_id)

    @property
    def val_targets(self) -> int:
        """Targets of the whole validation split."""
        return self.manifest.splits["val"].tokens - 1

    def calibration_batches(self, count: int, *, rank: int = 0, world_size: int = 1) -> Iterator[PackedBatch]:
        """The first ``count`` packed batches of the training stream, dealt to the ranks in turn."""
        batches = training_batches(self.train_stream(), self.train_packing, bos_id=self.tokenizer.bos_id)
        for index, batch in zip(range(count), batches, strict=False):
            if index % world_size == rank:
                yield batch

    @override
    def train_dataloader(self) -> Iterable[PackedBatch]:
        rank, world_size = self._ranks()
        return _Pinned(
            training_batches(
                self.train_stream(),
                self.train_packing,
                bos_id=self.tokenizer.bos_id,
                position=self.position,
                rank=rank,
                world_size=world_size,
            )
        )

    @override
    def val_dataloader(self) -> Iterable[PackedBatch]:
        # Lightning asks for the loader before the first training step.
        return _OnDemand(self._validation_batches)

    def _validation_batches(self) -> ValidationBatches:
        rank, world_size = self._ranks()
        tokens, bos_id = self.val_tokens("validation batches"), self.tokenizer.bos_id
        return ValidationBatches(tokens, self.val_packing, bos_id=bos_id, rank=rank, world_size=world_size)

    @override
    def test_dataloader(self) -> Iterable[DocumentStream]:
        """One item: the stream of all documents. Test-time training decides itself how many run at once."""
        return _Single(self.documents())

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device, non_blocking=device.type == "cuda") if isinstance(batch, PackedBatch) else batch

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # The loader is asked for batches ahead of their use; only what training has taken counts as seen.
        if self.trainer is not None and self.trainer.training:
            self.position = batch.next_position
        return batch

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "data": self.manifest.fingerprint()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["data"] != self.manifest.fingerprint():
            raise GolfError(
                f"The checkpoint was trained on other data than {self.folder} holds; "
                "give --data.folder the folder of that run."
            )
        self.position = state_dict["position"]

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _phase(self) -> Phase:
        if self.trainer is None:
            return "no trainer"
        if self.trainer.state.fn in ("validate", "test"):
            return "test" if self.trainer.state.fn == "test" else "validate"
        return "after training" if self._training_ended or self.trainer.should_stop else "training"

    def _step(self) -> int:
        return self.trainer.global_step if self.trainer is not None else 0

    def _open(self, split: Split, use: str) -> list[Tokens]:
        """The shards of a split; the only way to them."""
        phase, step = self._phase(), self._step()
        refused = split == "val" and phase == "training" and not self.validate_while_training
        self.access.add("refused" if refused else "open", phase=phase, step=step, split=split, use=use)
        if refused:
            raise GolfError(
                f"The validation split was asked for at step {step}, before training has ended; leave the Trainer's "
                "val_check_interval at its default, or set --data.validate_while_training true, which the audit "
                "reports."
            )
        shards = [map_shard(path) for path in find_shards(self.folder, split)]
        if int(shards[0][0]) != self.tokenizer.bos_id:
            raise GolfError(
                f"The first {split} shard in {self.folder} does not start with the BOS token {self.tokenizer.bos_id}; "
                "run `python -m golf_lightning prepare check` on the folder."
            )
        return shards

    def _load(self) -> tuple[Manifest, Tokenizer, ByteTable]:
        if self._ready is None:
            manifest = Manifest.load(self.folder)
            tokenizer = Tokenizer(self.folder / manifest.tokenizer)
            self._ready = manifest, tokenizer, ByteTable.from_tokenizer(tokenizer)
        return self._ready


class _Pinned:
    """Batches in pinned memory where there is a GPU, so that the copy to it does not wait for the host."""

    def __init__(self, batches: Iterator[PackedBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[PackedBatch]:
        pin = torch.cuda.is_available()
        return (batch.pin_memory() if pin else batch for batch in self.batches)


class _OnDemand:
    """Batches that are made when they are asked for."""

    def __init__(self, make: Callable[[], Iterable[PackedBatch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[PackedBatch]:
        # A generator: Lightning makes an iterator before training, only to see whether it can.
        yield from self.make()


class _Single:
    """A loader of one item. A list would be taken for several loaders."""

    def __init__(self, item: DocumentStream) -> None:
        self.item = item

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[DocumentStream]:
        yield self.item
