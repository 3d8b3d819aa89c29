"""What entropy coders make of the codes of an artifact: bytes, seconds, and the packages a decoder needs.

    python tests/benchmarks/coder_table.py runs/NAME/artifact.golf --json coders.json

Sizes are of the codes alone, bank by bank, but for the whole file, which has scales, vectors and the header too. "bound
with neighbours" is no coder but the code length under contexts of neighbours, tables and their adaptation not counted:
what context mixing could reach at best.
"""

import argparse
import json
import lzma
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import brotli
import numpy as np
import numpy.typing as npt
import zstandard
from scipy.special import ndtr

from golf_lightning.compression import rans
from golf_lightning.compression.artifact import Artifact, encode_artifact, read_artifact
from golf_lightning.compression.coding import ArraySpec, RansCoder
from golf_lightning.compression.quantize import QuantizationConfig, to_half
from golf_lightning.compression.spreads import Spreads, measure_spreads
from golf_lightning.compression.trellis import on_trellis
from golf_lightning.files import write_json

Codes = npt.NDArray[np.int8]


def row_normal_bytes(codes_MRC: Codes) -> float:
    """Order-0 code length under a normal of each row's own mean and spread, which cost nothing to tell."""
    bits = 0.0
    for codes_RC in codes_MRC:
        values = codes_RC.astype(np.float64)
        step = 2.0 if on_trellis(codes_MRC) else 1.0  # half of the levels are excluded at every row
        centre, spread = values.mean(1, keepdims=True), np.maximum(values.std(1, keepdims=True), 0.05)
        high, low = ((values - centre + half * step / 2) / spread for half in (1, -1))
        bits -= np.log2(np.maximum(ndtr(high) - ndtr(low), 1e-12)).sum()
    return bits / 8


def rows_only(codes_MRC: Codes) -> Spreads:
    """Spreads without those of columns."""
    spreads = measure_spreads(codes_MRC)
    return replace(spreads, columns_MC=np.zeros_like(spreads.columns_MC))


def one_class(codes_MRC: Codes) -> Spreads:
    """A single class a bank."""
    spreads = rows_only(codes_MRC)
    return replace(spreads, rows_MR=np.zeros_like(spreads.rows_MR), lowest=0, highest=0)


def with_spreads(measure: Callable[[Codes], Spreads]) -> Callable[[Codes], bytes]:
    """The project's coder with other spreads."""

    def encode(codes_MRC: Codes) -> bytes:
        with mock.patch.object(rans, "measure_spreads", measure):
            return RansCoder().encode([codes_MRC])

    return encode


def by_row_spread(codes_MRC: Codes) -> Codes:
    """Rows of all matrices in order of their spread."""
    rows = codes_MRC.reshape(-1, codes_MRC.shape[-1])
    return rows[np.argsort(rows.astype(np.float32).std(1), kind="stable")]


def brotli_of(codes: Codes) -> bytes:
    """Brotli as in the contest's records."""
    return brotli.compress(np.ascontiguousarray(codes).tobytes(), quality=11, lgwin=24)


CODERS: dict[str, tuple[Callable[[Codes], bytes], Callable[[bytes], Any] | None, str]] = {
    "brotli 11": (brotli_of, brotli.decompress, "brotli"),
    "brotli 11, transposed": (lambda codes: brotli_of(codes.swapaxes(1, 2)), brotli.decompress, "brotli"),
    "brotli 11, rows by spread": (lambda codes: brotli_of(by_row_spread(codes)), brotli.decompress, "brotli"),
    "xz 9": (lambda codes: lzma.compress(codes.tobytes(), preset=9), lzma.decompress, "none"),
    "zstd 22": (
        lambda codes: zstandard.compress(codes.tobytes(), 22),
        zstandard.decompress,
        "zstandard",
    ),
    "rANS, one table a bank": (with_spreads(one_class), None, "constriction, brotli"),
    "rANS, classes of rows": (with_spreads(rows_only), None, "constriction, brotli"),
    "rANS, classes of rows and columns": (with_spreads(measure_spreads), None, "constriction, brotli"),
}


def neighbour_bytes(codes_MRC: Codes) -> float:
    """Code length given the class and the magnitudes to the left and above, in 4 steps each."""
    spreads, bits = measure_spreads(codes_MRC), 0.0
    counts: npt.NDArray[np.int64] | None = None
    for matrix, codes_RC in enumerate(codes_MRC):
        relative = np.abs(codes_RC.astype(np.float32))
        relative /= 2.0 ** ((spreads.rows_MR[matrix][:, None] + spreads.columns_MC[matrix]) / 8)
        step = np.digitize(relative, [0.35, 0.8, 1.4]).astype(np.int64)
        left, above = np.zeros_like(step), np.zeros_like(step)
        left[:, 1:], above[1:] = step[:, :-1], step[:-1]
        subset = codes_RC.astype(np.int64) & 1 if on_trellis(codes_MRC) else 0
        context = ((spreads.class_map(matrix) * 2 + subset) * 4 + left) * 4 + above
        found = np.bincount((context * 256 + codes_RC + 128).ravel(), minlength=spreads.classes * 32 * 256)
        counts = found if counts is None else counts + found
    assert counts is not None, "an empty bank"
    table = counts.reshape(-1, 256)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    bits = -(table * np.log2(np.maximum(share, 1e-12))).sum()
    return bits / 8


def measure(banks: list[Codes]) -> list[dict[str, Any]]:
    """One line a coder, summed over banks."""
    ideal = sum(row_normal_bytes(bank) for bank in banks)
    lines: list[dict[str, Any]] = [{"coder": "order-0 entropy, a normal a row", "bytes": round(ideal)}]
    for name, (encode, decode, packages) in CODERS.items():
        start = time.perf_counter()
        coded = [encode(bank) for bank in banks]
        middle = time.perf_counter()
        for bank, data in zip(banks, coded, strict=True):
            if decode is not None:
                decode(data)
            else:
                (back,) = RansCoder().decode(data, [ArraySpec("int8", bank.shape)])
                assert np.array_equal(back, bank), name
        stop = time.perf_counter()
        lines.append(
            {
                "coder": name,
                "bytes": sum(map(len, coded)),
                "encode_s": round(middle - start, 2),
                "decode_s": round(stop - middle, 2),
                "packages": packages,
            }
        )
        print(lines[-1], flush=True)
    lines.append({"coder": "bound with neighbours", "bytes": round(sum(neighbour_bytes(bank) for bank in banks))})
    for line in lines:
        line["over_entropy"] = round(line["bytes"] / ideal - 1, 5)
    return lines


def whole_file(artifact: Artifact) -> int:
    """Bytes of the file coded anew with rANS and vectors as short as by default."""
    bits = QuantizationConfig().vector_bits
    vectors = {name: to_half(name, vector.float(), bits) for name, vector in artifact.state.vectors.items()}
    state = replace(artifact.state, vectors=vectors)
    return len(
        encode_artifact(
            state,
            config=artifact.config,
            recurrent=artifact.recurrent,
            tokenizer_sha256=artifact.tokenizer_sha256,
            coder="rans",
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--banks", nargs="+", help="only these banks, such as kv and embedding")
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args(argv)
    artifact = read_artifact(arguments.artifact)
    state = artifact.state
    banks = [
        matrix.codes.view(-1, *matrix.codes.shape[-2:]).numpy()
        for name, matrix in state.matrices.items()
        if arguments.banks is None or name in arguments.banks
    ]
    lines = measure(banks)
    if arguments.banks is None:
        size = whole_file(artifact)
        lines.append(
            {"coder": "whole file, rANS", "bytes": size, "over_entropy": round(size / lines[0]["bytes"] - 1, 5)}
        )
    if arguments.json is not None:
        write_json(arguments.json, lines)
    print(json.dumps(lines, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
