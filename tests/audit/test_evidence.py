"""What a run says about itself is believed only as far as the files bear it out."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheats import counts_a_space_twice
from small_run import golf

from golf_lightning.audit import AuditConfig, audit
from golf_lightning.audit import run as whole_audit
from golf_lightning.audit.counting import PieceBytes, check_text_bytes, raw_tokens
from golf_lightning.audit.evidence import document_hashes
from golf_lightning.audit.report import AuditReport
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import Split, map_shard, write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.evaluation.journal import Journal
from golf_lightning.files import read_json, sha256_of, write_json


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def report(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AuditReport]:
    """Audits a run without the checks of scores, which have tests of their own."""
    monkeypatch.setattr(whole_audit, "check_scores", lambda *arguments: [])

    def made(run: Path | None, folder: Path = data, **options: Any) -> AuditReport:
        artifact = (run or options.pop("beside")) / "artifact.golf"
        return audit(artifact, folder, run_folder=run, **options)

    return made


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = read_json(path)
    edit(value)
    write_json(path, value)


def rewrite_split(folder: Path, split: Split, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the tokens of a split and state them truthfully in the manifest."""
    manifest = Manifest.load(folder)
    entry = manifest.splits[split]
    path = folder / entry.shards[0].name
    tokens = edit(map_shard(path).copy())
    write_shard(path, tokens)
    table = ByteTable.from_tokenizer(Tokenizer(folder / manifest.tokenizer))
    entry.shards[0].tokens = entry.tokens = len(tokens)
    entry.shards[0].sha256 = sha256_of(path)
    entry.documents = int((tokens == 1).sum())
    entry.table_bytes = table.total(tokens)
    manifest.lossless = False
    manifest.save(folder)


def test_an_honest_run_passes_every_check(report: Any, finished: Path) -> None:
    found = report(finished, config=AuditConfig(whole=True))
    assert {check.name: check.measured for check in found.checks if not check.passed} == {}
    assert found.passed and found.complete
    assert [check.name for check in found.checks] == [
        "bytes of the text",
        "totals of the split",
        "reported score",
        "train and validation disjoint",
        "validation unread in training",
        "bytes on disk",
        "training clock",
        "evaluation clock",
    ]


def test_the_report_is_json_and_names_what_was_audited(report: Any, finished: Path) -> None:
    found = report(finished).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["subject"]["artifact_sha256"] == sha256_of(finished / "artifact.golf")
    assert {check["verdict"] for check in found["checks"]} == {"passed", "not checked"}


def test_without_a_run_what_only_it_can_show_is_not_checked(report: Any, finished: Path) -> None:
    found = report(None, beside=finished)
    assert found.passed and not found.complete
    assert [check.name for check in found.checks if check.passed] == [
        "bytes of the text",
        "train and validation disjoint",
    ]


CHEATS: dict[str, tuple[str, str, Callable[[Any], None], str]] = {
    "a long training": (
        "result.json",
        "training clock",
        lambda result: result["ledger"].update(train=590.0, calibrate=10.1),
        "600.1 s",
    ),
    "no training": ("result.json", "training clock", lambda result: result["ledger"].pop("train"), "has no training"),
    "a long scoring": ("result.json", "evaluation clock", lambda result: result["ledger"].update(score=601.0), "601"),
    "no score": ("result.json", "evaluation clock", lambda result: result["ledger"].pop("score"), "no score"),
    "targets left out": (
        "result.json",
        "totals of the split",
        lambda result: result["scores"]["ttt"].update(targets=result["scores"]["ttt"]["targets"] - 1),
        "the whole split has",
    ),
    "bytes added": (
        "result.json",
        "totals of the split",
        lambda result: result["scores"]["quantized"].update(table_bytes=9999, nats=9999 * math.log(2), bpb=1.0),
        "quantized has 9,999 table_bytes",
    ),
    "a lower figure": (
        "result.json",
        "reported score",
        lambda result: result["scores"]["ttt"].update(bpb=1.0),
        "where its sums give",
    ),
    "the score of another artifact": (
        "result.json",
        "reported score",
        lambda result: result["artifact"].update(sha256="0" * 64),
        "the score is of another file than this artifact",
    ),
    "a part of the split": (
        "result.json",
        "reported score",
        lambda result: result["scores"]["ttt"].update(partial=True),
        "a part of the split",
    ),
    "validation in training": (
        "access.json",
        "validation unread in training",
        lambda log: log.insert(1, {**log[0], "event": "open", "split": "val", "use": "documents", "step": 2}),
        "1 early openings",
    ),
    "training after validation": (
        "access.json",
        "validation unread in training",
        lambda log: log.append({**log[-1], "event": "training ends", "split": None, "step": 12}),
        "after step 6",
    ),
    "no end of training": (
        "access.json",
        "validation unread in training",
        lambda log: log.remove(next(entry for entry in log if entry["event"] == "training ends")),
        "training never ended",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_run_that_cheats_is_caught(report: Any, run: Path, name: str) -> None:
    file, check, edit, words = CHEATS[name]
    change(run / file, edit)
    found = report(run)
    failed = {entry.name for entry in found.checks if entry.passed is False}
    assert failed == {check}
    assert words in found[check].measured
    assert not found.passed
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_metrics_tell_of_a_longer_training_than_the_ledger(report: Any, run: Path) -> None:
    """A resumed run's ledger begins again; its training clock goes on."""
    metrics = next(run.glob("metrics/*/metrics.csv"))
    metrics.write_text("step,train/seconds\n1,3.5\n2,\n3,700.0\n")
    assert "700.0 s of training" in report(run)["training clock"].measured


def test_a_score_that_the_artifact_does_not_give_is_caught(report: Any, run: Path) -> None:
    def lower(result: Any) -> None:
        score = result["scores"]["ttt"]
        score["nats"] *= 0.99
        score["bpb"] *= 0.99

    change(run / "result.json", lower)
    assert report(run)["reported score"].passed is None
    found = report(run, config=AuditConfig(whole=True))["reported score"]
    assert not found.passed
    assert "the artifact scores" in found.measured


def again(run: Path, command: str, model: str, *options: object) -> int:
    """A command in the run's folder, replacing what it made before."""
    where = ("--run.root", run.parent, "--run.name", run.name, "--run.overwrite", "true")
    return golf(command, "--config", run / "config.yaml", *where, "--ckpt_path", run / model, *options)


ROUND = ("--model.export.quantization.method", "rtn", "--model.export.rate", "fixed")


@pytest.mark.parametrize("scored_before", [True, False])
def test_the_score_of_an_artifact_that_was_replaced_is_caught(report: Any, run: Path, scored_before: bool) -> None:
    if scored_before:
        assert again(run, "test", "artifact.golf") == 0
        assert report(run)["reported score"].passed is None
    assert again(run, "export", "checkpoints/last.ckpt", *ROUND) == 0
    found = report(run)
    assert {check.name for check in found.checks if check.passed is False} == {"reported score"}
    assert "the score is of another file than this artifact" in found["reported score"].measured
    assert "score it with `test`" in found["reported score"].measured
    assert again(run, "test", "artifact.golf") == 0
    assert report(run, config=AuditConfig(whole=True))["reported score"].passed


def test_the_score_of_a_checkpoint_is_none_of_an_artifact(report: Any, run: Path) -> None:
    assert again(run, "test", "checkpoints/last.ckpt") == 0
    told = read_json(run / "test.json")["run"]
    assert (told["from_file"], told["from_sha256"]) == ("last.ckpt", sha256_of(run / "checkpoints" / "last.ckpt"))
    found = report(run)["reported score"]
    assert found.passed is False
    assert "another file than this artifact (last.ckpt, " in found.measured


@pytest.mark.parametrize(("whole", "passed"), [(True, True), (False, None)])
def test_a_score_that_does_not_say_of_what_must_be_scored_again(
    report: Any, run: Path, whole: bool, passed: bool | None
) -> None:
    change(run / "result.json", lambda result: result["artifact"].pop("sha256"))
    found = report(run, config=AuditConfig(whole=whole))["reported score"]
    assert found.passed is passed
    assert ("which file was scored is not known" in found.measured) is not whole


def interrupt_test(run: Path) -> None:
    """A scoring with other settings that came as far as the baseline."""
    fit = read_json(run / "result.json")
    status = {"command": "test", "status": "stopped by SIGINT", "from_sha256": "0" * 64}
    scores = {"ttt_lr0": fit["scores"]["ttt_lr0"] | {"partial": True}}
    write_json(run / "test.json", {"run": status, "scores": scores, "ledger": {"score with lr 0": 900.0}})
    (run / "config.test.yaml").write_text("model: {ttt: {chunk: 8, window: 24}}")


def test_a_scoring_that_was_interrupted_does_not_hide_one_that_was_finished(report: Any, run: Path) -> None:
    interrupt_test(run)
    found = report(run, config=AuditConfig(whole=True))
    assert {check.name: check.measured for check in found.checks if not check.passed} == {}
    assert found.subject["chunk"] == 16
    for name in ("reported score", "evaluation clock"):
        assert "A later scoring (stopped by SIGINT) did not end and was passed over." in found[name].sentence


def test_the_seconds_of_all_parts_of_a_scoring_count(report: Any, run: Path) -> None:
    shutil.rmtree(run / "ttt_unfinished", ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "remove", lambda folder: None)
        assert again(run, "test", "artifact.golf") == 0
    # The first part took 590 s and was interrupted; so is what the second adds.
    held = read_json(run / "ttt_unfinished" / "rank0.json")
    documents = dict(list(held["documents"].items())[:3])
    write_json(
        run / "ttt_unfinished" / "rank0.json",
        held | {"documents": documents, "seconds": {"score": 590.0, "warm_up": 20.0}},
    )
    assert again(run, "test", "artifact.golf") == 0
    found = report(run)["evaluation clock"]
    assert found.passed is False
    assert 610 < found.figures["total_s"] < 640


def test_files_over_the_limit_are_caught(report: Any, finished: Path) -> None:
    size = (finished / "artifact.golf").stat().st_size
    for limit, passed in ((size + 30_000, True), (size + 29_999, False)):
        found = report(finished, config=AuditConfig(limit_bytes=limit))["bytes on disk"]
        assert found.passed is passed
    assert report(finished, config=AuditConfig(limit_bytes=size - 1))["bytes on disk"].figures["artifact_bytes"] == size


def test_a_program_that_was_only_declared_is_not_taken_for_measured(report: Any, run: Path, tmp_path: Path) -> None:
    (run / "train_gpt.py").unlink()
    found = report(run)["bytes on disk"]
    assert found.passed is None
    assert "declared by the run" in found.measured
    (tmp_path / "program.py").write_bytes(b"#" * 100)
    given = report(run, code=tmp_path / "program.py")["bytes on disk"]
    assert given.passed and given.figures["code_bytes"] == 100


def test_a_training_document_of_validation_is_caught(report: Any, finished: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    val = map_shard(next(folder.glob("fineweb_val_*.bin")))
    document = np.split(val, np.flatnonzero(val == 1)[1:])[3]
    rewrite_split(folder, "train", lambda tokens: np.concatenate([tokens, document]))
    found = report(finished, folder)["train and validation disjoint"]
    assert not found.passed
    assert found.measured == "1 shared documents"


def test_a_shared_text_is_caught_by_the_hashes_of_texts(
    report: Any, finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    line = (folder / "documents_val.sha256").read_bytes().splitlines(keepends=True)[0]
    with (folder / "documents_train.sha256").open("ab") as file:
        file.write(line)
    assert not report(finished, folder)["train and validation disjoint"].passed


def test_without_training_shards_overlap_is_not_checked(
    report: Any, finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    next(folder.glob("fineweb_train_*.bin")).unlink()
    found = report(finished, folder)
    assert found["train and validation disjoint"].passed is None
    assert found.passed


def test_a_split_with_its_tail_cut_off_is_caught(report: Any, finished: Path, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    rewrite_split(folder, "val", lambda tokens: tokens[:-1])
    assert "the whole split has" in report(finished, folder)["totals of the split"].measured


def test_totals_of_a_manifest_that_are_not_the_files_are_caught(
    report: Any, finished: Path, data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    change(folder / "manifest.json", lambda value: value["splits"]["val"].update(table_bytes=1))
    assert "the manifest says 1 table_bytes" in report(finished, folder)["totals of the split"].measured


def test_a_space_counted_twice_shows_in_the_text(report: Any, finished: Path, data: Path) -> None:
    tokenizer = Tokenizer(data / "tokenizer.model")
    table = ByteTable.from_tokenizer(tokenizer)
    twice = counts_a_space_twice(table.count)
    found = report(finished, token_bytes=twice)["bytes of the text"]
    assert not found.passed
    assert found.figures["counted_bytes"] > 1.05 * found.figures["text_bytes"]


def test_a_byte_piece_counted_as_three_shows_in_the_text(data: Path) -> None:
    tokenizer = Tokenizer(data / "tokenizer.model")
    table = ByteTable.from_tokenizer(tokenizer)
    tokens = np.append(1, tokenizer.encode("caf\u00e9 \u4e2d")).astype(np.int64)
    tokens = np.append(tokens, [1, *tokenizer.encode("end")])
    is_byte = np.array([tokenizer.processor.is_byte(i) for i in range(tokenizer.vocab_size)])
    assert is_byte[tokens].any()
    assert check_text_bytes(tokens, tokenizer.processor, table.count).passed
    three = check_text_bytes(tokens, tokenizer.processor, lambda p, t: table.count(p, t) + 2 * is_byte[t])
    assert not three.passed


def test_pieces_and_table_agree_on_every_pair_of_tokens(data: Path) -> None:
    tokenizer = Tokenizer(data / "tokenizer.model")
    table, pieces = ByteTable.from_tokenizer(tokenizer), PieceBytes(tokenizer.processor)
    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 20_000)
    assert pieces.total(tokens, previous=5) == table.total(tokens, previous=5)
    for token in range(tokenizer.vocab_size):
        for previous in (0, 1, 300):
            single = np.array([token])
            assert pieces.total(single, previous) == table.count(np.array([previous]), single)[0]


def test_documents_are_hashed_across_shards(tmp_path: Path) -> None:
    shards = [np.array([1, 5, 6, 1, 7]), np.array([8, 9]), np.array([1, 5, 6])]
    for i, tokens in enumerate(shards):
        write_shard(tmp_path / f"{i}.bin", tokens)
    write_shard(tmp_path / "one.bin", np.array([1, 7, 8, 9, 1, 5, 6]))
    assert document_hashes([tmp_path / f"{i}.bin" for i in range(3)]) == document_hashes([tmp_path / "one.bin"])
    assert len(document_hashes([tmp_path / "one.bin"])) == 2


def test_raw_tokens_are_those_of_the_reader(data: Path) -> None:
    shard = next(data.glob("fineweb_val_*.bin"))
    np.testing.assert_array_equal(raw_tokens(shard), map_shard(shard))
