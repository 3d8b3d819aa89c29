import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_folders import TRAIN, VAL, make_folder, write_lines

from golf_lightning.data.commands import COMMANDS, build_parser, main
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError


def test_text_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = write_lines(tmp_path / "t.jsonl.gz", TRAIN), write_lines(tmp_path / "v.jsonl", VAL)
    model, folder = str(tmp_path / "a.model"), str(tmp_path / "data")
    assert main(["tokenizer", model, str(train), "--vocab_size", "400"]) == 0
    options = ["--train", str(train), "--val", str(val), "--tokenizer", model, "--workers", "1", "--quiet"]
    assert main(["text", folder, *options]) == 0
    assert main(["check", folder]) == 0
    output = capsys.readouterr().out
    assert "40 documents" in output
    assert "0 documents in both splits" in output
    assert output.endswith("no faults\n")


def test_check_fails_on_a_fault(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data", tokenizer)
    write_shard(tmp_path / "data" / "fineweb_val_000000.bin", np.array([5, 6]))
    assert main(["check", str(tmp_path / "data")]) == 1
    assert "fault: The first shard of val" not in capsys.readouterr().err


def test_check_prints_every_fault(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "data", tokenizer)
    write_shard(tmp_path / "data" / "fineweb_val_000000.bin", np.array([5, 6]))
    main(["check", str(tmp_path / "data")])
    output = capsys.readouterr().out
    assert output.count("fault: ") == int(output.rsplit(": ", 1)[1].split()[0]) > 1


def test_tokenizer_is_not_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = tmp_path / "a.model"
    model.write_bytes(b"mine")
    with pytest.raises(GolfError, match="exists"):
        main(["tokenizer", str(model), str(write_lines(tmp_path / "t.jsonl", TRAIN)), "--vocab_size", "400"])
    assert model.read_bytes() == b"mine"


def test_options_reach_the_settings(tmp_path: Path, tokenizer: Tokenizer) -> None:
    val = write_lines(tmp_path / "v.jsonl", VAL)
    options = ["--shard_tokens", "300", "--duplicates", "refuse", "--workers", "1", "--quiet"]
    main(["text", str(tmp_path / "data"), "--val", str(val), "--tokenizer", str(tokenizer.path), *options])
    recipe = Manifest.load(tmp_path / "data").recipe
    assert (recipe["shard_tokens"], recipe["duplicates"]) == (300, "refuse")


def test_fineweb_options_reach_the_download(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="me/mine cannot be reached at http://127.0.0.1:9 "):
        main(["fineweb", str(tmp_path / "data"), "--repository", "me/mine", "--endpoint", "http://127.0.0.1:9"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    parser = next(a for a in build_parser()._actions if a.dest == "command").choices[command]  # type: ignore[index]
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("line", [[], ["unknown"], ["text"], ["check"], ["demo", "x", "--vocab", "300"]])
def test_wrong_command_lines_exit_with_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert stop.value.code == 2


def test_starting_takes_no_torch() -> None:
    heavy = {"torch", "huggingface_hub", "pyarrow", "pandas"}
    script = f"import sys, golf_lightning.data.commands; sys.exit(str({heavy} & set(sys.modules) or 0))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr == "0\n"


STOPPED = """
import sys
from golf_lightning.data.commands import main

if __name__ == "__main__":
    sys.exit(main(["demo", sys.argv[1], "--workers", "2", "--quiet"]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly(tmp_path: Path, number: int, status: int) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "stopped.py"), str(tmp_path / "data")], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "data" / ".prepare" / "documents_val.sha256").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, "Stopped; the folder is as it was.\n")
    assert not (tmp_path / "data").exists()
