"""Which optimizer every parameter belongs to: one table, complete or refused."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from golf_lightning.errors import GolfError

Group = Literal["banks", "embedding", "vectors"]

ROUTES: dict[str, Group] = {
    "qo": "banks",
    "kv": "banks",
    "up": "banks",
    "down": "banks",
    "embedding": "embedding",
    "mix": "vectors",
    "attn_scale": "vectors",
    "mlp_scale": "vectors",
    "q_gain": "vectors",
    "skip_weight": "vectors",
    "skip_gate": "vectors",
    "lane_residual": "vectors",
    "lane_attn": "vectors",
    "lane_mlp": "vectors",
    "lane_balance": "vectors",
}
"""Group of each parameter of the GPT. Banks go to Muon, the others to AdamW with their own rate and decay."""


def route(name: str) -> Group:
    """The group of a parameter; only the last part of a dotted name counts, so ``model.qo`` is ``qo``.

    Raises:
        GolfError: the table does not know the parameter.
    """
    last = name.rpartition(".")[2]
    if last not in ROUTES:
        raise GolfError(
            f"No optimizer is chosen for the parameter {name}; add it to ROUTES in golf_lightning/optim/routing.py."
        )
    return ROUTES[last]


def routed(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[Group, list[tuple[str, nn.Parameter]]]:
    """Sort parameters into their groups, keeping their order within each.

    Raises:
        GolfError: a parameter is unknown, comes twice, is frozen, is not float32, or is a bank that is not 3-D.
    """
    groups: dict[Group, list[tuple[str, nn.Parameter]]] = {"banks": [], "embedding": [], "vectors": []}
    seen: dict[int, str] = {}
    for name, parameter in named_parameters:
        group = route(name)
        if id(parameter) in seen:
            raise GolfError(f"The parameter {name} is also given as {seen[id(parameter)]}; pass every parameter once.")
        if not parameter.requires_grad:
            raise GolfError(f"The parameter {name} takes no gradient; leave frozen parameters out of the optimizer.")
        if str(parameter.dtype) != "torch.float32":
            raise GolfError(
                f"The parameter {name} is {parameter.dtype}; masters are float32, so use precision 32-true."
            )
        if group == "banks" and parameter.ndim != 3:
            raise GolfError(f"The bank {name} has {parameter.ndim} dimensions; it must be [matrices, rows, columns].")
        seen[id(parameter)] = name
        groups[group].append((name, parameter))
    if not seen:
        raise GolfError("The optimizer got no parameters; pass model.named_parameters().")
    return groups
