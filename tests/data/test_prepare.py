import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data_folders import TRAIN, VAL, config, contents, documents, make_folder, write_lines
from data_texts import HARD_TEXTS

from golf_lightning.data.encode import ordered_map
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.prepare import PrepareConfig, prepare_text
from golf_lightning.data.shards import find_shards, map_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of


def test_documents_come_back_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    for split, texts in (("train", TRAIN), ("val", VAL)):
        assert [tokenizer.decode(document[1:]) for document in documents(tmp_path / "data", split)] == texts


def test_every_document_starts_with_bos_and_nothing_ends_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    for document, text in zip(documents(tmp_path / "data", "val"), VAL, strict=True):
        assert document.tolist() == [1, *tokenizer.encode(text).tolist()]


def test_shards_are_full_and_begin_with_a_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    shards = [map_shard(path) for path in find_shards(tmp_path / "data", "train")]
    longest = max(len(document) for document in documents(tmp_path / "data", "train"))
    assert len(shards) > 2
    assert all(int(shard[0]) == 1 for shard in shards)
    assert all(1500 - longest < len(shard) <= 1500 for shard in shards[:-1])


def test_a_document_longer_than_a_shard_is_kept_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = make_folder(tmp_path / "data", tokenizer, shard_tokens=10)
    assert [shard.tokens for shard in manifest.splits["val"].shards] == [1 + len(tokenizer.encode(t)) for t in VAL]


def test_manifest_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = make_folder(tmp_path / "data", tokenizer)
    assert manifest.lossless
    for split, texts in (("train", TRAIN), ("val", VAL)):
        entry = manifest.splits[split]
        source = sum(len(text.encode()) for text in texts)
        tokens = sum(1 + len(tokenizer.encode(text)) for text in texts)
        assert (entry.documents, entry.tokens, entry.source_bytes, entry.table_bytes) == (
            len(texts),
            tokens,
            source,
            source,
        )


def test_manifest_hashes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "data"
    manifest = make_folder(folder, tokenizer)
    assert manifest.tokenizer_sha256 == sha256_of(folder / "tokenizer.model") == tokenizer.sha256
    for entry in manifest.splits.values():
        assert [shard.sha256 for shard in entry.shards] == [sha256_of(folder / shard.name) for shard in entry.shards]


def test_workers_change_nothing(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golf_lightning.data.encode.BATCH_CHARACTERS", 500)
    make_folder(tmp_path / "one" / "data", tokenizer)
    make_folder(tmp_path / "two" / "data", tokenizer, workers=2)
    assert contents(tmp_path / "one" / "data") == contents(tmp_path / "two" / "data")


def test_training_documents_of_validation_are_removed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = [TRAIN[0], VAL[3], TRAIN[1], VAL[3], VAL[9]]
    manifest = make_folder(tmp_path / "data", tokenizer, train=train)
    assert manifest.removed_from_train == 3
    assert manifest.shared_documents == 0
    assert [tokenizer.decode(d[1:]) for d in documents(tmp_path / "data", "train")] == TRAIN[:2]


def test_training_documents_of_validation_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(GolfError, match="is also in validation"):
        make_folder(tmp_path / "data", tokenizer, train=[TRAIN[0], VAL[3]], duplicates="refuse")
    assert not (tmp_path / "data").exists()


def test_texts_that_a_tokenizer_makes_equal_are_shared(tmp_path: Path, contest_tokenizer: Tokenizer) -> None:
    train, val = [TRAIN[0], "One  line\nof text."], ["One line of text."]
    manifest = make_folder(tmp_path / "data", contest_tokenizer, train=train, val=val)
    assert manifest.removed_from_train == 1


def test_both_byte_totals_of_a_normalizing_tokenizer(tmp_path: Path, contest_tokenizer: Tokenizer) -> None:
    manifest = make_folder(tmp_path / "data", contest_tokenizer)
    entry = manifest.splits["val"]
    assert not manifest.lossless
    assert entry.source_bytes == sum(len(text.encode()) for text in VAL)
    assert entry.table_bytes != entry.source_bytes


def test_documents_without_tokens_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = make_folder(tmp_path / "data", tokenizer, val=["", *VAL, ""])
    assert manifest.empty_documents == 2
    assert manifest.splits["val"].documents == len(VAL)


def test_hard_texts_keep_their_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    manifest = make_folder(tmp_path / "data", tokenizer, val=HARD_TEXTS)
    assert manifest.splits["val"].table_bytes == sum(len(text.encode()) for text in HARD_TEXTS)


def test_literal_space_marks_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="Replaced 2 literal U\\+2581"):
        manifest = make_folder(tmp_path / "data", tokenizer, val=["a\u2581b\u2581"])
    assert manifest.replaced_space_marks == 2
    assert manifest.splits["val"].source_bytes == manifest.splits["val"].table_bytes == 4


def test_one_split_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    val = write_lines(tmp_path / "val.jsonl", VAL)
    manifest = prepare_text(tmp_path / "data", tokenizer_path=tokenizer.path, val=[val], config=config())
    assert list(manifest.splits) == ["val"]


def test_no_inputs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(GolfError, match="No text was given"):
        prepare_text(tmp_path / "data", tokenizer_path=tokenizer.path, config=config())


def test_a_split_of_empty_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(GolfError, match="No val documents"):
        make_folder(tmp_path / "data", tokenizer, val=["", ""])
    assert not (tmp_path / "data").exists()


def test_same_inputs_are_not_prepared_twice(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_folder(tmp_path / "data", tokenizer)
    monkeypatch.setattr("golf_lightning.data.prepare.write_dataset", None)
    assert make_folder(tmp_path / "data", tokenizer, workers=2) == first


@pytest.mark.parametrize("change", [{"shard_tokens": 700}, {"val": VAL[:5]}, {"duplicates": "refuse"}])
def test_other_inputs_do_not_replace_a_dataset(tmp_path: Path, tokenizer: Tokenizer, change: dict) -> None:
    make_folder(tmp_path / "data", tokenizer)
    before = contents(tmp_path / "data")
    with pytest.raises(GolfError, match="made from other inputs or settings"):
        make_folder(tmp_path / "data", tokenizer, **change)
    assert contents(tmp_path / "data") == before


def test_overwrite_replaces_the_dataset_and_nothing_else(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    (tmp_path / "data" / "notes.txt").write_text("mine")
    make_folder(tmp_path / "data", tokenizer, train=TRAIN[:3], overwrite=True)
    assert sorted(contents(tmp_path / "data")) == [
        "documents_train.sha256",
        "documents_val.sha256",
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "manifest.json",
        "notes.txt",
        "tokenizer.model",
    ]
    assert Manifest.load(tmp_path / "data").splits["train"].documents == 3


def test_shards_without_a_manifest_are_not_replaced(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(GolfError, match="but no manifest"):
        make_folder(tmp_path / "data", tokenizer)


def test_a_failure_keeps_the_old_dataset(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "data", tokenizer)
    before = contents(tmp_path / "data")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GolfError, match="No space left"):
        make_folder(tmp_path / "data", tokenizer, train=TRAIN[:3], overwrite=True)
    assert contents(tmp_path / "data") == before


INTERRUPTED = """
import sys, time
from golf_lightning.data.prepare import PrepareConfig, Source, write_dataset
from golf_lightning.data.readers import Document
from golf_lightning.data.tokenizer import Tokenizer

def slow():
    for number in range(10**6):
        yield Document(f"text {number} " * 20000, 0)
        print(number, flush=True)
        time.sleep(0.02)

if __name__ == "__main__":
    config = PrepareConfig(workers=2, progress=False)
    sources = {"val": Source(documents=slow(), size=1)}
    write_dataset(sys.argv[1], tokenizer=Tokenizer(sys.argv[2]), sources=sources, recipe={}, config=config)
"""


@pytest.mark.parametrize("texts_before", [2, 12])
def test_an_interrupt_leaves_no_half_dataset(tmp_path: Path, tokenizer: Tokenizer, texts_before: int) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "interrupted.py"), str(tmp_path / "data"), str(tokenizer.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for _ in range(texts_before):
        process.stdout.readline()
    assert (tmp_path / "data").exists()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.decode().count("Traceback") == 1  # the parent's; the workers say nothing
    assert not (tmp_path / "data").exists()


def test_workers_end_when_the_parent_is_killed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "interrupted.py"), str(tmp_path / "data"), str(tokenizer.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for _ in range(12):
        process.stdout.readline()
    process.kill()
    process.communicate(timeout=30)  # the pipe ends when no worker is left that holds it


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "data" / ".prepare").mkdir(parents=True)
    (tmp_path / "data" / ".prepare" / "fineweb_train_000000.bin").write_bytes(b"half")
    make_folder(tmp_path / "data", tokenizer)
    assert not (tmp_path / "data" / ".prepare").exists()


def test_a_file_is_no_data_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(GolfError, match="is a file"):
        make_folder(tmp_path / "data", tokenizer)


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(GolfError, match="fewer --workers"):
        list(ordered_map(os._exit, [1], workers=2))


def test_ordered_map_reads_only_a_little_ahead() -> None:
    taken = []
    results = ordered_map(abs, (taken.append(i) or -i for i in range(1000)), workers=2)
    try:
        assert next(results) == 0
        assert len(taken) <= 8
    finally:
        results.close()


@pytest.mark.parametrize("change", [{"shard_tokens": 0}, {"workers": 0}, {"duplicates": "keep"}])
def test_settings_out_of_range(change: dict) -> None:
    with pytest.raises(GolfError, match=next(iter(change))):
        PrepareConfig(**change)
