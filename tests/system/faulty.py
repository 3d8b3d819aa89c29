"""A run in which a chosen rank fails in a chosen way, when its step 4 or another stage begins.

usage: python faulty.py "WAY [in STAGE]" RANK [arguments of golf_lightning, the last a recipe]

The time of the failure goes to ``failed_at`` beside the recipe.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from callbacks import compile_warmup
from callbacks.console import Console
from golf_lightning import stages
from golf_lightning.__main__ import end_process, main
from golf_lightning.compression import export
from golf_lightning.errors import GolfError
from golf_lightning.module import GolfModule


def bad_shard(module: GolfModule) -> None:
    raise GolfError("The shard data/part_3.bin is damaged; prepare the folder again.")


def out_of_memory(module: GolfModule) -> None:
    raise torch.OutOfMemoryError("Tried to allocate 20 GiB.")


def hang_here(module: GolfModule) -> None:
    time.sleep(3600)


def freeze(module: GolfModule) -> None:
    # As when C code never gives the interpreter back: no other thread of the process runs either.
    ctypes.PyDLL(None).sleep(3600)


def drift(module: GolfModule) -> None:
    # The least change there is, of one weight.
    weight = module.model.qo.data.view(-1)[7:8]
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, 9.0)))


WAYS: dict[str, Callable[[Any], None]] = {
    "bad shard": bad_shard,
    "out of memory": out_of_memory,
    "hangs": hang_here,
    "freezes": freeze,
    "exits": lambda module: os._exit(7),
    "is killed": lambda module: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda module: os.kill(os.getpid(), signal.SIGSTOP),
    "drifts": drift,
}


STAGES: dict[str, tuple[Any, str]] = {
    "warm-up": (compile_warmup, "warm_up"),
    "training": (Console, "on_train_batch_start"),
    "validation": (GolfModule, "validation_step"),
    "calibration": (export, "collect_hessians"),
    "scoring": (stages, "score_documents"),
}
"""A function that each stage begins with."""


def arm(fault: str, rank: int) -> None:
    """Let the rank fail when it comes to the stage, in training at the fourth step."""
    way, _, stage = fault.partition(" in ")
    owner, name = STAGES[stage or "training"]
    original = getattr(owner, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        begun = bool(stage) or arguments[1].global_step == 3
        if begun and int(os.environ.get("LOCAL_RANK", 0)) == rank:
            Path(sys.argv[-1]).with_name("failed_at").write_text(str(time.monotonic()))
            WAYS[way](next((value for value in arguments if isinstance(value, GolfModule)), None))
        return original(*arguments, **named)

    setattr(owner, name, fail)


def run(arguments: list[str]) -> int:
    fault, rank, *others = arguments
    arm(fault, int(rank))
    return main(others)


if __name__ == "__main__":
    end_process(run(sys.argv[1:]))
