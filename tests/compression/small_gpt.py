"""A model small enough to export in milliseconds, batches that fit it, and what spawned ranks do with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from golf_lightning.__main__ import end_process
from golf_lightning.compression import banks, export
from golf_lightning.compression.artifact import Artifact
from golf_lightning.compression.export import ExportConfig, export_model
from golf_lightning.compression.hessians import Calibration, collect_hessians
from golf_lightning.compression.quantize import QuantizationConfig
from golf_lightning.compression.rate import Steps, plan_steps
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT

TOKENIZER = "0123456789abcdef" * 4
CONFIG = GPTConfig(
    vocab_size=48,
    layers=4,
    width=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=32,
    rope_dims=4,
    max_seqlen=32,
    loop_first=1,
    loop_last=1,
    lanes_start=2,
)


def small_gpt() -> GPT:
    """Every parameter away from its neutral value, so that nothing hides behind a zero or a one."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = GPT(CONFIG)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def load_model(artifact: Artifact) -> GPT:
    """The model of an artifact, on the CPU, with its recurrence as exported."""
    with torch.random.fork_rng(devices=[]):
        model = GPT(artifact.config)
    model.load_state_dict(artifact.state_dict())
    model.recurrent = artifact.recurrent
    return model


def packed_batch(seed: int, lengths: tuple[int, ...] = (20, 7, 30), padding: int = 7) -> PackedBatch:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    tokens = torch.randint(1, CONFIG.vocab_size, (total + padding,), generator=generator)
    targets = tokens.roll(-1)
    tokens[total:] = 0
    targets[total:] = IGNORED
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    cu_seqlens = torch.tensor(ends + [total] * (8 - len(ends)), dtype=torch.int32)
    return PackedBatch(tokens, targets, cu_seqlens)


def spawned_rank(rank: int, work: str, folder: str, ranks: int = 2) -> None:
    """One of a few gloo processes: runs the function of that name and saves what it returns."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    result = WORK[work](rank, Path(folder))
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def _sensitivities(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    model = small_gpt()
    batches = [packed_batch(seed) for seed in ((0, 1) if rank == 0 else (2, 3))]
    return collect_sensitivities(model, batches, collect_hessians(model, batches, count=4), count=4)


def _sum(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    batches = [packed_batch(seed) for seed in ((0, 1) if rank == 0 else (2, 3))]
    return collect_hessians(small_gpt(), batches, count=4).hessians


def _uneven(rank: int, folder: Path) -> int:
    return collect_hessians(small_gpt(), [packed_batch(0)] if rank == 0 else [], count=4).tokens


def _export(rank: int, folder: Path) -> dict[str, int]:
    settings = ExportConfig(calibration_batches=4)
    batches = [packed_batch(seed) for seed in ((0, 1) if rank == 0 else (2, 3))]
    path = folder / f"artifact{rank}.golf"
    report = export_model(small_gpt(), batches, path, tokenizer_sha256=TOKENIZER, settings=settings)
    return {"artifact_bytes": report.budget.artifact_bytes, "tokens": report.calibration_tokens, "wrote": path.exists()}


def export_from_file(folder: Path, path: Path) -> dict[str, Any]:
    """An export from the Hessians and sensitivities of ``calibration.pt``; the report, and the banks it quantized."""
    hessians, tokens, sensitivities = torch.load(folder / "calibration.pt", weights_only=True)
    quantized: list[str] = []
    real = banks.quantize_bank

    def noting(name: str, *arguments: Any) -> Any:
        quantized.append(name)
        return real(name, *arguments)

    with (
        mock.patch.object(export, "collect_hessians", return_value=Calibration(hessians, tokens)),
        mock.patch.object(export, "collect_sensitivities", return_value=sensitivities),
        mock.patch.object(banks, "quantize_bank", noting),
    ):
        report = export_model(small_gpt(), [], path, tokenizer_sha256=TOKENIZER, settings=ExportConfig()).to_dict()
    del report["artifact"], report["seconds"]
    return {"report": report, "quantized": quantized}


def _divided(rank: int, folder: Path) -> dict[str, Any]:
    if rank == 0:
        return export_from_file(folder, folder / "divided.golf")
    # What another rank thinks of the steps does not count.
    nudged = mock.patch.object(export, "plan_steps", side_effect=lambda *a, **k: _nudge(plan_steps(*a, **k)))
    with nudged:
        return export_from_file(folder, folder / "divided.golf")


def _nudge(steps: Steps) -> Steps:
    for tensor in steps.log2_NR.values():
        tensor.add_(1.0)
    return steps


def _fail(rank: int, folder: Path) -> str:
    return _error_of(0, "mix", rank, folder)


def _fail_in_share(rank: int, folder: Path) -> str:
    return _error_of(1, "kv", rank, folder)


def _error_of(bad_rank: int, name: str, rank: int, folder: Path) -> str:
    """What this rank raises when one rank's parameter of that name is too large for float16."""
    model = small_gpt()
    if rank == bad_rank:
        with torch.no_grad():
            model.get_parameter(name)[0, 0, 0] = 1e30
    try:
        _export_here(model, folder)
    except GolfError as error:
        return str(error)
    return "no error"


def _export_here(model: GPT, folder: Path) -> None:
    settings = ExportConfig(calibration_batches=2, rate="fixed", quantization=QuantizationConfig(method="rtn"))
    # The same weights on all ranks but one value: what one finds wrong, the other must learn from it.
    export_model(model, [packed_batch(0)], folder / "a.golf", tokenizer_sha256=TOKENIZER, settings=settings)


WORK: dict[str, Callable[[int, Path], Any]] = {
    "sum": _sum,
    "uneven": _uneven,
    "export": _export,
    "divided": _divided,
    "fail": _fail,
    "fail in share": _fail_in_share,
    "sensitivities": _sensitivities,
}
