"""Scores the artifact with test-time training after the export."""

import lightning.pytorch as pl
from typing_extensions import override

from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule
from golf_lightning.stages import score_with_ttt


class DocumentTTT(pl.Callback):
    """Scores the validation documents with the artifact's weights, adapting to each one, score first.

    The export leaves the weights in the module as it has read them back from disk.

    Settings are the module's ``ttt``. ``python -m golf_lightning test --ckpt_path artifact.golf`` does the same in a
    process of its own.

    Args:
        enabled: whether ``fit`` scores with test-time training after the export.

    Raises:
        GolfError: no export comes before this callback.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        before = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        if stage == "fit" and not any(getattr(callback, "at_train_end", False) for callback in before):
            raise GolfError(
                "The ttt callback scores what the export callback has written; "
                "put the export before it, or set --ttt.enabled false."
            )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GolfModule)
        assert pl_module.is_artifact, "the export has read its artifact back into the module"
        score_with_ttt(pl_module, pl_module.datamodule.documents())
