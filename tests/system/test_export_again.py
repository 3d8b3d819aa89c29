"""`export`: other bits, another coder or another budget from a checkpoint, without training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_run import golf, write_recipe

from golf_lightning.compression.artifact import Artifact, read_artifact
from golf_lightning.submission import sizing


def export(finished: Path, data: Path, folder: Path, *options: object) -> int:
    checkpoint = finished / "checkpoints" / "last.ckpt"
    return golf("export", "--config", write_recipe(folder, data), "--ckpt_path", checkpoint, *options)


def exported(folder: Path) -> Artifact:
    return read_artifact(folder / "runs" / "small" / "artifact.golf")


def test_another_coder_stores_the_same_weights(finished: Path, data: Path, tmp_path: Path) -> None:
    assert export(finished, data, tmp_path, "--model.export.coder", "raw") == 0
    first, again = read_artifact(finished / "artifact.golf"), exported(tmp_path)
    assert again.coder == "raw" != first.coder
    state = first.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_other_bits_and_clip_points_are_used(finished: Path, data: Path, tmp_path: Path) -> None:
    quantization = "--model.export.quantization"
    fixed = ("--model.export.rate", "fixed")
    assert export(finished, data, tmp_path, *fixed, f"{quantization}.mlp_bits", 4, f"{quantization}.mlp_k", 5.0) == 0
    first, again = read_artifact(finished / "artifact.golf"), exported(tmp_path)
    assert {name: matrix.bits for name, matrix in again.state.matrices.items()} == {
        "qo": 6, "kv": 6, "up": 4, "down": 4, "embedding": 8
    }  # fmt: skip
    assert again.bytes_by_role["mlp"] < first.bytes_by_role["mlp"]


def test_a_budget_that_is_too_small_keeps_the_file_and_fails(
    finished: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    budget = "--model.export.budget"
    assert export(finished, data, tmp_path, f"{budget}.limit_bytes", 4000, f"{budget}.code_bytes", 1000) == 2
    assert f"{exported(tmp_path).file_bytes - 3000:,} bytes over the limit of 4,000" in capsys.readouterr().err


def test_code_bytes_that_are_not_given_are_those_of_the_bundle(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = []

    class Sized:
        def __init__(self, config: str) -> None:
            configs.append(config)

        def result(self, wait: bool) -> int:
            return 23_456

    monkeypatch.setattr(sizing, "Sizing", Sized)
    assert export(finished, data, tmp_path, "--model.export.budget.code_bytes", "null") == 0
    run = tmp_path / "runs" / "small"
    assert json.loads((run / "export.json").read_text())["artifact"]["code_bytes"] == 23_456
    config = (run / "config.export.yaml").read_text()
    assert configs == [config]
    assert yaml.safe_load(config)["model"]["export"]["budget"]["code_bytes"] is None


def test_code_that_cannot_be_measured_is_told_before_anything_is_done(
    finished: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("golf_lightning.submission")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "python_minifier", None)
    assert export(finished, data, tmp_path, "--model.export.budget.code_bytes", "null") == 2
    assert "needs the package python_minifier; run `pip install python-minifier`" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "small" / "artifact.golf").exists()


def test_an_artifact_is_not_quantized_again(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("export", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 2
    assert "An artifact is quantized already" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "small" / "artifact.golf").exists()
