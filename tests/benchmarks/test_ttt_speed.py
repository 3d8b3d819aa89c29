"""The benchmark of test-time training runs on any machine."""

import json
import sys

import numpy as np
import pytest
import ttt_speed
from ttt_speed import contest_lengths, cut_to, main, setting

from golf_lightning.evaluation.documents import DocumentStream


def test_lengths_are_those_of_the_contest():
    lengths = contest_lengths(50_000)
    assert np.median(lengths) == pytest.approx(475, rel=0.02)
    assert lengths.mean() == pytest.approx(810, rel=0.02)
    assert lengths.max() <= 30_000


def test_text_is_cut_and_joined_to_the_lengths():
    text = np.array([1, 5, 6, 1, 7, 8, 9])
    stream = DocumentStream(cut_to(np.array([3, 1, 2]), text))
    assert stream.targets.tolist() == [3, 1, 2]
    assert stream.tokens.tolist() == [1, 5, 6, 1, 1, 7, 8]


def test_settings_are_read_as_numbers_names_and_switches():
    found = setting("mode=cached,chunk=8,lr=0.0,budget_seconds=null,adapters.q=false,adapters.rank=4")
    adapters = found.pop("adapters")
    assert found == {"mode": "cached", "chunk": 8, "lr": 0.0, "budget_seconds": None}
    assert (adapters.q, adapters.rank) == (False, 4)


def test_a_small_run_tells_speed_and_score(tmp_path, monkeypatch):
    path = tmp_path / "ttt.json"
    few = "slots=2,chunk=64,window=64,rows=128,adapters.rank=2"
    arguments = ["--size", "tiny", "--documents", "2", "--seed", "5", "--json", str(path)]
    monkeypatch.setattr(ttt_speed, "contest_lengths", lambda documents, seed: np.array([90, 30]))
    monkeypatch.setattr(sys, "argv", ["ttt_speed.py", *arguments, "--run", few, "--run", f"mode=exact,{few}"])
    main()
    result = json.loads(path.read_text())
    assert [run["targets"] for run in result["runs"]] == [120, 120] == [result["targets"]] * 2
    assert all(run["targets_per_second"] > 0 and run["nats_per_target"] > 1 for run in result["runs"])
