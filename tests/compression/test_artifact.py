import hashlib
import json
import struct
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small_gpt import CONFIG, TOKENIZER, small_gpt

from golf_lightning.compression.artifact import (
    DIGEST_BYTES,
    MAGIC,
    PREFIX,
    decode_artifact,
    is_artifact,
    read_artifact,
    write_artifact,
)
from golf_lightning.compression.banks import quantize_state
from golf_lightning.compression.header import Header, Section, TensorEntry
from golf_lightning.compression.quantize import ROLE_OF, QuantizationConfig
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.order import vector_shapes


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "artifact.golf"
    state, _ = quantize_state(small_gpt().state_dict(), None, CONFIG, QuantizationConfig(method="rtn"))
    write_artifact(path, state, config=CONFIG, recurrent=True, tokenizer_sha256=TOKENIZER)
    return path


@pytest.fixture(scope="module")
def data(file):
    return file.read_bytes()


def signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def forged(data: bytes, change) -> bytes:
    """The file with its header changed by ``change(header)`` and a checksum that fits."""
    _, version, length = PREFIX.unpack_from(data)
    header = json.loads(data[PREFIX.size : PREFIX.size + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    return signed(PREFIX.pack(MAGIC, version, len(text)) + text + data[PREFIX.size + length : -DIGEST_BYTES])


@pytest.mark.parametrize("coder", ["brotli", "raw"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_reads_back_bit_for_bit(tmp_path, quantized, coder, recurrent):
    path = tmp_path / "a.golf"
    size = write_artifact(path, quantized, config=CONFIG, recurrent=recurrent, tokenizer_sha256=TOKENIZER, coder=coder)
    artifact = read_artifact(path)
    wanted, read = quantized.state_dict(), artifact.state_dict()
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) and read[name].dtype == torch.float32 for name in wanted)
    assert (artifact.config, artifact.recurrent, artifact.tokenizer_sha256) == (CONFIG, recurrent, TOKENIZER)
    assert artifact.coder == coder
    assert size == path.stat().st_size == artifact.file_bytes


def test_signs_of_zero_survive(tmp_path, quantized):
    quantized.vectors["mix"].zero_().neg_()
    path = tmp_path / "a.golf"
    write_artifact(path, quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER)
    assert read_artifact(path).state_dict()["mix"].signbit().all()


def test_the_same_state_gives_the_same_bytes(tmp_path, quantized, data):
    for name in ("a", "b"):
        write_artifact(tmp_path / name, quantized, config=CONFIG, recurrent=True, tokenizer_sha256=TOKENIZER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == data


def test_bytes_by_role_follow_the_layout(tmp_path, quantized):
    path = tmp_path / "a.golf"
    write_artifact(path, quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER, coder="raw")
    sizes = read_artifact(path).bytes_by_role
    rows = sum(matrix.scale.numel() for matrix in quantized.matrices.values())
    assert sizes["mlp"] == 2 * 4 * 16 * 32
    assert sizes["attention"] == 8 * 16 * 16 + 8 * 8 * 16
    assert sizes["embedding"] == 48 * 16
    assert sizes["scales"] == 2 * rows
    assert sizes["vectors"] == 2 * sum(vector.numel() for vector in quantized.vectors.values())


def test_whole_numbers_serve_as_real_fields(tmp_path, quantized):
    config = GPTConfig(**(CONFIG.to_dict() | {"softcap": 30}))
    write_artifact(tmp_path / "a", quantized, config=config, recurrent=False, tokenizer_sha256=TOKENIZER)
    assert read_artifact(tmp_path / "a").config == config


def test_a_state_that_does_not_fit_its_config_is_not_written(tmp_path, quantized):
    del quantized.matrices["kv"]
    with pytest.raises(GolfError, match="do not fit its model"):
        write_artifact(tmp_path / "a", quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, quantized):
    path = tmp_path / "a.golf"
    path.write_bytes(b"old")
    with pytest.raises(GolfError, match="SHA-256"):
        write_artifact(path, quantized, config=CONFIG, recurrent=False, tokenizer_sha256="no hash")
    assert path.read_bytes() == b"old"


def test_another_tokenizer_is_refused(file):
    artifact = read_artifact(file)
    artifact.require_tokenizer(TOKENIZER)
    with pytest.raises(GolfError, match="prepare the data with the artifact's tokenizer"):
        artifact.require_tokenizer("f" * 64)


def test_loads_in_a_second_process_from_the_file_alone(file, tmp_path):
    alone = tmp_path / "moved.golf"
    alone.write_bytes(file.read_bytes())
    program = (
        "import sys, hashlib\n"
        "from golf_lightning.compression.artifact import read_artifact\n"
        "artifact = read_artifact(sys.argv[1])\n"
        "digest = hashlib.sha256()\n"
        "for name, tensor in sorted(artifact.state_dict().items()):\n"
        "    digest.update(name.encode() + tensor.numpy().tobytes())\n"
        "print(digest.hexdigest(), artifact.recurrent)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, alone], capture_output=True, text=True, check=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(read_artifact(file).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert run.stdout.split() == [digest.hexdigest(), "True"]


def test_knows_an_artifact_by_its_first_bytes(file, tmp_path):
    (tmp_path / "other.ckpt").write_bytes(b"PK\x03\x04 a checkpoint")
    assert is_artifact(file)
    assert not is_artifact(tmp_path / "other.ckpt")
    assert not is_artifact(tmp_path / "missing")


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda data: b"", "not an artifact"),
        (lambda data: b"PK\x03\x04" + data, "not an artifact"),
        (lambda data: data.replace(b"\r\n", b"\n", 1), "not an artifact"),
        (lambda data: data[:12], "truncated; copy or export it again"),
        (lambda data: data[:-1], "truncated or corrupted"),
        (lambda data: data[: len(data) // 2], "truncated or corrupted"),
        (lambda data: data + b"\0", "truncated or corrupted"),
        (lambda data: data[:8] + struct.pack("<I", 2) + data[12:], "format version 2 and this program reads version 1"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 2**31) + bytes(99)), "declares a header of 2147483648 bytes"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 2**20 + 1) + bytes(2**20 + 1)), "declares a header of 1048577"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 9) + b"[" * 9), "not valid JSON"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 500_000) + b"[" * 500_000), "not valid JSON"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 2) + b"\xff\xfe"), "not valid JSON"),
        (lambda data: signed(PREFIX.pack(MAGIC, 1, 2) + b"[]"), "not a JSON object"),
        (lambda data: signed(data[:-DIGEST_BYTES] + b"\0"), "do not add up"),
    ],
)
def test_a_damaged_file_is_one_clear_sentence(tmp_path, data, damage, sentence):
    path = tmp_path / "damaged.golf"
    path.write_bytes(damage(data))
    with pytest.raises(GolfError, match=f"^Cannot use .*damaged.golf: .*{sentence}"):
        read_artifact(path)


@pytest.mark.parametrize("name", ["missing.golf", "."])
def test_a_file_that_cannot_be_read_is_one_clear_sentence(tmp_path, name):
    with pytest.raises(GolfError, match="^Cannot read the artifact"):
        read_artifact(tmp_path / name)


def set_model(**values):
    return lambda header: header["model"].update(values)


def set_tensor(section, **values):
    return lambda header: header["sections"][section]["tensors"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda header, key=key: header.pop(key) and None for key in ("model", "recurrent", "coder", "sections")),
        lambda header: header["model"].pop("layers") and None,
        set_model(layers=True),
        set_model(layers="4"),
        set_model(layers=0),
        set_model(layers=2**40),
        set_model(layers=2**20, width=2**20),
        set_model(loop_passes=10**12),
        set_model(max_seqlen=10**12),
        set_model(softcap=float("nan")),
        set_model(softcap=None),
        set_model(lanes="many"),
        set_model(lanes=["crossed"]),
        set_model(unknown=1),
        set_model(vocab_size=49),
        lambda header: header.update(recurrent=1),
        lambda header: header.update(coder="zip"),
        lambda header: header.update(coder=["brotli"]),
        lambda header: header.update(tokenizer_sha256="xyz"),
        lambda header: header.update(sections={}),
        lambda header: header.update(sections=[]),
        lambda header: header.update(sections=[7]),
        lambda header: header["sections"].pop(0) and None,
        lambda header: header["sections"][0].update(encoded=-1),
        lambda header: header["sections"][0].update(encoded=10**30),
        lambda header: header["sections"][0].update(tensors=[]),
        lambda header: header["sections"][0].update(tensors=[None]),
        lambda header: header["sections"].append(header["sections"][0]),
        lambda header: header["sections"].reverse(),
        set_tensor(0, bits=1),
        set_tensor(0, bits=9),
        set_tensor(0, bits=2),
        set_tensor(0, role="mlp2"),
        set_tensor(0, role=""),
        set_tensor(0, name="mix"),
        set_tensor(0, name=["down"]),
        set_tensor(0, kind="pickle"),
        set_tensor(0, kind="vector"),
        set_tensor(0, shape=[4, 16]),
        set_tensor(0, shape=[-4, -16, 32]),
        set_tensor(0, shape=[2**60, 2**60], decoded=2**120),
        set_tensor(0, shape=[2**20, 2**20], decoded=2**40),
        set_tensor(0, shape="abc"),
        set_tensor(0, decoded=1),
        set_tensor(6, shape=[1] * 40, decoded=2),
        set_tensor(6, shape=[2**20, 2**20], decoded=2**41),
        set_tensor(5, name="other"),
    ],
)
def test_a_forged_header_is_refused(data, change):
    with pytest.raises(GolfError):
        decode_artifact(forged(data, change))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda state: state.matrices["up"].codes.fill_(32), "codes of up exceed 6 bits"),
        (lambda state: state.matrices["up"].codes.fill_(-32), "codes of up exceed 6 bits"),
        (lambda state: state.matrices["up"].scale.zero_(), "scales of up are not all positive"),
        (lambda state: state.matrices["kv"].scale.fill_(float("inf")), "scales of kv are not all positive"),
        (lambda state: state.vectors["mix"].fill_(float("nan")), "mix holds NaN"),
    ],
)
def test_values_that_no_exporter_writes_are_refused(tmp_path, quantized, damage, sentence):
    damage(quantized)
    write_artifact(tmp_path / "a", quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER)
    with pytest.raises(GolfError, match=sentence):
        read_artifact(tmp_path / "a")


def test_positions_beyond_any_machine_are_refused():
    config = GPTConfig(width=512, heads=1, kv_heads=1, head_dim=512, rope_dims=512, layers=1, lanes="none",
                       loop_first=0, loop_last=0, mlp_width=1, vocab_size=1)  # fmt: skip
    shapes = {**config.bank_shapes, "embedding": (1, 512)}
    groups = [
        *((TensorEntry(name, "codes", shape, ROLE_OF[name], 6),) for name, shape in shapes.items()),
        tuple(TensorEntry(name, "scale", shape[:-1]) for name, shape in shapes.items()),
        tuple(TensorEntry(name, "vector", shape) for name, shape in vector_shapes(config).items()),
    ]
    sections = tuple(Section(group, 1) for group in groups)
    for positions, fits in ((2**19, True), (2**20, False)):
        header = Header(replace(config, max_seqlen=positions), TOKENIZER, False, "raw", sections)
        with nullcontext() if fits else pytest.raises(GolfError, match="rotary table would not fit"):
            Header.from_json(header.to_json())
