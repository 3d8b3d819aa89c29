"""The contest's shard files: a header of 256 int32, then uint16 tokens, all little-endian.

The header holds the magic 20240520, the version 1 and the number of tokens; its other 253 words are zero. The layout is
that of llm.c's and modded-nanogpt's FineWeb shards, which the contest kept.
"""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = HEADER_WORDS * 4

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

Tokens = npt.NDArray[np.uint16]


def shard_name(split: Split, index: int) -> str:
    """File name of shard ``index`` of a split, for example ``fineweb_train_000003.bin``."""
    return f"fineweb_{split}_{index:06d}.bin"


def write_shard(path: str | Path, tokens: npt.NDArray[np.integer]) -> None:
    """Write one shard, whole or not at all.

    Args:
        path: the file to write.
        tokens: ``[N]`` integers in 0..65535, N at least 1.

    Raises:
        GolfError: no tokens, a token that does not fit in 16 bits, or the file cannot be written.
    """
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"tokens must be one row of integers, not {tokens.dtype} of shape {tokens.shape}")
    if not tokens.size:
        raise GolfError(f"There are no tokens to write to {path}; give it at least one document.")
    if tokens.size > np.iinfo(np.int32).max:
        raise GolfError(
            f"{tokens.size} tokens do not fit in the shard {path}; use shards of at most 2,147,483,647 tokens."
        )
    if tokens.dtype != np.uint16 and not 0 <= int(tokens.min()) <= int(tokens.max()) <= 0xFFFF:
        raise GolfError(f"A token for {path} is outside 0..65535; shards hold 16-bit tokens, use a smaller vocabulary.")
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    with write_whole(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, dtype="<u2").data)


def read_header(path: str | Path) -> int:
    """Check a shard's header against its length and return the number of tokens it holds.

    Raises:
        GolfError: the file is missing, empty, foreign, without tokens, truncated or too long.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except FileNotFoundError:
        raise GolfError(f"The shard {path} does not exist; prepare the data again.") from None
    except OSError as error:
        raise GolfError(
            f"The shard {path} cannot be read ({error.strerror}); check the path and its permissions."
        ) from None
    if not head:
        raise GolfError(f"The shard {path} is empty; prepare or download it again.")
    magic = int.from_bytes(head[:4], "little")
    if len(head) >= 4 and magic != MAGIC:
        raise GolfError(f"{path} is not a token shard: it starts with {magic} instead of the magic number {MAGIC}.")
    if len(head) < HEADER_BYTES:
        raise GolfError(
            f"The shard {path} is truncated inside its header ({size} of {HEADER_BYTES} bytes); fetch it again."
        )
    _, version, count = (int(word) for word in np.frombuffer(head, dtype="<i4")[:3])
    if version != VERSION:
        raise GolfError(f"The shard {path} has version {version}; only version {VERSION} (uint16 tokens) can be read.")
    if count < 1:
        raise GolfError(f"The header of the shard {path} counts {count} tokens; prepare or download it again.")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise GolfError(
            f"The shard {path} is {fault}: {size} bytes where its header's {count} tokens need {expected}; "
            "prepare or download it again."
        )
    return count


def measured_tokens(path: str | Path) -> int:
    """Number of tokens that a shard of this size holds, without opening it.

    Raises:
        GolfError: the file is missing, or its size is no shard's.
    """
    try:
        size = Path(path).stat().st_size
    except FileNotFoundError:
        raise GolfError(f"The shard {path} does not exist; prepare the data again.") from None
    if size == 0:
        raise GolfError(f"The shard {path} is empty; prepare or download it again.")
    count, rest = divmod(size - HEADER_BYTES, 2)
    if count < 1 or rest:
        raise GolfError(f"The shard {path} of {size} bytes is truncated or damaged; prepare or download it again.")
    return count


def map_shard(path: str | Path) -> Tokens:
    """Map a shard's tokens into memory, ``[N]`` uint16, read-only, after :func:`read_header` has accepted it.

    Raises:
        GolfError: as :func:`read_header`.
    """
    count = read_header(path)
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def find_shards(folder: str | Path, split: Split) -> list[Path]:
    """The shards of a split in the order in which they are read: sorted by name.

    Raises:
        GolfError: the folder does not exist or holds no shard of this split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GolfError(f"The data folder {folder} does not exist; make it with `python -m golf_lightning prepare`.")
    shards = sorted(folder.glob(f"fineweb_{split}_[0-9]*.bin"))
    if not shards:
        raise GolfError(
            f"{folder} holds no {split} shards (fineweb_{split}_*.bin); make some with `golf_lightning prepare`."
        )
    return shards
