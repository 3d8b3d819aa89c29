"""Where optimizer steps end, for callbacks that count steps and not micro-batches."""

import lightning.pytorch as pl


def within_step(trainer: pl.Trainer) -> bool:
    """Whether the micro-batch that just ended is one of several of a step that is still accumulating.

    Lightning keeps this under a private name, present in lightning 2.6; every callback asks here.
    """
    return trainer.fit_loop._should_accumulate()
