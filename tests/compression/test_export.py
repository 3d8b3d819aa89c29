from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import start_ranks
from small_gpt import CONFIG, TOKENIZER, export_from_file, load_model, packed_batch, small_gpt, spawned_rank

from golf_lightning.compression import export, rate
from golf_lightning.compression.artifact import encode_artifact, read_artifact, write_artifact
from golf_lightning.compression.banks import quantize_bank, quantize_state, share_out
from golf_lightning.compression.budget import BudgetConfig, OverBudget
from golf_lightning.compression.export import ExportConfig, export_model
from golf_lightning.compression.hessians import collect_hessians
from golf_lightning.compression.quantize import QuantizationConfig
from golf_lightning.compression.report import ExportReport
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.errors import GolfError
from golf_lightning.files import read_json, write_json
from golf_lightning.model.config import matrix_inputs
from golf_lightning.model.gpt import GPT


def test_the_artifact_holds_what_quantize_state_gives(model, batches, tmp_path):
    settings = ExportConfig(calibration_batches=3, rate="fixed")
    path = tmp_path / "artifact.golf"
    export_model(model, batches, path, tokenizer_sha256=TOKENIZER, settings=settings)
    hessians = collect_hessians(model, batches, count=3).hessians
    state, _ = quantize_state(model.state_dict(), hessians, CONFIG, settings.quantization)
    wanted, read = state.state_dict(), read_artifact(path).state_dict()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_the_report_adds_up(model, batches, tmp_path):
    path = tmp_path / "artifact.golf"
    report = export_model(
        model, batches, path, tokenizer_sha256=TOKENIZER, settings=ExportConfig(calibration_batches=3)
    )
    assert report.budget.artifact_bytes == path.stat().st_size == sum(report.bytes_by_role.values())
    assert list(report.seconds) == ["calibrate", "sensitivities", "quantize", "encode", "verify"]
    assert report.calibration_tokens == 3 * 57
    assert report.raised_damping == 0


def test_gptq_disturbs_the_outputs_less_than_round_to_nearest(model, batches, tmp_path):
    report = export_model(
        model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=ExportConfig(calibration_batches=3)
    )
    assert report.relative_error.keys() == {"attention", "mlp", "embedding"}
    for role, error in report.relative_error.items():
        assert 0 < error < 0.9 * report.nearest_relative_error[role]


def test_the_report_survives_json(model, batches, tmp_path):
    report = export_model(
        model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=ExportConfig(calibration_batches=2)
    )
    write_json(tmp_path / "report.json", report.to_dict())
    assert ExportReport.from_dict(read_json(tmp_path / "report.json")) == report


def test_round_to_nearest_needs_no_calibration(model, tmp_path):
    settings = ExportConfig(quantization=QuantizationConfig(method="rtn"), rate="fixed")
    report = export_model(model, [], tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)
    assert report.calibration_tokens == 0 and "calibrate" not in report.seconds


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_loaded_model_predicts_as_the_quantized_one(model, batches, tmp_path, recurrent):
    model.recurrent = recurrent
    path = tmp_path / "artifact.golf"
    export_model(model, batches, path, tokenizer_sha256=TOKENIZER, settings=ExportConfig(calibration_batches=3))
    loaded = load_model(read_artifact(path))
    batch = packed_batch(9)
    with torch.no_grad():
        before = model(batch.tokens, batch.targets, batch.cu_seqlens)
        model.load_state_dict(read_artifact(path).state_dict())
        quantized = model(batch.tokens, batch.targets, batch.cu_seqlens)
        again = loaded(batch.tokens, batch.targets, batch.cu_seqlens)
    assert loaded.recurrent is recurrent
    assert torch.equal(quantized, again)
    assert not torch.equal(before, again)


def test_calibration_improves_the_loss_where_bits_are_few(batches, tmp_path):
    losses = {}
    for method in ("gptq", "rtn"):
        model = small_gpt()
        quantization = QuantizationConfig(
            method=method, attention_bits=3, attention_k=4.0, mlp_bits=3, mlp_k=4.0, trellis=False
        )
        settings = ExportConfig(quantization=quantization, rate="fixed", calibration_batches=3)
        export_model(model, batches, tmp_path / method, tokenizer_sha256=TOKENIZER, settings=settings)
        loaded = load_model(read_artifact(tmp_path / method))
        with torch.no_grad():
            change = [
                (loaded.features(b.tokens, b.cu_seqlens) - model.features(b.tokens, b.cu_seqlens)).square().mean()
                for b in batches
            ]
        losses[method] = float(sum(change))
    assert losses["gptq"] < 0.9 * losses["rtn"]


def test_export_leaves_the_model_untouched(model, batches, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=ExportConfig())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_over_budget_keeps_the_file_and_then_fails(model, batches, tmp_path):
    settings = ExportConfig(budget=BudgetConfig(limit_bytes=3_000, code_bytes=100), calibration_batches=2)
    report = export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)
    too_many = (tmp_path / "a").stat().st_size + 100 - 3_000
    assert read_artifact(tmp_path / "a").file_bytes == report.budget.artifact_bytes
    with pytest.raises(OverBudget, match=f" {too_many:,} bytes over"):
        report.budget.require()


def test_a_smaller_k_costs_bytes_and_lowers_the_error(model, batches, tmp_path):
    reports = []
    for k in (6.0, 18.0):
        quantization = QuantizationConfig(attention_k=k, mlp_k=k)
        settings = ExportConfig(quantization=quantization, rate="fixed", calibration_batches=3)
        reports.append(export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings))
    fine, coarse = reports
    assert fine.bytes_by_role["mlp"] > coarse.bytes_by_role["mlp"]
    assert fine.relative_error["mlp"] < coarse.relative_error["mlp"]


def test_an_untrained_model_exports(batches, tmp_path):
    """O and down are zero at the start: rows without spread, and sites that nothing reaches."""
    model = small_gpt()
    model.reset_parameters()
    report = export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=ExportConfig())
    state = read_artifact(tmp_path / "a").state_dict()
    assert not state["down"].any() and not state["qo"][CONFIG.layers :].any()
    assert report.relative_error["attention"] > 0


def test_a_nan_weight_leaves_no_file(model, batches, tmp_path):
    with torch.no_grad():
        model.mlp_scale[0, 0] = float("nan")
    settings = ExportConfig(quantization=QuantizationConfig(method="rtn"), rate="fixed")
    with pytest.raises(GolfError, match="^mlp_scale holds 1 NaN"):
        export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)
    assert not list(tmp_path.iterdir())


def test_a_file_that_reads_back_differently_is_an_error(model, tmp_path, monkeypatch):
    def careless(state, **header):
        return encode_artifact(replace(state, vectors=state.vectors | {"mix": state.vectors["mix"] + 1}), **header)

    monkeypatch.setattr(export, "encode_artifact", careless)
    settings = ExportConfig(quantization=QuantizationConfig(method="rtn"), rate="fixed")
    with pytest.raises(GolfError, match="did not read back as it was written"):
        export_model(model, [], tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)


def test_a_bank_in_parts_equals_the_whole(model, batches):
    hessians = collect_hessians(model, batches, count=3).hessians
    stacked = torch.stack([hessians[f"up.{i}"] for i in range(4)])
    settings = QuantizationConfig()
    whole, _ = quantize_bank("up", model.up.detach(), stacked, settings)
    parts = [quantize_bank("up", model.up.detach()[i : i + 2], stacked[i : i + 2], settings)[0] for i in (0, 2)]
    assert torch.equal(whole.scale, torch.cat([part.scale for part in parts]))
    assert (whole.codes == torch.cat([part.codes for part in parts])).float().mean() > 0.999


@pytest.mark.parametrize("lost", ["mix", "lane_attn"])
def test_an_artifact_without_a_parameter_is_not_written(tmp_path, quantized, lost):
    del quantized.vectors[lost]
    with pytest.raises(GolfError, match="vectors that do not fit its model"):
        write_artifact(tmp_path / "a", quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_loading_draws_nothing_from_the_generators(tmp_path, quantized):
    write_artifact(tmp_path / "a", quantized, config=CONFIG, recurrent=False, tokenizer_sha256=TOKENIZER)
    before = torch.get_rng_state()
    load_model(read_artifact(tmp_path / "a"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"coder": "zip"}, "Coder 'zip'"),
        ({"calibration_batches": 0}, "calibration_batches is 0"),
        ({"sensitivity_batches": 1}, "sensitivity_batches is 1"),
        ({"rate": "free"}, "rate is 'free'"),
        ({"quantization": QuantizationConfig(method="rtn")}, "rate fixed for round to nearest"),
        ({"coder": "brotli"}, "set .*trellis"),
        ({"rate": "fixed", "quantization": QuantizationConfig(mlp_bits=3)}, "mlp_bits .* at least 4, or set .*trellis"),
    ],
)
def test_refuses_settings_out_of_range(values, message):
    with pytest.raises(GolfError, match=message):
        ExportConfig(**values)


def test_few_bits_are_fine_where_no_trellis_uses_them():
    few = {"attention_bits": 2, "mlp_bits": 2, "embedding_bits": 3}
    ExportConfig(rate="fixed", quantization=QuantizationConfig(trellis=False, **few))
    ExportConfig(rate="budget", quantization=QuantizationConfig(**few))


@pytest.mark.parametrize("limit", [8_000, 10_000])
@pytest.mark.parametrize("trellis", [True, False])
def test_rate_control_fills_the_budget(model, batches, tmp_path, limit, trellis, monkeypatch):
    monkeypatch.setattr(rate, "SLACK", 100)
    monkeypatch.setattr(rate, "AIM_BELOW", 40)
    settings = ExportConfig(
        quantization=QuantizationConfig(trellis=trellis),
        budget=BudgetConfig(limit_bytes=limit, code_bytes=100),
        calibration_batches=3,
    )
    report = export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)
    assert 0 <= report.budget.headroom_bytes < 100
    assert report.predicted_nats.keys() == report.k.keys() == {"attention", "mlp", "embedding"}


def test_a_larger_budget_is_predicted_to_cost_less(model, batches, tmp_path):
    predicted = []
    for limit in (8_000, 10_000):
        settings = ExportConfig(budget=BudgetConfig(limit_bytes=limit, code_bytes=100), calibration_batches=3)
        report = export_model(model, batches, tmp_path / "a", tokenizer_sha256=TOKENIZER, settings=settings)
        predicted.append(sum(report.predicted_nats.values()))
    assert predicted[1] < predicted[0]


def test_two_ranks_export_one_artifact_from_the_batches_of_both(tmp_path: Path):
    start_ranks(spawned_rank, ("export", str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == {"artifact_bytes": first["artifact_bytes"], "tokens": 4 * 57, "wrote": True}
    assert second == first | {"wrote": False}
    assert read_artifact(tmp_path / "artifact0.golf").file_bytes == first["artifact_bytes"]


@pytest.mark.parametrize(("work", "name"), [("fail", "mix"), ("fail in share", "kv")])
def test_an_error_on_one_rank_reaches_every_rank(tmp_path: Path, work: str, name: str):
    start_ranks(spawned_rank, (work, str(tmp_path)), 2)
    errors = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert errors[0] == errors[1]
    assert f"{name} are too large for fp16" in errors[0]
    assert not list(tmp_path.glob("*.golf"))


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_banks_divided_among_ranks_give_the_file_of_one(model: GPT, tmp_path: Path, ranks: int):
    batches = [packed_batch(seed) for seed in range(4)]
    calibration = collect_hessians(model, batches, count=4)
    sensitivities = collect_sensitivities(model, batches, calibration, count=4)
    torch.save((calibration.hessians, calibration.tokens, sensitivities), tmp_path / "calibration.pt")
    alone = export_from_file(tmp_path, tmp_path / "alone.golf")
    start_ranks(spawned_rank, ("divided", str(tmp_path), ranks), ranks)
    outcomes = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert (tmp_path / "divided.golf").read_bytes() == (tmp_path / "alone.golf").read_bytes()
    assert [outcome["report"] for outcome in outcomes] == [alone["report"]] * ranks
    tries = alone["report"]["encodings"]
    assert all(len(outcome["quantized"]) == tries * len(set(outcome["quantized"])) for outcome in outcomes)
    shares = [name for outcome in outcomes for name in set(outcome["quantized"])]
    assert sorted(shares) == sorted(matrix_inputs(CONFIG))


@pytest.mark.parametrize(("ranks", "most"), [(1, 4096), (2, 2048), (3, 2048), (8, 2048)])
def test_no_rank_gets_more_columns_than_it_must(ranks: int, most: int):
    columns = {"qo": 512, "kv": 512, "up": 512, "down": 2048, "embedding": 512}
    owners = share_out(columns, ranks)
    loads = [sum(columns[name] for name, owner in owners.items() if owner == rank) for rank in range(ranks)]
    assert max(loads) == most and sum(loads) == 4096
    assert loads.count(0) == max(0, ranks - len(columns))
