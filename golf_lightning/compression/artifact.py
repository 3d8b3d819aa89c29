"""The artifact: one file that holds a whole model, and nothing that can be executed.

This is the whole format, version 1; a reader can be written from it. Integers are little-endian.

==================  ========  ==================================================================
offset              bytes     content
==================  ========  ==================================================================
0                   8         magic ``93 47 4F 4C 46 0D 0A 1A`` (0x93, "GOLF", CR, LF, 0x1A)
8                   4         format version, unsigned: 1
12                  4         length h of the header, unsigned, at most 2**20
16                  h         header: a JSON object (RFC 8259) in UTF-8
16 + h              p         payload: the coded sections, one after another, as the header lists them
16 + h + p          32        SHA-256 of everything before it
==================  ========  ==================================================================

The file is at most 2**30 bytes, and so is the sum of its decoded arrays. The header's fields:

==================  ==========  ==========================================================="""

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from golf_lightning.compression.coding import Array, coder_named
from golf_lightning.compression.header import Header, Kind, Section, TensorEntry
from golf_lightning.compression.quantize import ROLE_OF, QuantizedState, QuantizedTensor
from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole
from golf_lightning.model.config import GPTConfig

MAGIC = b"\x93GOLF\r\n\x1a"
VERSION = 1
PREFIX = struct.Struct("<8sII")
DIGEST_BYTES = 32
MAX_HEADER_BYTES = 2**20
MAX_FILE_BYTES = 2**30


@dataclass(slots=True)
class Artifact:
    """A model as read from an artifact.

    Attributes:
        config: shape and constants of the model.
        recurrent: whether depth recurrence is on in the model that was exported.
        tokenizer_sha256: hash of the tokenizer file it was trained with.
        coder: name of the entropy coder.
        state: codes, scales and vectors.
        bytes_by_role: bytes in the file for ``attention``, ``mlp``, ``embedding``, ``scales``, ``vectors`` and
            ``header`` (with prefix and checksum); they add up to the file.
        bytes_by_section: bytes of each section, named by its bank, or ``scales`` or ``vectors``.
    """

    config: GPTConfig
    recurrent: bool
    tokenizer_sha256: str
    coder: str
    state: QuantizedState
    bytes_by_role: dict[str, int]
    bytes_by_section: dict[str, int]

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return sum(self.bytes_by_role.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Float32 tensors for ``GPT.load_state_dict``, bit-equal to those of the exporter."""
        return self.state.state_dict()

    def require_tokenizer(self, sha256: str) -> None:
        """Refuse data that another tokenizer made.

        Raises:
            GolfError: the hashes differ.
        """
        if sha256 != self.tokenizer_sha256:
            raise GolfError(
                f"The artifact was trained with tokenizer {self.tokenizer_sha256[:12]} but the data was made with "
                f"{sha256[:12]}; prepare the data with the artifact's tokenizer."
            )


def encode_artifact(
    state: QuantizedState,
    *,
    config: GPTConfig,
    recurrent: bool,
    tokenizer_sha256: str,
    coder: str = "brotli",
) -> bytes:
    """The bytes of an artifact; the same input always gives the same bytes.

    Raises:
        GolfError: the coder is unknown, or cannot code this model.
    """
    encode = coder_named(coder).encode
    groups = _sections(state.cpu())
    with ThreadPoolExecutor(len(groups)) as pool:
        payloads = list(pool.map(encode, [[array for _, array in group] for group in groups]))
    sections = tuple(
        Section(tuple(entry for entry, _ in group), len(payload))
        for group, payload in zip(groups, payloads, strict=True)
    )
    text = Header(config, tokenizer_sha256, recurrent, coder, sections).to_json()
    body = b"".join([PREFIX.pack(MAGIC, VERSION, len(text)), text, *payloads])
    # A header that this version would refuse to read must not replace a good file.
    Header.from_json(text)
    return body + hashlib.sha256(body).digest()


def write_artifact(
    path: str | Path,
    state: QuantizedState,
    *,
    config: GPTConfig,
    recurrent: bool,
    tokenizer_sha256: str,
    coder: str = "brotli",
) -> int:
    """Write an artifact, whole or not at all; see :func:`encode_artifact`.

    Returns:
        Bytes of the file.

    Raises:
        GolfError: as :func:`encode_artifact`, or the file cannot be written.
    """
    data = encode_artifact(state, config=config, recurrent=recurrent, tokenizer_sha256=tokenizer_sha256, coder=coder)
    write_encoded(path, data)
    return len(data)


def write_encoded(path: str | Path, data: bytes) -> None:
    """Write what :func:`encode_artifact` gave, whole or not at all.

    Raises:
        GolfError: the file cannot be written.
    """
    with write_whole(path) as file:
        file.write(data)


def is_artifact(path: str | Path) -> bool:
    """Whether a file begins like an artifact, damaged or not; false for checkpoints and missing files."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_artifact(path: str | Path) -> Artifact:
    """Read and verify an artifact. Needs no training data, and runs nothing that the file holds.

    Raises:
        GolfError: the file is missing, foreign, of another version, truncated, corrupted or inconsistent.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise GolfError(f"Cannot read the artifact {path}: {error.strerror or error}.") from None
    try:
        return decode_artifact(data)
    except GolfError as error:
        raise GolfError(f"Cannot use {path}: {error}") from None


def decode_artifact(data: bytes) -> Artifact:
    """The same from the bytes of a file.

    Raises:
        GolfError: see :func:`read_artifact`.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise GolfError("it is not an artifact of golf_lightning.")
    if len(data) > MAX_FILE_BYTES:
        raise GolfError(f"it is larger than {MAX_FILE_BYTES} bytes.")
    if len(data) < PREFIX.size + DIGEST_BYTES:
        raise GolfError("it is truncated; copy or export it again.")
    _, version, header_bytes = PREFIX.unpack_from(data)
    if version != VERSION:
        raise GolfError(f"it has format version {version} and this program reads version {VERSION}; export it again.")
    view = memoryview(data)
    if hashlib.sha256(view[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise GolfError("it is truncated or corrupted (the checksum does not match); copy or export it again.")
    payload_start = PREFIX.size + header_bytes
    payload_bytes = len(data) - DIGEST_BYTES - payload_start
    if header_bytes > MAX_HEADER_BYTES or payload_bytes < 0:
        raise GolfError(f"it declares a header of {header_bytes} bytes, which does not fit.")
    header = Header.from_json(data[PREFIX.size : payload_start])
    if sum(section.encoded for section in header.sections) != payload_bytes:
        raise GolfError("its sections do not add up to its size.")
    state = _decode_payload(header, view[payload_start:-DIGEST_BYTES])
    sizes = {"attention": 0, "mlp": 0, "embedding": 0, "scales": 0, "vectors": 0, "header": len(data) - payload_bytes}
    sections: dict[str, int] = {}
    for section in header.sections:
        sizes[section.label] += section.encoded
        sections[section.name] = sections.get(section.name, 0) + section.encoded
    return Artifact(header.config, header.recurrent, header.tokenizer_sha256, header.coder, state, sizes, sections)


def _sections(state: QuantizedState) -> list[list[tuple[TensorEntry, Array]]]:
    """Arrays that are coded together: each bank's codes, all scales, all vectors; names sorted, so bytes are stable."""
    matrices = sorted(state.matrices.items())
    groups = [
        [(TensorEntry(name, "codes", tuple(m.codes.shape), m.role, m.bits), m.codes.numpy())] for name, m in matrices
    ]
    groups.append([(TensorEntry(name, "scale", tuple(m.scale.shape)), m.scale.numpy()) for name, m in matrices])
    vectors = sorted(state.vectors.items())
    groups.append([(TensorEntry(name, "vector", tuple(v.shape)), v.numpy()) for name, v in vectors])
    return [group for group in groups if group]


def _decode_payload(header: Header, payload: memoryview) -> QuantizedState:
    decode = coder_named(header.coder).decode
    starts, total = [], 0
    for section in header.sections:
        starts.append(total)
        total += section.encoded

    def decode_section(start: int, section: Section) -> list[Array]:
        coded = bytes(payload[start : start + section.encoded])
        return decode(coded, [tensor.spec for tensor in section.tensors])

    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(decode_section, starts, header.sections))
    stored: dict[tuple[Kind, str], tuple[TensorEntry, Tensor]] = {}
    for section, arrays in zip(header.sections, decoded, strict=True):
        for entry, array in zip(section.tensors, arrays, strict=True):
            stored[entry.kind, entry.name] = (entry, torch.from_numpy(array))
    matrices = {
        name: QuantizedTensor(ROLE_OF[name], entry.bits, codes, stored["scale", name][1])
        for (kind, name), (entry, codes) in stored.items()
        if kind == "codes"
    }
    vectors = {name: vector for (kind, name), (_, vector) in stored.items() if kind == "vector"}
    _check_values(matrices, vectors)
    return QuantizedState(matrices, vectors)


def _check_values(matrices: dict[str, QuantizedTensor], vectors: dict[str, Tensor]) -> None:
    for name, matrix in matrices.items():
        largest = 2 ** (matrix.bits - 1) - 1
        low, high = matrix.codes.aminmax()
        if low < -largest or high > largest:
            raise GolfError(f"the codes of {name} exceed {matrix.bits} bits.")
        if not (matrix.scale.isfinite() & (matrix.scale > 0)).all():
            raise GolfError(f"the scales of {name} are not all positive numbers.")
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise GolfError(f"{name} holds NaN or infinite values.")
