"""Means, spreads and tests over seeds, against formulas written out here."""

import math
from pathlib import Path

import mpmath
import pytest
from run_folders import make_run, result, score, write_json

from golf_lightning.errors import GolfError
from golf_lightning.files import read_json
from golf_lightning.reporting.runs import read_run
from golf_lightning.reporting.seeds import BAR_NATS, Group, compare, group_runs

RECORD = (2.7770, 2.7790, 2.7820)
OURS = (2.7600, 2.7615, 2.7610)


def seeds(root: Path, name: str, nats: tuple[float, ...], lr: float = 0.022) -> list[Path]:
    return [make_run(root, f"{name}-{seed}", value, seed=seed, lr=lr) for seed, value in enumerate(nats)]


def group(root: Path, name: str, nats: tuple[float, ...], lr: float = 0.022) -> Group:
    (found,) = group_runs([read_run(folder) for folder in seeds(root, name, nats, lr)])
    return found


def lower_tail(t: float, df: float) -> float:
    """P(T < t) of Student's distribution, by the incomplete beta function."""
    tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) / 2
    return float(tail if t < 0 else 1 - tail)


def welch(ours: tuple[float, ...], other: tuple[float, ...]) -> float:
    means = [sum(x) / len(x) for x in (ours, other)]
    shares = [sum((v - m) ** 2 for v in x) / (len(x) - 1) / len(x) for x, m in zip((ours, other), means, strict=True)]
    df = sum(shares) ** 2 / sum(share**2 / (len(x) - 1) for share, x in zip(shares, (ours, other), strict=True))
    return lower_tail((means[0] - means[1]) / math.sqrt(sum(shares)), df)


def student(ours: tuple[float, ...], number: float) -> float:
    mean = sum(ours) / len(ours)
    variance = sum((v - mean) ** 2 for v in ours) / (len(ours) - 1)
    return lower_tail((mean - number) / math.sqrt(variance / len(ours)), len(ours) - 1)


def test_seeds_are_grouped_and_other_configurations_are_not(tmp_path: Path) -> None:
    folders = [*seeds(tmp_path, "golf", RECORD), *seeds(tmp_path, "slow", OURS, lr=0.01)]
    groups = group_runs([read_run(folder) for folder in folders])
    assert [(found.name, len(found.runs)) for found in groups] == [("golf", 3), ("slow", 3)]
    assert [run.seed for run in groups[0].runs] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("golf-42", "golf-4", "golf-1337"), "golf"),
        (("a_seed1", "a_seed2"), "a"),
        (("one", "two"), "one"),
        (("7", "8"), "7"),
    ],
)
def test_a_group_is_called_what_its_runs_have_in_common(tmp_path: Path, names: tuple[str, ...], common: str) -> None:
    (found,) = group_runs([read_run(make_run(tmp_path, name, seed=seed)) for seed, name in enumerate(names)])
    assert found.name == common


def test_groups_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / part, "golf", lr=lr) for part, lr in (("a", 0.01), ("b", 0.02), ("c", 0.03))]
    groups = group_runs([read_run(folder) for folder in folders])
    assert [found.name for found in groups] == ["golf", "golf (2)", "golf (3)"]


def test_runs_without_a_configuration_stand_alone(tmp_path: Path) -> None:
    folders = seeds(tmp_path, "golf", RECORD)
    for folder in folders:
        (folder / "config.yaml").unlink()
    assert len(group_runs([read_run(folder) for folder in folders])) == 3


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf")
    with pytest.raises(GolfError, match="given twice"):
        group_runs([read_run(folder), read_run(folder / "." / ".." / "golf")])


def test_mean_and_standard_deviation(tmp_path: Path) -> None:
    found = group(tmp_path, "golf", RECORD).statistics("ttt")
    assert found is not None
    mean = sum(RECORD) / 3
    sd = math.sqrt(sum((value - mean) ** 2 for value in RECORD) / 2)
    assert (found.mean_nats, found.sd_nats) == pytest.approx((mean, sd))
    bpb_per_nat = 1 / math.log(2) / 3.73
    assert (found.mean_bpb, found.sd_bpb) == pytest.approx((mean * bpb_per_nat, sd * bpb_per_nat))


def test_runs_scored_on_other_targets_are_left_out_of_the_mean(tmp_path: Path) -> None:
    folders = seeds(tmp_path, "golf", RECORD)
    write_json(folders[0] / "result.json", result({"ttt": score(9.0, targets=100, partial=True)}))
    (found,) = group_runs([read_run(folder) for folder in folders])
    statistics = found.statistics("ttt")
    assert statistics is not None
    assert (statistics.nats, statistics.left_out) == (RECORD[1:], 1)


def test_welchs_test_equals_its_formula(tmp_path: Path) -> None:
    one = compare(group(tmp_path, "ours", OURS, lr=0.03), group(tmp_path, "record", RECORD), "ttt")
    assert one is not None
    assert one.p_better == pytest.approx(welch(OURS, RECORD), rel=1e-9)
    assert one.p_bar == pytest.approx(welch(OURS, tuple(value - BAR_NATS for value in RECORD)), rel=1e-9)
    assert one.gain_nats == pytest.approx(sum(RECORD) / 3 - sum(OURS) / 3)
    assert one.gain_bpb == pytest.approx(one.gain_nats / math.log(2) / 3.73)


def test_the_test_against_a_number_equals_its_formula(tmp_path: Path) -> None:
    number = 1.0747
    one = compare(group(tmp_path, "ours", OURS), number, "ttt")
    assert one is not None
    nats = number * math.log(2) * 3.73
    assert one.p_better == pytest.approx(student(OURS, nats), rel=1e-9)
    assert one.p_bar == pytest.approx(student(OURS, nats - BAR_NATS), rel=1e-9)
    assert one.gain_bpb == pytest.approx(number - sum(OURS) / 3 / math.log(2) / 3.73)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (OURS, "Clears the contest's bar"),
        ((2.7600, 2.7800, 2.7500), "more seeds are needed"),
        ((2.7760, 2.7765, 2.7770), "Below the contest's bar"),
        ((2.7900, 2.7905, 2.7910), "Below the contest's bar"),
        ((2.7600,), "a test needs at least two seeds on both sides"),
    ],
)
def test_verdicts(tmp_path: Path, ours: tuple[float, ...], verdict: str) -> None:
    one = compare(group(tmp_path, "ours", ours, lr=0.03), group(tmp_path, "record", RECORD), "ttt")
    assert one is not None
    assert verdict in one.verdict


def test_seeds_without_spread_are_not_tested(tmp_path: Path) -> None:
    one = compare(group(tmp_path, "ours", (2.76, 2.76)), 1.08, "ttt")
    assert one is not None
    assert one.p_better is None
    assert "no spread" in one.verdict


def test_scores_of_other_text_are_not_compared(tmp_path: Path) -> None:
    theirs = make_run(tmp_path, "record", lr=0.01)
    write_json(theirs / "result.json", result({"ttt": score(2.7, targets=500)}))
    (other,) = group_runs([read_run(theirs)])
    with pytest.raises(GolfError, match="different text"):
        compare(group(tmp_path, "ours", OURS), other, "ttt")


def test_unlike_conditions_are_noted(tmp_path: Path) -> None:
    folders = seeds(tmp_path, "golf", RECORD)
    write_json(folders[1] / "environment.json", {"commit": "beef", "dirty": True, "gpus": ["H200"], "ranks": 8})
    for folder, digit, products in (folders[0], "a", "triton"), (folders[2], "b", "quack-kernels"):
        told = read_json(folder / "environment.json")
        write_json(folder / "environment.json", told | {"sources": digit * 64, "backends": {"MLP products": products}})
    (found,) = group_runs([read_run(folder) for folder in folders])
    notes = " ".join(found.notes)
    assert "different commits: beef, c0ffee" in notes
    assert "different GPUs" in notes
    assert f"different programs: {'a' * 12}, {'b' * 12}." in notes
    assert "different kernels: MLP products quack-kernels, MLP products triton." in notes
    assert "not committed" in notes
    assert "ranks" not in notes


def test_a_seed_used_twice_is_noted(tmp_path: Path) -> None:
    folders = [make_run(tmp_path, name, seed=7) for name in ("a1", "a2")]
    (found,) = group_runs([read_run(folder) for folder in folders])
    assert found.notes == ["Seed 7 stands for several runs."]
