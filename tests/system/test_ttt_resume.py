"""Scoring that was interrupted goes on from the command line, and refuses what does not belong to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import golf, write_recipe

from golf_lightning.evaluation.journal import Journal


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "small" / "test.json").read_text())


def ttt(folder: Path) -> dict[str, Any]:
    return result(folder)["scores"]["ttt"]


def interrupted(finished: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> Path:
    """A run folder as an interruption leaves it, with ``keep`` finished documents on disk."""
    recipe = write_recipe(folder, data, model={"ttt_baseline": False})
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda folder: None)
        assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 0
    result = folder / "runs" / "small" / "test.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"run": {"status": "stopped by SIGINT"}}))
    path = folder / "runs" / "small" / "ttt_unfinished" / "rank0.json"
    held = json.loads(path.read_text())
    held["documents"] = dict(list(held["documents"].items())[:keep])
    path.write_text(json.dumps(held))
    return recipe


def test_interrupted_scoring_goes_on_to_the_same_total(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = interrupted(finished, data, tmp_path, monkeypatch, keep=3)
    whole = ttt(tmp_path)
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 0
    assert "scoring goes on: 3 of 8 documents are done" in capsys.readouterr().out
    resumed = ttt(tmp_path)
    assert resumed["nats"] == pytest.approx(whole["nats"], rel=1e-6)
    assert (resumed["targets"], resumed["table_bytes"]) == (whole["targets"], whole["table_bytes"])
    assert not (tmp_path / "runs" / "small" / "ttt_unfinished").exists()


def test_the_seconds_of_interrupted_scoring_count(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = interrupted(finished, data, tmp_path, monkeypatch, keep=3)
    path = tmp_path / "runs" / "small" / "ttt_unfinished" / "rank0.json"
    held = json.loads(path.read_text())
    assert held["seconds"] == pytest.approx({"score": ttt(tmp_path)["seconds"], "warm_up": 0.0}, rel=0.1, abs=0.1)
    path.write_text(json.dumps(held | {"seconds": {"score": 450.0, "warm_up": 100.0}}))
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 0
    score, ledger = ttt(tmp_path), result(tmp_path)["ledger"]
    assert 450 < score["seconds"] < 500 and 100 <= score["warm_up_seconds"] < 150
    assert score["targets_per_second"] == pytest.approx(score["targets"] / score["seconds"])
    assert ledger["score"] == pytest.approx(score["seconds"], abs=10)
    assert ledger["warm up"] == pytest.approx(score["warm_up_seconds"], abs=1e-3)


def test_scoring_with_other_settings_does_not_go_on(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = interrupted(finished, data, tmp_path, monkeypatch, keep=3)
    again = ("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf", "--model.ttt.lr", "0.01")
    assert golf(*again) == 2
    assert "interrupted scoring of another model, other data or other settings" in capsys.readouterr().err
