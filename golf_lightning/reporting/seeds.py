"""Seeds of one configuration: mean, standard deviation, and whether they beat something else.

The test is Welch's (unequal variances), one-sided: is the mean really lower? Against a number it is Student's test of
one sample. A record of the contest must be at least 0.005 nats better, shown with p < 0.01.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from golf_lightning.errors import GolfError
from golf_lightning.reporting.result import SCORES
from golf_lightning.reporting.runs import Run

BAR_NATS = 0.005
"""Improvement that the contest asks for, in nats per target."""
BAR_P = 0.01
"""Probability of a mere accident that the contest allows."""

ALIKE = {
    "commit": "commits",
    "sources": "programs",
    "gpus": "GPUs",
    "ranks": "numbers of ranks",
    "backends": "kernels",
}
"""What of a run's environment should be the same for all seeds, and how it is called."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """One score over the seeds of a group.

    Attributes:
        nats: nats per target of each run.
        bpb: bits per byte of each run.
        targets: targets scored, the same in all of them.
        table_bytes: bytes of text that these stand for, the same in all of them.
        left_out: runs of the group that lack this score or were scored on other targets.
    """

    nats: tuple[float, ...]
    bpb: tuple[float, ...]
    targets: int
    table_bytes: int
    left_out: int

    @property
    def mean_bpb(self) -> float:
        """Mean in bits per byte."""
        return float(np.mean(self.bpb))

    @property
    def mean_nats(self) -> float:
        """Mean in nats per target."""
        return float(np.mean(self.nats))

    @property
    def sd_bpb(self) -> float | None:
        """Standard deviation of the sample in bits per byte; ``None`` for one run."""
        return float(np.std(self.bpb, ddof=1)) if len(self.bpb) > 1 else None

    @property
    def sd_nats(self) -> float | None:
        """Standard deviation of the sample in nats per target; ``None`` for one run."""
        return float(np.std(self.nats, ddof=1)) if len(self.nats) > 1 else None


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seeds and names only.

    Attributes:
        name: what the runs' names have in common.
        runs: the runs, in the order given.
    """

    name: str
    runs: tuple[Run, ...]

    def statistics(self, score: str) -> Statistics | None:
        """A score over the runs that have it, or ``None``. Runs scored on other targets than most are left out."""
        having = [run.scores[score] for run in self.runs if score in run.scores]
        if not having:
            return None
        (size, _), *_ = Counter((one["targets"], one["table_bytes"]) for one in having).most_common(1)
        alike = [one for one in having if (one["targets"], one["table_bytes"]) == size]
        nats, bpb = (tuple(one[key] for one in alike) for key in ("nats_per_target", "bpb"))
        return Statistics(nats, bpb, *size, left_out=len(self.runs) - len(alike))

    @property
    def final(self) -> str | None:
        """The last score that any of the runs has come to."""
        return next((name for name in reversed(SCORES) if any(name in run.scores for run in self.runs)), None)

    @property
    def notes(self) -> list[str]:
        """What makes the runs less alike than their configurations."""
        notes = unlike_conditions([run.environment for run in self.runs])
        if any(run.environment.get("dirty") for run in self.runs):
            notes.append("Some of the code was not committed.")
        seeds = Counter(run.seed for run in self.runs if run.seed is not None)
        if twice := [str(seed) for seed, count in seeds.items() if count > 1]:
            notes.append(f"Seed {', '.join(twice)} stands for several runs.")
        return notes


def unlike_conditions(environments: Sequence[dict[str, Any]], unknown: str | None = None) -> list[str]:
    """What of :data:`ALIKE` differs among runs, as sentences.

    Args:
        environments: ``environment.json`` of each run.
        unknown: what a value is called that a run has not recorded, to hold it against the others; by default it is
            passed over.
    """
    sentences = []
    for key, what in ALIKE.items():
        found = [_told(environment.get(key)) or unknown for environment in environments]
        if len(different := {text for text in found if text is not None}) > 1:
            sentences.append(f"The runs had different {what}: {', '.join(sorted(different))}.")
    return sentences


def _told(value: Any) -> str | None:
    """A value of the environment for a sentence; digests as short as they are told apart by eye."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {what}" for key, what in value.items())
    return None if value is None else re.sub(r"\b[0-9a-f]{40,64}\b", lambda found: found[0][:12], str(value))


def group_runs(runs: list[Run]) -> list[Group]:
    """Put runs together whose resolved configurations are equal but for seeds, names and where they started from.

    Raises:
        GolfError: a run is given twice.
    """
    if twice := [str(path) for path, n in Counter(run.folder.resolve() for run in runs).items() if n > 1]:
        raise GolfError(f"{twice[0]} is given twice; give every run once.")
    members: dict[Any, list[Run]] = {}
    for run in runs:
        key = repr(_identity(run.config)) if run.config else run.folder
        members.setdefault(key, []).append(run)
    groups: list[Group] = []
    for group in members.values():
        name, taken = _common_name([run.name for run in group]), {earlier.name for earlier in groups}
        number = next(n for n in range(1, len(runs) + 2) if (name if n == 1 else f"{name} ({n})") not in taken)
        groups.append(Group(name if number == 1 else f"{name} ({number})", tuple(group)))
    return groups


def _identity(config: Any) -> Any:
    """A configuration without seeds, names and paths of files given on the command line, keys sorted."""
    if not isinstance(config, dict):
        return config
    left_out = ("seed", "seed_everything", "run", "ckpt_path", "config")
    return [(key, _identity(config[key])) for key in sorted(config) if key not in left_out]


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(names)
    # golf-42 and golf-4 have golf-4 in common, but mean golf.
    return re.sub(r"[-_.]*(seed|s)?[-_.]*\d*$", "", common) or names[0]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A score of one group against something else. Gains are positive when the group is better.

    Attributes:
        score: name of the score.
        group: name of the group.
        against: what it is compared with.
        gain_nats: how much lower its mean is, in nats per target.
        gain_bpb: the same in bits per byte.
        p_better: probability of such a gain, or a larger one, if there were none; ``None`` without enough seeds.
        p_bar: the same if the true gain were 0.005 nats.
        why_no_test: why there are no probabilities.
    """

    score: str
    group: str
    against: str
    gain_nats: float
    gain_bpb: float
    p_better: float | None
    p_bar: float | None
    why_no_test: str = ""

    @property
    def verdict(self) -> str:
        """One sentence for the person who decides whether to submit."""
        if self.gain_nats < BAR_NATS:
            return f"Below the contest's bar of {BAR_NATS} nats."
        if self.p_bar is None:
            return f"Above the contest's bar of {BAR_NATS} nats, but not tested: {self.why_no_test}."
        if self.p_bar >= BAR_P:
            return f"Above the contest's bar of {BAR_NATS} nats, but not shown at p < {BAR_P}: more seeds are needed."
        return f"Clears the contest's bar: at least {BAR_NATS} nats better at p < {BAR_P}."


def compare(group: Group, against: "Group | float", score: str) -> Comparison | None:
    """Compare a score with another group's, or with a number of bits per byte; ``None`` where a side lacks it.

    Raises:
        GolfError: the two were scored on different targets.
    """
    ours = group.statistics(score)
    if ours is None:
        return None
    nats_per_bpb = math.log(2) * ours.table_bytes / ours.targets
    if isinstance(against, Group):
        theirs = against.statistics(score)
        if theirs is None:
            return None
        if (ours.targets, ours.table_bytes) != (theirs.targets, theirs.table_bytes):
            raise GolfError(
                f"{group.name} and {against.name} were scored on different text ({ours.targets:,} and "
                f"{theirs.targets:,} targets); score both on the same validation split."
            )
        name, other = against.name, np.array(theirs.nats)
    else:
        name, other = f"{against:g} bits per byte", np.array([against * nats_per_bpb])
    gain = float(other.mean() - ours.mean_nats)
    why = _why_no_test(np.array(ours.nats), other, isinstance(against, Group))
    p_better, p_bar = (None, None) if why else (_p(ours.nats, other, shift) for shift in (0.0, BAR_NATS))
    return Comparison(score, group.name, name, gain, gain / nats_per_bpb, p_better, p_bar, why)


def _why_no_test(ours: Any, other: Any, is_group: bool) -> str:
    if len(ours) < 2 or (is_group and len(other) < 2):
        return "a test needs at least two seeds" + (" on both sides" if is_group else "")
    if np.ptp(ours) == 0 and np.ptp(other) == 0:
        return "the seeds have no spread at all"
    return ""


def _p(ours: tuple[float, ...], other: Any, shift: float) -> float:
    """Probability of a mean at least so far below ``other - shift`` if the true means were equal."""
    if len(other) == 1:
        return float(stats.ttest_1samp(ours, other[0] - shift, alternative="less").pvalue)
    return float(stats.ttest_ind(ours, other - shift, equal_var=False, alternative="less").pvalue)
