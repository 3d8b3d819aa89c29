import os
from pathlib import Path

import numpy as np
import pytest

from golf_lightning.data.shards import find_shards, map_shard, read_header, shard_name, write_shard
from golf_lightning.errors import GolfError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / shard_name("train", 0)
    write_shard(path, np.arange(1, 1001))
    return path


def test_layout_is_the_contests(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_shard(path, np.array([1, 258, 65535]))
    expected = b"".join(word.to_bytes(4, "little") for word in (20240520, 1, 3)) + bytes(253 * 4)
    assert path.read_bytes() == expected + bytes([1, 0, 2, 1, 255, 255])


def test_round_trip(shard: Path) -> None:
    tokens = map_shard(shard)
    assert tokens.dtype == np.uint16
    assert np.array_equal(tokens, np.arange(1, 1001))


def test_map_is_read_only(shard: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        map_shard(shard)[0] = 3


@pytest.mark.parametrize("token", [-1, 65536])
def test_tokens_beyond_16_bits_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(GolfError, match="outside 0..65535"):
        write_shard(tmp_path / "x.bin", np.array([1, token]))
    assert os.listdir(tmp_path) == []


def test_no_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="no tokens to write"):
        write_shard(tmp_path / "x.bin", np.array([], dtype=np.uint16))


def test_a_failed_write_keeps_the_old_shard(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GolfError, match="No space left"):
        write_shard(shard, np.array([7]))
    assert read_header(shard) == 1000
    assert os.listdir(shard.parent) == [shard.name]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\x00\x01", "truncated inside its header"),
        (b"PK\x03\x04" + bytes(5000), "is not a token shard"),
        ((20240520).to_bytes(4, "little") + bytes(100), "truncated inside its header"),
        ((20240520).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(2000), "version 2"),
        ((20240520).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(1016), "counts 0 tokens"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / shard_name("val", 0)
    path.write_bytes(content)
    with pytest.raises(GolfError, match=sentence) as error:
        read_header(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("change", "sentence"), [(-2, "is truncated"), (-1, "is truncated"), (2, "is too long")])
def test_wrong_length(shard: Path, change: int, sentence: str) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(GolfError, match=sentence):
        map_shard(shard)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="does not exist"):
        read_header(tmp_path / "absent.bin")


def test_a_folder_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="cannot be read"):
        read_header(tmp_path)


def test_shards_are_found_in_order(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        write_shard(tmp_path / shard_name("train", index), np.array([1]))
    write_shard(tmp_path / shard_name("val", 0), np.array([1]))
    assert [path.name for path in find_shards(tmp_path, "train")] == [shard_name("train", i) for i in (0, 2, 10)]


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="holds no val shards"):
        find_shards(tmp_path, "val")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="does not exist"):
        find_shards(tmp_path / "absent", "val")
