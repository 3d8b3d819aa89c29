"""Lightning's DDP without its wrapper: the optimizer communicates, the strategy does everything around it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from golf_lightning.errors import GolfError
from golf_lightning.optim.muon import MuonAdamW


class MuonStrategy(DDPStrategy):
    """Trains on 1 to N processes with :class:`~golf_lightning.optim.muon.MuonAdamW`, which averages gradients itself.

    Launchers, process group, barriers and checkpoints are those of ``DDPStrategy``; Lightning's own launcher, torchrun
    and SLURM start it. The model is not wrapped: a bank's gradient is complete only when the first layer's backward
    ends, so DDP has nothing to overlap, and its hooks would split the compiled graph.

    Lightning's signal handlers and its broadcast of a SIGTERM flag, one device sync a step, are switched off: signals
    travel with the optimizer's exchange, so a callback must install handlers of its own.

    Raises:
        GolfError: the Trainer clips gradients, or several processes train with an optimizer that does not average.
    """

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.gradient_clip_val:
            raise GolfError(
                f"gradient_clip_val is {trainer.gradient_clip_val}, but it would clip before ranks are averaged; "
                "leave it out and set clip_norm of the optimizer."
            )
        switch_off_signals(trainer)
        super().setup(trainer)

    @override
    def configure_ddp(self) -> None:
        assert self.model is not None
        with torch.no_grad():
            # What a checkpoint would hold; buffers outside of it are made from the configuration, alike on every rank.
            for tensor in self.model.state_dict().values():
                dist.broadcast(tensor, src=0)

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, MuonAdamW):
                optimizer.join(dist.group.WORLD)
            elif self.world_size > 1:
                raise GolfError(
                    f"{type(optimizer).__name__} does not average gradients over the {self.world_size} processes; "
                    "use MuonAdamW, or the strategy ddp."
                )

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict(checkpoint)
        assert self.lightning_module is not None
        begin_a_whole_step(self.lightning_module.trainer)

    @override
    def block_backward_sync(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Backward never communicates, so accumulation has nothing to block."""
        return nullcontext()


def begin_a_whole_step(trainer: pl.Trainer) -> None:
    """Make the next micro-batch the first of an optimizer step, after the loops are restored.

    Lightning steps when its count of micro-batches divides by ``accumulate_grad_batches``. A run that continues with
    another number of ranks, and so of micro-batches a step, would otherwise begin with a smaller step.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.increment_by(-progress.current.ready % trainer.accumulate_grad_batches)


def switch_off_signals(trainer: pl.Trainer) -> None:
    """Stop Lightning from installing signal handlers and from broadcasting a SIGTERM flag every step.

    Both are private names, present in lightning 2.6; a test says when they go.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    connector = trainer._signal_connector
    if hasattr(connector, "register_signal_handlers"):
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
