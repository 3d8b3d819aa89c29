"""``python -m golf_lightning bench``: how fast a configuration trains on this machine, and where the time goes."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from golf_lightning.benchmark.floors import measure_ceilings
from golf_lightning.benchmark.measure import measure_phase
from golf_lightning.benchmark.step import Step
from golf_lightning.benchmark.stream import folder_stream, random_stream
from golf_lightning.benchmark.tables import (
    CHART_SUFFIXES,
    print_ratios,
    print_result,
    read_result,
    require_phases,
    write_chart,
)
from golf_lightning.errors import GolfError
from golf_lightning.files import write_json, write_whole

DESCRIPTION = """Time the training step of a configuration on one device: tokens/s, milliseconds by part with their
floors, memory, recompiles, power and energy of a GPU. The stream is random tokens in documents of the contest's
lengths (log-normal, median 475 tokens, sigma 1.03), or --text."""
EPILOG = """Every other option is one of `fit`, for example:
  python -m golf_lightning bench --config configs/golf.yaml --config configs/one_gpu.yaml --model.kernels reference"""
STREAM_BATCHES = 8
"""Different micro-batches in the stream; steps go round."""


def main(argv: Sequence[str]) -> int:
    """Run ``bench``; returns the exit status 0.

    Raises:
        GolfError: bad input, told in one sentence.
        SystemExit: the command line is wrong, or help was asked for.
    """
    arguments, options = build_parser().parse_known_args(argv)
    if not any(option.split("=")[0] == "--config" or option.startswith("-c") for option in options):
        raise GolfError("bench needs a recipe to time; add --config configs/golf.yaml or another.")
    if arguments.steps < 1:
        raise GolfError(f"--steps is {arguments.steps}; give 1 or more.")
    _check_files(arguments)
    other = read_result(arguments.compare) if arguments.compare else None
    console = Console()
    result = run(arguments, options, console, other)
    print_result(result, console)
    if other is not None:
        print_ratios(result, other, console)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bench``'s own options."""
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=10, help="timed optimizer steps of each phase (10)")
    parser.add_argument("--text", action="store_true", help="use the configuration's data folder, not random tokens")
    parser.add_argument(
        "--lightning", action="store_true", help="also time fit's whole loop, on the data folder's text as well"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="print ratios to an earlier --json FILE")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="write a table of all kernels")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="write a bar chart (.png or .svg)")
    return parser


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse files that could not be written once the measurement is done."""
    files = {name: path for name in ("json", "kernels", "chart") if (path := getattr(arguments, name)) is not None}
    if len({path.absolute() for path in files.values()}) < len(files):
        raise GolfError("Two of --json, --kernels and --chart name the same file; give each a name of its own.")
    for name, path in files.items():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise GolfError(f"--{name} {path} cannot be written; name a file in a folder of yours.")
    if arguments.chart and arguments.chart.suffix not in CHART_SUFFIXES:
        raise GolfError(f"--chart is {arguments.chart}; end it in {' or '.join(CHART_SUFFIXES)}.")


def run(
    arguments: argparse.Namespace, options: list[str], console: Console, other: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure, and write the files that were asked for after every phase.

    Args:
        arguments: of the command.
        options: of ``fit``.
        console: told what is being done.
        other: an earlier result that this one is to be compared with.

    Raises:
        GolfError: bad input, before anything is measured.
    """
    # What Lightning's parts import takes seconds, and the help needs none of it.
    from callbacks.compile_warmup import CompileWarmup
    from golf_lightning.benchmark.lightning_loop import build_run, lightning_ms_per_step

    torch.manual_seed(0)
    parts = build_run(options)
    for callback in parts.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CompileWarmup):
            callback.setup(parts.trainer, parts.model, "fit")  # names the folder for compiled code
    device, module = parts.trainer.strategy.root_device, parts.model
    module.settle(device)
    model, config = module.model.to(device), module.model.config
    recurrences = (False, True) if config.loop_passes > 1 else (False,)
    if other is not None:
        require_phases(other, recurrences)
    packing, accumulate = parts.datamodule.train_packing, parts.trainer.accumulate_grad_batches
    tokens, segments = packing.tokens, packing.max_segments
    text = arguments.text or arguments.lightning
    batches = (
        folder_stream(parts.datamodule.folder, config, tokens, STREAM_BATCHES, max_segments=segments)
        if text
        else random_stream(config, tokens, STREAM_BATCHES, max_segments=segments)
    )
    step = Step(model, [batch.to(device) for batch in batches], accumulate, module.optimizer_config)
    ceilings = measure_ceilings(device, model.compute_dtype)
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "options": options,
        "backends": module.backends,
        "text": text,
        "ceilings": ceilings.to_dict(),
        "tokens": tokens,
        "accumulate": accumulate,
        "phases": [],
    }
    kernels: list[str] = []
    for recurrent in recurrences:
        console.print(f"timing {'with' if recurrent else 'before'} recurrence", highlight=False)
        phase, trace = measure_phase(step, recurrent=recurrent, steps=arguments.steps, ceilings=ceilings)
        figures = phase.to_dict()
        if arguments.lightning:
            milliseconds = lightning_ms_per_step(options, steps=arguments.steps, recurrent=recurrent)
            figures |= {
                "lightning_ms_per_step": milliseconds,
                "lightning_ratio": milliseconds / phase.ms_per_step,
            }
        result["phases"].append(figures)
        kernels.append(f"recurrent={recurrent}: {trace.text()}\n")
        _write(arguments, result, kernels)
    return result


def _write(arguments: argparse.Namespace, result: dict[str, Any], kernels: list[str]) -> None:
    if arguments.json:
        write_json(arguments.json, result)
    if arguments.kernels:
        with write_whole(arguments.kernels) as file:
            file.write("\n".join(kernels).encode())
    if arguments.chart:
        write_chart(result, arguments.chart)
