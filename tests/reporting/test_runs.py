"""What the report makes of run folders: whole, continued, done again in parts, or broken off."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import curve, make_run, result, score, write_curve, write_json

from golf_lightning.errors import GolfError
from golf_lightning.reporting.runs import read_run


def test_a_whole_run_lacks_nothing(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "golf-1", seed=1))
    assert run.missing == []
    assert (run.name, run.seed, run.switch_step) == ("golf-1", 1, 14)
    assert run.documents is not None
    assert len(run.curve["step"]) == 21


def drop_result(folder: Path) -> None:
    (folder / "result.json").unlink()


def drop_metrics(folder: Path) -> None:
    (folder / "metrics" / "version_0" / "metrics.csv").unlink()


def drop_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def drop_documents(folder: Path) -> None:
    (folder / "documents.csv").unlink()


def only_trained(folder: Path) -> None:
    drop_documents(folder)
    write_json(folder / "result.json", result({"before_quantization": score(3.0)}))


def interrupt(folder: Path) -> None:
    write_json(folder / "result.json", result({}, status="stopped by SIGINT"))


def rehearse(folder: Path) -> None:
    with open(folder / "config.yaml", "a") as file:
        file.write("trainer:\n  fast_dev_run: true\n")


def score_a_part(folder: Path) -> None:
    write_json(folder / "result.json", result({"ttt": score(3.0, targets=100, partial=True)}))


PARTS = {
    "killed": (drop_result, "No result.json"),
    "not logged": (drop_metrics, "No logged values"),
    "no configuration": (drop_config, "No config.yaml"),
    "no documents": (drop_documents, "No documents.csv"),
    "only trained": (only_trained, "No artifact was exported"),
    "without TTT": (only_trained, "Not scored with test-time training"),
    "interrupted": (interrupt, "The run is not whole: stopped by SIGINT"),
    "rehearsal": (rehearse, "fast_dev_run"),
    "part of the split": (score_a_part, "on a part of the split only: after TTT"),
}


@pytest.mark.parametrize(("damage", "sentence"), PARTS.values(), ids=PARTS)
def test_what_is_missing_is_said(tmp_path: Path, damage: Any, sentence: str) -> None:
    folder = make_run(tmp_path, "golf")
    damage(folder)
    assert any(sentence in line for line in read_run(folder).missing)


def test_a_continued_run_is_one_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf")
    drop_metrics(folder)
    (folder / "metrics" / "version_0").rmdir()
    write_curve(folder, curve(range(2, 21, 2)), version=0)
    # Steps 16 to 20 were lost with the process; the seconds of runs that end by steps begin again.
    write_curve(folder, [row | {"train/seconds": row["step"] - 14.0} for row in curve(range(16, 31, 2))], version=1)
    run = read_run(folder)
    np.testing.assert_array_equal(run.curve["step"], range(2, 31, 2))
    np.testing.assert_allclose(run.curve["seconds"], range(2, 31, 2))


def test_versions_follow_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf")
    for version in (2, 10):
        write_curve(folder, curve([50 + version]), version)
    assert list(read_run(folder).curve["step"][-2:]) == [52, 60]


def test_validation_stands_between_the_seconds_of_training(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "golf"))
    (place,) = np.flatnonzero(np.isfinite(run.curve["val/bpb"]))
    assert run.curve["seconds"][place] == 39.0


def test_a_later_test_replaces_the_scores_of_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf", 3.0)
    later = {"scores": {"ttt": score(2.5)}, "run": {"finished": "2026-11-24T00:00:00+00:00", "from_sha256": "one"}}
    write_json(folder / "test.json", later)
    run = read_run(folder)
    assert run.scores["ttt"]["nats_per_target"] == 2.5
    assert run.scores["quantized"]["nats_per_target"] == pytest.approx(3.03)


def test_an_earlier_test_does_not(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf", 3.0)
    write_json(folder / "test.json", {"scores": {"ttt": score(2.5)}, "run": {"finished": "2026-11-22T00:00:00+00:00"}})
    assert read_run(folder).scores["ttt"]["nats_per_target"] == 3.0


def test_a_test_that_did_not_end_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf", 3.0)
    told = {"finished": "2026-11-24T00:00:00+00:00", "from_sha256": "one", "status": "stopped by SIGINT"}
    write_json(folder / "test.json", {"scores": {"ttt_lr0": score(2.5)}, "run": told})
    run = read_run(folder)
    assert run.scores == read_run(make_run(tmp_path, "other", 3.0)).scores
    assert any("did not end (stopped by SIGINT)" in line for line in run.missing)


def test_a_score_of_another_artifact_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf", 3.0)
    later = {"scores": {"ttt": score(2.5)}, "run": {"finished": "2026-11-24T00:00:00+00:00", "from_sha256": "other"}}
    write_json(folder / "test.json", later)
    run = read_run(folder)
    assert run.scores["ttt"]["nats_per_target"] == 3.0
    assert any("another artifact" in line for line in run.missing)


def test_an_export_done_again_makes_old_ttt_scores_void(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf", 3.0)
    again = result({"quantized": score(3.2)}, ended="2026-11-24T00:00:00+00:00", command="export")
    write_json(folder / "export.json", again)
    assert "ttt" in read_run(folder).scores  # the same bytes as before
    again["artifact"]["sha256"] = "two"
    write_json(folder / "export.json", again)
    run = read_run(folder)
    assert set(run.scores) == {"before_quantization", "quantized"}
    assert run.scores["quantized"]["nats_per_target"] == 3.2
    assert any("exported again" in line for line in run.missing)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(GolfError, match="give the folders of runs"):
            read_run(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result.json", "{"),
        ("config.yaml", "a: [1"),
        ("metrics/version_0/metrics.csv", "step,train/loss\n1,abc\n"),
        ("documents.csv", "document,targets\n0,1\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    folder = make_run(tmp_path, "golf")
    (folder / name).write_text(text)
    with pytest.raises(GolfError, match=name.rpartition("/")[2]):
        read_run(folder)


def test_results_of_older_versions_are_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf")
    old = json.loads((folder / "result.json").read_text())
    for section in ("run", "data"):
        del old[section]
    write_json(folder / "result.json", old)
    assert read_run(folder).missing == []
