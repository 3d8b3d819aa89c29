"""A wrong order of callbacks is refused where it would change what a run saves or exports."""

from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.checkpoints import Checkpoints
from callbacks.document_ttt import DocumentTTT
from callbacks.ema import EMA
from callbacks.gptq_export import GPTQExport
from callbacks.rank_watch import RankWatch
from callbacks.wall_clock import WallClock
from golf_lightning.__main__ import named_callbacks
from golf_lightning.errors import GolfError

Order = list[Any]


@pytest.mark.parametrize(
    ("callbacks", "sentence"),
    [
        ([Checkpoints(), EMA()], "EMA must come before Checkpoints"),
        ([Checkpoints(), RankWatch()], "RankWatch must come before Checkpoints"),
        ([RankWatch(), EMA()], "EMA must come before RankWatch"),
        ([Checkpoints(), WallClock()], "WallClock must come before Checkpoints"),
        ([GPTQExport(), EMA()], "EMA must come before GPTQExport"),
        ([DocumentTTT(), GPTQExport()], "put the export before it"),
    ],
)
def test_a_wrong_order_is_refused(callbacks: Order, sentence: str) -> None:
    trainer: Any = SimpleNamespace(callbacks=callbacks)
    with pytest.raises(GolfError, match=sentence):
        callbacks[0].setup(trainer, None, "fit")


def test_the_command_lines_order_is_accepted() -> None:
    names = list(named_callbacks())
    assert (
        names.index("clock")
        < names.index("ema")
        < names.index("ranks")
        < names.index("checkpoints")
        < names.index("interrupts")
    )
    assert names.index("ema") < names.index("gptq") < names.index("ttt")
