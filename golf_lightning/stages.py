"""What follows training, as functions of a module: export, and scoring with test-time training."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from golf_lightning.compression.artifact import read_artifact
from golf_lightning.compression.budget import ByteBudget
from golf_lightning.compression.export import export_model
from golf_lightning.compression.ranks import on_rank_zero
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.bpb import Score
from golf_lightning.evaluation.breakdown import Breakdown
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.journal import Journal, fingerprint
from golf_lightning.evaluation.packed import score_packed
from golf_lightning.evaluation.scores import DocumentScores, ScoreProgress
from golf_lightning.evaluation.shapes import window_plan
from golf_lightning.evaluation.sharing import DocumentQueue
from golf_lightning.evaluation.ttt import score_documents
from golf_lightning.reporting.console import say
from golf_lightning.reporting.documents import add_documents

if TYPE_CHECKING:
    from golf_lightning.module import GolfModule


def measure_code(module: GolfModule, config: str) -> Callable[[bool], None]:
    """Where the module's budget does not say how large the program is, measure it; every rank calls this.

    That takes a minute, so a process of its own does it beside training.

    Args:
        module: attached to a trainer whose processes are connected.
        config: the run's resolved configuration as YAML text, a part of the program.

    Returns:
        What every rank must call before it exports: it puts the size into the module's budget, and waits for it if told
        to. Without waiting it raises if the process has failed by then.

    Raises:
        GolfError: a package that bundling needs is missing, or the configuration names a class without source.
    """
    settings = module.export_config
    if settings.budget.code_bytes is not None:
        return lambda wait: None
    try:
        # By name, so that a bundled program, which knows its own size, does not carry the bundler.
        bundler = importlib.import_module("golf_lightning.submission.sizing")
    except ModuleNotFoundError as error:
        raise GolfError(
            f"Measuring the program's size needs the package {error.name}; run `pip install python-minifier`, "
            "or give the size with --model.export.budget.code_bytes."
        ) from None
    sizings = []

    def begin() -> dict[str, Any]:
        sizings.append(bundler.Sizing(config))
        return {}

    def finish(wait: bool) -> None:
        code_bytes = on_rank_zero(lambda: {"is": sizings[0].result(wait)})["is"]
        budget = dataclasses.replace(settings.budget, code_bytes=code_bytes)
        module.export_config = dataclasses.replace(settings, budget=budget)

    on_rank_zero(begin)
    return finish


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
    with module.ledger.stage("score packed"), module.scoring():
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

    Several ranks take documents from one queue and their sums are added up. What is finished is kept in the run folder
    while scoring goes on, and scoring that was interrupted continues there. The figures are in ``module.result``, a
    picture is in the run folder, unless this is a bundled program, which draws none.
    """
    config, ledger = module.ttt_config, module.ledger
    queue = DocumentQueue(module.trainer.global_rank, module.trainer.world_size)
    plain = None
    if module.ttt_baseline:
        plain = _score(module, stream, "ttt_lr0", dataclasses.replace(config, lr=0.0), queue, "score with lr 0")
    adapted = _score(module, stream, "ttt", config, queue, "score")
    # By name, so that a bundled program does not carry it.
    drawing = "golf_lightning.reporting.ttt_picture"
    if module.trainer.is_global_zero and importlib.util.find_spec(drawing) is not None:
        with ledger.stage("draw"):
            draw_ttt = importlib.import_module(drawing).draw_ttt
            path = Path(module.trainer.default_root_dir) / "ttt.png"
            draw_ttt(path, adapted, plain, title=f"test-time training, {config.mode}, chunk {config.chunk}")


def _score(
    module: GolfModule, stream: DocumentStream, name: str, config: TTTConfig, queue: DocumentQueue, stage: str
) -> Breakdown:
    part = stream.part(max_documents=config.max_documents, fraction=config.fraction)
    folder = Path(module.trainer.default_root_dir) / f"{name}_unfinished"
    count = module.datamodule.byte_table.count

    def progress(now: ScoreProgress) -> None:
        queue.alive()
        if now.targets:
            _say_progress(now)

    with module.ledger.stage(stage):
        journal = Journal(folder, queue.rank, queue.world_size, fingerprint(module.model, part, config))
        # No rank may write before all have read what is there.
        queue.finish(f"{name} read")
        if journal.all_known:
            say(f"scoring goes on: {len(journal.all_known):,} of {len(part):,} documents are done")
        left = [i for i in part.order(config.order) if i not in journal.all_known]
        scores = score_documents(
            module.model,
            stream,
            config,
            token_bytes=count,
            documents=queue.share(name, left, config.slots),
            progress=progress,
            interval_seconds=15.0,
            elapsed_seconds=module.ledger.seconds.get("load", 0.0),
            keep_target_nats=True,
            ranks=queue.world_size,
            journal=journal,
        )
        queue.finish(name)
        score, seconds, warm_up = _reduce(scores, module.device, queue.world_size)
        assert score.targets == part.total_targets, "the ranks together must score every target exactly once"
    # Compiling and recording is evaluation time too, and so is what an interrupted run has done; the ledger tells them
    # apart. Its stage holds this run's warm-up.
    module.ledger.add("warm up", warm_up)
    module.ledger.add(stage, sum(journal.spent.values()) - warm_up)
    module.record_score(
        name,
        score,
        seconds=seconds,
        warm_up_seconds=warm_up,
        targets_per_second=score.targets / seconds,
        targets_per_second_with_warm_up=score.targets / (seconds + warm_up),
    )
    module.result.documents = add_documents(module.result.documents, name, scores, module.device)
    tokens = np.asarray(part.tokens[: part.total_targets + 1])
    plan = window_plan(config)
    breakdown = Breakdown.of(part, scores, plan, count(tokens[:-1], tokens[1:]))
    if queue.world_size > 1:
        sums = torch.from_numpy(breakdown.stacked()).to(module.device)
        dist.all_reduce(sums)
        breakdown = Breakdown.unstacked(sums.cpu().numpy())
    if module.trainer.is_global_zero:
        Journal.remove(folder)
    return breakdown


def _reduce(scores: DocumentScores, device: torch.device, world_size: int) -> tuple[Score, float, float]:
    """The sums over all ranks, and the seconds of the slowest: scoring, and warming up before it."""
    nats = torch.tensor(scores.total_nats, dtype=torch.float64, device=device)
    counts = torch.tensor([scores.total_targets, scores.total_bytes], dtype=torch.int64, device=device)
    seconds = torch.tensor([scores.seconds, scores.warm_up_seconds], dtype=torch.float64, device=device)
    if world_size > 1:
        dist.all_reduce(nats)
        dist.all_reduce(counts)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    targets, table_bytes = counts.tolist()
    scoring, warm_up = seconds.tolist()
    return Score(nats.item(), targets, table_bytes), scoring, warm_up


def _say_progress(progress: ScoreProgress) -> None:
    say(
        f"scored {progress.targets:,} of {progress.targets_total:,} targets, {progress.bpb:.4f} bits per byte, "
        f"{progress.seconds:.0f} s, about {progress.seconds_left:.0f} s left"
    )
