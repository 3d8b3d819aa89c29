"""Lightning's DDP without its wrapper: the optimizer communicates, the strategy does everything around it."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.distributed_c10d import _get_default_store
from typing_extensions import override

from golf_lightning.errors import GolfError
from golf_lightning.optim.faults import ProcessWatch, die_with_parent, report_fault
from golf_lightning.optim.muon import MuonAdamW


class MuonStrategy(DDPStrategy):
    """Trains on 1 to N processes with :class:`~golf_lightning.optim.muon.MuonAdamW`, which averages gradients itself.

    Launchers, process group, barriers and checkpoints are those of ``DDPStrategy``; Lightning's own launcher, torchrun
    and SLURM start it. The model is not wrapped: a bank's gradient is complete only when the first layer's backward
    ends, so DDP has nothing to overlap, and its hooks would split the compiled graph.

    Lightning's signal handlers and its broadcast of a SIGTERM flag, one device sync a step, are switched off: signals
    travel with the optimizer's exchange, so a callback must install handlers of its own.

    A rank that raises or dies ends the run: the first to fail shows its error, the others name it, and no rank outlives
    the process that started it.

    Args:
        timeout_s: seconds that a rank waits for the others outside of training steps, where rank 0 may encode the
            artifact alone; a longer wait ends the run. Within training, see the callback ``RankWatch``.
        **kwargs: as ``DDPStrategy`` takes them.

    Raises:
        GolfError: the Trainer clips gradients, several processes train with an optimizer that does not average, or
            ``timeout_s`` is not positive.
    """

    def __init__(self, timeout_s: float = 600.0, **kwargs: Any) -> None:
        if not 0 < timeout_s < float("inf"):
            raise GolfError(f"The strategy's timeout_s is {timeout_s}; choose seconds above 0.")
        super().__init__(timeout=timedelta(seconds=timeout_s), **kwargs)

    @override
    def setup_environment(self) -> None:
        environment = self.cluster_environment
        if isinstance(environment, TorchElasticEnvironment) or (
            isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
        ):
            die_with_parent()
        if self._started:
            ProcessWatch(self._started, first_rank=self.node_rank * self.num_processes + 1).start()
        super().setup_environment()

    @override
    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        # Interrupted and KeyboardInterrupt are no faults: all ranks end alike.
        if isinstance(exception, Exception) and dist.is_initialized() and self.world_size > 1:
            report_fault(exception, self.global_rank, _get_default_store(), self._started)

    @property
    def _started(self) -> Sequence["subprocess.Popen[bytes]"]:
        """The ranks that Lightning's launcher has started from this process."""
        return getattr(self.launcher, "procs", [])

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
