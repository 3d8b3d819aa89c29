"""The network against an independent float64 implementation, and the properties that a legal score rests on."""

import math
from typing import Any

import pytest
import torch
from small import pack, random_model, small_config
from torch import Tensor

from golf_lightning.data.batch import IGNORED
from golf_lightning.kernels.attention import varlen_attention
from golf_lightning.model.config import GPTConfig, matrix_inputs
from golf_lightning.model.gpt import GPT
from golf_lightning.model.injection import Context, LayerAdapters

VARIANTS = [{"lanes": "crossed"}, {"lanes": "isolated"}, {"lanes": "none"}, {"xsa": False}, {"rope_dims": 0}]
PLANS = {
    False: ([0, 1, 2], [3, 4, 5, 6], [0, 3, 4, None]),
    True: ([0, 1, 2, 3, 2], [3, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, None]),
}


def norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1.1920928955078125e-07)


def oracle(model: GPT, tokens: Tensor, recurrent: bool) -> Tensor:
    """Softcapped logits of one document, written from the recipe with one matrix and one head at a time."""
    c = model.config
    w = {name: p.detach().double() for name, p in model.named_parameters()}
    count, position = c.layers, torch.arange(len(tokens), dtype=torch.float64)
    x0 = norm(w["embedding"][tokens])

    def attention(n: Tensor, i: int) -> Tensor:
        outputs = []
        for h in range(c.heads):
            g = h * c.kv_heads // c.heads
            rows, group = slice(h * c.head_dim, (h + 1) * c.head_dim), slice(g * c.head_dim, (g + 1) * c.head_dim)
            q = norm(n @ w["qo"][i][rows].T)
            k, v = norm(n @ w["kv"][i][group].T), n @ w["kv"][count + i][group].T
            for x in (q, k):
                for j in range(c.rope_dims // 2):
                    angle = position * c.rope_base ** (-2 * j / c.rope_dims)
                    a, b = x[:, j].clone(), x[:, j + c.rope_dims // 2].clone()
                    x[:, j] = a * angle.cos() - b * angle.sin()
                    x[:, j + c.rope_dims // 2] = b * angle.cos() + a * angle.sin()
            scores = (q * w["q_gain"][i][h]) @ k.T / math.sqrt(c.head_dim)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            y = scores.softmax(-1) @ v
            if c.xsa:
                unit = v / v.norm(dim=-1, keepdim=True)
                y = y - (y * unit).sum(-1, keepdim=True) * unit
            outputs.append(y)
        return w["attn_scale"][i] * (torch.cat(outputs, -1) @ w["qo"][count + i].T)

    def feed_forward(x: Tensor, i: int) -> Tensor:
        z = (norm(x) / math.sqrt(i + 1)) @ w["up"][i].T
        return w["mlp_scale"][i] * (torch.where(z > 0, z, 0.5 * z) ** 2 @ w["down"][i].T)

    encoder, decoder, slots = PLANS[recurrent]
    x, lanes, skips = x0, None, []
    for step, i in enumerate([*encoder, *decoder]):
        if c.lanes != "none" and i >= c.lanes_start and lanes is None:
            lanes = [x, x]
        if step >= len(encoder) and (slot := slots[step - len(encoder)]) is not None:
            gate = torch.sigmoid(w["skip_gate"][slot])
            entering = gate * (x if lanes is None else lanes[0]) + (1 - gate) * w["skip_weight"][slot] * skips.pop()
            x, lanes = (entering, None) if lanes is None else (x, [entering, lanes[1]])
        mixed = w["mix"][i][0] * (x if lanes is None else lanes[0]) + w["mix"][i][1] * x0
        attn = attention(norm(mixed) / math.sqrt(i + 1), i)
        if lanes is None:
            x = mixed + attn
            x = x + feed_forward(x, i)
        else:
            mlp, lane = feed_forward(lanes[1], i), i - c.lanes_start
            if c.lanes == "isolated":
                lanes = [mixed + attn, lanes[1] + mlp]
            else:
                r, a, p = (w[name][lane] for name in ("lane_residual", "lane_attn", "lane_mlp"))
                lanes = [r[k] * lanes[k] + a[k] * attn + p[k] * mlp for k in (0, 1)]
        if step < len(encoder):
            skips.append(x)
    if lanes is not None:
        share = w["lane_balance"] if c.lanes == "isolated" else 0.5
        x = share * lanes[0] + (1 - share) * lanes[1]
    return c.softcap * torch.tanh(norm(x) @ w["embedding"].T / c.softcap)


def some_tokens(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 50, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_logits_equal_an_independent_implementation(changes: dict[str, Any], recurrent: bool) -> None:
    model = random_model(small_config(**changes))
    model.recurrent = recurrent
    (tokens,) = some_tokens(13)
    logits = model.logits(*pack(tokens))
    # The rotary table is float32 by design: 1e-7 of the angle's cosine is what is left.
    torch.testing.assert_close(logits, oracle(model, tokens, recurrent), rtol=0, atol=3e-6)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("backend", ["segments", "reference"])
def test_packed_equals_one_document_at_a_time(backend: str, recurrent: bool) -> None:
    model = random_model(small_config(), attention=backend)
    model.recurrent = recurrent
    documents = some_tokens(1, 12, 32, 5)
    packed = model.logits(*pack(*documents, padding=6))[:50]
    alone = torch.cat([model.logits(*pack(document)) for document in documents])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["segments", "reference"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_flipping_a_token_moves_no_score_before_it(backend: str, recurrent: bool) -> None:
    model = random_model(small_config(), torch.float32, attention=backend)
    model.recurrent = recurrent
    tokens, cu_seqlens = pack(*some_tokens(20, 30))
    before = model.logits(tokens, cu_seqlens)
    for position in (0, 7, 19, 20, 33, 49):
        flipped = tokens.clone()
        flipped[position] = (flipped[position] + 1) % 50
        after = model.logits(flipped, cu_seqlens)
        assert torch.equal(before[:position], after[:position])
        assert not torch.equal(before[position], after[position])


def test_flipping_a_token_moves_nothing_in_other_documents() -> None:
    model = random_model(small_config(), torch.float32)
    tokens, cu_seqlens = pack(*some_tokens(20, 30))
    flipped = tokens.clone()
    flipped[3] = (flipped[3] + 1) % 50
    assert torch.equal(model.logits(tokens, cu_seqlens)[20:], model.logits(flipped, cu_seqlens)[20:])


def test_probabilities_sum_to_one() -> None:
    model = random_model(small_config())
    logits = model.logits(*pack(*some_tokens(20)))
    torch.testing.assert_close(logits.exp().sum(-1).log(), logits.logsumexp(-1))
    nll = torch.stack([model(*_with_targets(pack(*some_tokens(20)), target)) for target in range(50)])
    torch.testing.assert_close((-nll).exp().sum(0), torch.ones(20, dtype=torch.float64))


def _with_targets(packed: tuple[Tensor, Tensor], target: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, cu_seqlens = packed
    return tokens, torch.full_like(tokens, target), cu_seqlens


def test_ignored_targets_cost_nothing_and_move_nothing() -> None:
    model = random_model(small_config())
    tokens, cu_seqlens = pack(*some_tokens(9), padding=3)
    targets = torch.full_like(tokens, IGNORED)
    targets[4] = 7
    nll = model(tokens, targets, cu_seqlens)
    assert nll.count_nonzero() == 1
    nll.sum().backward()
    moved = model.embedding.grad.abs().sum(-1)
    assert torch.isfinite(moved).all()


def test_padding_rows_leave_gradients_alone() -> None:
    gradients = []
    for padding in (0, 5):
        model = random_model(small_config())
        tokens, cu_seqlens = pack(*some_tokens(9, 4), padding=padding)
        targets = torch.full_like(tokens, IGNORED)
        targets[:13] = 3
        model(tokens, targets, cu_seqlens).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


class GivenAdapters:
    """The same adapters in every virtual layer, none on the head."""

    def __init__(self, **adapters: Any) -> None:
        self.adapters = LayerAdapters(**adapters)

    def layer(self, virtual: int) -> LayerAdapters:
        return self.adapters

    def head(self, logits_TV: Tensor, x_TD: Tensor) -> Tensor:
        return logits_TV


def nothing(base: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    return base + torch.zeros_like(base)


def matrix_adapter(outputs: int, first: int = 0) -> tuple[Any, Tensor]:
    """An adapter that is one random matrix, written from column ``first`` on."""
    weight = torch.randn(outputs, 32, dtype=torch.float64) * 0.1

    def adapt(base: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
        added = torch.zeros_like(base)
        added[:, first : first + outputs] = x @ weight.T
        return base + (added if scale is None else scale * added)

    return adapt, weight


@pytest.mark.parametrize("recurrent", [False, True])
def test_adapters_at_zero_equal_none(recurrent: bool) -> None:
    model = random_model(small_config())
    model.recurrent = recurrent
    packed = pack(*some_tokens(9, 4))
    adapters = GivenAdapters(qkv=nothing, attn=nothing, mlp=nothing)
    assert torch.equal(model.logits(*packed, adapters=adapters), model.logits(*packed))


@pytest.mark.parametrize(
    ("site", "outputs", "first"), [("qkv", 32, 0), ("qkv", 16, 32), ("qkv", 16, 48), ("attn", 32, 0), ("mlp", 32, 0)]
)
def test_every_adapter_reaches_the_logits(site: str, outputs: int, first: int) -> None:
    model = random_model(small_config())
    adapters = GivenAdapters(**{site: matrix_adapter(outputs, first)[0]})
    packed = pack(*some_tokens(9))
    assert (model.logits(*packed, adapters=adapters) - model.logits(*packed)).abs().max() > 1e-3


def test_a_value_adapter_equals_a_changed_value_matrix() -> None:
    """The unit value vector of XSA must be the adapted one."""
    model, changed = random_model(small_config()), random_model(small_config())
    adapt, weight = matrix_adapter(16, first=48)
    with torch.no_grad():
        changed.kv[7:] += weight
    packed = pack(*some_tokens(9, 4))
    torch.testing.assert_close(model.logits(*packed, adapters=GivenAdapters(qkv=adapt)), changed.logits(*packed))


@pytest.mark.parametrize("site", ["attn", "mlp"])
def test_a_parallel_adapter_adds_before_the_layers_scale(site: str) -> None:
    model = random_model(small_config())
    seen = []

    def note(base: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
        seen.append(scale)
        return base

    model.logits(*pack(*some_tokens(9)), adapters=GivenAdapters(**{site: note}))
    scales = getattr(model, f"{site}_scale")
    order = (*model.plan.encoder, *model.plan.decoder)
    assert all(torch.equal(scale, scales[i]) for scale, i in zip(seen, order, strict=True))


def test_a_context_gives_positions_and_attention() -> None:
    model = random_model(small_config())
    (tokens, cu_seqlens), visited = pack(*some_tokens(9)), []

    def attend(virtual: int) -> Any:
        visited.append(virtual)
        return lambda q, k, v, masked: varlen_attention(
            q, k, v, cu_seqlens, max_seqlen=9, backend="reference", masked=masked
        )

    def nll(positions: Tensor) -> Tensor:
        return model.features(tokens, cu_seqlens, context=Context(positions, attend))

    # Only differences of positions matter to rotary attention.
    torch.testing.assert_close(nll(torch.arange(9) + 5), model.features(tokens, cu_seqlens))
    assert (nll(2 * torch.arange(9)) - model.features(tokens, cu_seqlens)).abs().max() > 1e-4
    assert visited == 2 * list(range(model.plan.depth))


@pytest.mark.parametrize("recurrent", [False, True])
def test_recorder_on_equals_off_and_sees_every_site(recurrent: bool) -> None:
    model = random_model(small_config())
    model.recurrent = recurrent
    seen: dict[str, list[Tensor]] = {}
    packed = pack(*some_tokens(9, 4))
    logits = model.logits(*packed, recorder=lambda site, x: seen.setdefault(site, []).append(x))
    assert torch.equal(logits, model.logits(*packed))
    assert set(seen) == {site for sites in matrix_inputs(model.config).values() for site in sites}
    assert {site: len(visits) for site, visits in seen.items() if "." in site} == {
        f"{role}.{i}": 3 if recurrent and i in (2, 3) else 1 for role in ("qkv", "o", "up", "down") for i in range(7)
    }
    assert seen["down.0"][0].shape == (13, 48)


def test_full_size_has_the_parameters_of_the_record() -> None:
    shapes = GPTConfig().bank_shapes
    assert {name: math.prod(shape) for name, shape in shapes.items()} == {
        "qo": 22 * 512 * 512,
        "kv": 22 * 256 * 512,
        "up": 11 * 2048 * 512,
        "down": 11 * 512 * 2048,
    }
    assert sum(p.numel() for p in GPT(GPTConfig()).parameters()) == 35_944_554


def test_initial_loss_is_near_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = GPT(small_config())
    tokens, cu_seqlens = pack(*some_tokens(32))
    assert abs(model(tokens, tokens.roll(-1), cu_seqlens).mean().item() - math.log(50)) < 0.05


def test_banks_start_orthogonal_or_zero() -> None:
    model = GPT(small_config())
    eye = torch.eye(32)
    for matrix in (*model.qo[:7], *model.up):
        torch.testing.assert_close(matrix.T @ matrix, eye, atol=1e-5, rtol=0)
    for matrix in model.kv:
        torch.testing.assert_close(matrix @ matrix.T, eye[:16, :16], atol=1e-5, rtol=0)
    assert not model.qo[7:].any() and not model.down.any()


def test_longer_windows_extend_the_rotary_table_without_changing_it() -> None:
    model = random_model(small_config(), torch.float32)
    packed = pack(*some_tokens(20))
    before = model.logits(*packed)
    model.extend_positions(64)
    assert torch.equal(before, model.logits(*packed))
    assert model.logits(*pack(*some_tokens(60))).shape == (60, 50)


def test_weights_begin_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda matrix: calls.append(0))
    GPT(small_config())
    assert calls[0] == 1 and calls[-1] == 16 and set(calls[1:-1]) == {0}
