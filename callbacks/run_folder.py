"""Keeps everything a run writes in one folder."""

from datetime import datetime, timezone
from pathlib import Path
from signal import Signals
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from golf_lightning.data.access import AccessLog
from golf_lightning.errors import GolfError, Interrupted
from golf_lightning.files import read_json, sha256_of, write_json, write_whole
from golf_lightning.module import GolfModule
from golf_lightning.reporting.console import Transcript, say
from golf_lightning.reporting.run_folder import (
    LOG,
    RESULTS,
    artifact_path,
    clear,
    environment,
    named,
    refuse_to_replace,
)


class RunFolder(pl.Callback):
    """Writes configuration, environment, log, data access and result of a run to ``root/name``, and prints the result.

    Each command has files of its own, so stages can be repeated: ``fit`` writes ``result.json``, ``export``
    ``export.json``, ``test`` ``test.json``, and so on. What took long to make is not replaced without ``overwrite``:
    a run by ``fit``, an artifact by ``export``, a score by ``test``. Validation is quick, and simply done again.

    Args:
        name: name of the run, a folder name.
        root: folder of all runs.
        overwrite: do a finished stage again. fit then removes what the earlier run has written, once its own training
            begins; export and test replace their own files.

    Attributes:
        config: the resolved configuration as YAML text; the command line fills it in.
        model_file: the checkpoint or artifact that the command starts from, or ``None``; the command line fills it in.
    """

    def __init__(self, name: str = "run", root: str = "runs", overwrite: bool = False) -> None:
        if not name or Path(name).name != name:
            raise GolfError(f"run.name is {name!r}; give the name of a folder, without slashes.")
        self.folder = Path(root) / name
        self.overwrite = overwrite
        self.config = ""
        self.model_file: str | None = None
        self._command = ""
        self._access = AccessLog()
        self._transcript: Transcript | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, GolfModule)
        self._command = ""
        if not self.overwrite:
            refuse_to_replace(self.folder, _command(trainer), self.model_file)
        result, data = pl_module.result, pl_module.datamodule
        self._access = data.access
        # A checkpoint is older than what came after the training of its run.
        earlier = self.folder / named("access", ".json", "fit")
        if self.model_file is not None and stage == "fit" and earlier.is_file():
            self._access.continue_from(read_json(earlier))
        result.record("model", parameters=sum(p.numel() for p in pl_module.model.parameters()))
        sizes = {
            f"{name}_{field}": getattr(entry, field)
            for name, entry in data.manifest.splits.items()
            for field in ("documents", "tokens", "table_bytes")
        }
        result.record("data", fingerprint=data.manifest.fingerprint(), **sizes)

    def _begin(self, trainer: pl.Trainer, module: GolfModule) -> None:
        """Write what the run is, once everything has been checked and loaded: a mistake must not touch an old run."""
        self._command = _command(trainer)
        module.result.record("run", name=self.folder.name, command=self._command, status="running", started=_now())
        if trainer.is_global_zero:
            if self.model_file is not None:
                path = Path(self.model_file)
                module.result.record("run", from_file=path.name, from_sha256=sha256_of(path))
            if self._command == "fit" and self.model_file is None:
                clear(self.folder)
            with write_whole(self.folder / named("config", ".yaml", self._command), "w") as file:
                file.write(self.config)
            surroundings = environment(trainer.world_size) | {"backends": module.backends}
            write_json(self.folder / named("environment", ".json", self._command), surroundings)
            self._transcript = Transcript(self.folder / LOG)
            say(f"{self._command} in {self.folder}")
            say(", ".join(f"{what}: {by}" for what, by in module.backends.items()))

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
            self._begin(trainer, pl_module)
        if not trainer.sanity_checking:
            pl_module.ledger.enter("validate")

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        self._begin(trainer, pl_module)

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
        self._begin(trainer, pl_module)
        pl_module.ledger.enter("train")

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        pl_module.ledger.leave("train")
        pl_module.datamodule.end_training()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not self._command:
            say(
                f"nothing left to train: the checkpoint is at step {trainer.global_step} of {trainer.max_steps}; "
                "`export` and `test` repeat what follows training"
            )
        self._finish(trainer, pl_module, "finished")

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # What was measured up to here is kept, whatever ended the run.
        if isinstance(exception, Interrupted):
            self._finish(trainer, pl_module, f"stopped by {Signals(exception.signal).name}")
        else:
            self._finish(trainer, pl_module, f"failed: {exception}")

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, status: str) -> None:
        assert isinstance(pl_module, GolfModule)
        if not self._command or not trainer.is_global_zero:
            return
        result = pl_module.result
        result.record("run", status=status, finished=_now())
        if ledger := pl_module.ledger.to_dict():
            result.values["ledger"] = ledger
        if "artifact" in result.values:
            result.record("artifact", sha256=sha256_of(artifact_path(trainer)))
        if result.documents is not None:
            result.documents.write(self.folder / named("documents", ".csv", self._command))
        result.write(self.folder / RESULTS[self._command])
        write_json(self.folder / named("access", ".json", self._command), self._access.to_list())
        if self._transcript is None:  # told already: something failed after the run's last line
            with Transcript(self.folder / LOG):
                say(status)
            return
        if result.values.get("scores"):
            say(result.table())
        say(f"{status}; results in {self.folder}" if status != "finished" else f"results in {self.folder}")
        self._transcript.close()
        self._transcript = None


def _command(trainer: pl.Trainer) -> str:
    """The subcommand that the Trainer is running; an export begins as a validation."""
    return "export" if getattr(trainer, "exporting", False) else str(trainer.state.fn.value)  # type: ignore[union-attr]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
