"""The artifact's JSON header: what the file holds, written and read with every field checked."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from golf_lightning.compression.coding import ArraySpec
from golf_lightning.compression.quantize import MAX_BITS, MIN_BITS, ROLE_OF, Role
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.order import vector_shapes

Kind = Literal["codes", "scale", "vector"]

MAX_DECODED_BYTES = 2**30
"""Most that the arrays of one artifact may take: sixty times a contest artifact, and small on any machine."""
LARGEST_INTEGER = 2**20
"""Bound on every size in a header, so that a forged one cannot ask for absurd shapes, loops or position tables."""
MAX_DIMENSIONS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One array of the payload.

    Attributes:
        name: parameter name.
        kind: ``codes`` (int8), ``scale`` (float16, of the codes of the same name) or ``vector`` (float16).
        shape: dimensions.
        role: of codes; empty otherwise.
        bits: of codes; 16 otherwise.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    role: Role | Literal[""] = ""
    bits: int = 16

    @property
    def spec(self) -> ArraySpec:
        """Stored type and shape."""
        return ArraySpec("int8" if self.kind == "codes" else "float16", self.shape)


@dataclass(frozen=True, slots=True)
class Section:
    """Arrays of one stored type that are coded together, and the bytes they take in the file."""

    tensors: tuple[TensorEntry, ...]
    encoded: int

    @property
    def label(self) -> str:
        """The role of its codes, or ``scales`` or ``vectors``: how reports sum up bytes."""
        first = self.tensors[0]
        return first.role or f"{first.kind}s"

    @property
    def name(self) -> str:
        """The banks whose codes it holds, or its label."""
        return "+".join(tensor.name for tensor in self.tensors) if self.tensors[0].role else self.label


@dataclass(frozen=True, slots=True)
class Header:
    """Everything that the payload's bytes do not say themselves."""

    config: GPTConfig
    tokenizer_sha256: str
    recurrent: bool
    coder: str
    sections: tuple[Section, ...]

    def to_json(self) -> bytes:
        """Compact UTF-8 JSON; the same header always gives the same bytes."""
        value = {
            "model": self.config.to_dict(),
            "tokenizer_sha256": self.tokenizer_sha256,
            "recurrent": self.recurrent,
            "coder": self.coder,
            "sections": [
                {
                    "encoded": section.encoded,
                    "tensors": [
                        dataclasses.asdict(tensor) | {"decoded": tensor.spec.nbytes} for tensor in section.tensors
                    ],
                }
                for section in self.sections
            ],
        }
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Header":
        """Read and check a header.

        The result is consistent: every bank of the model and its embedding has codes of the model's shape and one
        scale per row, every other parameter has its vector, nothing else is there, and the decoded sizes are bounded.

        Raises:
            GolfError: anything else.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise GolfError("its header is not valid JSON.") from None
        if not isinstance(value, dict):
            raise GolfError("its header is not a JSON object.")
        header = cls(
            config=_config(_field(value, "model", dict)),
            tokenizer_sha256=_digest(_field(value, "tokenizer_sha256", str)),
            recurrent=_field(value, "recurrent", bool),
            coder=_field(value, "coder", str),
            sections=tuple(_section(item) for item in _field(value, "sections", list)),
        )
        _check_tensors(header)
        return header


def _field(mapping: dict[str, Any], key: str, kind: type[T]) -> T:
    # bool is an int to isinstance, and a header that says true for a size is wrong
    value = mapping.get(key)
    if type(value) is not kind:
        raise GolfError(f"its header has no {key} of type {kind.__name__}.")
    return value


def _size(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_INTEGER:
        raise GolfError(f"its header gives no sensible {what}.")
    return value


def _digest(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise GolfError("its header gives a tokenizer hash that is not a SHA-256.")
    return text


def _config(values: dict[str, Any]) -> GPTConfig:
    for field in dataclasses.fields(GPTConfig):
        value = values.get(field.name)
        if type(value) is int and type(field.default) in (int, float):
            _size(value, field.name)
        else:
            value = _field(values, field.name, type(field.default))
        if type(value) is float and not math.isfinite(value):
            raise GolfError(f"its header gives a {field.name} that is not finite.")
    return GPTConfig.from_dict(values)


def _section(value: object) -> Section:
    if not isinstance(value, dict):
        raise GolfError("its header describes a section that is not a JSON object.")
    encoded = _field(value, "encoded", int)
    tensors = tuple(_tensor(item) for item in _field(value, "tensors", list))
    if encoded < 0 or not tensors or len({(tensor.kind, tensor.role) for tensor in tensors}) != 1:
        raise GolfError("its header describes an empty or mixed section.")
    return Section(tensors, encoded)


def _tensor(value: object) -> TensorEntry:
    if not isinstance(value, dict):
        raise GolfError("its header describes a tensor that is not a JSON object.")
    name, kind = _field(value, "name", str), _field(value, "kind", str)
    if kind not in get_args(Kind):
        raise GolfError("its header describes a tensor of unknown kind.")
    shape = tuple(_size(size, "shape") for size in _field(value, "shape", list))
    role, bits = _field(value, "role", str), _field(value, "bits", int)
    coded = role == ROLE_OF.get(name) and MIN_BITS <= bits <= MAX_BITS
    valid = coded if kind == "codes" else role == "" and bits == 16
    entry = TensorEntry(name, kind, shape, role, bits)  # type: ignore[arg-type]
    if not valid or len(shape) > MAX_DIMENSIONS or _field(value, "decoded", int) != entry.spec.nbytes:
        raise GolfError("its header describes a tensor that contradicts itself.")
    return entry


def _check_tensors(header: Header) -> None:
    tensors = [tensor for section in header.sections for tensor in section.tensors]
    if sum(tensor.spec.nbytes for tensor in tensors) > MAX_DECODED_BYTES:
        raise GolfError(f"its header declares more than {MAX_DECODED_BYTES} bytes of weights.")
    shapes = {(tensor.kind == "scale", tensor.name): tensor.shape for tensor in tensors}
    if len(shapes) != len(tensors):
        raise GolfError("its header names a tensor twice.")
    embedding = (header.config.vocab_size, header.config.width)
    wanted: dict[str, tuple[int, ...]] = {**header.config.bank_shapes, "embedding": embedding}
    listed: dict[Kind, dict[str, tuple[int, ...]]] = {kind: {} for kind in get_args(Kind)}
    for tensor in tensors:
        listed[tensor.kind][tensor.name] = tensor.shape
    if listed["codes"] != wanted or listed["scale"] != {name: shape[:-1] for name, shape in wanted.items()}:
        raise GolfError("its header lists matrices that do not fit its model.")
    if listed["vector"] != vector_shapes(header.config):
        raise GolfError("its header lists vectors that do not fit its model.")
    if 4 * header.config.max_seqlen * header.config.rope_dims > MAX_DECODED_BYTES:
        raise GolfError("its header gives a max_seqlen whose rotary table would not fit any machine.")
