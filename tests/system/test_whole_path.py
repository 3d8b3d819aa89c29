"""From prepared text to a scored artifact, through the command line alone."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_run import golf, golf_alone, write_recipe

from golf_lightning.data.manifest import Manifest


def scores(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["scores"]


def test_a_run_leaves_its_files_in_its_folder_and_nowhere_else(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "access.json",
        "artifact.golf",
        "checkpoints",
        "config.yaml",
        "documents.csv",
        "environment.json",
        "log.txt",
        "metrics",
        "result.json",
        "ttt.png",
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"last.ckpt"}
    assert {path.name for path in finished.parent.iterdir()} == {"small"}


def test_every_score_covers_the_whole_split(finished: Path, data: Path) -> None:
    val = Manifest.load(data).splits["val"]
    found = scores(finished / "result.json")
    assert list(found) == ["before_quantization", "quantized", "ttt_lr0", "ttt"]
    for score in found.values():
        assert score["targets"] == val.tokens - 1
        assert score["table_bytes"] == val.source_bytes
        assert not score["partial"]
        assert score["bpb"] == pytest.approx(score["nats"] / math.log(2) / val.source_bytes)
        assert score["bpb"] == score["bpb_text"]


def test_the_result_tells_bytes_steps_and_seconds(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["artifact"]["artifact_bytes"] == (finished / "artifact.golf").stat().st_size
    assert result["artifact"]["headroom_bytes"] == 16_000_000 - 26_505 - result["artifact"]["artifact_bytes"]
    assert result["train"]["steps"] == 6
    assert result["train"]["tokens"] == 6 * 128
    assert {"compile", "train", "validate", "calibrate", "quantize", "encode", "load", "score"} <= set(result["ledger"])


def test_metrics_are_logged_as_csv_and_for_tensorboard(finished: Path) -> None:
    folder = finished / "metrics" / "version_0"
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/tokens_per_second", "val/bpb"} <= set(header.split(","))
    assert len(rows) == 4  # three lines of training and one of validation
    assert list(folder.glob("events.out.tfevents.*"))


def test_the_saved_configuration_repeats_the_run(finished: Path, data: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"]["gpt"]["width"] == 16
    assert golf("fit", "--config", finished / "config.yaml", "--run.root", tmp_path) == 0
    again = scores(tmp_path / "small" / "result.json")
    assert {name: s["nats"] for name, s in again.items()} == {
        name: s["nats"] for name, s in scores(finished / "result.json").items()
    }


def test_a_fresh_process_scores_the_artifact_without_the_training_data(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "data"
    shutil.copytree(data, alone)
    for shard in alone.glob("fineweb_train_*.bin"):
        shard.unlink()
    recipe = write_recipe(tmp_path, alone)
    done = golf_alone("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf")
    assert done.returncode == 0, done.stderr
    ours, theirs = scores(finished / "result.json"), scores(tmp_path / "runs" / "small" / "test.json")
    assert theirs["ttt"]["nats"] == ours["ttt"]["nats"]
    assert theirs["ttt_lr0"]["nats"] == ours["ttt_lr0"]["nats"]
    assert "after TTT" in done.stdout


def test_validate_scores_checkpoint_and_artifact_without_adaptation(finished: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    expected = scores(finished / "result.json")
    for path, name in (("artifact.golf", "quantized"), ("checkpoints/last.ckpt", "before_quantization")):
        assert golf("validate", "--config", recipe, "--ckpt_path", finished / path) == 0
        found = scores(tmp_path / "runs" / "small" / "validate.json")
        assert list(found) == [name]
        assert found[name]["nats"] == pytest.approx(expected[name]["nats"], rel=1e-12)


def test_export_repeats_the_artifact_from_the_checkpoint(finished: Path, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("export", "--config", recipe, "--ckpt_path", finished / "checkpoints" / "last.ckpt") == 0
    assert (tmp_path / "runs" / "small" / "artifact.golf").read_bytes() == (finished / "artifact.golf").read_bytes()


def test_batch_size_moves_no_validation_score(finished: Path, data: Path, tmp_path: Path) -> None:
    sums = []
    for tokens in (48, 131, 5000):
        recipe = write_recipe(tmp_path, data, data={"val_tokens": tokens, "max_segments": 200})
        assert golf("validate", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 0
        sums.append(scores(tmp_path / "runs" / "small" / "validate.json")["quantized"])
    assert sums[0]["targets"] == sums[1]["targets"] == sums[2]["targets"]
    assert sums[0]["nats"] == pytest.approx(sums[1]["nats"], rel=1e-6) == pytest.approx(sums[2]["nats"], rel=1e-6)


def test_a_part_of_the_split_is_labelled(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data, model={"ttt": {"max_documents": 3}, "ttt_baseline": False})
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 0
    found = scores(tmp_path / "runs" / "small" / "test.json")
    assert list(found) == ["ttt"]
    assert found["ttt"]["partial"]
    assert "bpb_text" not in found["ttt"]
    assert "after TTT (part)" in capsys.readouterr().out


def test_over_budget_keeps_everything_and_fails(data: Path, tmp_path: Path, capsys: Any) -> None:
    budget = {"limit_bytes": 3000, "code_bytes": 1000}
    recipe = write_recipe(tmp_path, data, model={"export": {"budget": budget}})
    assert golf("fit", "--config", recipe) == 2
    run = tmp_path / "runs" / "small"
    size = (run / "artifact.golf").stat().st_size
    assert f"{size - 2000:,} bytes over the limit of 3,000" in capsys.readouterr().err
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert set(scores(run / "result.json")) == {"before_quantization", "quantized", "ttt_lr0", "ttt"}


def test_checkpoints_hold_tensors_and_plain_values_only(finished: Path) -> None:
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["golf"]["recurrent"] is True
    assert {name.removeprefix("model.") for name in saved["state_dict"]} >= {"qo", "kv", "up", "down", "embedding"}
