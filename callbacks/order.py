"""Callbacks run in the order of the Trainer's list; where that matters, they check it."""

import lightning.pytorch as pl

from golf_lightning.errors import GolfError


def require_before(trainer: pl.Trainer, callback: pl.Callback, *earlier: type[pl.Callback]) -> None:
    """Check that every callback of the classes ``earlier`` that the Trainer has comes before ``callback``.

    Raises:
        GolfError: one comes after it.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for late in callbacks[callbacks.index(callback) + 1 :]:
        if isinstance(late, earlier):
            raise GolfError(
                f"The callback {type(late).__name__} must come before {type(callback).__name__}; "
                "change the order of the Trainer's callbacks."
            )
