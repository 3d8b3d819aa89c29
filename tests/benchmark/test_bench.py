"""The benchmark: its stream, its floors, and a tiny run that accounts for its time."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from golf_lightning.__main__ import main
from golf_lightning.benchmark.floors import Ceilings, attention_flops, floors_ms, product_flops
from golf_lightning.benchmark.measure import measure_phase
from golf_lightning.benchmark.parts import part_of
from golf_lightning.benchmark.power import PowerMeter
from golf_lightning.benchmark.step import Step
from golf_lightning.benchmark.stream import folder_stream, random_stream
from golf_lightning.benchmark.tables import power_note
from golf_lightning.errors import GolfError
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.optim.config import OptimizerConfig

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
    step = Step(GPT(TINY), random_stream(TINY, 128, 2), accumulate=2, optimizer=OptimizerConfig())
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


@pytest.mark.parametrize("options", [["-c", "configs/demo.yaml"], ["--config=configs/demo.yaml"]])
def test_what_is_timed_is_the_configurations_own(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Step] = []

    def look(step: Step, **_: object) -> None:
        measured.append(step)
        raise GolfError("seen")

    monkeypatch.setattr("golf_lightning.benchmark.command.measure_phase", look)
    changed = ("--model.optimizer.newton_schulz_dtype", "float64", "--data.max_segments", "37")
    assert main(["bench", *options, *changed]) == 2
    (step,) = measured
    assert step.optimizer.config.newton_schulz_dtype == "float64"
    assert {batch.cu_seqlens.numel() for batch in step.batches} == {38}


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is measured."""

    def measure(*_: object) -> None:
        raise AssertionError("the measurement has begun")

    monkeypatch.setattr("golf_lightning.benchmark.command.measure_ceilings", measure)


FOREIGN = {
    "a list": "[]",
    "another kind": '{"train": {"steps": 3}}',
    "phases of another kind": '{"machine": "CPU", "phases": [{"steps": 3}]}',
    "no numbers": '{"machine": "CPU", "phases": [{"recurrent": false, "mfu": "high"}]}',
    "phases without a machine": '{"phases": [{"recurrent": false}]}',
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_comparison_with_something_else_is_refused_before_measuring(
    text: str, unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["bench", "--compare", str(path), *OPTIONS]) == 2
    assert "other.json is no result of a benchmark" in capsys.readouterr().err


def test_other_phases_are_refused_before_measuring(
    unmeasured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"machine": "CPU", "phases": [{"recurrent": false}]}')
    assert main(["bench", "--compare", str(path), *OPTIONS]) == 2
    assert "different phases" in capsys.readouterr().err


def test_a_stream_takes_as_many_segments_as_it_is_given() -> None:
    with pytest.raises(GolfError, match="data.max_segments is 256; give"):
        random_stream(GPTConfig(), 196_608, 1)
    (batch,) = random_stream(GPTConfig(), 196_608, 1, max_segments=512)
    assert batch.cu_seqlens.numel() == 513 and batch.cu_seqlens[-1] == 196_608
    assert int((batch.cu_seqlens.diff() > 0).sum()) > 256


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "needs a recipe"),
        (["--compare", "no.json", *OPTIONS], "no.json"),
        (["--compare", "configs", *OPTIONS], "configs is no result of a benchmark"),
        ([*OPTIONS, "--model.gpt.widht", "3"], "width"),
        (["--config=configs/demo.yaml", "--steps", "0"], "--steps is 0; give 1 or more"),
        (["--steps", "-1", *OPTIONS], "--steps is -1; give 1 or more"),
        (["--chart", "c.foo", *OPTIONS], "--chart is c.foo; end it in .png or .svg"),
        (["--chart", "chart", *OPTIONS], "--chart is chart; end it in .png or .svg"),
        (["--json", "configs", *OPTIONS], "--json configs cannot be written"),
        (["--kernels", "setup.py/kernels.txt", *OPTIONS], "--kernels setup.py/kernels.txt cannot be written"),
        (["--json", "a.png", "--chart", "./a.png", *OPTIONS], "name the same file"),
        ([*OPTIONS, "--data.train_tokens", "65536", "--data.max_segments", "1024"], "give --data.max_segments 1"),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    arguments: list[str], sentence: str, unmeasured: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A driver in the place of NVML; what it counts can be changed."""
    counts = {"mJ": 5_000_000, "mW": 700_000, "MHz": 1_830}

    def energy(handle: str) -> int:
        if "mJ" not in counts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return counts["mJ"]

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234-5678"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", {"GPU-1234-5678": "board"}.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetEnforcedPowerLimit", lambda handle: counts["mW"])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxClockInfo", lambda handle, kind: 1_980)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, kind: counts["MHz"])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", energy)
    return counts


def refused(code: int) -> Callable[..., None]:
    """A function of NVML that fails."""

    def fail(*_: object) -> None:
        raise pynvml.NVMLError(code)

    return fail


def test_power_is_that_of_torchs_gpu_in_watts_and_joules(board: dict[str, int]) -> None:
    meter = PowerMeter(torch.device("cuda", 0))
    before = meter.joules()
    board["mJ"] += 1_400_000
    assert before is not None and meter.joules() == before + 1_400
    assert (meter.limit_w, meter.limit_mhz, meter.mhz()) == (700, 1_980, 1_830)


def test_a_counter_that_the_driver_lacks_is_not_known(board: dict[str, int]) -> None:
    del board["mJ"]
    meter = PowerMeter(torch.device("cuda", 0))
    assert meter.joules() is None and meter.mhz() == 1_830


@pytest.mark.parametrize("kind", ["cpu", "a GPU whose driver is out of reach", "a part of a GPU"])
def test_where_nothing_is_known_a_benchmark_runs(kind: str, board: dict[str, int], monkeypatch: Any) -> None:
    if kind == "a part of a GPU":
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", refused(pynvml.NVML_ERROR_NOT_FOUND))
    elif kind != "cpu":
        monkeypatch.setattr(pynvml, "nvmlInit", refused(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    meter = PowerMeter(torch.device("cpu" if kind == "cpu" else "cuda"))
    assert (meter.joules(), meter.mhz(), meter.limit_w, meter.limit_mhz) == (None, None, None, None)


def test_a_phase_tells_energy_and_power_of_its_steps(board: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    meter = PowerMeter(torch.device("cuda", 0))
    monkeypatch.setattr("golf_lightning.benchmark.measure.PowerMeter", lambda device: meter)
    step = Step(GPT(TINY), random_stream(TINY, 128, 2), accumulate=1, optimizer=OptimizerConfig())
    run = step.run

    def working(*arguments: object) -> torch.Tensor:
        board["mJ"] += 300_000
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "run", working)
    phase, _ = measure_phase(step, recurrent=False, steps=3, ceilings=ONE)
    assert phase.joules_per_step == pytest.approx(300)
    assert phase.watts == pytest.approx(300e3 / phase.ms_per_step)
    assert (phase.mhz, phase.mhz_limit, phase.watts_limit) == (1_830, 1_980, 700)


@pytest.mark.parametrize(
    ("watts", "limit", "said"),
    [(690.0, 700.0, True), (500.0, 700.0, False), (None, 700.0, False), (690.0, None, False)],
)
def test_a_board_at_its_power_limit_is_told(watts: float | None, limit: float | None, said: bool) -> None:
    note = power_note([{"watts": watts, "watts_limit": limit, "mhz": 1_740.0, "mhz_limit": 1_980}])
    assert (note is not None and "690 of 700 W, 1740 of 1980 MHz" in note) is said
