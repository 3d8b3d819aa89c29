"""What MuonStrategy changes in a Trainer, in this process."""

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from golf_lightning.errors import GolfError
from golf_lightning.optim.strategy import MuonStrategy, begin_a_whole_step, switch_off_signals


def trainer(**settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=MuonStrategy(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **settings,
    )


def test_names_that_are_switched_off_still_exist() -> None:
    here = trainer()
    assert callable(here.fit_loop.epoch_loop._broadcast_sigterm_tensor)
    assert callable(here._signal_connector.register_signal_handlers)


def test_signals_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    here = trainer()
    switch_off_signals(here)
    monkeypatch.setattr("signal.signal", lambda *_: pytest.fail("a handler was installed"))
    monkeypatch.setattr("torch.distributed.broadcast", lambda *_: pytest.fail("a flag was sent"))
    here._signal_connector.register_signal_handlers()
    here.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_the_clip_of_the_trainer_is_refused() -> None:
    here = trainer(gradient_clip_val=1.0)
    with pytest.raises(GolfError, match="clip_norm"):
        here.strategy.setup(here)


def test_an_optimizer_that_does_not_average_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = trainer()
    parameter = torch.nn.Parameter(torch.zeros(1))
    here.strategy.optimizers = [torch.optim.SGD([parameter], lr=0.1)]
    monkeypatch.setattr(DDPStrategy, "setup_optimizers", lambda *_: None)
    monkeypatch.setattr(MuonStrategy, "world_size", 2)
    with pytest.raises(GolfError, match="SGD does not average"):
        here.strategy.setup_optimizers(here)


@pytest.mark.parametrize("done, accumulate, expected", [(3, 2, 4), (4, 2, 4), (3, 8, 8), (0, 8, 0), (5, 1, 5)])
def test_a_restored_run_begins_a_whole_step(done: int, accumulate: int, expected: int) -> None:
    here = trainer(accumulate_grad_batches=accumulate)
    progress = here.fit_loop.epoch_loop.batch_progress
    progress.increment_by(done)
    begin_a_whole_step(here)
    assert (progress.current.ready, progress.current.completed) == (expected, expected)


def test_accumulation_blocks_nothing() -> None:
    with trainer().strategy.block_backward_sync() as nothing:
        assert nothing is None


def test_the_timeout_is_in_seconds() -> None:
    assert MuonStrategy(timeout_s=90.0)._timeout == timedelta(seconds=90)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_means_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(GolfError, match="timeout_s"):
        MuonStrategy(timeout_s=seconds)
