"""The README's examples run, its files exist, and the messages it explains are those of the code."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import golf, make_data, write_recipe

from golf_lightning.compression.artifact import read_artifact

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCES = dict(
    re.findall(r"^```(?:yaml|python|sh)\n(?:#![^\n]*\n)?# (\S+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
)
NO_SCORING = ("--gptq.at_train_end", "false", "--ttt.enabled", "false")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


def write_example(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_text(FENCES[name])
    return path


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "runs" / "small" / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_readme_has_the_promised_examples() -> None:
    assert set(FENCES) == {"wide.yaml", "centred.py", "coarse.yaml", "gains.py", "golf.sh"}


def test_the_architecture_example_trains_another_shape(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": 2})
    assert golf("fit", "--config", recipe, "--config", write_example("wide.yaml", tmp_path), *NO_SCORING) == 0
    assert saved(tmp_path)["state_dict"]["model.up"].shape == (6, 768, 192)


def test_the_optimizer_example_trains_by_its_own_rule(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": 3})
    command = [sys.executable, write_example("centred.py", tmp_path), "fit", "--config", recipe, *NO_SCORING]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    (optimizer,) = saved(tmp_path)["optimizer_states"]
    momenta = [state["momentum"] for state in optimizer["state"].values() if "momentum" in state]
    assert len(momenta) == 4
    for momentum in momenta:
        assert momentum.abs().max() > 0
        assert momentum.mean(-1).abs().max() < 1e-5 * momentum.abs().max()


def test_the_quantizer_example_writes_another_artifact(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    checkpoint = tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt"
    example = write_example("coarse.yaml", tmp_path)
    assert golf("export", "--config", recipe, "--config", example, "--ckpt_path", checkpoint, "--run.name", "c") == 0
    state = read_artifact(tmp_path / "runs" / "c" / "artifact.golf").state
    assert {name: matrix.bits for name, matrix in state.matrices.items()} == {
        "qo": 6,
        "kv": 6,
        "up": 5,
        "down": 5,
        "embedding": 7,
    }


def test_the_callback_example_logs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example("gains.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": 12})
    assert golf("fit", "--config", recipe, "--trainer.callbacks+=gains.QueryGains", *NO_SCORING) == 0
    with open(tmp_path / "runs" / "small" / "metrics" / "version_0" / "metrics.csv", newline="") as file:
        logged = [(row["step"], row["train/query_gain"]) for row in csv.DictReader(file) if row["train/query_gain"]]
    assert [step for step, _ in logged] == ["10"]
    assert float(logged[0][1]) == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize("name", sorted(FENCES))
def test_examples_are_short(name: str) -> None:
    code = [line for line in FENCES[name].splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(code) <= 14


def test_the_torchrun_line_starts_ranks(data: Path, tmp_path: Path) -> None:
    """The README's line, with one host for two, two processes for eight, and the small recipe."""
    (line,) = re.findall(r"^torchrun (.*)$", README, re.MULTILINE)
    recipe = write_recipe(tmp_path, data, trainer={"max_steps": 2, "devices": 2})
    replaced = {
        "--nnodes 2": "--nnodes 1",
        "--nproc-per-node 8": "--nproc-per-node 2",
        "HOST:29500": "localhost:0",  # a free port: another suite may run on this machine
        "--config configs/golf.yaml --config configs/eight_gpus.yaml": f"--config {recipe}",
        "--trainer.num_nodes 2": "--trainer.num_nodes 1",
        "--data.train_tokens 49152": "--data.train_tokens 64",
    }
    for old, new in replaced.items():
        assert old in line
        line = line.replace(old, new)
    command = [sys.executable, "-m", "torch.distributed.run", *line.split(), *NO_SCORING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    assert json.loads((run / "environment.json").read_text())["ranks"] == 2
    assert json.loads((run / "result.json").read_text())["train"]["tokens"] == 2 * 2 * 64


def test_the_slurm_script_is_a_shell_script(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-n", write_example("golf.sh", tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def messages() -> set[str]:
    """Every text in the code, with "…" for what is filled in."""
    found = set()
    for package in ("golf_lightning", "callbacks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.add("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_explained_messages_are_those_of_the_code() -> None:
    table = README[README.index("## When it says no") : README.index("## Several GPUs")]
    quoted = re.findall(r'^\| "(.*?)" \|', table, re.MULTILINE)
    assert len(quoted) > 15
    known = messages()
    assert [text for text in quoted if not any(text in message for message in known)] == []


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 2
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 300_000


def test_links_lead_to_headings() -> None:
    titles = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links and links <= headings


def test_named_files_exist() -> None:
    named = set(re.findall(r"`((?:golf_lightning|tests|configs|callbacks)/[\w/.]*)`", README))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
