import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_folders import documents, make_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.check import check_data
from golf_lightning.data.encode import token_hash
from golf_lightning.data.scan import scan_split
from golf_lightning.data.shards import map_shard, write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    make_folder(tmp_path / "data", tokenizer)
    return tmp_path / "data"


def faults(folder: Path) -> str:
    return "\n".join(check_data(folder).faults)


def change_tokens(folder: Path, change: Callable[[np.ndarray], None], name: str = "fineweb_val_000000.bin") -> None:
    tokens = map_shard(folder / name).copy()
    change(tokens)
    write_shard(folder / name, tokens)


def without_bos(tokens: np.ndarray) -> None:
    tokens[tokens == 1] = 5


def assign(index: int, token: int) -> Callable[[np.ndarray], None]:
    def change(tokens: np.ndarray) -> None:
        tokens[index] = token

    return change


def forget_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def test_an_intact_folder_has_no_faults(folder: Path) -> None:
    report = check_data(folder)
    assert (report.faults, report.notes) == ([], [])
    assert report.splits["val"].documents == 10


def test_an_empty_shard(folder: Path) -> None:
    (folder / "fineweb_train_000001.bin").write_bytes(b"")
    assert "fineweb_train_000001.bin is empty" in faults(folder)


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "fineweb_train_000001.bin"
    path.write_bytes(path.read_bytes()[:-6])
    assert "is truncated" in faults(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "fineweb_train_000001.bin").unlink()
    assert "fineweb_train_000001.bin is listed in the manifest and missing" in faults(folder)
    assert "have a gap" in faults(folder)


def test_all_shards_of_a_split_missing(folder: Path) -> None:
    for path in folder.glob("fineweb_val_*"):
        path.unlink()
    assert "holds no val shards" in faults(folder)


def test_a_shard_that_is_not_listed(folder: Path) -> None:
    write_shard(folder / "fineweb_val_000001.bin", np.array([1, 300]))
    assert "fineweb_val_000001.bin is not listed" in faults(folder)


def test_a_shard_of_another_length(folder: Path) -> None:
    write_shard(folder / "fineweb_val_000000.bin", np.array([1, 300]))
    assert "holds 2 tokens, the manifest says" in faults(folder)


def test_one_changed_token(folder: Path) -> None:
    change_tokens(folder, assign(7, 299))
    assert "was changed: its SHA-256" in faults(folder)


def test_a_token_beyond_the_vocabulary(folder: Path) -> None:
    change_tokens(folder, assign(7, 400))
    assert "A token of val is 400, but the tokenizer has only 400 pieces" in faults(folder)


def test_a_split_that_starts_inside_a_document(folder: Path) -> None:
    change_tokens(folder, assign(0, 5))
    assert "The first shard of val does not start with the BOS token (1)" in faults(folder)


def test_a_split_without_bos(folder: Path) -> None:
    change_tokens(folder, without_bos)
    assert "There is no BOS token (1) in val" in faults(folder)


def test_a_later_shard_may_start_inside_a_document(folder: Path) -> None:
    forget_manifest(folder)
    whole = np.concatenate([map_shard(path) for path in sorted(folder.glob("fineweb_train_*.bin"))])
    for index, part in enumerate(np.array_split(whole, len(list(folder.glob("fineweb_train_*.bin"))))):
        write_shard(folder / f"fineweb_train_{index:06d}.bin", part)
    assert [fault for fault in check_data(folder).faults if "manifest" not in fault] == []


def test_a_document_in_both_splits(folder: Path) -> None:
    forget_manifest(folder)
    shared = documents(folder, "val")[4]
    train = map_shard(folder / "fineweb_train_000000.bin").copy()
    write_shard(folder / "fineweb_train_000000.bin", np.concatenate([train, shared]))
    assert "1 documents are in both splits" in faults(folder)


def test_a_text_hash_in_both_splits(folder: Path) -> None:
    train = folder / "documents_train.sha256"
    shared = (folder / "documents_val.sha256").read_text().splitlines()[2]
    train.write_text("\n".join([shared, *train.read_text().splitlines()[1:]]) + "\n")
    assert "documents_train.sha256 was changed" in faults(folder)
    assert "1 document hashes are in both" in faults(folder)


@pytest.mark.parametrize("name", ["documents", "table_bytes"])
def test_counts_that_differ_from_the_manifest(folder: Path, name: str) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    values["splits"]["val"][name] -= 1
    (folder / "manifest.json").write_text(json.dumps(values))
    assert f"{name}, the manifest says {values['splits']['val'][name]}" in faults(folder)


def test_another_tokenizer(folder: Path, tmp_path: Path, contest_tokenizer: Tokenizer) -> None:
    (folder / "tokenizer.model").write_bytes(contest_tokenizer.path.read_bytes())
    assert "is not the tokenizer that made these shards" in faults(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model cannot be read" in faults(folder)


def test_missing_document_hashes(folder: Path) -> None:
    (folder / "documents_val.sha256").unlink()
    assert "documents_val.sha256 is listed in the manifest and missing" in faults(folder)


def test_a_folder_without_anything(tmp_path: Path) -> None:
    assert "has no manifest.json" in faults(tmp_path)
    assert "holds no shards that can be read" in faults(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="does not exist"):
        check_data(tmp_path / "absent")


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_scan_does_not_depend_on_the_shards(tokenizer: Tokenizer, data: st.DataObject) -> None:
    table = ByteTable.from_tokenizer(tokenizer)
    count = data.draw(st.integers(1, 60))
    tokens = np.array(data.draw(st.lists(st.sampled_from([1, 1, 5, 270, 390]), min_size=count, max_size=count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("golf_lightning.data.scan.CHUNK_TOKENS", data.draw(st.integers(1, 20)))
        scan = scan_split(np.split(tokens.astype(np.uint16), cuts), table)
    starts = np.flatnonzero(tokens == 1)
    pieces = np.split(tokens.astype(np.uint16), starts)[1:]
    assert scan.document_hashes == {token_hash(piece) for piece in pieces}
    assert (scan.documents, scan.tokens, scan.table_bytes) == (len(starts), count, table.total(tokens))
    assert (scan.largest_token, scan.starts_with_bos) == (tokens.max(), tokens[0] == 1)
