"""Muon for the banks and AdamW for the rest, in one optimizer that owns all communication between ranks.

Shapes: N matrices of a bank, S of them on one rank; R rows, C columns.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf_lightning.errors import GolfError
from golf_lightning.optim.averaging import BankPool, LargeGradient, PackedGradients
from golf_lightning.optim.config import DTYPES, OptimizerConfig
from golf_lightning.optim.exchange import StepExchange
from golf_lightning.optim.newton_schulz import COEFFICIENTS
from golf_lightning.optim.routing import Group, routed
from golf_lightning.optim.updates import adamw_update, apply_muon, muon_update, square_norm

Snapshot = dict[str, Any]


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer for 1 to N ranks, fed with local gradients; parameters stay bit-equal on all ranks.

    Banks (Muon, momentum in float32): ``buf = mu buf + g``; ``u = g + mu buf``; every row of u divided by its norm
    (MuonEq-R); Newton-Schulz; ``W = (1 - lr wd) W - lr sqrt(max(1, rows / columns)) u``. Embedding and vectors: AdamW.
    ``g`` is the gradient averaged over ranks and clipped by its global norm, vectors and embedding included. A missing
    gradient counts as zero. Sources: Muon (Jordan et al., 2024), parameter-golf PR #1536 for banks and rows.

    A step, after the closure:

    1. Launch, largest first, the reduce-scatters of the banks (up and down together, see :class:`BankPool`) and the
       all-reduce of the embedding's gradient, all in ``communication_dtype``. The embedding travels alone, since it is
       99% of what is not in banks: so it overlaps the reduce-scatters, and only kilobytes stand between these and the
       Newton-Schulz products.
    2. Wait for them in the same order; each rank takes the squared norm of its shards.
    3. One packed float32 all-reduce: the gradients of the vectors, the squared norm, and the :class:`StepExchange`
       (rank 0's clock and the signals). The clip factor stays on the device.
    4. Pool by pool, largest first: momentum and Newton-Schulz on the own shard, then launch the all-gather of its
       updates. The next pool and AdamW run while updates travel.
    5. Wait for each update in launch order and apply it. Gradients are set to None.

    On the wire, per rank and step with a ring of W ranks: a pool of P matrices after padding sends (W-1)/W of its
    values twice, the embedding 2 (W-1)/W of its values, the packed buffer the same with 4 bytes a value. The
    full size on 8 ranks in bfloat16: 60.6 MB + 60.6 MB for banks (padded to 34.6 M values), 14.7 MB for the
    embedding, 0.2 MB packed; :meth:`wire_bytes` computes it. One process runs the same code without collectives.

    The momentum is sharded over ranks. ``state_dict`` holds full tensors, so any number of ranks can continue from it,
    and no hyper-parameter of a loaded state replaces the configuration's.

    Args:
        named_parameters: all parameters with their names; a prefix such as ``model.`` does not matter.
        config: rates and formats.

    Raises:
        GolfError: a parameter is unknown, doubled, frozen or not float32.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> None:
        members = routed(named_parameters)
        rates: dict[Group, tuple[float, float]] = {
            "banks": (config.muon_lr, config.muon_wd),
            "embedding": (config.embedding_lr, config.embedding_wd),
            "vectors": (config.vector_lr, config.vector_wd),
        }
        groups: list[dict[str, Any]] = []
        for name, named in members.items():
            if named:
                lr, weight_decay = rates[name]
                kind = "muon" if name == "banks" else "adamw"
                groups.append(
                    {
                        "params": named,
                        "name": name,
                        "kind": kind,
                        "lr": lr,
                        "initial_lr": lr,
                        "weight_decay": weight_decay,
                    }
                )
        super().__init__(groups, {"momentum": config.momentum})
        self.config = config
        self.exchange = StepExchange()
        self._named = {name: [parameter for _, parameter in named] for name, named in members.items()}
        self._group: dist.ProcessGroup | None = None
        self._pools: list[BankPool] = []
        self._large: list[LargeGradient] = []
        self._packed: PackedGradients | None = None
        self._full_state: dict[nn.Parameter, dict[str, Tensor]] | None = None
        self.grad_norm = torch.full((), math.nan)
        """0-d float32 on the device: norm of the averaged gradient of the last step, before the clip; NaN at first."""

    def join(self, group: dist.ProcessGroup | None) -> None:
        """Share the work with the ranks of ``group``; ``None``, or a group of one, means one process.

        Call it on every rank before the first step and before a state is loaded, with parameters on their device.
        """
        assert not self.state, "ranks join before there is a state to shard"
        self._group = None if group is None or dist.get_world_size(group) == 1 else group
        self._packed = None
        self.exchange.join(self._group, self._device)

    def set_schedule(self, lr_scale: float, momentum: float) -> None:
        """Set the factor of every learning rate and Muon's momentum for the steps that follow."""
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Average the ranks' gradients, clip, update, and set gradients to None. Never waits for the device.

        Args:
            closure: computes the loss and its gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        packed = self._prepare()
        self._full_state = None
        self._launch_gradients()
        shards = [pool.gradients() for pool in self._pools]
        banks = [gradient_SRC for pool in shards for _, gradient_SRC in pool if len(gradient_SRC)]
        large = [sender.gradient() for sender in self._large]
        packed.square.copy_(square_norm(banks, self._device))
        self.exchange.write(packed.slots, 0 if self._group is None else dist.get_rank(self._group))
        small = packed.reduce()
        self.exchange.read(packed.slots)
        self.grad_norm = (packed.square + square_norm([*large, *small], self._device)).sqrt()
        if self.config.clip_norm > 0:
            factor = (self.config.clip_norm / (self.grad_norm + 1e-6)).clamp_max(1.0)
            torch._foreach_mul_([*banks, *large, *small], factor)
        for pool, gradients in zip(self._pools, shards, strict=True):
            pool.launch_updates([self.bank_update(bank, gradient_SRC) for bank, gradient_SRC in gradients])
        self._update_by_adamw("embedding", large)
        self._update_by_adamw("vectors", small)
        for pool in self._pools:
            settings = self._settings("banks")
            for bank, update_NRC in pool.updates():
                apply_muon(bank, update_NRC, settings["lr"], settings["weight_decay"])
        self.zero_grad(set_to_none=True)
        return loss

    def bank_update(self, bank: nn.Parameter, gradient_SRC: Tensor) -> Tensor:
        """What a step subtracts from this rank's matrices of a bank, before the rate; override it for another rule.

        Args:
            bank: the whole bank; ``self.state[bank]`` keeps tensors of the shape of ``gradient_SRC`` between steps, and
                checkpoints hold them whole.
            gradient_SRC: ``[S, R, C]`` float32, averaged over ranks and clipped, free to be changed; S may be 0.

        Returns:
            ``[S, R, C]``, any floating dtype; the step multiplies it by ``lr sqrt(max(1, rows / columns))``.
        """
        dtype = self.config.newton_schulz_dtype_on(gradient_SRC.device)
        coefficients = COEFFICIENTS[self.config.coefficients]
        return muon_update(gradient_SRC, self.state[bank], self._settings("banks")["momentum"], coefficients, dtype)

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Collect the sharded state on rank ``to``, in CPU memory; every rank calls it, then ``to`` saves its state.

        The copy serves :meth:`state_dict` until the next step.
        """
        if self._group is None:
            return
        self._prepare()
        full: dict[nn.Parameter, dict[str, Tensor]] = {}
        for pool in self._pools if self.state else []:
            for key in self.state[pool.parameters[0]]:
                whole = pool.gather({bank: self.state[bank][key] for bank in pool.parameters}, to)
                for bank, value_NRC in whole.items():
                    full.setdefault(bank, {})[key] = value_NRC
        self._full_state = full if dist.get_rank(self._group) == to else None

    def state_dict(self) -> dict[str, Any]:
        """The state with full tensors, in torch's format; with several ranks, after :meth:`consolidate_state_dict`."""
        state = super().state_dict()
        if self._group is None or not self.state:
            return state
        assert self._full_state is not None, "every rank consolidates first, and one of them saves"
        for index, parameter in enumerate(self._parameters()):
            if parameter in self._full_state:
                state["state"][index] = self._full_state[parameter]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state saved by any number of ranks; each rank keeps its shard. Rates stay the configuration's.

        Raises:
            GolfError: the state belongs to other parameters.
        """
        saved = [name for group in state_dict["param_groups"] for name in group["param_names"]]
        own = [name for group in self.param_groups for name in group["param_names"]]
        if saved != own:
            raise GolfError(
                f"The saved optimizer state is of the parameters {saved}, but the model has {own}; "
                "continue with the configuration that saved it."
            )
        self._prepare()
        pools = {bank: pool for pool in self._pools for bank in pool.parameters}
        loaded: dict[Tensor, dict[str, Tensor]] = {}
        for index, (name, parameter) in enumerate(zip(own, self._parameters(), strict=True)):
            for key, value in state_dict["state"].get(index, {}).items():
                if key != "step" and value.shape != parameter.shape:
                    raise GolfError(
                        f"The saved optimizer state of {name} has the shape {tuple(value.shape)}, but the parameter "
                        f"{tuple(parameter.shape)}; continue with the configuration that saved it."
                    )
                pool = pools.get(parameter)
                copy = value.to(parameter.device, copy=True) if pool is None else pool.cut(parameter, value)
                loaded.setdefault(parameter, {})[key] = copy
        self.state.clear()
        self.state.update(loaded)
        self._full_state = None

    def snapshot(self) -> Snapshot:
        """A copy of this rank's whole state, for :meth:`restore`; other ranks are not asked."""
        return {
            "state": {p: {key: value.clone() for key, value in state.items()} for p, state in self.state.items()},
            "groups": [(group["lr"], group["momentum"]) for group in self.param_groups],
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Undo every step since :meth:`snapshot`, parameters aside; the exchange starts over at its step 0."""
        self.state.clear()
        for parameter, state in snapshot["state"].items():
            self.state[parameter] = {key: value.clone() for key, value in state.items()}
        for group, (lr, momentum) in zip(self.param_groups, snapshot["groups"], strict=True):
            group["lr"], group["momentum"] = lr, momentum
        self._full_state = None
        self.grad_norm = torch.full((), math.nan)
        self.exchange.forget()

    def wire_bytes(self) -> dict[str, int]:
        """Bytes that each rank sends in one step, by collective, counted for ring algorithms."""
        packed = self._prepare()
        banks = sum(pool.wire_bytes() for pool in self._pools)
        small = packed.wire_bytes() + sum(sender.wire_bytes() for sender in self._large)
        return {"reduce_scatter": banks, "all_reduce": small, "all_gather": banks}

    @property
    def _device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _prepare(self) -> PackedGradients:
        if self._packed is None:
            dtype = DTYPES[self.config.communication_dtype]
            by_size: dict[int, list[nn.Parameter]] = {}
            for bank in self._named["banks"]:
                by_size.setdefault(math.prod(bank.shape[1:]), []).append(bank)
            pools = [BankPool(banks, self._group, dtype) for banks in by_size.values()]
            self._pools = sorted(pools, key=lambda pool: -pool.numel)
            self._large = [LargeGradient(parameter, self._group, dtype) for parameter in self._named["embedding"]]
            self._packed = PackedGradients(self._named["vectors"], self._group, self._device)
        return self._packed

    def _settings(self, name: str) -> dict[str, Any]:
        return next(group for group in self.param_groups if group["name"] == name)

    def _launch_gradients(self) -> None:
        senders: list[BankPool | LargeGradient] = [*self._pools, *self._large]
        for sender in sorted(senders, key=lambda sender: -sender.numel):
            sender.launch_gradients()

    def _update_by_adamw(self, name: Group, gradients: list[Tensor]) -> None:
        if not self._named[name]:
            return
        settings = self._settings(name)
        adamw_update(
            self._named[name],
            gradients,
            [self.state[parameter] for parameter in self._named[name]],
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            eps=self.config.eps,
        )
