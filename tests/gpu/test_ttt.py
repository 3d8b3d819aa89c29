"""On a GPU: the same noise, the same optimizer, the same scores, and no step that waits for the device."""

import pytest
import torch
from ttt_cases import score, small_config, small_gpt, small_split

from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.engine import Engine
from golf_lightning.evaluation.slots import schedule
from golf_lightning.evaluation.ttt import frozen
from golf_lightning.model.adapters import initial_a

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_noise_is_the_same_bits_as_on_the_cpu():
    documents = torch.tensor([0, 7, 50_000])
    on_gpu = initial_a(3, documents.cuda(), "mlp", (5, 96, 512))
    assert torch.equal(on_gpu.cpu(), initial_a(3, documents, "mlp", (5, 96, 512)))


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_scores_are_those_of_the_cpu(beta1, mode):
    model, tokens, config = small_gpt(attention="reference"), small_split(), small_config(beta1=beta1, mode=mode)
    expected = score(model, tokens, config).target_nats
    assert (score(model.cuda(), tokens, config).target_nats - expected).abs().max() < 1e-9


@pytest.mark.parametrize("mode", ["exact", "cached"])
def test_fused_kernels_score_as_the_reference_does(mode):
    fields = {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 128, "rope_dims": 8}
    model = small_gpt(torch.float32, attention="reference", **fields).cuda()
    model.compute_dtype = torch.bfloat16
    tokens, config = small_split([70, 5, 130, 33]), small_config(mode=mode, chunk=16, window=64, rows=256, lr=1e-3)
    fused = score(model, tokens, config)
    model.kernels = "reference"
    assert fused.mean_nats == pytest.approx(score(model, tokens, config).mean_nats, abs=5e-3)


@pytest.mark.parametrize("mode", ["exact", "cached"])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_no_step_waits_for_the_device(mode):
    model, config = small_gpt(attention="reference").cuda(), small_config(mode=mode)
    stream = DocumentStream(small_split())
    with torch.inference_mode(False), frozen(model):
        model.extend_positions(64)
        engine = Engine(model, config, targets=stream.total_targets, documents=len(stream), keep_target_nats=True)
        engine.warm_up()
        engine.load(stream.tokens[: stream.total_targets + 1], stream.starts)
        limits = {"slots": config.slots, "rows": engine.most.rows, "together": engine.most.documents}
        steps = list(schedule(stream.targets, range(len(stream)), engine.plan, **limits))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in steps:
                engine.run(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert engine.counts[:-1].cpu().tolist() == stream.targets.tolist()
