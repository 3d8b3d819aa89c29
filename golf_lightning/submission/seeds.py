"""The runs of a submission: one configuration, several seeds."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from golf_lightning.audit.record import RunRecord
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of
from golf_lightning.reporting.runs import scored_sha256
from golf_lightning.reporting.seeds import BAR_NATS, unlike_conditions

FREE = {"seed_everything", "run.name", "run.root", "run.overwrite", "ckpt_path", "config"}
"""Options in which the runs of one submission may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRun:
    """One seed.

    Attributes:
        seed: of the run.
        record: what the run has written down.
        config: its resolved configuration.
    """

    seed: int
    record: RunRecord
    config: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> "SeedRun":
        """Read a finished run.

        Raises:
            GolfError: the folder holds no finished run, or its configuration cannot be read.
        """
        record = RunRecord.load(folder)
        path = record.folder / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GolfError(f"{path} is missing; give the folder of a run of `fit`.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise GolfError(f"{path} is not valid YAML ({' '.join(str(error).split())}); restore it.") from None
        seed = config.get("seed_everything") if isinstance(config, dict) else None
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise GolfError(f"{path} names no seed; train with --seed_everything N.")
        return cls(seed=seed, record=record, config=config)

    @property
    def artifact(self) -> Path:
        """The run's artifact."""
        return self.record.folder / "artifact.golf"

    def score(self, name: str) -> dict[str, Any] | None:
        """A score by name, of this artifact; the one with test-time training from the scoring that counts."""
        told = [self.record.scored] if name == "ttt" else [self.record.scored, self.record.result]
        if name in ("quantized", "ttt_lr0"):
            # An export after fit leaves the scores of the artifact before it in fit's result.
            known = (None, sha256_of(self.artifact))
            told = [result for result in told if scored_sha256(result) in known]
        return next((result["scores"][name] for result in told if name in result.get("scores", {})), None)


def differences(runs: Sequence[SeedRun]) -> list[str]:
    """What keeps runs from being seeds of one configuration, as sentences."""
    reasons = []
    flat = [dict(_flat(run.config)) for run in runs]
    for run, options in zip(runs[1:], flat[1:], strict=True):
        unlike = sorted(
            name for name in {*flat[0], *options} - FREE if flat[0].get(name, "absent") != options.get(name, "absent")
        )
        reasons += [
            f"{run.record.folder} has {name} {options.get(name, 'absent')}, "
            f"{runs[0].record.folder} has {flat[0].get(name, 'absent')}."
            for name in unlike
        ]
    seeds = [run.seed for run in runs]
    reasons += [
        f"Seed {seed} is given {seeds.count(seed)} times." for seed in sorted(set(seeds)) if seeds.count(seed) > 1
    ]
    # What a run does not say may have been different.
    return reasons + unlike_conditions([run.record.environment for run in runs], unknown="not known")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}".strip("."))


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A score over the seeds.

    Attributes:
        bpb: mean in bits per byte.
        bpb_sd: standard deviation of the sample; 0 for one seed.
        nats: mean in nats per target.
        nats_sd: the same for it.
    """

    bpb: float
    bpb_sd: float
    nats: float
    nats_sd: float


def summarize(scores: Sequence[dict[str, Any]]) -> Summary:
    """Mean and standard deviation over the seeds."""
    bpb, nats = ([score[key] for score in scores] for key in ("bpb", "nats_per_target"))
    spread = statistics.stdev if len(scores) > 1 else lambda values: 0.0
    return Summary(bpb=statistics.mean(bpb), bpb_sd=spread(bpb), nats=statistics.mean(nats), nats_sd=spread(nats))


def significance(scores: Sequence[dict[str, Any]], against_bpb: float) -> dict[str, Any]:
    """How the seeds stand against a record, by Student's one-sided test of one sample.

    Args:
        scores: of each seed, on the same targets.
        against_bpb: the record, in bits per byte.

    Returns:
        Gains of the mean, the probability of so large a gain if there were none, and if it were 0.005 nats in truth;
        the probabilities are ``None`` where the seeds have no spread.
    """
    nats = [score["nats_per_target"] for score in scores]
    record = against_bpb * math.log(2) * scores[0]["table_bytes"] / scores[0]["targets"]
    spread = len(set(nats)) > 1
    p_better, p_bar = (
        float(stats.ttest_1samp(nats, record - shift, alternative="less").pvalue) if spread else None
        for shift in (0.0, BAR_NATS)
    )
    gain = record - statistics.mean(nats)
    return {
        "against_bpb": against_bpb,
        "gain_nats": gain,
        "gain_bpb": against_bpb - statistics.mean(score["bpb"] for score in scores),
        "p_better": p_better,
        "bar_nats": BAR_NATS,
        "p_better_by_bar": p_bar,
    }
