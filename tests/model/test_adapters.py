import numpy as np
import pytest
import torch

from golf_lightning.errors import GolfError
from golf_lightning.model.adapters import SITES, AdapterConfig, DocumentAdapters, adapter_shapes, initial_a
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT
from golf_lightning.model.order import layer_plan

MASK = 2**64 - 1


def tiny_gpt(lanes="crossed", dtype=torch.float32):
    torch.manual_seed(0)
    config = GPTConfig(
        **{"vocab_size": 11, "layers": 3, "width": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 12},
        **{"rope_dims": 2, "max_seqlen": 16, "lanes": lanes, "lanes_start": 2},
        **{"loop_first": 0, "loop_last": 1, "loop_passes": 2},
    )
    model = GPT(config, compute_dtype=dtype).to(dtype)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.recurrent = True
    return model


def random_values(model, slots, config, seed=0):
    torch.manual_seed(seed)
    shapes = adapter_shapes(model.config, model.plan.depth, config)
    return {name: torch.randn(slots, *shape, dtype=model.compute_dtype) * 0.3 for name, shape in shapes.items()}


def mix(x):
    """SplitMix64's output function in Python's own integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def noise_by_hand(seed, document, site, index, inputs):
    golden = 0x9E3779B97F4A7C15
    key = mix((seed + golden) & MASK)
    for part in (document, SITES.index(site)):
        key = mix((key + (part + 1) * golden) & MASK)
    top = mix((key + (index + 1) * golden) & MASK) >> 41
    return ((2 * top + 1) / 2**23 - 1) * inputs**-0.5


def test_noise_follows_splitmix64():
    shape = (2, 3, 5)
    noise = initial_a(2**62 + 7, torch.tensor([4, 900_000]), "mlp", shape).flatten(1).double()
    by_hand = [[noise_by_hand(2**62 + 7, doc, "mlp", i, 5) for i in range(30)] for doc in (4, 900_000)]
    np.testing.assert_allclose(noise, by_hand, rtol=1e-7)


def test_mixing_gives_the_published_outputs_of_splitmix64():
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        outputs.append(mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_of_a_document_does_not_depend_on_what_is_drawn_with_it():
    together = initial_a(3, torch.tensor([9, 2, 5]), "q", (4, 2, 6))
    for row, document in enumerate((9, 2, 5)):
        assert torch.equal(together[row], initial_a(3, torch.tensor([document]), "q", (4, 2, 6))[0])


def test_noise_of_a_virtual_layer_does_not_depend_on_the_depth():
    deep, shallow = (initial_a(3, torch.tensor([1]), "q", (depth, 2, 6)) for depth in (5, 3))
    assert torch.equal(deep[:, :3], shallow)


def test_noise_is_uniform_between_plus_and_minus_one_over_the_root_of_the_inputs():
    inputs = 64
    noise = initial_a(0, torch.arange(40), "q", (5, 16, inputs)).double().flatten() * inputs**0.5
    count = noise.numel()
    assert noise.abs().max() < 1
    assert noise.abs().max() > 1 - 1e-3
    assert abs(noise.mean()) < 4 * (1 / 3 / count) ** 0.5
    assert abs(noise.square().mean() - 1 / 3) < 4 * (4 / 45 / count) ** 0.5
    histogram = torch.histc(noise, bins=50, min=-1, max=1)
    chi_square = ((histogram - count / 50) ** 2 / (count / 50)).sum()
    assert chi_square < 49 + 4 * (2 * 49) ** 0.5


@pytest.mark.parametrize("other", ["document", "seed", "site", "neighbour"])
def test_noise_of_different_keys_is_not_correlated(other):
    shape = (4, 64, 256)
    first = initial_a(0, torch.tensor([0]), "q", shape).flatten().double()
    second = {
        "document": lambda: initial_a(0, torch.tensor([1]), "q", shape).flatten().double(),
        "seed": lambda: initial_a(1, torch.tensor([0]), "q", shape).flatten().double(),
        "site": lambda: initial_a(0, torch.tensor([0]), "k", shape).flatten().double(),
        "neighbour": lambda: first.roll(1),
    }[other]()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 4 * first.numel() ** -0.5


def test_a_document_has_8_36_million_values_at_full_size():
    config = GPTConfig()
    shapes = adapter_shapes(config, layer_plan(config, recurrent=True).depth, AdapterConfig())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 8_355_840


@pytest.mark.parametrize("lanes", ["crossed", "isolated", "none"])
def test_adapters_at_zero_equal_none(lanes):
    model = tiny_gpt(lanes)
    values = random_values(model, 3, AdapterConfig(rank=2))
    for name in values:
        if name.endswith(".b"):
            values[name].zero_()
    adapters = DocumentAdapters(values, dtype=torch.float32)
    tokens, bounds = torch.randint(11, (12,)), torch.tensor([0, 4, 8, 12]).int()
    assert torch.equal(model.logits(tokens, bounds, adapters=adapters), model.logits(tokens, bounds))


@pytest.mark.parametrize("site", SITES)
def test_each_site_changes_the_output(site):
    model = tiny_gpt()
    config = AdapterConfig(rank=2, **{name: name == site for name in SITES})
    adapters = DocumentAdapters(random_values(model, 1, config), dtype=torch.float32)
    tokens, bounds = torch.arange(6), torch.tensor([0, 6]).int()
    assert not torch.allclose(model.logits(tokens, bounds, adapters=adapters), model.logits(tokens, bounds), atol=1e-3)


def test_slots_run_together_equal_each_alone():
    model = tiny_gpt(dtype=torch.float64)
    values = random_values(model, 3, AdapterConfig(rank=2))
    tokens = torch.randint(11, (3, 5))
    together = DocumentAdapters(values, dtype=torch.float64)
    logits = model.logits(tokens.flatten(), torch.tensor([0, 5, 10, 15]).int(), adapters=together).unflatten(0, (3, 5))
    for slot in range(3):
        alone = DocumentAdapters({n: value[slot : slot + 1] for n, value in values.items()}, dtype=torch.float64)
        expected = model.logits(tokens[slot], torch.tensor([0, 5]).int(), adapters=alone)
        torch.testing.assert_close(logits[slot], expected, rtol=0, atol=1e-12)


def test_an_adapter_adds_b_a_x_times_the_scale():
    model = tiny_gpt(dtype=torch.float64)
    config = AdapterConfig(rank=2, alpha=3.0)
    values = random_values(model, 1, config)
    x = torch.randn(5, 8, dtype=torch.float64)
    adapters = DocumentAdapters(values, dtype=torch.float64, scale=config.scale)
    expected = 1.5 * x @ values["k.a"][0, 1].T @ values["k.b"][0, 1].T
    torch.testing.assert_close(adapters.layer(1).k(x), expected)


def test_float32_values_are_used_in_the_compute_dtype():
    model = tiny_gpt()
    adapters = DocumentAdapters(random_values(model, 1, AdapterConfig(rank=2)), dtype=torch.bfloat16)
    assert adapters.head(torch.zeros(4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        (dict.fromkeys(SITES, False), "Every adapter is switched off"),
    ],
)
def test_impossible_adapters_are_refused(fields, message):
    with pytest.raises(GolfError, match=message):
        AdapterConfig(**fields)
