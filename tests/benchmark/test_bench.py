"""The benchmark: its stream, its floors, and a tiny run that accounts for its time."""

import json
from pathlib import Path

import pytest
import torch

from golf_lightning.__main__ import main
from golf_lightning.benchmark.floors import Ceilings, attention_flops, floors_ms, product_flops
from golf_lightning.benchmark.measure import measure_phase
from golf_lightning.benchmark.parts import part_of
from golf_lightning.benchmark.step import Step
from golf_lightning.benchmark.stream import folder_stream, random_stream
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT

TINY = GPTConfig(
    vocab_size=32, layers=4, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=16, rope_dims=4, max_seqlen=64,
    loop_first=1, loop_last=1, lanes="none",
)  # fmt: skip
ONE = Ceilings(flops=1e12, bytes=1e9)
OPTIONS = [
    *("--config", "configs/demo.yaml", "--data.train_tokens", "128", "--data.max_segments", "256"),
    *("--model.gpt.max_seqlen", "64", "--model.gpt.width", "32", "--model.gpt.head_dim", "8"),
    *("--model.gpt.rope_dims", "4", "--model.gpt.mlp_width", "32", "--model.gpt.vocab_size", "64"),
]


def test_stream_has_the_claimed_documents_and_one_fixed_form() -> None:
    batches = random_stream(GPTConfig(), 98_304, 8)
    documents = [int((batch.cu_seqlens.diff() > 0).sum()) for batch in batches]
    assert 120 < sum(documents) / len(documents) < 180
    assert len({batch.cu_seqlens.shape for batch in batches}) == 1
    assert all(batch.cu_seqlens.diff().max() <= 2048 and batch.cu_seqlens[-1] == 98_304 for batch in batches)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="nowhere"):
        folder_stream(tmp_path / "nowhere", TINY, 128, 1)


def test_product_flops_are_six_per_weight_used() -> None:
    config = GPTConfig()
    assert product_flops(config, config.layers) == pytest.approx(215e6, rel=0.01)
    assert product_flops(config, 17) == pytest.approx(319e6, rel=0.01)


def test_attention_flops_count_the_pairs_that_a_mask_leaves() -> None:
    pairs = torch.ones(5, 5).tril().sum() + torch.ones(3, 3).tril().sum()
    assert attention_flops(TINY, 2, [5, 3]) == pytest.approx(float(2 * 7 * 2 * pairs * TINY.width))


def test_floors_are_bytes_over_bandwidth_and_operations_over_rate() -> None:
    floors = floors_ms(TINY, 4, 128, [128], 4, ONE)
    assert floors["products"] == pytest.approx(1e3 * product_flops(TINY, 4) * 128 / 1e12)
    assert floors["loss"] == pytest.approx(1e3 * 2 * 128 * 32 * 4 / 1e9)
    assert floors["XSA"] == pytest.approx(1e3 * 4 * 6.5 * 128 * 16 * 4 / 1e9)


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90", "attention"),
        ("kernel_cutlass_kernel_quackepiloguefrontendGemmMod_hidden_and_slope_d5c5__none_sm9", "products"),
        ("kernel_cutlass_kernel_quackepiloguefrontendGemmMod_sloped_b53c__c_sm9", "products"),
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_splitK_NTN", "products"),
        ("_product_kernel", "products"),
        ("_prepare_backward_kernel", "heads"),
        ("_exclude_kernel", "XSA"),
        ("_mix_backward_kernel", "layer entry"),
        ("_norm_kernel", "layer entry"),
        ("_loss_kernel", "loss"),
        ("triton_poi_fused_add_prepare_heads_backward_1", "generated and rest"),
        ("triton_poi_fused_mix_backward_zeros_2", "generated and rest"),
        ("aten::addmm", "products"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel: str, part: str) -> None:
    assert part_of(kernel) == part


def test_a_tiny_run_trains_and_accounts_for_its_time() -> None:
    torch.manual_seed(0)
    step = Step(GPT(TINY), random_stream(TINY, 128, 2), accumulate=2)
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    phase, trace = measure_phase(step, recurrent=True, steps=2, ceilings=ONE)
    assert 0 < 2 * (phase.ms_forward + phase.ms_backward) + phase.ms_optimizer <= phase.ms_per_step * 1.001
    assert phase.tokens_per_s == pytest.approx(256 / phase.ms_per_step * 1e3)
    assert sum(phase.ms_parts.values()) == pytest.approx(trace.busy_ms)
    assert any(not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_command_writes_what_it_shows_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path, chart, kernels = tmp_path / "bench.json", tmp_path / "bench.png", tmp_path / "kernels.txt"
    files = ["--json", str(json_path), "--chart", str(chart), "--kernels", str(kernels)]
    assert main(["bench", "--steps", "1", *files, *OPTIONS]) == 0
    result = json.loads(json_path.read_text())
    assert [phase["recurrent"] for phase in result["phases"]] == [False, True]
    assert f"{result['phases'][0]['tokens_per_s']:,.0f}" in capsys.readouterr().out
    assert chart.read_bytes().startswith(b"\x89PNG") and "recurrent=True" in kernels.read_text()
    assert main(["bench", "--steps", "1", "--compare", str(json_path), *OPTIONS]) == 0
    assert "this run over the other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "needs a recipe"),
        (["--compare", "no.json", *OPTIONS], "no.json"),
        ([*OPTIONS, "--model.gpt.widht", "3"], "width"),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
