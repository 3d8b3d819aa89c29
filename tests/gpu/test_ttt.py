"""On a GPU: the same noise, the same optimizer, the same scores, and no step that waits for the device."""

import pytest
import torch
from ttt_cases import score, small_config, small_gpt, small_split

from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scorer import Scorer
from golf_lightning.evaluation.slots import schedule
from golf_lightning.evaluation.ttt import frozen
from golf_lightning.model.adapters import initial_a

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def no_bytes(previous, targets):
    return 0 * targets


def test_noise_is_the_same_bits_as_on_the_cpu():
    documents = torch.tensor([0, 7, 50_000])
    on_gpu = initial_a(3, documents.cuda(), "mlp", (5, 96, 512))
    assert torch.equal(on_gpu.cpu(), initial_a(3, documents, "mlp", (5, 96, 512)))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_scores_are_those_of_the_cpu(beta1):
    model, tokens, config = small_gpt(attention="reference"), small_split(), small_config(beta1=beta1)
    expected = score(model, tokens, config).target_nats
    assert (score(model.cuda(), tokens, config).target_nats - expected).abs().max() < 1e-9


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_no_step_waits_for_the_device():
    model, config = small_gpt(attention="reference").cuda(), small_config()
    scorer = Scorer(model, stream := DocumentStream(small_split()), config, no_bytes, keep_target_nats=True)
    steps = [
        step for steps in schedule(stream.targets, range(len(stream)), config.plan, slots=3, rows=64) for step in steps
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with frozen(model):
            for step in steps:
                scorer.run(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert scorer.counts.cpu().tolist() == stream.targets.tolist()
