"""Inputs and data folders that the data tests share."""

import gzip
import json
from pathlib import Path

import numpy as np
from data_texts import make_texts

from golf_lightning.data.manifest import Manifest
from golf_lightning.data.prepare import PrepareConfig, prepare_text
from golf_lightning.data.shards import Split, find_shards, map_shard
from golf_lightning.data.tokenizer import Tokenizer

TRAIN = make_texts(40)
VAL = make_texts(10, start=1000)


def write_lines(path: Path, texts: list[str]) -> Path:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def config(**changes: object) -> PrepareConfig:
    return PrepareConfig(**{"workers": 1, "progress": False, "shard_tokens": 1500, **changes})


def make_folder(
    folder: Path, tokenizer: Tokenizer, train: list[str] | None = None, val: list[str] | None = None, **changes: object
) -> Manifest:
    """A data folder beside its inputs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return prepare_text(
        folder,
        tokenizer_path=tokenizer.path,
        train=[write_lines(folder.parent / "train.jsonl.gz", TRAIN if train is None else train)],
        val=[write_lines(folder.parent / "val.jsonl", VAL if val is None else val)],
        config=config(**changes),
    )


def documents(folder: Path, split: Split) -> list[np.ndarray]:
    """The tokens of each document, BOS included."""
    tokens = np.concatenate([map_shard(path) for path in find_shards(folder, split)])
    return np.split(tokens, np.flatnonzero(tokens == 1)[1:])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
