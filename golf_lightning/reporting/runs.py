"""Runs as they lie on disk, read for the report: complete, interrupted, or with only some of their stages."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json
from golf_lightning.reporting.documents import DocumentTable
from golf_lightning.reporting.loggers import METRICS
from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.run_folder import RESULTS, named

# P logged points

Series = npt.NDArray[np.float64]
Values = dict[str, Any]

MISSING_SCORE = {
    "before_quantization": "Training did not come to its end, so there is no score before quantization.",
    "quantized": "No artifact was exported (`export` does it), so there is no score of it.",
    "ttt_lr0": "Not scored with learning rate 0 (model.ttt_baseline), so the gain of learning is not known.",
    "ttt": "Not scored with test-time training (`test` does it).",
}
"""What to say about a score that is not there."""


@dataclass(slots=True)
class Run:
    """One run folder.

    Attributes:
        name: name of the folder.
        folder: where it lies.
        result: the newest figures of each section, see :class:`~golf_lightning.reporting.result.Result`.
        curve: logged values by name, without the ``train/`` before it, each ``[P]`` with NaN where a point lacks it;
            ``step`` and ``seconds`` (of the training clock) are always there.
        config: the resolved configuration; empty when its file is missing.
        environment: what the run ran on; empty when its file is missing.
        documents: nats of single documents, where they were kept.
        missing: sentences that say what is not in the folder, and what that leaves out of a report.
    """

    name: str
    folder: Path
    result: Values
    curve: dict[str, Series]
    config: Values
    environment: Values
    documents: DocumentTable | None
    missing: list[str] = field(default_factory=list)

    @property
    def scores(self) -> Values:
        """Scores by name."""
        return self.result.get("scores", {})

    @property
    def seed(self) -> int | None:
        """Seed of the run, where its configuration is known."""
        seed = self.config.get("seed_everything")
        return None if isinstance(seed, bool) else seed

    @property
    def switch_step(self) -> float | None:
        """Step at which recurrence began, or ``None`` where it did not, or was on from the start.

        A continued run may not know the step itself; then it is that of the first logged point with recurrence on.
        """
        on = np.flatnonzero(self.curve.get("recurrent", np.zeros(0)) > 0)
        logged = float(self.curve["step"][on[0]]) if len(on) and on[0] > 0 else None
        return self.result.get("train", {}).get("recurrent_from_step", logged) or None


def read_run(folder: str | Path) -> Run:
    """Read a run folder; what is missing is listed, and only a folder that holds no run at all is refused.

    Raises:
        GolfError: the folder holds neither a configuration nor a result nor logged values, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GolfError(f"{folder} does not exist; give the folders of runs, such as runs/golf.")
    curve = _curve(folder)
    stages = _stages(folder)
    config = _yaml(folder / "config.yaml")
    if not (curve or stages or config):
        raise GolfError(f"{folder} holds no run; give the folders of runs, such as runs/golf.")
    result, documents, missing = _merge(folder, stages)
    run = Run(
        name=folder.resolve().name,
        folder=folder,
        result=result,
        curve=curve,
        config=config,
        environment=_optional_json(folder / "environment.json"),
        documents=documents,
        missing=missing,
    )
    run.missing += _missing(run)
    return run


def status(result: Values) -> str:
    """How the command that wrote a result ended; those of older versions say nothing and have ended well."""
    return str(result.get("run", {}).get("status", "finished"))


def scored_sha256(result: Values) -> str | None:
    """SHA-256 of the file whose score with test-time training is in a result, or ``None`` where it does not say.

    A command that exports scores what it has written; ``test`` scores what it was given.
    """
    section, key = ("artifact", "sha256") if "artifact" in result else ("run", "from_sha256")
    return result.get(section, {}).get(key)


def _optional_json(path: Path) -> Values:
    return read_json(path) if path.is_file() else {}


def _yaml(path: Path) -> Values:
    if not path.is_file():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GolfError(f"{path} is not valid YAML ({' '.join(str(error).split())}); restore or remove it.") from None


def _stages(folder: Path) -> dict[str, Values]:
    """Results by command, in the order in which the commands ended."""
    found = {command: _optional_json(folder / name) for command, name in RESULTS.items()}
    return dict(sorted(found.items(), key=lambda item: _ended(item[1]))) if any(found.values()) else {}


def _ended(result: Values) -> str:
    # ISO 8601 in UTC sorts as text; results of older versions have no time and come first.
    return str(result.get("run", {}).get("finished", ""))


def _merge(folder: Path, stages: dict[str, Values]) -> tuple[Values, DocumentTable | None, list[str]]:
    """The newest figures, without scores of an artifact that has since been replaced."""
    merged: Values = {}
    documents, missing = None, []
    for command, result in stages.items():
        if not result or command == "validate":
            continue
        before, now = (one.get("artifact", {}).get("sha256") for one in (merged, result))
        stale = {"ttt", "ttt_lr0"} & set(merged.get("scores", {}))
        if command == "export" and stale and (now is None or now != before):
            missing.append("The artifact was exported again after it was scored with TTT; run `test` again.")
            documents = None
            for name in stale:
                del merged["scores"][name]
        scored = scored_sha256(result)
        if command == "test" and before and scored and before != scored:
            missing.append("test.json is about another artifact than this folder's, and is left out.")
            continue
        if command == "test" and (ended := status(result)) != "finished":
            missing.append(f"A later `test` did not end ({ended}) and is left out; run it again.")
            continue
        for section, values in result.items():
            if section == "run" and command != "fit":
                continue
            merged.setdefault(section, {}).update(values)
        if (path := folder / named("documents", ".csv", command)).is_file():
            documents = DocumentTable.read(path)
    for name, score in stages.get("validate", {}).get("scores", {}).items():
        merged.setdefault("scores", {}).setdefault(name, score)
    return merged, documents, missing


def _missing(run: Run) -> list[str]:
    """What a reader should know before comparing the run with others."""
    found = []
    if not run.config:
        found.append("No config.yaml: the run is not grouped with other seeds.")
    if not run.curve:
        found.append("No logged values (metrics/version_*/metrics.csv): no curves.")
    if not run.result:
        found.append("No result.json: no stage has ended, so there are no scores, bytes or seconds.")
    if (ended := status(run.result)) != "finished":
        found.append(f"The run is not whole: {ended}.")
    if run.config.get("trainer", {}).get("fast_dev_run"):
        found.append("A rehearsal (trainer.fast_dev_run): its figures mean nothing.")
    if run.result:
        found += [sentence for name, sentence in MISSING_SCORE.items() if name not in run.scores]
    part = [SCORES[key] for key, score in run.scores.items() if score["partial"]]
    if part:
        found.append(f"Scored on a part of the split only: {', '.join(part)}.")
    if "ttt" in run.scores and run.documents is None:
        found.append("No documents.csv: no gain by document length.")
    return found


def _curve(folder: Path) -> dict[str, Series]:
    """Logged values of all versions, the later ones going on where the earlier ones were left."""
    rows: list[dict[str, float]] = []
    versions = sorted((folder / METRICS).glob("version_*"), key=lambda path: (len(path.name), path.name))
    for path in (version / "metrics.csv" for version in versions):
        if not path.is_file():
            continue
        new = _rows(path)
        if new:
            first = min(row["step"] for row in new)
            rows = [row for row in rows if row["step"] < first] + new
    if not rows:
        return {}
    rows.sort(key=lambda row: row["step"])
    names = dict.fromkeys(name for row in rows for name in row)
    curve = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
    curve["seconds"] = _seconds(curve)
    return curve


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {name.removeprefix("train/"): float(text) for name, text in row.items() if text and name != "epoch"}
            for row in rows
            if row["step"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GolfError(f"{path} is not a table of logged values ({error}); restore or remove it.") from None


def _seconds(curve: dict[str, Series]) -> Series:
    """Seconds of every point: logged with the points of training, between them for those of validation.

    Runs that end by steps count from 0 again when they are continued; their seconds are strung together.
    """
    logged = curve.get("seconds", np.full(len(curve["step"]), math.nan))
    known = np.flatnonzero(np.isfinite(logged))
    if not len(known):
        return np.full(len(curve["step"]), math.nan)
    steps, seconds = curve["step"][known], logged[known]
    restarts = np.where(np.diff(seconds, prepend=0.0) < 0, np.roll(seconds, 1), 0.0)
    return np.interp(curve["step"], steps, seconds + np.cumsum(restarts))
