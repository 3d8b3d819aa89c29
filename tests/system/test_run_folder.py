"""What a run leaves behind: everything in its folder, nothing elsewhere, and nothing lost by doing a stage again."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import golf, write_recipe

from golf_lightning.data.manifest import Manifest
from golf_lightning.reporting.run_folder import ROOT, sources_digest


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture
def run(finished: Path, data: Path, tmp_path: Path) -> Path:
    """A finished run of its own for each test, beside the recipe that made it."""
    write_recipe(tmp_path, data)
    shutil.copytree(finished, tmp_path / "runs" / "small")
    return tmp_path / "runs" / "small"


def again(run: Path, command: str, *options: object) -> int:
    return golf(command, "--config", run.parent.parent / "recipe.yaml", *options)


def test_the_log_holds_what_was_printed(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert golf("fit", "--config", write_recipe(tmp_path, data)) == 0
    printed = capsys.readouterr().out
    log = (tmp_path / "runs" / "small" / "log.txt").read_text()
    assert re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", log, flags=re.MULTILINE) == printed


def test_the_log_ends_with_the_run(finished: Path, data: Path, tmp_path: Path) -> None:
    before = (finished / "log.txt").read_text()
    assert golf("validate", "--config", write_recipe(tmp_path, data), "--ckpt_path", finished / "artifact.golf") == 0
    assert (finished / "log.txt").read_text() == before


def test_the_result_says_how_the_run_went(finished: Path) -> None:
    run = read(finished / "result.json")["run"]
    assert (run["name"], run["command"], run["status"]) == ("small", "fit", "finished")
    assert run["started"] <= run["finished"]


def test_a_run_over_budget_is_not_called_finished(data: Path, tmp_path: Path) -> None:
    budget = {"limit_bytes": 3000, "code_bytes": 1000}
    assert golf("fit", "--config", write_recipe(tmp_path, data, model={"export": {"budget": budget}})) == 2
    folder = tmp_path / "runs" / "small"
    assert "bytes over the limit of 3,000" in read(folder / "result.json")["run"]["status"]
    assert "bytes over the limit of 3,000" in (folder / "log.txt").read_text().splitlines()[-1]


def test_the_environment_names_versions_and_no_host(finished: Path) -> None:
    environment = read(finished / "environment.json")
    assert {"torch", "lightning", "jsonargparse"} <= set(environment["packages"])
    assert environment["backends"] == {"attention": "segments", "kernels": "reference"}
    assert "attention: segments, kernels: reference\n" in (finished / "log.txt").read_text()
    assert {"commit", "dirty", "gpus", "driver", "ranks"} <= set(environment)
    assert environment["ranks"] == 1
    assert re.search(r"hostname|\bnode\b", json.dumps(list(environment))) is None


def test_the_digest_tells_programs_apart(finished: Path, tmp_path: Path) -> None:
    assert read(finished / "environment.json")["sources"] == sources_digest(ROOT)
    for name in ("callbacks", "golf_lightning/submission"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "callbacks" / "a.py").write_text("one")
    assert sources_digest(tmp_path) is None  # as in a bundle
    (tmp_path / "golf_lightning" / "submission" / "bundle.py").write_text("two")
    first = sources_digest(tmp_path)
    (tmp_path / "callbacks" / "a.py").rename(tmp_path / "callbacks" / "b.py")
    assert first is not None and sources_digest(tmp_path) != first


def test_documents_add_up_to_the_scores(finished: Path, data: Path) -> None:
    with open(finished / "documents.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = read(finished / "result.json")["scores"]
    assert len(rows) == Manifest.load(data).splits["val"].documents
    assert sum(int(row["targets"]) for row in rows) == scores["ttt"]["targets"]
    assert sum(int(row["bytes"]) for row in rows) == scores["ttt"]["table_bytes"]
    for name in ("ttt_lr0", "ttt"):
        assert sum(float(row[f"{name}_nats"]) for row in rows) == pytest.approx(scores[name]["nats"], rel=1e-12)


def test_the_log_of_values_has_what_the_report_plots(finished: Path) -> None:
    with open(finished / "metrics" / "version_0" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/momentum"]) for row in rows] == sorted(float(row["train/momentum"]) for row in rows)
    seconds = [float(row["train/seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[-1]
    assert [float(row["train/recurrent"]) for row in rows] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("command", "model", "file"),
    [
        ("fit", None, "result.json"),
        ("export", "checkpoints/last.ckpt", "artifact.golf"),
        ("test", "artifact.golf", "test.json"),
    ],
)
def test_a_finished_stage_is_not_done_again_by_accident(
    run: Path, capsys: Any, command: str, model: str | None, file: str
) -> None:
    options = ["--ckpt_path", run / model] if model else []
    if command == "test":
        assert again(run, "test", *options) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert again(run, command, *options) == 2
    assert "--run.overwrite true" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    made = (run / file).stat().st_mtime_ns
    assert again(run, command, *options, "--run.overwrite", "true") == 0
    assert (run / file).stat().st_mtime_ns > made


def test_a_score_that_was_interrupted_is_done_again_without_asking(run: Path) -> None:
    (run / "test.json").write_text(json.dumps({"run": {"status": "stopped by SIGINT"}}))
    assert again(run, "test", "--ckpt_path", run / "artifact.golf") == 0
    assert "ttt" in read(run / "test.json")["scores"]


def test_a_run_is_not_continued_in_the_folder_of_another(run: Path, finished: Path, capsys: Any) -> None:
    other = finished / "checkpoints" / "last.ckpt"
    assert again(run, "fit", "--ckpt_path", other, "--trainer.max_steps", 8) == 2
    assert "already holds a run" in capsys.readouterr().err
    own = run / "checkpoints" / "last.ckpt"
    assert again(run, "fit", "--ckpt_path", own, "--trainer.max_steps", 8) == 0
    assert sorted(path.name for path in (run / "metrics").iterdir()) == ["version_0", "version_1"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["ckpt_path"] is None, "the same options again must repeat the run, not continue what is finished"


ROUND = ("--model.export.quantization.method", "rtn", "--model.export.rate", "fixed")


def test_stages_done_again_keep_the_figures_of_the_others(run: Path) -> None:
    result = (run / "result.json").read_bytes()
    model = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "--run.overwrite", "true"]
    assert again(run, "export", *model, *ROUND) == 0
    assert again(run, "test", "--ckpt_path", run / "artifact.golf") == 0
    assert (run / "result.json").read_bytes() == result
    exported, tested = read(run / "export.json"), read(run / "test.json")
    assert set(exported["scores"]) == {"before_quantization", "quantized"}
    assert set(tested["scores"]) == {"ttt_lr0", "ttt"}
    assert tested["run"]["from_sha256"] == exported["artifact"]["sha256"] != json.loads(result)["artifact"]["sha256"]
    assert (
        yaml.safe_load((run / "config.export.yaml").read_text())["model"]["export"]["quantization"]["method"] == "rtn"
    )
    log = (run / "log.txt").read_text()
    assert log.index("fit in") < log.index("export in") < log.index("test in")


def test_training_again_leaves_nothing_of_the_run_before(run: Path) -> None:
    assert again(run, "test", "--ckpt_path", run / "artifact.golf") == 0
    (run / "notes.txt").write_text("mine")
    options = ("--run.overwrite", "true", "--gptq.at_train_end", "false", "--ttt.enabled", "false")
    assert again(run, "fit", *options) == 0
    names = {path.name for path in run.iterdir()}
    assert names == {
        "access.json",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "log.txt",
        "metrics",
        "notes.txt",
        "result.json",
    }
    assert [path.name for path in (run / "metrics").iterdir()] == ["version_0"]


MISTAKES = {
    "refused by a check": ["--clock.budget_s", "5", "--clock.reserve_s", "4", "--model.gpt.vocab_size", "512"],
    "refused by the optimizer's strategy": ["--trainer.gradient_clip_val", "1.0"],
    "a checkpoint that is missing": ["--ckpt_path", "nothing.ckpt"],
}


@pytest.mark.parametrize("options", MISTAKES.values(), ids=MISTAKES)
def test_a_failed_start_leaves_nothing(data: Path, tmp_path: Path, options: list[str]) -> None:
    assert golf("fit", "--config", write_recipe(tmp_path, data), *options) == 2
    assert not (tmp_path / "runs").exists()


def test_a_rehearsal_of_one_step_goes_the_whole_way(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("fit", "--config", recipe, "--trainer.fast_dev_run", "true") == 0
    result = read(tmp_path / "runs" / "small" / "result.json")
    assert result["train"]["steps"] == 1
    assert set(result["scores"]) == {"before_quantization", "quantized", "ttt_lr0", "ttt"}


def test_the_report_of_a_real_run_shows_everything(run: Path) -> None:
    assert golf("report", run) == 0
    page = (run / "report.html").read_text()
    assert page.count("<figure") == 10
    assert "What to know first" not in page or "not committed" in page
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_a_rehearsal_says_what_it_is(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert golf("fit", "--config", write_recipe(tmp_path, data), "--trainer.fast_dev_run", "true") == 0
    assert golf("report", tmp_path / "runs" / "small") == 0
    output = capsys.readouterr().out
    assert "A rehearsal (trainer.fast_dev_run)" in output
    assert "No logged values" in output
