"""The logger of a run: CSV and TensorBoard, which leave nothing behind before there is something to log."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

METRICS = "metrics"
"""Folder of a run's logged values."""


class RunLogger(Logger):
    """Logs to ``metrics/version_N`` as CSV and for TensorBoard; files are made with the first value.

    Lightning asks every logger that has an ``experiment`` for it before anything is checked, so a run that fails to
    start would leave empty files. This one has none; a callback that wants to log pictures or text finds TensorBoard's
    writer in ``trainer.logger.tensorboard.experiment``.

    Args:
        folder: the run's folder.
        continues: whether the run goes on from a checkpoint; what it logged before stays in an earlier version.
    """

    def __init__(self, folder: Path, continues: bool = False) -> None:
        super().__init__()
        self._folder = folder
        self._version = len(list((folder / METRICS).glob("version_*"))) if continues else 0

    @cached_property
    def csv(self) -> CSVLogger:
        """Saved with every line, which comes every few seconds: a killed run keeps its curve."""
        return CSVLogger(save_dir=self._folder, name=METRICS, version=self._version, flush_logs_every_n_steps=1)

    @cached_property
    def tensorboard(self) -> TensorBoardLogger:
        """The same values for TensorBoard."""
        return TensorBoardLogger(save_dir=self._folder, name=METRICS, version=self._version, default_hp_metric=False)

    @property
    @override
    def name(self) -> str:
        return METRICS

    @property
    @override
    def version(self) -> int:
        return self._version

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.csv.log_metrics({**metrics}, step)
        self.tensorboard.log_metrics(metrics, step)

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's ``config.yaml`` has them all."""

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        for made in ("csv", "tensorboard"):
            if made in self.__dict__:
                getattr(self, made).finalize(status)
