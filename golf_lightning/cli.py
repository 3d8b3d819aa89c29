"""The command line: LightningCLI with this project's classes, short names and one-sentence errors."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from typing_extensions import override

from golf_lightning.checkpoints import GolfCheckpointIO
from golf_lightning.data.datamodule import GolfDataModule
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.reporting.loggers import RunLogger
from golf_lightning.tools import TOOLS, describe_tools

TRAINER_DEFAULTS: dict[str, Any] = {
    "strategy": {"class_path": "golf_lightning.optim.strategy.MuonStrategy"},
    "devices": 1,
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    # Test-time training needs gradients in the test loop.
    "inference_mode": False,
}


DESCRIPTION = "Train, compress and score tiny language models. "


class GolfParser(LightningArgumentParser):
    """A parser that answers a mistake with one sentence instead of a page of options."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake as a GolfError, naming the nearest option where one was misspelt."""
        parser = getattr(ex, "subcommand_parser", None) or self
        text = " ".join(str(message).split()).rstrip(".")
        if text.startswith(("argument subcommand", 'expected "subcommand"')):
            given = re.search("invalid choice: '(.*?)'", text)
            text = f"there is no command {given[1]}" if given else "no command was given"
            text += f"; choose from {', '.join((*GolfCLI.subcommands(), *TOOLS))}"
        if unknown := re.search(r"(?:accept option|arguments?:|arguments) '?(?:--)?([\w.]+)", text):
            options = [name.lstrip("-") for action in parser._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[1], options, n=1)
            text += f"; did you mean {near[0]}?" if near else ""
        raise GolfError(f"{text} (help: {parser.prog.replace(' [options]', '')} --help)") from ex


class GolfTrainer(pl.Trainer):
    """Lightning's Trainer with the stage between training and scoring.

    Attributes:
        exporting: whether a validation is the first half of :meth:`export`.
    """

    exporting = False

    # The command line shows these signatures; Lightning's have arguments that mean nothing here.

    def fit(  # type: ignore[override]
        self, model: GolfModule, datamodule: GolfDataModule, ckpt_path: str | None = None
    ) -> None:
        """Train until the clock stops, then average, export and score.

        Args:
            model: the module.
            datamodule: the data.
            ckpt_path: checkpoint of an interrupted run to continue.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def validate(  # type: ignore[override]
        self, model: GolfModule, datamodule: GolfDataModule, ckpt_path: str | None = None
    ) -> None:
        """Score a checkpoint or an artifact on the validation split, without adaptation.

        Args:
            model: the module.
            datamodule: the data.
            ckpt_path: runs/NAME/artifact.golf, or runs/NAME/checkpoints/last.ckpt.
        """
        super().validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def export(self, model: GolfModule, datamodule: GolfDataModule, ckpt_path: str | None = None) -> None:
        """Score a checkpoint's averaged weights, then quantize them and write the artifact.

        Args:
            model: the module.
            datamodule: the data; calibration reads its training split.
            ckpt_path: runs/NAME/checkpoints/last.ckpt.
        """
        self.exporting = True
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def test(  # type: ignore[override]
        self, model: GolfModule, datamodule: GolfDataModule, ckpt_path: str | None = None
    ) -> None:
        """Score an artifact with document test-time training.

        Args:
            model: the module.
            datamodule: the data; only its validation split is read.
            ckpt_path: runs/NAME/artifact.golf.
        """
        super().test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)


class GolfCLI(LightningCLI):
    """``fit``, ``validate``, ``export`` and ``test``.

    Args:
        callbacks: short name on the command line to callback class, in running order. ``run`` must be among them: it
            names the run's folder. A callback whose attribute ``enabled`` is false is left out.
        args: command-line arguments instead of ``sys.argv``.
        module_class: the module to build from the options, which are those of its ``__init__``.
    """

    def __init__(
        self,
        callbacks: Mapping[str, type[pl.Callback]],
        args: ArgsType = None,
        module_class: type[GolfModule] = GolfModule,
    ) -> None:
        self.named_callbacks = callbacks
        super().__init__(
            module_class,
            GolfDataModule,
            trainer_class=GolfTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=GolfParser,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=42,
            parser_kwargs={"prog": "python -m golf_lightning", "description": DESCRIPTION + describe_tools()},
            args=args,
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return dict.fromkeys(("fit", "validate", "export", "test"), {"model", "datamodule"})

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, callback in self.named_callbacks.items():
            parser.add_lightning_class_args(callback, name)
        parser.link_arguments("model.gpt.max_seqlen", "data.max_seqlen")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Without Lightning's warning about arguments passed from Python.
        self.config = parser.parse_object(args) if isinstance(args, (dict, Namespace)) else parser.parse_args(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Lightning would load the file here to look for hyper-parameters; this project's checkpoints hold none."""

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand != "fit" and self._get(self.config, "ckpt_path") is None:
            raise GolfError(
                f"{self.subcommand} needs a model; give --ckpt_path runs/NAME/artifact.golf, "
                "or runs/NAME/checkpoints/last.ckpt."
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        run = self._get(self.config_init, "run")
        options = self.config[str(self.subcommand)].clone()
        if self.subcommand == "fit":  # a continued run is repeated from its beginning
            options.ckpt_path = None
        run.config = self.parser_of_subcommand().dump(options, skip_none=False)
        run.model_file = self._get(self.config_init, "ckpt_path")
        given = self._get(self.config_init, "trainer")
        if given.get("logger") in (None, True):
            # What scores a model logs nothing by step; its figures are in the run's JSON files.
            logger = RunLogger(run.folder, continues=run.model_file is not None)
            kwargs["logger"] = logger if self.subcommand == "fit" else False
        kwargs["default_root_dir"] = str(run.folder)
        kwargs["plugins"] = [*(given.get("plugins") or []), GolfCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def parser_of_subcommand(self) -> LightningArgumentParser:
        """The parser that read this subcommand's options."""
        return self._parser(self.subcommand)

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        try:
            return super()._instantiate_trainer(config, [c for c in callbacks if getattr(c, "enabled", True)])
        except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip("!.")
            raise GolfError(
                f"This machine cannot run the trainer as configured ({reason}); change --trainer.accelerator or "
                "--trainer.devices, or leave out the overlay that sets them."
            ) from error
