"""The folder that the contest asks for, out of finished runs."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from golf_lightning.audit import AuditConfig, audit
from golf_lightning.audit.report import AuditReport
from golf_lightning.data.manifest import Manifest
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of, write_json, write_whole
from golf_lightning.reporting.run_folder import ROOT, sources_digest
from golf_lightning.submission.entry import Author, make_entry
from golf_lightning.submission.pages import checks_table, readme, requirements, results_table, seed_log, settings
from golf_lightning.submission.seeds import SeedRun, differences

OPTIONAL_CHECKS = ("reported score", "sum of probabilities")
"""Checks that cost a second scoring, or much time; a submission without them says so."""


class Bundle(Protocol):
    """What bundling reports, see :class:`~golf_lightning.submission.bundle.BundleReport`."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules in the program."""
        ...


Bundler = Callable[[Path, Path], Bundle]
"""Writes the program of a ``config.yaml``, given the two paths."""


class Refused(GolfError):
    """The runs make no submission.

    Attributes:
        reasons: one sentence each.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(f"This cannot be submitted: {' '.join(reasons)}")
        self.reasons = list(reasons)


def submit(
    runs: Sequence[str | Path],
    out: str | Path,
    author: Author,
    *,
    bundler: Bundler,
    data: str | Path | None = None,
    audit_config: AuditConfig | None = None,
    auditor: Callable[..., AuditReport] = audit,
    against_bpb: float | None = None,
    seeds: int = 3,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make the folder of a submission: README, ``submission.json``, program, requirements, logs and audits.

    Args:
        runs: folders of finished runs, one for each seed.
        out: the folder to make; it must not exist, and appears whole or not at all.
        author: who submits what.
        bundler: writes the program.
        data: the data folder; by default the one that the runs' configuration names.
        audit_config: how much the audit looks at.
        auditor: audits one run.
        against_bpb: bits per byte of the record to compare with.
        seeds: fewest seeds.
        progress: told what is being done.

    Returns:
        What ``submission.json`` holds.

    Raises:
        Refused: a run differs in more than its seed, ran another program, lacks evidence, or fails its audit.
        GolfError: a folder cannot be read or written.
    """
    out, audit_config = Path(out), audit_config or AuditConfig()
    if out.exists():
        raise GolfError(f"{out} already exists; choose another folder with --out.")
    found = [SeedRun.load(folder) for folder in runs]
    reasons = differences(found) + _gaps(found) + _other_program(found)
    if len(found) < seeds:
        reasons.append(f"{len(found)} seeds are given, {seeds} are asked for.")
    if reasons:
        raise Refused(reasons)
    data = Path(data or found[0].config["data"]["folder"])
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        program = stage / "train_gpt.py"
        progress("bundling the program")
        bundled = bundler(found[0].record.folder / "config.yaml", program)
        reports = []
        for run in found:
            progress(f"auditing seed {run.seed}")
            options = {"run_folder": run.record.folder, "code": program, "config": audit_config}
            reports.append(auditor(run.artifact, data, progress=progress, **options))
        if reasons := _failures(found, reports):
            raise Refused(reasons)
        entry = make_entry(found, author, program, reports, against_bpb)
        _write(stage, found, reports, entry, bundled, audit_config, data)
        stage.chmod(0o755)
        stage.rename(out)
    finally:
        if stage.exists():
            shutil.rmtree(stage)
    return entry


def _gaps(runs: Sequence[SeedRun]) -> list[str]:
    """What the runs should have and lack."""
    reasons = []
    for run in runs:
        folder = run.record.folder
        if not run.artifact.is_file():
            reasons.append(f"{folder} has no artifact.golf; make it with `export`.")
        score = run.score("ttt")
        if score is None:
            reasons.append(f"{folder} has no score with test-time training; make it with `test`.")
        elif score["partial"]:
            reasons.append(f"The score of {folder} covers a part of the split; score all of it with `test`.")
        elif run.artifact.is_file() and run.record.scored_another(sha256_of(run.artifact)):
            reasons.append(f"The score of {folder} is of another file than its artifact.golf; score that with `test`.")
        if "train" not in run.record.result:
            reasons.append(f"{folder} has no figures of training; give the folder of a run of `fit`.")
    return reasons


def _other_program(runs: Sequence[SeedRun]) -> list[str]:
    """The program that is packed must be the one that ran; runs of before it was recorded say nothing."""
    now = sources_digest(ROOT)
    return [
        f"{run.record.folder} ran another program than this one; check out its commit "
        f"({run.record.environment.get('commit') or 'not known'}) to pack what ran."
        for run in runs
        if (ran := run.record.environment.get("sources")) is not None and ran != now
    ]


def _failures(runs: Sequence[SeedRun], reports: Sequence[AuditReport]) -> list[str]:
    reasons = []
    for run, report in zip(runs, reports, strict=True):
        for check in report.checks:
            if check.passed is False:
                reasons.append(f"{run.record.folder} fails the audit's check '{check.name}': {check.measured}.")
            elif check.passed is None and check.name not in OPTIONAL_CHECKS:
                reasons.append(f"{run.record.folder} lacks evidence for '{check.name}': {check.measured}.")
    return reasons


def _write(
    stage: Path,
    runs: Sequence[SeedRun],
    reports: Sequence[AuditReport],
    entry: dict[str, Any],
    bundled: Bundle,
    audit_config: AuditConfig,
    data: Path,
) -> None:
    first = next(iter(entry["seed_results"].values()))
    values = {
        "entry": entry,
        "results": results_table(entry),
        "checks": checks_table(entry),
        "limit": audit_config.limit_bytes,
        "targets": first["targets"],
        "table_bytes": first["table_bytes"],
        "test": entry["significance"],
        "run_name": runs[0].config["run"]["name"],
        "prepare": _prepare(data),
        "config": settings(runs[0].config),
    }
    texts = {
        "README.md": readme(values),
        "requirements.txt": requirements(bundled.modules, runs[0].record.environment.get("packages", {})),
        **{f"train_seed{run.seed}.log": seed_log(run) for run in runs},
    }
    for name, text in texts.items():
        with write_whole(stage / name, "w") as file:
            file.write(text)
    write_json(stage / "submission.json", entry)
    for run, report in zip(runs, reports, strict=True):
        write_json(stage / f"audit_seed{run.seed}.json", report.to_dict())


def _prepare(data: Path) -> str | None:
    """The command that made a data folder, where it needs no files of the author's."""
    kind = Manifest.load(data).recipe.get("kind")
    return f"prepare {kind} {data}" if kind in ("demo", "fineweb") else None
