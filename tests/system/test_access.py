"""Training cannot read validation, and the run folder says who read what."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_run import golf, write_recipe

from golf_lightning.data.access import AccessLog
from golf_lightning.data.datamodule import GolfDataModule

NO_SCORING = ("--gptq.at_train_end", "false", "--ttt.enabled", "false")
EARLY = {"val_check_interval": 2, "check_val_every_n_epoch": None}

WATCH = """
import sys
from golf_lightning.__main__ import main
from golf_lightning.module import GolfModule

seen = []


def watch(event, values):
    if event == "open" and "fineweb_val" in str(values[0]):
        seen.append("val")


sys.addaudithook(watch)
step = GolfModule.training_step
GolfModule.training_step = lambda *arguments: (seen.append("step"), step(*arguments))[1]
assert main(sys.argv[1:]) == 0
print("SEEN", *seen)
"""


def log(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "runs" / "small" / "access.json").read_text())


def test_the_log_of_a_whole_run(finished: Path) -> None:
    entries = json.loads((finished / "access.json").read_text())
    events = [entry["event"] for entry in entries]
    assert events.count("training begins") == events.count("training ends") == 1
    assert "refused" not in events
    during = [entry for entry in entries if entry["phase"] == "training"]
    assert {entry["split"] for entry in during} == {"train", None}
    val = [(entry["phase"], entry["step"], entry["use"]) for entry in entries if entry["split"] == "val"]
    assert val == [("after training", 6, use) for use in ("validation batches", "validation batches", "documents")]
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)


def test_no_file_of_validation_is_opened_before_the_last_step(data: Path, tmp_path: Path) -> None:
    """As the interpreter itself reports it, whoever opens the file."""
    recipe = write_recipe(tmp_path, data)
    command = [sys.executable, "-c", WATCH, "fit", "--config", str(recipe), *NO_SCORING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split("SEEN", 1)[1].split()
    assert seen.count("step") == 6
    assert "val" in seen
    assert seen.index("val") == 6


def test_validation_while_training_is_refused_and_logged(data: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = write_recipe(tmp_path, data, trainer=EARLY)
    assert golf("fit", "--config", recipe, *NO_SCORING) == 2
    assert "asked for at step 2, before training has ended" in capsys.readouterr().err
    refused = [(entry["step"], entry["split"]) for entry in log(tmp_path) if entry["event"] == "refused"]
    assert refused == [(2, "val")]


def test_it_can_be_allowed_and_is_logged(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, trainer=EARLY, data={"validate_while_training": True})
    assert golf("fit", "--config", recipe, *NO_SCORING) == 0
    opened = [(entry["phase"], entry["step"]) for entry in log(tmp_path) if entry["split"] == "val"]
    assert opened == [("training", 2), ("training", 4), ("after training", 6)]


def test_a_resumed_run_keeps_the_log_of_its_earlier_sessions(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data)
    assert golf("fit", "--config", recipe, "--trainer.max_steps", 3, *NO_SCORING) == 0
    checkpoint = tmp_path / "runs" / "small" / "checkpoints" / "last.ckpt"
    assert golf("fit", "--config", recipe, "--ckpt_path", checkpoint, *NO_SCORING) == 0
    marks = [(entry["event"], entry["step"]) for entry in log(tmp_path) if entry["split"] != "train"]
    first = [("training begins", 0), ("open", 3), ("training ends", 3)]
    assert marks == [*first, ("training begins", 0), ("open", 6), ("training ends", 6)]


def test_a_fit_checks_the_size_of_validation_before_it_trains(data: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    shard = next(broken.glob("fineweb_val_*.bin"))
    for kept, complaint in ((-2, "manifest.json says"), (-1, "is truncated or damaged")):
        shard.write_bytes(next(data.glob("fineweb_val_*.bin")).read_bytes()[:kept])
        assert golf("fit", "--config", write_recipe(tmp_path, broken), *NO_SCORING) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "runs" / "small" / "access.json").exists()


def test_a_notebook_may_read_what_it_likes(data: Path) -> None:
    module = GolfDataModule(str(data), train_tokens=96, val_tokens=96, max_seqlen=48)
    module.setup("test")
    assert len(module.val_tokens()) == module.val_targets + 1
    assert [(entry.phase, entry.use) for entry in module.access.entries] == [("no trainer", "all tokens")]


def test_the_log_survives_json() -> None:
    log, later = AccessLog(), AccessLog()
    log.add("open", phase="test", step=3, split="val", use="documents")
    later.add("training begins", phase="training", step=0)
    later.continue_from(json.loads(json.dumps(log.to_list())))
    assert [entry.event for entry in later.entries] == ["open", "training begins"]
    assert later.entries[0] == log.entries[0]


@pytest.mark.parametrize("name", ["map_shard", "find_shards", "val_tokens"])
def test_only_the_data_room_opens_shards(name: str) -> None:
    """Whatever else wants validation has to ask the data module, which logs and refuses; the audit reads on its own."""
    root = Path(__file__).parents[2]
    users = {
        path.relative_to(root).parts[1]
        for package in ("golf_lightning", "callbacks")
        for path in (root / package).rglob("*.py")
        if f"{name}(" in path.read_text()
    }
    assert users <= {"data"}
