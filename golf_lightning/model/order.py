"""The order in which physical layers run, and which U-Net skip joins which pair of them."""

from dataclasses import dataclass

from golf_lightning.model.config import GPTConfig


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One pass through the network.

    Attributes:
        encoder: physical layers whose outputs are pushed as skips, in running order.
        decoder: physical layers after them; step k first pops the encoder's k-th last output.
        slots: skip slot of each decoder step, ``None`` where nothing is left to pop.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    slots: tuple[int | None, ...]

    @property
    def depth(self) -> int:
        """Number of virtual layers."""
        return len(self.encoder) + len(self.decoder)


def skip_slots(config: GPTConfig) -> int:
    """Number of skip slots: as many as the deeper of the two plans pops."""
    return _depth(config, config.loop_passes) // 2


def vector_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that is neither a bank nor the embedding, in the model's order."""
    layers, width, slots, lanes = config.layers, config.width, skip_slots(config), config.lane_layers
    shapes: dict[str, tuple[int, ...]] = {
        "mix": (layers, 2, width),
        "attn_scale": (layers, width),
        "mlp_scale": (layers, width),
        "q_gain": (layers, config.heads),
        "skip_weight": (slots, width),
        "skip_gate": (slots, width),
    }
    if config.lanes == "crossed":
        shapes |= dict.fromkeys(("lane_residual", "lane_attn", "lane_mlp"), (lanes, 2))
    elif config.lanes == "isolated":
        shapes["lane_balance"] = ()
    return shapes


def layer_plan(config: GPTConfig, recurrent: bool) -> LayerPlan:
    """The order of layers with recurrence on or off.

    A skip slot belongs to a pair (encoder layer, decoder layer), so that what it learned before recurrence starts still
    joins the same two layers afterwards. Slots are numbered by the recurrent plan from the innermost pair outward; the
    plain plan looks its pairs up there. The original numbers slots by decoder position and thereby hands most learned
    skips to other pairs when recurrence starts.
    """
    encoder, decoder = _halves(config, config.loop_passes)
    recurrent_pairs = list(zip(reversed(encoder), decoder, strict=False))
    if not recurrent:
        encoder, decoder = _halves(config, 1)
        pairs = list(zip(reversed(encoder), decoder, strict=False))
        slots = _matching_slots(pairs, recurrent_pairs)
    else:
        slots = list(range(len(recurrent_pairs)))
    missing = len(decoder) - len(slots)
    return LayerPlan(tuple(encoder), tuple(decoder), (*slots, *(None,) * missing))


def _depth(config: GPTConfig, passes: int) -> int:
    return config.layers + (config.loop_last - config.loop_first + 1) * (passes - 1)


def _halves(config: GPTConfig, passes: int) -> tuple[list[int], list[int]]:
    loop = list(range(config.loop_first, config.loop_last + 1))
    layers = [*range(config.loop_first), *loop * passes, *range(config.loop_last + 1, config.layers)]
    middle = len(layers) // 2
    return layers[:middle], layers[middle:]


def _matching_slots(pairs: list[tuple[int, int]], recurrent_pairs: list[tuple[int, int]]) -> list[int]:
    """For each plain pair the innermost free slot of the same pair, else the outermost free one of its encoder layer,
    else any: the last two occur only when a loop shifts the middle by an odd number of layers."""
    free = list(range(len(recurrent_pairs)))
    chosen: dict[int, int] = {}
    for exact in (True, False):
        for k, pair in enumerate(pairs):
            if k in chosen:
                continue
            same = [s for s in free if recurrent_pairs[s] == pair]
            encoder = [s for s in reversed(free) if recurrent_pairs[s][0] == pair[0]]
            candidates = same if exact else encoder or free
            if candidates:
                chosen[k] = candidates[0]
                free.remove(candidates[0])
    return [chosen[k] for k in range(len(pairs))]
