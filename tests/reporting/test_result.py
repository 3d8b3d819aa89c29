"""The table a person reads at the end of a run, and the ledger under it."""

import time
from pathlib import Path

from golf_lightning.evaluation.bpb import Score
from golf_lightning.files import read_json
from golf_lightning.reporting.ledger import Ledger
from golf_lightning.reporting.result import Result


def test_a_lossless_tokenizer_gets_one_line_and_a_normalizing_one_two() -> None:
    result = Result()
    result.record_score("quantized", Score(700.0, 100, 350), split_targets=100, split_text_bytes=350)
    assert len(result.table().splitlines()) == 2
    result.record_score("quantized", Score(700.0, 100, 350), split_targets=100, split_text_bytes=340)
    *_, line = result.table().splitlines()
    assert line.split() == ["against", "the", "text", "as", "it", "was", f"{700 / 340 / 0.6931471805599453:.4f}"]


def test_scores_stand_in_the_order_of_the_run_and_parts_are_marked() -> None:
    result = Result()
    result.record_score("ttt", Score(600.0, 50, 350), split_targets=100)
    result.record_score("before_quantization", Score(700.0, 100, 350), split_targets=100)
    lines = result.table().splitlines()
    assert lines[1].startswith("before quantization  ")
    assert lines[2].startswith("after TTT (part)  ")


def test_results_are_kept_as_json(tmp_path: Path) -> None:
    result = Result()
    result.record("train", steps=3)
    result.record("train", loss=2.5)
    result.write(tmp_path / "result.json")
    assert read_json(tmp_path / "result.json") == {"train": {"steps": 3, "loss": 2.5}}


def test_an_inner_stage_stops_the_outer_ones_clock() -> None:
    ledger = Ledger()
    with ledger.stage("outer"):
        time.sleep(0.05)
        with ledger.stage("inner"):
            time.sleep(0.2)
    seconds = ledger.to_dict()
    assert list(seconds) == ["outer", "inner"]
    assert 0.04 < seconds["outer"] < 0.15
    assert seconds["inner"] >= 0.2


def test_a_stage_entered_again_adds_up() -> None:
    ledger = Ledger()
    for _ in range(2):
        with ledger.stage("validate"):
            time.sleep(0.05)
    ledger.add("validate", 1.0)
    assert 1.1 <= ledger.to_dict()["validate"] < 1.5
