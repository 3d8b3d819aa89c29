"""What follows training, as functions of a module: export, and scoring with test-time training."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from golf_lightning.compression.artifact import read_artifact
from golf_lightning.compression.budget import ByteBudget
from golf_lightning.compression.export import export_model
from golf_lightning.compression.ranks import on_rank_zero
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.bpb import Score
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.packed import score_packed
from golf_lightning.evaluation.scores import DocumentScores, ScoreProgress
from golf_lightning.evaluation.ttt import score_documents
from golf_lightning.reporting.console import say
from golf_lightning.reporting.documents import add_documents

if TYPE_CHECKING:
    from golf_lightning.module import GolfModule


def measure_code(module: GolfModule, config: str) -> None:
    """Where the module's budget does not say how large the program is, measure it; every rank calls this.

    Args:
        module: attached to a trainer whose processes are connected.
        config: the run's resolved configuration as YAML text, a part of the program.

    Raises:
        GolfError: a package that bundling needs is missing.
    """
    settings = module.export_config
    if settings.budget.code_bytes is not None:
        return
    try:
        # By name, so that a bundled program, which knows its own size, does not carry the bundler.
        bundler = importlib.import_module("golf_lightning.submission.bundle")
    except ModuleNotFoundError as error:
        raise GolfError(
            f"Measuring the program's size needs the package {error.name}; run `pip install python-minifier`, "
            "or give the size with --model.export.budget.code_bytes."
        ) from None
    device = module.trainer.strategy.root_device
    measured = on_rank_zero(lambda: {"code_bytes": bundler.bundle_bytes(config)}, device)
    module.export_config = dataclasses.replace(settings, budget=dataclasses.replace(settings.budget, **measured))


def export_and_score(module: GolfModule, path: Path) -> ByteBudget:
    """Write the artifact of the module's present weights, read it back, and score what was read, without adaptation.

    Afterwards the module holds the artifact's weights. The figures are in ``module.result``.

    Args:
        module: attached to a trainer, on its device, with the weights to export.
        path: the artifact to write.

    Returns:
        The measured bytes; being over budget is left to the caller.
    """
    data, model, settings = module.datamodule, module.model, module.export_config
    rank, world_size = module.trainer.global_rank, module.trainer.world_size
    batches = data.calibration_batches(settings.calibration_batches, rank=rank, world_size=world_size)
    report = export_model(model, batches, path, tokenizer_sha256=data.tokenizer.sha256, settings=settings, progress=say)
    for stage, seconds in report.seconds.items():
        module.ledger.add(stage, seconds)
    module.result.record("artifact", **report.to_dict()["budget"], path=path.name)
    module.result.record("export", **{k: v for k, v in report.to_dict().items() if k not in ("artifact", "budget")})
    with module.ledger.stage("load"):
        load_artifact(module, path)
    with module.ledger.stage("score packed"):
        assert module.metric is not None
        score = score_packed(model, data.val_dataloader(), module.metric)
    module.record_score("quantized", score)
    return report.budget


def load_artifact(module: GolfModule, path: Path) -> None:
    """Put the weights of an artifact into the module, as they are on disk."""
    artifact = read_artifact(path)
    artifact.require_tokenizer(module.datamodule.tokenizer.sha256)
    module.model.load_state_dict(artifact.state_dict())
    module.model.recurrent = artifact.recurrent
    module.is_artifact = True


def score_with_ttt(module: GolfModule, stream: DocumentStream) -> None:
    """Score documents with test-time training and, if the module asks for it, the same path with learning rate 0.

    With several ranks, documents are dealt in turn and sums are added up. The figures are in ``module.result``.
    """
    config = module.ttt_config
    if module.ttt_baseline:
        with module.ledger.stage("score with lr 0"):
            _score(module, stream, "ttt_lr0", dataclasses.replace(config, lr=0.0))
    with module.ledger.stage("score"):
        _score(module, stream, "ttt", config)


def _score(module: GolfModule, stream: DocumentStream, name: str, config: TTTConfig) -> None:
    rank, world_size = module.trainer.global_rank, module.trainer.world_size
    part = stream.part(max_documents=config.max_documents, fraction=config.fraction)
    scores = score_documents(
        module.model,
        stream,
        config,
        token_bytes=module.datamodule.byte_table.count,
        documents=range(rank, len(part), world_size),
        progress=_say_progress,
        interval_seconds=15.0,
        elapsed_seconds=module.ledger.seconds.get("load", 0.0),
    )
    score = _reduce(scores, module.device, world_size)
    module.result.documents = add_documents(module.result.documents, name, scores, module.device)
    assert score.targets == part.total_targets, "the ranks together must score every target exactly once"
    module.record_score(name, score, seconds=scores.seconds, targets_per_second=score.targets / scores.seconds)


def _reduce(scores: DocumentScores, device: torch.device, world_size: int) -> Score:
    nats = torch.tensor(scores.total_nats, dtype=torch.float64, device=device)
    counts = torch.tensor([scores.total_targets, scores.total_bytes], dtype=torch.int64, device=device)
    if world_size > 1:
        dist.all_reduce(nats)
        dist.all_reduce(counts)
    targets, table_bytes = counts.tolist()
    return Score(nats.item(), targets, table_bytes)


def _say_progress(progress: ScoreProgress) -> None:
    say(
        f"scored {progress.targets:,} of {progress.targets_total:,} targets, {progress.bpb:.4f} bits per byte, "
        f"{progress.seconds:.0f} of about {progress.projected_seconds:.0f} s"
    )
