"""Every mistake gets one sentence and the exit status 2, and costs nothing that was there before."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import golf, write_recipe

from callbacks import compile_warmup
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import map_shard
from golf_lightning.data.tokenizer import train_tokenizer
from golf_lightning.files import sha256_of
from golf_lightning.tools import TOOLS

ROOT = Path(__file__).parents[2]

MISTAKES = {
    "misspelt option": (["--clock.budgets", "5"], "did you mean clock.budget_s?"),
    "misspelt section": (["--modle.gpt.width", "5"], "did you mean model.gpt.width?"),
    "not a number": (["--model.gpt.layers", "many"], 'key "model.gpt.layers"'),
    "heads": (["--model.gpt.heads", "3"], "heads * head_dim is 24 but width is 16"),
    "loop": (["--model.gpt.loop_last", "9"], "looped layers 1..9 are out of range"),
    "vocabulary": (["--model.gpt.vocab_size", "512"], "has 320 pieces but the model's vocab_size is 512"),
    "batch": (["--data.train_tokens", "20"], "does not hold one segment of 48"),
    "int1": (["--model.export.quantization.mlp_bits", "1"], "int1"),
    "int17": (["--model.export.quantization.mlp_bits", "17"], "int17"),
    "reserve": (["--clock.budget_s", "5", "--clock.reserve_s", "6"], "reserve is 6.0 s"),
    "no end": (["--trainer.max_steps", "-1"], "never end"),
    "recurrence": (["--recurrence.start", "35"], "fraction of the training clock from 0 to 1"),
    "clip": (["--trainer.gradient_clip_val", "1.0"], "set clip_norm of the optimizer"),
    "accelerator": (["--trainer.accelerator", "gup"], "cannot run the trainer as configured"),
    "order": (["--gptq.at_train_end", "false"], "--ttt.enabled false"),
    "run name": (["--run.name", "a/b"], "without slashes"),
    "backend": (["--model.attention", "fa4"], "needs a CUDA GPU"),
    "kernels": (["--model.kernels", "triton"], "need a GPU of compute capability 9"),
    "config file": (["--config", "nothing.yaml"], "File does not exist"),
    "checkpoint": (["--ckpt_path", "nothing.ckpt"], "nothing.ckpt does not exist"),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_on_the_command_line(
    data: Path, tmp_path: Path, capsys: Any, arguments: list[str], sentence: str
) -> None:
    assert golf("fit", "--config", write_recipe(tmp_path, data), *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert sentence in message
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fitt", "--config", "a.yaml"], "there is no command fitt; "),
        (["2"], "no command 2; "),
        ([], "no command was given; "),
    ],
)
def test_all_commands_are_named_where_none_is_known(capsys: Any, arguments: list[str], sentence: str) -> None:
    assert golf(*arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    assert f"{sentence}choose from fit, validate, export, test, {', '.join(TOOLS)} (" in message


def test_a_gpu_too_small_for_a_micro_batch_is_told_before_the_clock(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")

    monkeypatch.setattr(compile_warmup, "warm_up", full)
    assert golf("fit", "--config", write_recipe(tmp_path, data)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(
        "error: A micro-batch of 128 tokens does not fit in the GPU's memory; halve --data.train_tok"
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def make_foreign(path: Path) -> None:
    path.write_bytes(b"PNG" + path.read_bytes()[3:])


def drop_bos(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1024:1026] = np.uint16(7).tobytes()
    path.write_bytes(bytes(data))


DAMAGE = {
    "missing": (lambda path: path.unlink(), "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (cut, "is truncated"),
    "foreign": (make_foreign, "is not a token shard"),
    "without BOS": (drop_bos, "does not start with"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_shards(data: Path, tmp_path: Path, capsys: Any, split: str, damage: Any, sentence: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    damage(next(folder.glob(f"fineweb_{split}_*.bin")))
    assert golf("fit", "--config", write_recipe(tmp_path, folder)) == 2
    message = capsys.readouterr().err
    assert sentence in message and split in message


def test_no_data_folder(tmp_path: Path, capsys: Any) -> None:
    assert golf("fit", "--config", write_recipe(tmp_path, tmp_path / "nothing")) == 2
    assert "prepare" in capsys.readouterr().err


def test_scoring_needs_validation_data(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    manifest = Manifest.load(folder)
    (folder / manifest.splits.pop("val").shards[0].name).unlink()
    manifest.save(folder)
    recipe = write_recipe(tmp_path, folder)
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 2
    assert "has no val split" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_scoring_needs_a_model(data: Path, tmp_path: Path, capsys: Any, command: str) -> None:
    assert golf(command, "--config", write_recipe(tmp_path, data)) == 2
    assert "give --ckpt_path" in capsys.readouterr().err


def truncate(file: bytes) -> bytes:
    return file[: len(file) // 2]


def corrupt(file: bytes) -> bytes:
    middle = len(file) // 2
    return file[:middle] + bytes([file[middle] ^ 255]) + file[middle + 1 :]


def of_another_version(file: bytes) -> bytes:
    return file[:8] + bytes([99]) + file[9:]


@pytest.mark.parametrize("damage", [truncate, corrupt, of_another_version])
def test_damaged_artifacts(finished: Path, data: Path, tmp_path: Path, capsys: Any, damage: Any) -> None:
    artifact = tmp_path / "artifact.golf"
    artifact.write_bytes(damage((finished / "artifact.golf").read_bytes()))
    assert golf("test", "--config", write_recipe(tmp_path, data), "--ckpt_path", artifact) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_an_artifact_is_nothing_to_train_on(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("fit", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 2
    assert "holds no optimizer state" in capsys.readouterr().err


def test_a_model_of_another_shape_is_named(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data, model={"gpt": {"mlp_width": 48}})
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 2
    assert "mlp_width 32" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten_by_accident(finished: Path, data: Path, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    recipe = finished.parent.parent / "recipe.yaml"
    assert golf("fit", "--config", recipe) == 2
    assert "--run.overwrite true" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_tokenizer_is_refused(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    train_tokenizer(["other words entirely, of another language"] * 50, folder / "tokenizer.model", vocab_size=320)
    manifest = Manifest.load(folder)
    manifest.tokenizer_sha256 = sha256_of(folder / "tokenizer.model")
    manifest.save(folder)
    assert len(map_shard(folder / manifest.splits["val"].shards[0].name)) > 0
    recipe = write_recipe(tmp_path, folder)
    assert golf("test", "--config", recipe, "--ckpt_path", finished / "artifact.golf") == 2
    assert "another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "bench"])
def test_another_python_than_the_projects_is_told_so(command: str) -> None:
    # -S leaves out what is installed.
    line = [sys.executable, "-S", "-m", "golf_lightning", command]
    done = subprocess.run(line, cwd=ROOT, env={}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} does not find the package ")
    assert done.stderr.count("\n") == 1 and "pip install -e ." in done.stderr


def test_a_mistake_found_in_a_process_of_its_own_is_all_that_is_printed(tmp_path: Path) -> None:
    """Lightning writes of devices and seeds where its loggers were quietened before its import."""
    options = ["--config", "configs/demo.yaml", "--data.folder", str(tmp_path / "nowhere"), "--run.root", str(tmp_path)]
    line = [sys.executable, "-m", "golf_lightning", "fit", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: The data folder") and done.stderr.count("\n") == 1
