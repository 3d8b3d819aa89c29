"""The format as it is written down: old files stay readable, and a reader made from the description agrees."""

import hashlib
import json
import math
import struct
from typing import get_args

import brotli
import numpy as np
import pytest
import torch
from golden_files import CONFIG, FOLDER, GOLDEN, STATE, TOKENIZER, digest, golden_state, write_golden
from small_gpt import load_model

from golf_lightning.compression.artifact import read_artifact
from golf_lightning.compression.coding import CoderName

DTYPES = {"codes": "<i1", "scale": "<f2", "vector": "<f2"}


def test_every_coder_has_a_golden_file():
    assert set(GOLDEN) == set(get_args(CoderName)) == {path.stem for path in FOLDER.glob("*.golf")}


@pytest.mark.parametrize("coder", GOLDEN)
def test_a_golden_file_is_as_it_was(coder):
    assert hashlib.sha256((FOLDER / f"{coder}.golf").read_bytes()).hexdigest() == GOLDEN[coder]


@pytest.mark.parametrize("coder", GOLDEN)
def test_a_golden_file_stays_readable(coder):
    artifact = read_artifact(FOLDER / f"{coder}.golf")
    assert digest(artifact.state_dict()) == STATE
    assert (artifact.config, artifact.recurrent) == (CONFIG, True)
    assert (artifact.tokenizer_sha256, artifact.coder) == (TOKENIZER, coder)
    load_model(artifact)


def test_the_golden_state_is_what_the_files_were_made_of():
    assert digest(golden_state().state_dict()) == STATE


@pytest.mark.parametrize("coder", [coder for coder in GOLDEN if coder != "brotli"])
def test_the_writer_still_writes_the_golden_file(coder, tmp_path):
    """Not brotli's: another version of its library may find another coding of the same bytes."""
    write_golden(tmp_path / "a.golf", coder)
    assert (tmp_path / "a.golf").read_bytes() == (FOLDER / f"{coder}.golf").read_bytes()


@pytest.mark.parametrize("coder", ["raw", "brotli"])
def test_a_reader_made_from_the_description_agrees(coder):
    data = (FOLDER / f"{coder}.golf").read_bytes()
    assert data[:8] == bytes.fromhex("93474F4C460D0A1A")
    version, length = struct.unpack("<II", data[8:16])
    assert version == 1
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    header = json.loads(data[16 : 16 + length])
    arrays, start = {}, 16 + length
    for section in header["sections"]:
        stored = data[start : start + section["encoded"]]
        start += section["encoded"]
        if header["coder"] == "brotli":
            plain = np.frombuffer(brotli.decompress(stored), np.uint8)
            item = np.dtype(DTYPES[section["tensors"][0]["kind"]]).itemsize
            stored = plain.reshape(item, -1).T.tobytes()
        at = 0
        for entry in section["tensors"]:
            dtype = np.dtype(DTYPES[entry["kind"]])
            assert entry["decoded"] == math.prod(entry["shape"]) * dtype.itemsize
            values = np.frombuffer(stored[at : at + entry["decoded"]], dtype)
            arrays[entry["kind"], entry["name"]] = values.reshape(entry["shape"]).astype(np.float32)
            at += entry["decoded"]
    assert start == len(data) - 32
    state = {name: torch.from_numpy(values) for (kind, name), values in arrays.items() if kind == "vector"}
    for kind, name in arrays:
        if kind == "codes":
            state[name] = torch.from_numpy(arrays["codes", name] * arrays["scale", name][..., None])
    assert digest(state) == STATE
