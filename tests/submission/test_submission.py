"""Runs that differ in their seeds become a submission; others are refused, with reasons."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_run import golf, make_data, write_recipe

from golf_lightning.audit import AuditConfig
from golf_lightning.errors import GolfError
from golf_lightning.submission import commands
from golf_lightning.submission.entry import Author
from golf_lightning.submission.pages import requirements
from golf_lightning.submission.seeds import significance, summarize
from golf_lightning.submission.submission import Refused, submit

SEEDS = (1, 2, 3)
ME = Author(name="Small & quick", github_id="someone", blurb="A test of <everything>.")
QUICK = AuditConfig(positions=1, lengths=1, distributions=0, documents=2)


@dataclass
class Bundled:
    modules: tuple[str, ...] = ("golf_lightning.compression.coding", "golf_lightning.data.tokenizer")


def bundler(config: Path, out: Path) -> Bundled:
    out.write_text(f"# {yaml.safe_load(config.read_text())['seed_everything']}\n")
    return Bundled()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs seed1, seed2 and seed3."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder, make_data(folder / "prepared"), trainer={"max_steps": 4})
    for seed in SEEDS:
        assert golf("fit", "--config", recipe, "--seed_everything", seed, "--run.name", f"seed{seed}") == 0
    return folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> list[Path]:
    """Copies of the runs, to change."""
    shutil.copytree(made, tmp_path / "runs")
    return [tmp_path / "runs" / f"seed{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission; tests only read it."""
    out = tmp_path_factory.mktemp("submissions") / "small"
    folders = [made / f"seed{seed}" for seed in SEEDS]
    submit(folders, out, ME, bundler=bundler, audit_config=QUICK, against_bpb=4.0)
    return out


def entry(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "submission.json").read_text())


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def refusal(runs: list[Path], **options: Any) -> list[str]:
    out = runs[0].parent / "submission"
    with pytest.raises(Refused) as error:
        submit(runs, out, ME, **{"bundler": bundler, "audit_config": QUICK, **options})
    assert not out.exists()
    assert not list(runs[0].parent.glob(".submission*"))
    return error.value.reasons


def test_the_folder_holds_what_the_contest_asks_for(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    per_seed = {
        f"{kind}_seed{seed}.{suffix}" for seed in SEEDS for kind, suffix in (("train", "log"), ("audit", "json"))
    }
    assert files == per_seed | {"README.md", "submission.json", "train_gpt.py", "requirements.txt"}
    assert (folder / "train_gpt.py").read_text() == "# 1\n"


def test_the_entry_is_what_the_runs_have_written(folder: Path, made: Path) -> None:
    found = entry(folder)
    results = [json.loads((made / f"seed{seed}" / "result.json").read_text()) for seed in SEEDS]
    bpb = [result["scores"]["ttt"]["bpb"] for result in results]
    sizes = [(made / f"seed{seed}" / "artifact.golf").stat().st_size for seed in SEEDS]
    assert found["val_bpb"] == pytest.approx(np.mean(bpb), rel=1e-12)
    assert found["val_bpb_std"] == pytest.approx(np.std(bpb, ddof=1), rel=1e-9)
    assert found["bytes_total"] == max(sizes) + (folder / "train_gpt.py").stat().st_size
    assert [found["seed_results"][str(seed)]["val_bpb"] for seed in SEEDS] == bpb
    assert found["github_id"] == found["author"] == "someone"
    assert found["predictor"] == "adapts to each document, score first (track B)"
    assert {verdict for seed in found["audit"].values() for verdict in seed.values()} == {"passed", "not checked"}


def test_the_readme_shows_results_rules_and_settings(folder: Path, made: Path) -> None:
    text, found = (folder / "README.md").read_text(), entry(folder)
    assert text.startswith("# Small & quick\n\nA test of <everything>.\n")
    assert f"**{found['val_bpb']:.5f} bits per byte**" in text
    lines = text.splitlines()
    for seed in SEEDS:
        row = next(line for line in lines if line.startswith(f"| {seed} |"))
        assert f"{found['seed_results'][str(seed)]['val_bpb']:.5f}" in row
        assert row.count("|") == next(line for line in lines if line.startswith("| seed |")).count("|")
    assert "| flipped token | passed | passed | passed |" in lines
    assert "| sum of probabilities | **not checked** | **not checked** | **not checked** |" in lines
    config = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert config["model"]["gpt"]["width"] == 16
    assert "Against 4.0 bits per byte" in text
    assert "python train_gpt.py fit --seed_everything 1" in text


@pytest.mark.parametrize("dirty", [True, False])
def test_changes_that_were_not_committed_are_told(runs: list[Path], dirty: bool) -> None:
    for run in runs:
        change(run / "environment.json", lambda value: value.update(commit="c0ffee", dirty=dirty))
    out = runs[0].parent / "submission"
    submit(runs[:1], out, ME, bundler=bundler, audit_config=QUICK, seeds=1)
    assert entry(out)["uncommitted"] is dirty
    text = " ".join((out / "README.md").read_text().split())
    changed = ", with changes that were not committed," if dirty else ""
    assert f"holds the whole program of commit c0ffee{changed} with this configuration" in text


def test_tables_of_the_readme_have_no_gaps(folder: Path) -> None:
    """A blank line inside a table would end it."""
    blocks = (folder / "README.md").read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert [len(table) for table in tables] == [2 + len(SEEDS), 2 + 15]
    assert all(line.startswith("|") and line.endswith("|") for table in tables for line in table)


def test_logs_tell_the_whole_run(folder: Path) -> None:
    log = (folder / "train_seed2.log").read_text()
    for part in ("==== environment", "train/loss=", "after TTT", "training ends", "seed_everything: 2"):
        assert part in log


def test_audits_are_of_their_own_runs(folder: Path, made: Path) -> None:
    shas = {json.loads((folder / f"audit_seed{seed}.json").read_text())["subject"]["artifact_sha256"] for seed in SEEDS}
    assert len(shas) == 3


def test_a_run_of_another_configuration_is_refused(runs: list[Path]) -> None:
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    config["model"]["optimizer"]["embedding_wd"] = 0.5
    config["run"]["name"] = "a name may differ"
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    (reason,) = refusal(runs)
    assert reason.startswith(f"{runs[1]} has model.optimizer.embedding_wd 0.5, {runs[0]} has ")


def test_the_same_seed_twice_is_refused(runs: list[Path]) -> None:
    assert "Seed 1 is given 2 times." in refusal([runs[0], runs[1], runs[0]])


def test_too_few_seeds_are_refused(runs: list[Path]) -> None:
    assert refusal(runs[:2]) == ["2 seeds are given, 3 are asked for."]


def test_runs_of_different_commits_are_refused(runs: list[Path]) -> None:
    change(runs[2] / "environment.json", lambda value: value.update(commit="abc-dirty"))
    assert any(reason.startswith("The runs had different commits: ") for reason in refusal(runs))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ranks", 8, "numbers of ranks: 1, 8."),
        ("gpus", ["NVIDIA H100 80GB HBM3"], "GPUs: ['NVIDIA H100 80GB HBM3'], []."),
        ("backends", {"attention": "magic"}, "kernels: attention "),
        ("backends", None, "not known."),
    ],
)
def test_runs_of_unlike_conditions_are_refused(runs: list[Path], key: str, value: Any, words: str) -> None:
    change(runs[2] / "environment.json", lambda told: told.update({key: value}))
    (reason,) = refusal(runs)
    assert reason.startswith("The runs had different ") and words in reason


def again(run: Path, command: str, model: str, *options: object) -> None:
    where = ("--run.root", run.parent, "--run.name", run.name, "--run.overwrite", "true")
    assert golf(command, "--config", run / "config.yaml", *where, "--ckpt_path", run / model, *options) == 0


def test_the_score_of_another_artifact_is_refused_until_it_is_scored(runs: list[Path]) -> None:
    before = json.loads((runs[0] / "result.json").read_text())["scores"]
    coarse = ("--model.export.quantization.method", "rtn", "--model.export.rate", "fixed")
    again(runs[0], "export", "checkpoints/last.ckpt", *coarse)
    expected = "The score of {} is of another file than its artifact.golf; score that with `test`."
    assert refusal(runs) == [expected.format(runs[0])]
    again(runs[0], "test", "artifact.golf")
    scored = json.loads((runs[0] / "test.json").read_text())["scores"]
    out = runs[0].parent / "submission"
    submit(runs, out, ME, bundler=bundler, audit_config=QUICK)
    first = entry(out)["seed_results"]["1"]
    assert first["val_bpb"] == scored["ttt"]["bpb"] != before["ttt"]["bpb"]
    assert first["artifact_bytes"] == (runs[0] / "artifact.golf").stat().st_size
    # What fit says of the artifact that it made is not said of this one.
    assert first["bpb"] == {
        "before_quantization": before["before_quantization"]["bpb"],
        "ttt_lr0": scored["ttt_lr0"]["bpb"],
        "ttt": scored["ttt"]["bpb"],
    }


def test_runs_of_another_program_are_refused(runs: list[Path]) -> None:
    for run in runs:
        change(run / "environment.json", lambda value: value.update(sources="0" * 64, commit="c0ffee"))
    expected = "ran another program than this one; check out its commit (c0ffee) to pack what ran."
    assert refusal(runs) == [f"{run} {expected}" for run in runs]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda result: result["scores"].pop("ttt"), "has no score with test-time training"),
        (lambda result: result["scores"]["ttt"].update(partial=True), "covers a part of the split"),
        (lambda result: result.pop("train"), "has no figures of training"),
    ],
)
def test_runs_that_did_not_come_to_their_end_are_refused(runs: list[Path], edit: Any, words: str) -> None:
    change(runs[1] / "result.json", edit)
    (reason,) = refusal(runs)
    assert str(runs[1]) in reason and words in reason


def test_a_missing_artifact_is_refused(runs: list[Path]) -> None:
    (runs[0] / "artifact.golf").unlink()
    assert refusal(runs) == [f"{runs[0]} has no artifact.golf; make it with `export`."]


def test_a_failed_audit_is_refused_with_the_check(runs: list[Path]) -> None:
    change(runs[1] / "result.json", lambda result: result["ledger"].update(train=700.0))
    (reason,) = refusal(runs)
    assert reason.startswith(f"{runs[1]} fails the audit's check 'training clock': 700.0 s")


def test_missing_evidence_is_refused(runs: list[Path]) -> None:
    (runs[2] / "access.json").unlink()
    (reason,) = refusal(runs)
    assert reason.startswith(f"{runs[2]} lacks evidence for 'validation unread in training'")


def test_a_program_that_makes_it_too_large_is_refused(runs: list[Path]) -> None:
    def large(config: Path, out: Path) -> Bundled:
        out.write_bytes(b"#" * 16_000_000)
        return Bundled()

    reasons = refusal(runs, bundler=large)
    assert len(reasons) == 3
    assert all("'bytes on disk'" in reason for reason in reasons)


def test_a_folder_that_exists_is_not_touched(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(GolfError, match="already exists"):
        submit(runs, tmp_path / "there", ME, bundler=bundler)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing"),
        ("a: [", "is not valid YAML"),
        ("seed_everything: true", "names no seed"),
        ("[]", "no seed"),
    ],
)
def test_broken_configurations_are_one_sentence(runs: list[Path], text: str | None, words: str) -> None:
    (runs[0] / "config.yaml").unlink()
    if text is not None:
        (runs[0] / "config.yaml").write_text(text)
    with pytest.raises(GolfError, match=words):
        submit(runs, runs[0].parent / "out", ME, bundler=bundler)


def test_the_test_against_a_record_is_students() -> None:
    targets, table_bytes = 1000, 2500
    per_bpb = math.log(2) * table_bytes / targets
    scores = [
        {"bpb": bpb, "nats_per_target": bpb * per_bpb, "targets": targets, "table_bytes": table_bytes}
        for bpb in (1.07, 1.071, 1.0705)
    ]
    found = significance(scores, 1.08)
    gains = np.array([1.08 - score["bpb"] for score in scores]) * per_bpb
    t = (gains.mean() - 0.005) / (gains.std(ddof=1) / math.sqrt(3))
    # With 2 degrees of freedom the distribution has a closed form.
    assert found["p_better_by_bar"] == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), rel=1e-9)
    assert found["gain_bpb"] == pytest.approx(0.0095, abs=1e-12)
    assert found["gain_nats"] == pytest.approx(gains.mean(), rel=1e-12)
    assert significance(scores[:1], 1.08)["p_better"] is None
    assert summarize(scores[:1]).bpb_sd == 0


def test_requirements_are_what_the_program_imports() -> None:
    lines = requirements(["golf_lightning.data.tokenizer", "golf_lightning.files"], {"torch": "2.11.0+cu130"})
    assert [line.split("==")[0] for line in lines.splitlines()] == ["numpy", "sentencepiece", "torch"]
    assert "torch==2.11.0\n" in lines


def test_the_command_says_why(runs: list[Path], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "bundle", bundler)
    out = runs[0].parent / "made"
    options = ("--name", "A b/c", "--github-id", "me", "--out", out, "--positions", 1, "--lengths", 1)
    arguments = [str(part) for part in ("--distributions", 0, "--documents", 2, *options)]
    assert commands.main([*map(str, runs[:2]), *arguments]) == 1
    assert "- 2 seeds are given, 3 are asked for." in capsys.readouterr().err
    assert commands.main([*map(str, runs), *arguments]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert entry(out)["name"] == "A b/c"
