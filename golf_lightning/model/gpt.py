"""The banked GPT: every matrix of a kind lives in one tensor, and every forward pass takes packed documents."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf_lightning.kernels.attention import AttentionBackend, choose_backend, varlen_attention
from golf_lightning.kernels.backend import KernelBackend, choose_kernels, chooses_cute
from golf_lightning.kernels.cross_entropy import head_nll, softcap_logits, softcapped_nll
from golf_lightning.kernels.mixing import Blend, Stream, Wanted
from golf_lightning.kernels.whole_heads import whole_heads
from golf_lightning.model.block import LaneWeights, LayerWeights, Pass, parallel_block, rms_norm, serial_block
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.injection import NO_ADAPTERS, Adapters, Context, Recorder
from golf_lightning.model.order import LayerPlan, layer_plan, vector_shapes
from golf_lightning.model.rotary import document_positions, rotary_table
from golf_lightning.threads import one_thread

# T tokens, D width, V vocabulary, S segments, R rotated half of a head, L layers


class GPT(nn.Module):
    """The language model of record PR #1536 and its successor #1530 v2.

    Parameters are float32 masters, cast to the compute dtype at use. The banks are ``qo [2L, D, D]`` (Q of every layer,
    then O), ``kv [2L, G*K, D]`` (K, then V), ``up [L, M, D]`` and ``down [L, D, M]``; Muon works on a whole bank at
    once, and a bank is taken apart once per forward pass. Everything else is the tied embedding and a few vectors.

    Args:
        config: shape and constants.
        compute_dtype: dtype of activations and of weights at use.
        attention: backend of the attention facade; resolved when the first batch arrives.
        kernels: backend of the MLP and loss facades, likewise.

    Attributes:
        recurrent: whether the looped layers run ``config.loop_passes`` times.
    """

    mix: Tensor
    attn_scale: Tensor
    mlp_scale: Tensor
    q_gain: Tensor
    skip_weight: Tensor
    skip_gate: Tensor
    lane_residual: Tensor
    lane_attn: Tensor
    lane_mlp: Tensor
    lane_balance: Tensor
    rotary: Tensor

    def __init__(
        self,
        config: GPTConfig,
        *,
        compute_dtype: torch.dtype = torch.float32,
        attention: AttentionBackend = "auto",
        kernels: KernelBackend = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.attention: AttentionBackend = attention
        self.kernels: KernelBackend = kernels
        self.recurrent = False
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.width))
        banks = {name: nn.Parameter(torch.empty(shape)) for name, shape in config.bank_shapes.items()}
        self.qo, self.kv, self.up, self.down = (banks[name] for name in ("qo", "kv", "up", "down"))
        for name, vector_shape in vector_shapes(config).items():
            self.register_parameter(name, nn.Parameter(torch.empty(vector_shape)))
        self.register_buffer("rotary", torch.empty(0), persistent=False)
        self.extend_positions(config.max_seqlen)
        self.reset_parameters()

    @torch.no_grad()
    @one_thread()
    def reset_parameters(self) -> None:
        """Q, K, V and up orthogonal, O and down zero, the embedding normal; vectors at their neutral values."""
        layers = self.config.layers
        nn.init.normal_(self.embedding, std=self.config.embedding_std)
        for matrix in (*self.qo[:layers], *self.kv, *self.up):
            nn.init.orthogonal_(matrix)
        self.qo[layers:].zero_()
        self.down.zero_()
        self.mix[:, 0].fill_(1.0)
        self.mix[:, 1].zero_()
        for ones in (self.attn_scale, self.mlp_scale, self.skip_weight):
            ones.fill_(1.0)
        self.skip_gate.zero_()
        self.q_gain.fill_(self.config.q_gain_init)
        if self.config.lanes == "crossed":
            self.lane_residual.fill_(1.1)
            self.lane_attn.fill_(1.0)
            self.lane_mlp.fill_(1.0)
        elif self.config.lanes == "isolated":
            self.lane_balance.fill_(0.5)

    def extend_positions(self, positions: int) -> None:
        """Make the rotary table cover segments of up to ``positions`` tokens (test-time windows may be longer)."""
        if self.rotary.numel() == 0 or self.rotary.shape[1] < positions:
            table = rotary_table(positions, self.config.rope_dims, self.config.rope_base)
            self.rotary = table.to(self.embedding.device)

    @property
    def plan(self) -> LayerPlan:
        """The order of layers as it runs now."""
        return layer_plan(self.config, self.recurrent)

    def forward(self, tokens: Tensor, targets: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Negative log-likelihood in nats of each target.

        Args:
            tokens: ``[T]`` int64.
            targets: ``[T]`` int64; ``IGNORED`` rows give 0.
            cu_seqlens: ``[S + 1]`` int32, see :class:`~golf_lightning.data.batch.PackedBatch`.

        Returns:
            ``[T]`` float32 (float64 when computing in float64).
        """
        return self.nll(self.features(tokens, cu_seqlens), targets)

    def features(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        *,
        adapters: Adapters | None = None,
        recorder: Recorder | None = None,
        context: Context | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The normalized final hidden states ``[T, D]`` that the head reads, with optional injections.

        Args:
            tokens: ``[T]`` int64.
            cu_seqlens: ``[S + 1]`` int32, see :class:`~golf_lightning.data.batch.PackedBatch`.
            adapters: added to what the matrices give.
            recorder: sees what enters the matrices.
            context: what the rows see beside each other.
            rows: int64; only these rows are wanted and given, in this order, and the last layer runs past its attention
                on them alone, as do the adapters there.
        """
        assert recorder is None or rows is None, "a recorder sees all rows"
        x0_TD = rms_norm(F.embedding(tokens, self.embedding).to(self.compute_dtype))
        run = self._start_pass(x0_TD, cu_seqlens, recorder, context, learns=adapters is None)
        x = self._run_layers(x0_TD, run, adapters, context, rows)
        (n_TD,) = run.mix(Wanted(x, False, 1.0))
        if recorder is not None:
            recorder("head", n_TD)
        return n_TD

    def head(self, n_TD: Tensor, *, adapters: Adapters | None = None) -> Tensor:
        """Raw logits ``[T, V]`` in the compute dtype, before the softcap."""
        z_TV = F.linear(n_TD, self._cast(self.embedding))
        return z_TV if adapters is None else adapters.head(z_TV, n_TD)

    def nll(self, n_TD: Tensor, targets: Tensor, *, adapters: Adapters | None = None) -> Tensor:
        """Negative log-likelihood ``[T]`` in nats of targets for final hidden states; any subset of rows will do."""
        backend, softcap = self._kernels_on(n_TD), self.config.softcap
        if adapters is None:
            return head_nll(n_TD, self._cast(self.embedding), targets, softcap, backend=backend)
        return softcapped_nll(self.head(n_TD, adapters=adapters), targets, softcap, backend=backend)

    def logits(
        self, tokens: Tensor, cu_seqlens: Tensor, *, adapters: Adapters | None = None, recorder: Recorder | None = None
    ) -> Tensor:
        """Softcapped logits ``[T, V]``, at least float32; their softmax is the model's distribution."""
        n_TD = self.features(tokens, cu_seqlens, adapters=adapters, recorder=recorder)
        return softcap_logits(self.head(n_TD, adapters=adapters), self.config.softcap)

    def _start_pass(
        self, x0_TD: Tensor, cu_seqlens: Tensor, recorder: Recorder | None, context: Context | None, *, learns: bool
    ) -> Pass:
        backend, kernels = choose_backend(self.attention, x0_TD.device), self._kernels_on(x0_TD)
        config, max_seqlen = self.config, self.rotary.shape[1]
        # Padding rows count on from the last segment and may run past the table.
        positions_T = document_positions(x0_TD.shape[0], cu_seqlens) if context is None else context.positions
        positions_T = positions_T.remainder(max_seqlen)
        cos_TR, sin_TR = self.rotary[:, positions_T].unbind(0)

        def attend(q: Tensor, k: Tensor, v: Tensor, masked: bool) -> Tensor:
            return varlen_attention(q, k, v, cu_seqlens, max_seqlen=max_seqlen, backend=backend, masked=masked)

        heads = None
        if context is None and backend == "fa4":
            shape = config.heads, config.kv_heads, config.head_dim
            given = cos_TR, sin_TR, cu_seqlens, shape, max_seqlen
            heads = whole_heads(*given, exclude=config.xsa, dtype=x0_TD.dtype, backend=kernels)
        return Pass(
            x0_TD=x0_TD,
            cos_TR=cos_TR,
            sin_TR=sin_TR,
            cu_seqlens=cu_seqlens,
            attend=attend,
            head_dim=config.head_dim,
            xsa=config.xsa,
            recorder=recorder,
            kernels=kernels,
            frozen=not learns and kernels == "triton",
            heads=heads,
            cute=chooses_cute(self.kernels, x0_TD.device, x0_TD.dtype),
        )

    def _run_layers(
        self, x_TD: Tensor, run: Pass, adapters: Adapters | None, context: Context | None, rows: Tensor | None
    ) -> Stream:
        plan, layers = self.plan, self._layers()
        per_layer = [NO_ADAPTERS if adapters is None else adapters.layer(v) for v in range(plan.depth)]
        runs = [run if context is None else replace(run, attend=context.attend(v)) for v in range(plan.depth)]
        if rows is not None:
            runs[-1] = replace(runs[-1], rows=rows)
        skips: list[Tensor] = []
        for virtual, i in enumerate(plan.encoder):
            skip_TD = skips[-1] if skips else None
            x_TD, again_TD = serial_block(x_TD, layers[i], runs[virtual], per_layer[virtual], skip_TD)
            skips[-1:] = [x_TD] if again_TD is None else [again_TD, x_TD]
        skip_weight, skip_gate = self._cast(self.skip_weight).unbind(0), self._cast(self.skip_gate.sigmoid()).unbind(0)
        lane_weights = self._lane_weights()
        x: Stream = x_TD
        lanes: tuple[Stream, Stream] | None = None
        for virtual, (i, slot) in enumerate(zip(plan.decoder, plan.slots, strict=True), start=len(plan.encoder)):
            if lanes is None and self.config.lanes != "none" and i >= self.config.lanes_start:
                lanes = (x, x)
            if slot is not None:
                gate, skip = skip_gate[slot], Blend(((skip_weight[slot], skips.pop()),))
                entering = Blend(((gate, x if lanes is None else lanes[0]), (1 - gate, skip)))
                x, lanes = (entering, None) if lanes is None else (x, (entering, lanes[1]))
            if lanes is None:
                x, _ = serial_block(x, layers[i], runs[virtual], per_layer[virtual])
            else:
                lanes = parallel_block(lanes, layers[i], runs[virtual], per_layer[virtual], lane_weights[i])
        return x if lanes is None else self._join_lanes(lanes)

    def _join_lanes(self, lanes: tuple[Stream, Stream]) -> Blend:
        if self.config.lanes == "crossed":
            return Blend(((0.5, lanes[0]), (0.5, lanes[1])))
        balance = self._cast(self.lane_balance)
        return Blend(((balance, lanes[0]), (1 - balance, lanes[1])))

    def _layers(self) -> list[LayerWeights]:
        """Every bank cast and taken apart once: indexing a bank layer by layer costs four times as much backward."""
        q, o = self.qo.unflatten(0, (2, -1)).unbind(0)
        k, v = self.kv.unflatten(0, (2, -1)).unbind(0)
        banks = (
            torch.cat([self._cast(x) for x in (q, k, v)], dim=1),
            self._cast(o * self.attn_scale[:, :, None]),
            self._cast(self.up),
            self._cast(self.down * self.mlp_scale[:, :, None]),
        )
        vectors = (self._cast(x) for x in (self.mix, self.attn_scale, self.mlp_scale, self.q_gain))
        rows = zip(*(x.unbind(0) for x in (*banks, *vectors)), strict=True)
        return [LayerWeights(i, *row) for i, row in enumerate(rows)]

    def _lane_weights(self) -> dict[int, LaneWeights | None]:
        start, stop = self.config.lanes_start, self.config.layers
        if self.config.lanes != "crossed":
            return dict.fromkeys(range(start, stop))
        scalars = (self.lane_residual, self.lane_attn, self.lane_mlp)
        parts = zip(*(self._cast(scalar).unbind(0) for scalar in scalars), strict=True)
        return {i: LaneWeights(*part) for i, part in zip(range(start, stop), parts, strict=True)}

    def _kernels_on(self, x: Tensor) -> KernelBackend:
        return choose_kernels(self.kernels, x.device, x.dtype)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.compute_dtype)
