"""The report's numbers, as rows of text that the page and the console both show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.runs import Run
from golf_lightning.reporting.seeds import Comparison, Group

NONE = "–"
"""Stands for a number that a run does not have."""


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: what is shown.
        columns: headings; the first is that of the rows' names.
        rows: cells, the first of each row its name.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The table as aligned lines."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        )


def _number(value: Any, form: str, suffix: str = "") -> str:
    return NONE if value is None else f"{value:{form}}{suffix}"


def _score(run: Run, name: str, key: str = "bpb") -> str:
    score = run.scores.get(name)
    return NONE if score is None else f"{score[key]:.4f}" + ("*" if score["partial"] else "")


def _get(section: str, key: str, form: str) -> Callable[[Run], str]:
    return lambda run: _number(run.result.get(section, {}).get(key), form)


def _memory(run: Run) -> str:
    peak = run.result.get("train", {}).get("peak_memory_bytes")
    return NONE if peak is None else f"{peak / 1e9:.1f} GB"


def _hardware(run: Run) -> str:
    ranks, gpus = run.environment.get("ranks"), run.environment.get("gpus")
    if gpus:
        return f"{ranks or 1} × {gpus[0]}"
    return NONE if not run.environment else f"{run.environment.get('cpus', '?')} CPU cores"


def _switch(run: Run) -> str:
    exact = run.result.get("train", {}).get("recurrent_from_step")
    return NONE if exact is None else f"{exact:,}"


FACTS: dict[str, Callable[[Run], str]] = {
    "seed": lambda run: _number(run.seed, "d"),
    **{f"BPB {title}": (lambda run, name=name: _score(run, name)) for name, title in SCORES.items()},  # type: ignore[misc]
    "nats after TTT": lambda run: _score(run, "ttt", "nats_per_target"),
    "targets scored": lambda run: _number(max((s["targets"] for s in run.scores.values()), default=None), ",d"),
    "artifact, bytes": _get("artifact", "artifact_bytes", ",d"),
    "with code, bytes": _get("artifact", "total_bytes", ",d"),
    "headroom, bytes": _get("artifact", "headroom_bytes", ",d"),
    "parameters": _get("model", "parameters", ",d"),
    "steps": _get("train", "steps", ",d"),
    "recurrence from step": _switch,
    "training tokens": _get("train", "tokens", ",d"),
    "tokens per second": _get("train", "tokens_per_second", ",.0f"),
    "last training loss, nats": _get("train", "loss", ".4f"),
    "peak memory of training": _memory,
    "hardware": _hardware,
    "torch": lambda run: run.environment.get("packages", {}).get("torch", NONE),
    "commit": lambda run: (run.environment.get("commit") or NONE)[:10] + ("+" if run.environment.get("dirty") else ""),
}
"""Rows of the table of runs."""


def runs_table(runs: list[Run]) -> Table:
    """One column a run, one row a figure; figures that no run has are left out. ``*`` marks a part of the split."""
    rows = [[title, *(fact(run) for run in runs)] for title, fact in FACTS.items()]
    return Table("Runs", ["", *(run.name for run in runs)], [row for row in rows if set(row[1:]) != {NONE}])


def seconds_table(runs: list[Run]) -> Table | None:
    """Seconds by stage, one column a run."""
    runs = [run for run in runs if run.result.get("ledger")]
    ledgers = [run.result["ledger"] for run in runs]
    stages = list(dict.fromkeys(stage for ledger in ledgers for stage in ledger))
    rows = [[stage, *(_number(ledger.get(stage), ",.1f") for ledger in ledgers)] for stage in stages]
    rows.append(["together", *(_number(sum(ledger.values()) or None, ",.1f") for ledger in ledgers)])
    return Table("Seconds by stage", ["", *(run.name for run in runs)], rows) if stages else None


def groups_table(groups: list[Group]) -> Table | None:
    """Mean and standard deviation of every score of every configuration, in BPB and nats."""
    rows = []
    for group in groups:
        for name, title in SCORES.items():
            if (found := group.statistics(name)) is not None:
                rows.append(
                    [
                        f"{group.name}: {title}",
                        str(len(found.bpb)),
                        f"{found.mean_bpb:.5f}",
                        _number(found.sd_bpb, ".5f"),
                        f"{found.mean_nats:.5f}",
                        _number(found.sd_nats, ".5f"),
                        f"{found.targets:,}",
                    ]
                )
    columns = ["score", "seeds", "mean BPB", "sd", "mean nats", "sd", "targets"]
    return Table("Seeds of one configuration", columns, rows) if rows else None


def comparisons_table(comparisons: list[Comparison]) -> Table | None:
    """Gains and probabilities, one row a comparison."""
    rows = [
        [
            f"{one.group}: {SCORES[one.score]}",
            one.against,
            f"{one.gain_nats:+.5f}",
            f"{one.gain_bpb:+.5f}",
            _number(one.p_better, ".2g"),
            _number(one.p_bar, ".2g"),
        ]
        for one in comparisons
    ]
    columns = ["score", "against", "gain, nats", "gain, BPB", "p (no gain)", "p (gain of 0.005 nats)"]
    return Table("Compared", columns, rows) if rows else None
