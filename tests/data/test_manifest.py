import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import make_folder

from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    make_folder(tmp_path / "data", tokenizer)
    return tmp_path / "data"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_round_trip(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(folder)
    (tmp_path / "copy").mkdir()
    manifest.save(tmp_path / "copy")
    assert Manifest.load(tmp_path / "copy") == manifest


def test_fingerprint_does_not_depend_on_the_place(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    again = make_folder(tmp_path / "elsewhere" / "data", tokenizer)
    assert again.fingerprint() == Manifest.load(folder).fingerprint()


def test_fingerprint_follows_the_tokens(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = make_folder(tmp_path / "elsewhere" / "data", tokenizer, val=["Another text."])
    assert other.fingerprint() != Manifest.load(folder).fingerprint()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format="other"), "not written by this version"),
        (lambda m: m.pop("splits"), "does not have the fields of a Manifest"),
        (lambda m: m.update(extra=1), "does not have the fields of a Manifest"),
        (lambda m: m.update(vocab_size="400"), "vocab_size .* is not of its type"),
        (lambda m: m["splits"]["val"].pop("tokens"), "does not have the fields of a SplitEntry"),
        (lambda m: m["splits"]["val"]["shards"][0].update(sha256=None), "sha256 .* is not of its type"),
        (lambda m: m["splits"].update(test=m["splits"]["val"]), "its splits are"),
        (lambda m: m.update(splits={}), "its splits are"),
        (lambda m: m["splits"]["val"].update(tokens=5), "do not add up to 5 tokens"),
        (lambda m: m["splits"]["val"].update(documents=0), "val has 0 documents"),
        (lambda m: m.update(shared_documents=2), "2 documents are in both splits"),
        (lambda m: m.update(tokenizer="../tokenizer.model"), "leads out of the folder"),
    ],
)
def test_damaged_manifest(folder: Path, change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    edit(folder, change)
    with pytest.raises(GolfError, match=sentence):
        Manifest.load(folder)


def test_published_shards_may_share_documents(folder: Path) -> None:
    edit(folder, lambda m: m.update(shared_documents=2, as_published=True))
    assert Manifest.load(folder).shared_documents == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "5"])
def test_a_manifest_that_is_no_manifest(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(GolfError, match="manifest.json"):
        Manifest.load(folder)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="has no manifest.json"):
        Manifest.load(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="does not exist"):
        Manifest.load(tmp_path / "absent")


def test_intact_files_are_accepted(folder: Path) -> None:
    Manifest.load(folder).verify_files(folder)


def truncate(folder: Path) -> None:
    path = folder / "fineweb_val_000000.bin"
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "is truncated"),
        (lambda folder: (folder / "fineweb_train_000000.bin").unlink(), "does not exist"),
        (lambda folder: write_shard(folder / "fineweb_val_000000.bin", np.array([1, 5])), "holds 2 tokens but"),
        (lambda folder: write_shard(folder / "fineweb_val_000009.bin", np.array([1, 5])), "is not in manifest.json"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "is missing"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "is not the tokenizer that made"),
    ],
)
def test_damaged_files(folder: Path, damage: Callable[[Path], object], sentence: str) -> None:
    damage(folder)
    with pytest.raises(GolfError, match=sentence):
        Manifest.load(folder).verify_files(folder)
