"""Ways to damage an artifact, and files made to be dear to read."""

import hashlib
import json
import random
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

import brotli
from golden_files import FOLDER

from golf_lightning.compression.artifact import DIGEST_BYTES, MAGIC, PREFIX, decode_artifact
from golf_lightning.errors import GolfError

Damage = Callable[[random.Random, bytes], bytes]
NASTY: list[Any] = [
    0, 1, -1, 2, 7, 255, 2**20, 2**20 + 1, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, 1e-300, True, False, None,
    "", "a", "raw", "brotli", "codes", "scale", "vector", "mlp", "embedding", "qo", "crossed", "none", "\0", "é" * 300,
    [], [1], [[]], [2**20] * 4, [1] * 50, {}, {"a": 1},
]  # fmt: skip


def seal(body: bytes) -> bytes:
    """The file of that body: with a checksum that fits."""
    return body + hashlib.sha256(body).digest()


def with_header(data: bytes, header: Any) -> bytes:
    """The file with another header and a checksum that fits."""
    _, version, length = PREFIX.unpack_from(data)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return seal(PREFIX.pack(MAGIC, version, len(text)) + text + data[PREFIX.size + length : -DIGEST_BYTES])


def header_of(data: bytes) -> Any:
    return json.loads(data[PREFIX.size : PREFIX.size + PREFIX.unpack_from(data)[2]])


def flip(noise: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(noise.randrange(1, 4)):
        damaged[noise.randrange(len(damaged))] ^= noise.randrange(1, 256)
    return bytes(damaged)


def truncate(noise: random.Random, body: bytes) -> bytes:
    return body[: noise.randrange(len(body))]


def remove(noise: random.Random, body: bytes) -> bytes:
    start = noise.randrange(len(body))
    return body[:start] + body[start + noise.randrange(1, 100) :]


def insert(noise: random.Random, body: bytes) -> bytes:
    start = noise.randrange(len(body))
    return body[:start] + noise.randbytes(noise.randrange(1, 100)) + body[start:]


def overwrite(noise: random.Random, body: bytes) -> bytes:
    """Random bytes over a stretch of the payload, header and sizes intact."""
    start = noise.randrange(PREFIX.size + PREFIX.unpack_from(body)[2], len(body))
    fresh = noise.randbytes(noise.randrange(1, 300))[: len(body) - start]
    return body[:start] + fresh + body[start + len(fresh) :]


DAMAGE: dict[str, Damage] = {
    "flip": flip, "truncate": truncate, "remove": remove, "insert": insert, "overwrite": overwrite
}  # fmt: skip


def forge(noise: random.Random, data: bytes) -> bytes:
    """The file with one value of its header replaced, removed or doubled, sealed again."""
    header = header_of(data)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        for key in keys:
            places.append((value, key))
            collect(value[key])

    collect(header)
    holder, key = noise.choice(places)
    match noise.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(holder[key])
        case 2 if type(holder[key]) is int:
            holder[key] += noise.choice([-1, 1, 2, holder[key]])
        case _:
            holder[key] = noise.choice(NASTY)
    return with_header(data, header)


def _bombs() -> dict[str, bytes]:
    """Small files that unpack to much more than they declare, or declare more than they hold."""
    data = (FOLDER / "brotli.golf").read_bytes()
    bomb = brotli.compress(bytes(400_000_000), quality=1)
    header = header_of(data)
    others = sum(section["encoded"] for section in header["sections"][1:])
    header["sections"][0]["encoded"] = len(bomb)
    payload = bomb + data[-DIGEST_BYTES - others : -DIGEST_BYTES]
    text = json.dumps(header).encode()
    larger = seal(PREFIX.pack(MAGIC, 1, len(text)) + text + payload)

    huge = header_of(data)
    shape = huge["sections"][1]["tensors"][0]
    assert shape["name"] == "embedding"
    huge["model"]["vocab_size"], shape["shape"], shape["decoded"] = 2**20, [2**20, 8], 2**23
    scale = next(t for t in huge["sections"][5]["tensors"] if t["name"] == "embedding")
    scale["shape"], scale["decoded"] = [2**20], 2**21

    looped = header_of(data)
    looped["model"]["loop_passes"] = 2**20
    many = header_of(data)
    many["sections"] += many["sections"][:1] * 4000
    return {
        "unpacks to 400 MB": larger,
        "declares 10 MB": with_header(data, huge),
        "a million passes": with_header(data, looped),
        "thousands of sections": with_header(data, many),
        "nested header": with_header(data, b"[" * 2**20),
        "header of empty lists": with_header(data, b"[" + b"[]," * 349_000 + b"[]]"),
        "long number": with_header(data, b"1" * 2**20),
        "header beyond the file": seal(data[:12] + struct.pack("<I", 2**20) + data[16:-DIGEST_BYTES]),
    }


def outcome(data: bytes) -> str:
    """``model`` or the error's sentence; anything else that is raised goes on."""
    try:
        decode_artifact(data)
    except GolfError as error:
        return str(error)
    return "model"


def peak_bytes() -> int:
    """Most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print the growth of this process's memory over damaged files of every coder, and over each bomb."""
    files = [path.read_bytes() for path in sorted(FOLDER.glob("*.golf"))]
    bombs = _bombs()
    for data in files:
        decode_artifact(data)
    grown, noise = {}, random.Random(3)
    before = peak_bytes()
    for _ in range(150):
        for data in files:
            outcome(seal(overwrite(noise, data[:-DIGEST_BYTES])))
            outcome(forge(noise, data))
    grown["damaged files"] = ("", peak_bytes() - before)
    for name, data in bombs.items():
        before = peak_bytes()
        grown[name] = (outcome(data), peak_bytes() - before)
    print(json.dumps(grown))


if __name__ == "__main__":
    main()
