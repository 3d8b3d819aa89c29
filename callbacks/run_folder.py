"""Keeps everything a run writes in one folder."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from golf_lightning.data.access import AccessLog
from golf_lightning.errors import GolfError
from golf_lightning.files import read_json, write_json, write_whole
from golf_lightning.module import GolfModule
from golf_lightning.reporting.console import say
from golf_lightning.reporting.run_folder import environment, last_checkpoint

RESULT_NAMES = {"fit": "result.json", "validate": "validate.json", "test": "test.json"}


class RunFolder(pl.Callback):
    """Writes configuration, environment, result and data access of a run to ``root/name``, and prints the result.

    Args:
        name: name of the run, a folder name.
        root: folder of all runs.
        overwrite: train again in the folder of a finished run; its files are replaced as new ones are written.

    Attributes:
        config: the resolved configuration as YAML text; the command line fills it in.
        continues: whether the run goes on from a checkpoint; the command line says so.
    """

    def __init__(self, name: str = "run", root: str = "runs", overwrite: bool = False) -> None:
        if not name or Path(name).name != name:
            raise GolfError(f"run.name is {name!r}; give the name of a folder, without slashes.")
        self.folder = Path(root) / name
        self.overwrite = overwrite
        self.config = ""
        self.continues = False
        self._stage = ""
        self._access = AccessLog()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not self.continues and not self.overwrite and last_checkpoint(trainer).exists():
            raise GolfError(
                f"{self.folder} already holds a run; choose another --run.name, continue it with "
                f"--ckpt_path {last_checkpoint(trainer)}, or train it again with --run.overwrite true."
            )
        assert isinstance(pl_module, GolfModule)
        self._access = pl_module.datamodule.access
        # A checkpoint is older than what came after the training of its run.
        if self.continues and stage == "fit" and (self.folder / "access.json").is_file():
            self._access.continue_from(read_json(self.folder / "access.json"))
        pl_module.result.record("model", parameters=sum(p.numel() for p in pl_module.model.parameters()))

    def _begin(self, trainer: pl.Trainer, stage: str) -> None:
        """Write what the run is, once everything has been checked and loaded: a mistake must not touch an old run."""
        self._stage = stage
        if trainer.is_global_zero:
            with write_whole(self.folder / f"config{self._suffix()}.yaml", "w") as file:
                file.write(self.config)
            write_json(self.folder / f"environment{self._suffix()}.json", environment())

    def _suffix(self) -> str:
        return "" if self._stage == "fit" else f".{self._stage}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"access": self._access.to_list()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._access.continue_from(state_dict["access"])

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        if trainer.state.fn == "validate":
            self._begin(trainer, "validate")
        if not trainer.sanity_checking:
            pl_module.ledger.enter("validate")

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, "test")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        if not trainer.sanity_checking:
            pl_module.ledger.leave("validate")
        if trainer.should_stop or trainer.state.fn == "validate":
            name = "quantized" if pl_module.is_artifact else "before_quantization"
            pl_module.record_score(name, pl_module.score())

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        self._begin(trainer, "fit")
        pl_module.ledger.enter("train")

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        pl_module.ledger.leave("train")
        pl_module.datamodule.end_training()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not self._stage:
            say(
                f"nothing left to train: the checkpoint is at step {trainer.global_step} of {trainer.max_steps}; "
                "`export` and `test` repeat what follows training"
            )
        self._finish(trainer, pl_module)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # What was measured up to here is kept, whatever ended the run.
        self._finish(trainer, pl_module)

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        if not self._stage or not trainer.is_global_zero:
            return
        result = pl_module.result
        if ledger := pl_module.ledger.to_dict():
            result.values["ledger"] = ledger
        result.write(self.folder / RESULT_NAMES[self._stage])
        write_json(self.folder / f"access{self._suffix()}.json", self._access.to_list())
        if result.values.get("scores"):
            say(result.table())
        say(f"results in {self.folder}")
        self._stage = ""
