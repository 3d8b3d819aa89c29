"""``python -m golf_lightning``: prepare, fit, validate, export, test."""

import logging
import sys
import warnings
from typing import TYPE_CHECKING

from golf_lightning.errors import GolfError, Interrupted

if TYPE_CHECKING:
    from lightning.pytorch import Callback


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 2 for bad input, 128 + number after a signal."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["prepare"]:
            from golf_lightning.data.commands import main as prepare

            return prepare(argv[1:])
        return train(argv)
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
        "checkpoints": Checkpoints,
        "interrupts": Interrupts,
        "gptq": GPTQExport,
        "ttt": DocumentTTT,
    }


def train(argv: list[str]) -> int:
    """Run one of Lightning's subcommands."""
    from golf_lightning.cli import GolfCLI

    quiet()
    GolfCLI(named_callbacks(), argv)
    return 0


def quiet() -> None:
    """Leave the console to the console callback: warnings and errors still pass."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch 2.13 in a way that is to go; nothing a user could change.
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")


if __name__ == "__main__":
    sys.exit(main())
