import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import CONFIG, FOLDER, golden_state
from matplotlib import image
from scipy import stats

from golf_lightning.__main__ import main
from golf_lightning.compression.artifact import read_artifact
from golf_lightning.compression.quantize import ROLES, QuantizedTensor
from golf_lightning.compression.trellis import low_bits
from golf_lightning.reporting.artifact_facts import artifact_facts, code_facts, count_codes

GOLDEN = FOLDER / "raw.golf"


def drawn(bits: int, shape: tuple[int, ...], spread: float) -> QuantizedTensor:
    largest = 2 ** (bits - 1) - 1
    values = np.random.default_rng(0).normal(0.3, spread, shape).round().clip(-largest, largest)
    return QuantizedTensor("mlp", bits, torch.tensor(values).to(torch.int8), torch.ones(shape[:-1]).half())


def reference_row_bits(codes: np.ndarray) -> float:
    """Bits of each code under a normal of its row's spread, one weight at a time."""
    total = 0.0
    for row in codes.reshape(-1, codes.shape[-1]).astype(np.float64):
        spread = math.sqrt((row**2).mean())
        total -= np.log2(stats.norm.cdf((row + 0.5) / spread) - stats.norm.cdf((row - 0.5) / spread)).sum()
    return total / codes.size


def test_counts_are_those_of_each_row() -> None:
    matrix = drawn(4, (2, 3, 50), 2.0)
    counts = count_codes("up", matrix)
    for n, r in np.ndindex(2, 3):
        row = matrix.codes[n, r].numpy()
        assert counts.counts_NRV[n, r].tolist() == [int((row == code).sum()) for code in range(-7, 8)]
        assert counts.clip_sd_NR[n, r] == pytest.approx(7 / row.std(ddof=1))


@pytest.mark.parametrize("bits, spread", [(6, 2.5), (8, 6.4), (3, 4.0)])
def test_entropies_agree_with_a_reference(bits: int, spread: float) -> None:
    matrix = drawn(bits, (3, 8, 200), spread)
    codes = matrix.codes.numpy()
    facts = code_facts([count_codes("up", matrix)], coded_bytes=1000)
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    assert facts.order_0_bits == pytest.approx(stats.entropy(shares, base=2), rel=1e-12)
    assert facts.row_normal_bits == pytest.approx(reference_row_bits(codes), rel=1e-9)
    assert facts.weights == codes.size
    assert facts.bits_per_weight == 8000 / codes.size
    assert facts.largest_code == abs(codes).max()
    assert facts.clipped == (abs(codes) == 2 ** (bits - 1) - 1).mean()
    assert facts.zeros == (codes == 0).mean()


def test_on_the_trellis_evenness_is_known_and_costs_nothing() -> None:
    rng = np.random.default_rng(1)
    drive = rng.integers(0, 2, (2, 40, 300)).astype(np.uint8)
    codes = (4 * rng.normal(0.0, 1.0, drive.shape).round().clip(-3, 3) + 2 * drive + low_bits(drive)).astype(np.int8)
    matrix = QuantizedTensor("mlp", 5, torch.tensor(codes), torch.ones(codes.shape[:-1]).half())
    facts = code_facts([count_codes("up", matrix)], 1)
    halves = [codes[codes % 2 == odd] for odd in (0, 1)]
    entropies = [stats.entropy(np.unique(half, return_counts=True)[1], base=2) * half.size for half in halves]
    assert facts.order_0_bits == pytest.approx(sum(entropies) / codes.size, rel=1e-12)
    bits = 0.0
    for row in codes.reshape(-1, codes.shape[-1]).astype(np.float64):
        spread = math.sqrt((row**2).mean())
        for odd in (0, 1):
            among = np.arange(-15, 16)[np.arange(-15, 16) % 2 == odd]
            total = (stats.norm.cdf((among + 0.5) / spread) - stats.norm.cdf((among - 0.5) / spread)).sum()
            taken = row[row % 2 == odd]
            bits -= np.log2(
                (stats.norm.cdf((taken + 0.5) / spread) - stats.norm.cdf((taken - 0.5) / spread)) / total
            ).sum()
    assert facts.row_normal_bits == pytest.approx(bits / codes.size, rel=1e-9)


def test_a_code_far_in_the_tail_has_a_finite_length() -> None:
    codes = torch.zeros(1, 1, 4096, dtype=torch.int8)
    codes[0, 0, 0] = -127
    facts = code_facts([count_codes("up", QuantizedTensor("mlp", 8, codes, torch.ones(1, 1).half()))], 1)
    spread = 127 / math.sqrt(4096)
    far = -stats.norm.logcdf(-126.5 / spread) / math.log(2)  # all else beyond it is nothing
    near = -math.log2(stats.norm.cdf(0.5 / spread) - stats.norm.cdf(-0.5 / spread))
    assert far > 2900
    assert facts.row_normal_bits == pytest.approx((far + 4095 * near) / 4096, rel=1e-9)


def test_rows_of_zeros_cost_nothing_and_have_no_clip_point() -> None:
    codes = torch.zeros(2, 4, 16, dtype=torch.int8)
    facts = code_facts([count_codes("up", QuantizedTensor("mlp", 6, codes, torch.ones(2, 4).half()))], 5)
    assert facts.row_normal_bits == facts.order_0_bits == 0
    assert facts.clip_sd == math.inf
    assert facts.zeros == 1


def test_banks_of_a_role_are_taken_together() -> None:
    parts = [count_codes("up", drawn(6, (2, 4, 64), 2.0)), count_codes("down", drawn(4, (1, 4, 64), 1.0))]
    both = code_facts(parts, 900)
    one, other = (code_facts([part], 300) for part in parts)
    assert both.weights == one.weights + other.weights
    assert both.bits == 6
    assert both.order_0_bits == pytest.approx((2 * one.order_0_bits + other.order_0_bits) / 3)
    assert both.clip_sd == pytest.approx(one.clip_sd ** (2 / 3) * other.clip_sd ** (1 / 3))


def test_the_facts_of_a_file_add_up() -> None:
    artifact, state = read_artifact(GOLDEN), golden_state()
    facts = artifact_facts(artifact, {name: count_codes(name, m) for name, m in artifact.state.matrices.items()})
    assert sum(facts.bytes.values()) == facts.file_bytes == GOLDEN.stat().st_size
    assert {role: codes.bytes for role, codes in facts.roles.items()} == {role: facts.bytes[role] for role in ROLES}
    assert sum(bank.bytes for bank in facts.banks.values()) == sum(facts.bytes[role] for role in ROLES)
    assert {name: bank.weights for name, bank in facts.banks.items()} == {
        name: matrix.codes.numel() for name, matrix in state.matrices.items()
    }
    assert facts.parameters == sum(tensor.numel() for tensor in state.state_dict().values())
    assert all(bank.bits_per_weight == 8 for bank in facts.banks.values()), "raw codes take a byte each"


def test_the_command_prints_a_line_for_every_part(capsys: Any) -> None:
    assert main(["inspect", str(GOLDEN)]) == 0
    text = capsys.readouterr().out
    names = [line.split()[0] for line in text.splitlines()[3:] if line]
    assert names == [
        "part", "attention", "kv", "qo", "mlp", "down", "up", "embedding", "scales", "vectors", "header", "the"
    ]  # fmt: skip
    assert f"{GOLDEN.stat().st_size:,} bytes, coder raw, recurrence on" in text
    assert "int8" in text and "8.000" in text


def test_json_holds_the_same_facts(capsys: Any) -> None:
    assert main(["inspect", str(GOLDEN), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["file_bytes"] == GOLDEN.stat().st_size
    assert values["model"] == CONFIG.to_dict()
    assert values["banks"]["kv"]["bits"] == 5
    assert values["roles"]["mlp"]["order_0_bits"] > 1


def test_the_picture_shows_every_role(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "artifact.png"
    assert main(["inspect", str(GOLDEN), "--png", str(path)]) == 0
    pixels = image.imread(path)[..., :3]
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
    for color in ("3b6fb6", "d9822b", "4a9a5b", "b3261e"):
        wanted = np.frombuffer(bytes.fromhex(color), np.uint8) / 255
        assert (np.abs(pixels - wanted).max(-1) < 0.01).sum() > 500, color
    assert f"drawn into {path}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage, sentence", [(None, "Cannot read the artifact"), (b"PNG", "is not an artifact")])
def test_what_is_no_artifact_is_one_sentence(tmp_path: Path, capsys: Any, damage: bytes | None, sentence: str) -> None:
    path = tmp_path / "a.golf"
    if damage is not None:
        path.write_bytes(damage)
    assert main(["inspect", str(path), "--png", str(tmp_path / "a.png")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
