import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from data_folders import contents, make_folder
from data_hub import REPOSITORY, Hub, serve

from golf_lightning.data.check import check_data
from golf_lightning.data.fineweb import FinewebConfig, prepare_fineweb
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.shards import map_shard, write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError

SHARDS = "datasets/datasets/fineweb10B_sp8192"
MODEL = "datasets/tokenizers/fineweb_8192_bpe.model"


@pytest.fixture(scope="module")
def published(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository laid out as the contest's, with four training shards."""
    folder = tmp_path_factory.mktemp("published") / "data"
    make_folder(folder, tokenizer)
    files = {f"{SHARDS}/{path.name}": path.read_bytes() for path in folder.glob("*.bin")}
    return {**files, MODEL: tokenizer.path.read_bytes(), "README.md": b"shards", "datasets/manifest.json": b"{}"}


@pytest.fixture
def hub(published: dict[str, bytes]) -> Iterator[Hub]:
    with serve() as hub:
        hub.files = dict(published)
        yield hub


def config(hub: Hub, **changes: object) -> FinewebConfig:
    return FinewebConfig(**{"repository": REPOSITORY, "endpoint": hub.endpoint, "train_shards": 2, **changes})


def test_defaults_follow_the_contests_repository() -> None:
    default = FinewebConfig()
    assert (default.repository, default.shards_folder, default.tokenizer_file) == (
        "kevclark/parameter-golf",
        SHARDS,
        MODEL,
    )


def test_downloads_what_was_asked_for(tmp_path: Path, hub: Hub) -> None:
    prepare_fineweb(tmp_path, config(hub))
    found = contents(tmp_path)
    assert found.pop("tokenizer.model") == hub.files[MODEL]
    assert found.pop("manifest.json")
    names = [f"fineweb_train_{index:06d}.bin" for index in range(2)]
    names += sorted(path.rsplit("/")[-1] for path in hub.files if "_val_" in path)
    assert found == {name: hub.files[f"{SHARDS}/{name}"] for name in names}


def test_the_folder_passes_the_check(tmp_path: Path, hub: Hub) -> None:
    prepare_fineweb(tmp_path, config(hub))
    assert check_data(tmp_path).faults == []


def test_manifest_counts_what_the_shards_hold(tmp_path: Path, hub: Hub, tokenizer: Tokenizer) -> None:
    manifest = prepare_fineweb(tmp_path / "down", config(hub, train_shards=4))
    local = make_folder(tmp_path / "local" / "data", tokenizer)
    for split, entry in manifest.splits.items():
        expected = local.splits[split]
        stated = (entry.documents, entry.tokens, entry.table_bytes)
        if split == "val":
            assert stated == (expected.documents, expected.tokens, expected.table_bytes)
        assert entry.shards == expected.shards[: len(entry.shards)]
        assert entry.source_bytes is None
    assert manifest.as_published
    assert manifest == Manifest.load(tmp_path / "down")


def test_a_second_run_needs_no_network(tmp_path: Path, hub: Hub) -> None:
    first = prepare_fineweb(tmp_path, config(hub))
    assert prepare_fineweb(tmp_path, config(hub, endpoint="http://127.0.0.1:9")) == first


def test_more_shards_fetch_only_the_new_ones(tmp_path: Path, hub: Hub) -> None:
    prepare_fineweb(tmp_path, config(hub))
    hub.requests.clear()
    manifest = prepare_fineweb(tmp_path, config(hub, train_shards=4))
    assert hub.downloads() == ["fineweb_train_000002.bin", "fineweb_train_000003.bin"]
    assert len(manifest.splits["train"].shards) == 4
    assert check_data(tmp_path).faults == []


def test_fewer_shards_do_not_delete_any(tmp_path: Path, hub: Hub) -> None:
    prepare_fineweb(tmp_path, config(hub))
    with pytest.raises(GolfError, match="other inputs or settings"):
        prepare_fineweb(tmp_path, config(hub, train_shards=1))
    assert (tmp_path / "fineweb_train_000001.bin").exists()


def test_validation_alone(tmp_path: Path, hub: Hub) -> None:
    assert list(prepare_fineweb(tmp_path, config(hub, train_shards=0)).splits) == ["val"]


def test_a_cut_download_continues_with_the_missing_files(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.cut = f"{SHARDS}/fineweb_train_000001.bin"
    with pytest.raises(GolfError, match="what was downloaded is kept"):
        prepare_fineweb(tmp_path, config(hub))
    assert not (tmp_path / "manifest.json").exists()
    hub.cut = None
    hub.requests.clear()
    prepare_fineweb(tmp_path, config(hub))
    assert hub.downloads() == ["fineweb_train_000001.bin", "fineweb_val_000000.bin"]
    assert check_data(tmp_path).faults == []


def test_a_damaged_download_is_not_kept(tmp_path: Path, hub: Hub) -> None:
    hub.forge = f"{SHARDS}/fineweb_val_000000.bin"
    with pytest.raises(GolfError, match="is damaged .*SHA-256"):
        prepare_fineweb(tmp_path, config(hub))
    assert not list(tmp_path.rglob("fineweb_val_000000.bin"))


def test_a_damaged_shard_is_fetched_again(tmp_path: Path, hub: Hub) -> None:
    prepare_fineweb(tmp_path, config(hub))
    (tmp_path / "fineweb_train_000000.bin").write_bytes(b"damaged")
    with pytest.raises(GolfError):
        prepare_fineweb(tmp_path, config(hub))
    hub.requests.clear()
    prepare_fineweb(tmp_path, config(hub, overwrite=True))
    assert hub.downloads() == ["fineweb_train_000000.bin"]


def test_shared_documents_are_counted_and_kept(tmp_path: Path, hub: Hub) -> None:
    val = next(content for path, content in hub.files.items() if path.endswith("fineweb_val_000000.bin"))
    (tmp_path / "val.bin").write_bytes(val)
    tokens = map_shard(tmp_path / "val.bin")
    write_shard(tmp_path / "train.bin", tokens)
    hub.files[f"{SHARDS}/fineweb_train_000000.bin"] = (tmp_path / "train.bin").read_bytes()
    manifest = prepare_fineweb(tmp_path / "data", config(hub, train_shards=1))
    assert manifest.shared_documents > 0
    report = check_data(tmp_path / "data")
    assert report.faults == []
    assert report.notes == [f"{manifest.shared_documents} documents are in both splits as they were published."]


def test_a_tokenizer_that_is_too_small(tmp_path: Path, hub: Hub) -> None:
    path = tmp_path / "big.bin"
    write_shard(path, val_tokens_with(tmp_path, hub, 9000))
    hub.files[f"{SHARDS}/fineweb_val_000000.bin"] = path.read_bytes()
    with pytest.raises(GolfError, match="9000 but the tokenizer has 400 pieces"):
        prepare_fineweb(tmp_path / "data", config(hub))


def val_tokens_with(tmp_path: Path, hub: Hub, token: int) -> np.ndarray:
    (tmp_path / "val.bin").write_bytes(hub.files[f"{SHARDS}/fineweb_val_000000.bin"])
    tokens = map_shard(tmp_path / "val.bin").copy()
    tokens[5] = token
    return tokens


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"repository": "someone/else"}, "There is no public dataset repository someone/else"),
        ({"repository": "not a name"}, "is not the name of a repository"),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"train_shards": 40}, "fewer than the 40 asked for"),
        ({"tokenizer_file": "absent.model"}, "has no file absent.model"),
        ({"shards_folder": "absent"}, "has no validation shards in absent"),
    ],
)
def test_what_the_repository_does_not_have(tmp_path: Path, hub: Hub, change: dict, sentence: str) -> None:
    with pytest.raises(GolfError, match=sentence):
        prepare_fineweb(tmp_path / "data", config(hub, **change))
    assert not (tmp_path / "data").exists()


def test_negative_shards() -> None:
    with pytest.raises(GolfError, match="train_shards is -1"):
        FinewebConfig(train_shards=-1)


@pytest.mark.parametrize("endpoint", ["refused", "http://no-such-host.invalid"])
def test_no_network_is_told_quickly(tmp_path: Path, endpoint: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}" if endpoint == "refused" else endpoint
        start = time.monotonic()
        with pytest.raises(GolfError, match="cannot be reached at http://.* with a network"):
            prepare_fineweb(tmp_path / "data", FinewebConfig(endpoint=address))
    assert time.monotonic() - start < 15
    assert not (tmp_path / "data").exists()


def test_another_dataset_is_not_replaced(tmp_path: Path, hub: Hub, tokenizer: Tokenizer) -> None:
    make_folder(tmp_path / "data", tokenizer)
    with pytest.raises(GolfError, match="made from other inputs"):
        prepare_fineweb(tmp_path / "data", config(hub))
    assert hub.requests == []
