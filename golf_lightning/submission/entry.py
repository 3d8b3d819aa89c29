"""What ``submission.json`` holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from golf_lightning.audit.evidence import check_scoring_clock, check_training_clock
from golf_lightning.audit.report import AuditReport
from golf_lightning.reporting.result import SCORES
from golf_lightning.submission.seeds import SeedRun, significance, summarize


@dataclass(frozen=True, kw_only=True, slots=True)
class Author:
    """Who submits what.

    Args:
        name: title of the submission.
        github_id: account of the author.
        author: the author's name; the account by default.
        blurb: one or two sentences about the method.
    """

    name: str
    github_id: str
    author: str = ""
    blurb: str = ""


def make_entry(
    runs: Sequence[SeedRun],
    author: Author,
    program: Path,
    reports: Sequence[AuditReport],
    against_bpb: float | None,
) -> dict[str, Any]:
    """Scores, bytes and verdicts of audited runs.

    Args:
        runs: one for each seed.
        author: who submits what.
        program: the bundled program.
        reports: the runs' audits.
        against_bpb: bits per byte of the record to compare with.
    """
    code = program.stat().st_size
    final = [_score(run, "ttt") for run in runs]
    summary = summarize(final)
    sizes = [run.artifact.stat().st_size for run in runs]
    adapts = runs[0].config["model"]["ttt"]["lr"] > 0
    return {
        "name": author.name,
        "author": author.author or author.github_id,
        "github_id": author.github_id,
        "blurb": author.blurb or "Trained, compressed and scored with golf_lightning.",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "val_bpb": summary.bpb,
        "val_bpb_std": summary.bpb_sd,
        "val_loss": summary.nats,
        "val_loss_std": summary.nats_sd,
        "bytes_total": max(sizes) + code,
        "bytes_model": max(sizes),
        "bytes_code": code,
        "hardware": runs[0].record.hardware,
        "predictor": "adapts to each document, score first (track B)" if adapts else "is fixed (track A)",
        "seeds": [run.seed for run in runs],
        "seed_results": {str(run.seed): _seed_result(run) for run in runs},
        "significance": None if against_bpb is None else significance(final, against_bpb),
        "audit": {
            str(run.seed): {check.name: check.verdict for check in report.checks}
            for run, report in zip(runs, reports, strict=True)
        },
        "commit": runs[0].record.environment.get("commit"),
        "uncommitted": any(run.record.environment.get("dirty") for run in runs),
        "data": reports[0].subject["data_fingerprint"],
    }


def _score(run: SeedRun, name: str) -> dict[str, Any]:
    score = run.score(name)
    assert score is not None, f"{name} was looked for before"
    return score


def _seed_result(run: SeedRun) -> dict[str, Any]:
    final, train = _score(run, "ttt"), run.record.result["train"]
    scores = {name: score["bpb"] for name in SCORES if (score := run.score(name)) is not None}
    return {
        "val_bpb": final["bpb"],
        "val_loss": final["nats_per_target"],
        "bpb": scores,
        "targets": final["targets"],
        "table_bytes": final["table_bytes"],
        "artifact_bytes": run.artifact.stat().st_size,
        "steps": train["steps"],
        "tokens": train["tokens"],
        "train_seconds": check_training_clock(run.record, 600).figures["total_s"],
        "eval_seconds": check_scoring_clock(run.record, 600).figures["total_s"],
    }
