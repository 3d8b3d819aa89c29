"""Whatever bytes a file holds, reading it gives its model or the one error: no crash, no hang, little memory."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import DAMAGE, forge, outcome, seal
from golden_files import CONFIG, FOLDER, GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golf_lightning.compression.artifact import DIGEST_BYTES, MAGIC, PREFIX, decode_artifact
from golf_lightning.errors import GolfError
from golf_lightning.model.order import vector_shapes

SEALED = 10_000
"""Damaged files with a valid checksum, over all coders and kinds of damage."""
MEMORY = 100 * 2**20
"""Most bytes that reading a small bad file may add: a hundred times the header's limit."""


@pytest.fixture(params=sorted(GOLDEN))
def data(request: pytest.FixtureRequest) -> bytes:
    return (FOLDER / f"{request.param}.golf").read_bytes()


def read(data: bytes) -> bool:
    """Whether the file gives a model, which then keeps every promise; takes less than a second of the processor."""
    start = time.process_time()
    try:
        artifact = decode_artifact(data)
    except GolfError as error:
        assert "\n" not in str(error)
        return False
    finally:
        assert time.process_time() - start < 1
    config = artifact.config
    shapes = {**config.bank_shapes, "embedding": (config.vocab_size, config.width), **vector_shapes(config)}
    state = artifact.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert all(m.codes.int().abs().max() < 2 ** (m.bits - 1) for m in artifact.state.matrices.values())
    assert artifact.file_bytes == len(data)
    return True


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_never_passes_the_checksum(data: bytes, kind: str) -> None:
    noise = random.Random(kind)
    for _ in range(SEALED // len(DAMAGE) // len(GOLDEN)):
        damaged = DAMAGE[kind](noise, data)
        assert damaged == data or not read(damaged)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_under_a_valid_checksum_gives_a_model_or_the_error(data: bytes, kind: str) -> None:
    noise = random.Random(kind)
    count = SEALED // 2 // len(DAMAGE) // len(GOLDEN)
    read_back = sum(read(seal(DAMAGE[kind](noise, data[:-DIGEST_BYTES]))) for _ in range(count))
    assert read_back < count / 2 or kind in ("flip", "overwrite"), "what is shorter or longer must be refused"


def test_a_forged_value_anywhere_in_the_header_gives_a_model_or_the_error(data: bytes) -> None:
    noise = random.Random(5)
    count = SEALED // 2 // len(GOLDEN)
    assert sum(read(forge(noise, data)) for _ in range(count)) < count / 2


@given(body=st.binary(max_size=300), version=st.integers(0, 2), length=st.integers(0, 2**32 - 1), sign=st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_at_all_are_refused(body: bytes, version: int, length: int, sign: bool) -> None:
    start = PREFIX.pack(MAGIC, version, length)
    for data in (body, seal(start + body) if sign else start + body):
        assert not read(data)


def test_memory_stays_near_the_declared_sizes() -> None:
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("damage.py")], capture_output=True, text=True, check=True, timeout=250
    )
    for name, (result, grown) in json.loads(run.stdout).items():
        assert result != "model", name
        assert grown < MEMORY, f"{name}: {grown / 2**20:.0f} MiB"


def test_the_measured_outcome_tells_models_from_errors() -> None:
    data = (FOLDER / "raw.golf").read_bytes()
    assert outcome(data) == "model"
    assert "corrupted" in outcome(data[:-1])
    assert decode_artifact(data).config == CONFIG
