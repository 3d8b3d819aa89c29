"""``python -m golf_lightning``: Lightning's subcommands, and tools that need no trainer."""

import logging
import os
import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from golf_lightning.errors import GolfError, Interrupted
from golf_lightning.tools import TOOLS, run_tool

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from golf_lightning.module import GolfModule


def main(argv: list[str] | None = None, module_class: "type[GolfModule] | None" = None) -> int:
    """Run one command; returns its exit status: 0, 2 for bad input, 128 + number after a signal.

    Args:
        argv: the command line; that of the process by default.
        module_class: what to train instead of :class:`~golf_lightning.module.GolfModule`, for a program of your own.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in TOOLS:
            return run_tool(argv[0], argv[1:])
        return train(argv, module_class)
    except ModuleNotFoundError as error:
        if find_spec("lightning"):
            raise
        print(
            f"error: {sys.executable} does not find the package {error.name}; install the project for it with "
            "`pip install -e .`, or start the Python that has it (`.venv/bin/python` after `make demo`).",
            file=sys.stderr,
        )
        return 2
    except GolfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupt:
        return 128 + interrupt.signal
    except KeyboardInterrupt:
        return 130


def named_callbacks() -> "dict[str, type[Callback]]":
    """The callbacks by their short names on the command line, in the order in which they run."""
    from callbacks.checkpoints import Checkpoints
    from callbacks.compile_warmup import CompileWarmup
    from callbacks.console import Console
    from callbacks.document_ttt import DocumentTTT
    from callbacks.ema import EMA
    from callbacks.gptq_export import GPTQExport
    from callbacks.interrupts import Interrupts
    from callbacks.rank_watch import RankWatch
    from callbacks.recurrence import RecurrenceSwitch
    from callbacks.run_folder import RunFolder
    from callbacks.wall_clock import WallClock

    return {
        "run": RunFolder,
        "warmup": CompileWarmup,
        "clock": WallClock,
        "recurrence": RecurrenceSwitch,
        "ema": EMA,
        "console": Console,
        "ranks": RankWatch,
        "checkpoints": Checkpoints,
        "interrupts": Interrupts,
        "gptq": GPTQExport,
        "ttt": DocumentTTT,
    }


def train(argv: list[str], module_class: "type[GolfModule] | None" = None) -> int:
    """Run one of Lightning's subcommands."""
    from golf_lightning.cli import GolfCLI
    from golf_lightning.module import GolfModule

    quiet()  # after Lightning's import, which sets its loggers itself
    try:
        GolfCLI(named_callbacks(), argv, module_class or GolfModule)
    finally:
        leave_process_group()
    return 0


def leave_process_group() -> None:
    """Close the connections to other ranks: their threads must not outlive the interpreter.

    A rank that failed alone leaves them open, since the others may be waiting in a collective; its exit ends them.
    """
    import torch.distributed as dist

    alone_or_done = sys.exc_info()[0] is None or (dist.is_initialized() and dist.get_world_size() == 1)
    if dist.is_available() and dist.is_initialized() and alone_or_done:
        dist.destroy_process_group()


def quiet() -> None:
    """Leave the console to the console callback: warnings and errors still pass."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch 2.13 in a way that is to go; nothing a user could change.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
    # What FlashAttention-4 does while it compiles; likewise.
    warnings.filterwarnings("ignore", message="Argument aux_data|Accessing the data pointer of FakeTensor")


def end_process(status: int) -> NoReturn:
    """End at once, without tearing the interpreter down.

    gloo's threads sometimes reach for an interpreter that is going, and abort a process whose work is done: seen in 3
    of 12 runs of two ranks on a busy machine, with the process group destroyed or not.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end_process(main())
