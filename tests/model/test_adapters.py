import numpy as np
import pytest
import torch

from golf_lightning.errors import GolfError
from golf_lightning.kernels.low_rank import RowSlots
from golf_lightning.model.adapters import (
    SITES,
    AdapterConfig,
    DocumentAdapters,
    adapter_groups,
    adapter_shapes,
    initial_a,
)
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
    """Values of ``slots`` slots and the one of no document, by group and part, one tensor a layer."""
    torch.manual_seed(seed)
    groups, values = adapter_groups(model.config, model.plan.depth, config), {}
    for group in groups:
        shapes = {"a": (config.rank * len(group.sites), model.config.width), "b": (group.outputs, config.rank)}
        for part, shape in shapes.items():
            values[f"{group.name}.{part}"] = [
                torch.randn(slots + 1, *shape, dtype=model.compute_dtype) * 0.3 for _ in range(group.depth)
            ]
    return groups, values


def rows_of(*lengths):
    """Segments of these lengths in slots 0, 1 and so on, a tile a row."""
    slots = torch.arange(len(lengths), dtype=torch.int32)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return RowSlots(bounds, slots, slots, total=sum(lengths), tile=1, span=8, last=len(lengths)), bounds


def adapters_of(model, config, *lengths, values=None):
    groups, drawn = random_values(model, len(lengths), config)
    rows, bounds = rows_of(*lengths)
    return DocumentAdapters(groups, drawn if values is None else values, rows, rows, scale=config.scale), bounds


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
    model, config = tiny_gpt(lanes), AdapterConfig(rank=2)
    _, values = random_values(model, 3, config)
    for name in values:
        if name.endswith(".b"):
            values[name] = [torch.zeros_like(layer) for layer in values[name]]
    adapters, bounds = adapters_of(model, config, 4, 3, 5, values=values)
    tokens = torch.randint(11, (12,))
    assert torch.equal(model.logits(tokens, bounds, adapters=adapters), model.logits(tokens, bounds))


@pytest.mark.parametrize("site", SITES)
def test_each_site_changes_the_output(site):
    model = tiny_gpt()
    adapters, bounds = adapters_of(model, AdapterConfig(rank=2, **{name: name == site for name in SITES}), 6)
    tokens = torch.arange(6)
    assert not torch.allclose(model.logits(tokens, bounds, adapters=adapters), model.logits(tokens, bounds), atol=1e-3)


def test_slots_run_together_equal_each_alone():
    model, config, lengths = tiny_gpt(dtype=torch.float64), AdapterConfig(rank=2), (5, 2, 7)
    _, values = random_values(model, 3, config)
    together, bounds = adapters_of(model, config, *lengths, values=values)
    tokens = torch.randint(11, (14,))
    logits = model.logits(tokens, bounds, adapters=together)
    for slot, length in enumerate(lengths):
        own = slice(bounds[slot], bounds[slot + 1])
        kept = {name: [layer[[slot, 3]] for layer in layers] for name, layers in values.items()}
        alone, single = adapters_of(model, config, length, values=kept)
        expected = model.logits(tokens[own], single, adapters=alone)
        torch.testing.assert_close(logits[own], expected, rtol=0, atol=1e-12)


def test_an_adapter_adds_b_a_x_times_the_scales():
    model, config = tiny_gpt(dtype=torch.float64), AdapterConfig(rank=2, alpha=3.0, q=False)
    _, values = random_values(model, 1, config)
    adapters, _ = adapters_of(model, config, 5, values=values)
    x, base, scale = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 8), (5, 16), (16,)))
    a, b = values["qkv.a"][1][0], values["qkv.b"][1][0]
    expected = base.clone()
    for columns, inner, rows in ((slice(8, 12), slice(0, 2), slice(0, 4)), (slice(12, 16), slice(2, 4), slice(4, 8))):
        expected[:, columns] += 1.5 * scale[columns] * (x @ a[inner].T @ b[rows].T)
    torch.testing.assert_close(adapters.layer(1).qkv(base, x, scale), expected)


def test_groups_name_the_columns_that_their_sites_write():
    config = GPTConfig()
    groups = {group.name: group for group in adapter_groups(config, 17, AdapterConfig(k=False))}
    assert groups["qkv"].sites == ("q", "v")
    assert groups["qkv"].columns == ((0, 512), (768, 1024))
    assert groups["qkv"].outputs == 768
    assert groups["head"].columns == ((0, 8192),)
    assert (groups["head"].depth, groups["mlp"].depth) == (1, 17)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.5), (4.0, 1.0), (2.0, 0.5)])
def test_outputs_are_scaled_by_alpha_over_rank(alpha, scale):
    assert AdapterConfig(rank=4, alpha=alpha).scale == scale


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
