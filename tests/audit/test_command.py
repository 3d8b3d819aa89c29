"""``python -m golf_lightning audit`` from end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import golf

QUICK = ("--positions", 2, "--lengths", 1, "--distributions", 1, "--documents", 3)


def test_an_honest_run_passes(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--artifact", finished / "artifact.golf", "--data", data, "--run", finished)
    assert golf("audit", *options, "--whole", "--json", tmp_path / "audit.json", *QUICK) == 0
    output = capsys.readouterr().out
    found = json.loads((tmp_path / "audit.json").read_text())
    assert "15 passed, in" in output
    assert found["passed"] and found["complete"]
    assert len(found["checks"]) == 15
    assert all(check["sentence"] and check["expected"] for check in found["checks"])
    assert found["subject"]["chunk"] == 16


def test_a_failure_is_an_exit_status(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--artifact", finished / "artifact.golf", "--data", data, "--limit_bytes", 1000)
    assert golf("audit", *options, "--json", tmp_path / "audit.json", *QUICK, "--distributions", 0) == 1
    output, errors = capsys.readouterr()
    assert "1 FAILED" in output
    assert "hashing documents" in errors  # a line for each step where there is no terminal to show a spinner
    assert not json.loads((tmp_path / "audit.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--artifact", "none.golf"), "Cannot read the artifact none.golf"),
        (("--run", "nowhere"), "nowhere holds no finished run"),
        (("--data", "nowhere"), "The data folder nowhere does not exist"),
        (("--code", "nothing.py"), "The program nothing.py does not exist"),
        (("--positions", 0), "positions is 0; it must be at least 1"),
        (("--window_chunks", 6), "window_chunks is 6; choose 2 or more"),
        (("--documents", 1), "documents is 1; it must be at least 2"),
        (("--seed", -1), "seed is -1; it must be at least 0"),
        (("--device", "banana"), "device is 'banana'; choose auto, cpu, cuda"),
        (("--device", "cuda:"), "device is 'cuda:'; choose auto, cpu, cuda"),
        (("--device", "cuda:99"), "There is no GPU cuda:99 here; give --device cpu"),
    ],
)
def test_bad_input_is_one_sentence(finished: Path, data: Path, capsys: Any, options: Any, sentence: str) -> None:
    given = {"--artifact": finished / "artifact.golf", "--data": data, "--run": finished} | dict([options])
    assert golf("audit", *(part for option in given.items() for part in option)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_a_broken_configuration_is_one_sentence(finished: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    for text in ("model: {}", "model: {ttt: {chunk: many}}", "a: [", "model: {ttt: {no_such_option: 1}}"):
        (run / "config.yaml").write_text(text)
        assert golf("audit", "--artifact", run / "artifact.golf", "--data", data, "--run", run) == 2
        assert "no settings of test-time training that can be read" in capsys.readouterr().err
