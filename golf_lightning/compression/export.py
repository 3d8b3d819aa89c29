"""From a trained model to a verified artifact: calibrate, quantize, encode, read back."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from golf_lightning.compression.artifact import Artifact, encode_artifact, read_artifact, write_encoded
from golf_lightning.compression.banks import BankErrors, quantize_state
from golf_lightning.compression.budget import BudgetConfig, ByteBudget, measure_budget
from golf_lightning.compression.coding import CoderName, coder_named
from golf_lightning.compression.hessians import Calibration, collect_hessians
from golf_lightning.compression.quantize import ROLE_OF, ROLES, QuantizationConfig, QuantizedState
from golf_lightning.compression.ranks import on_rank_zero
from golf_lightning.compression.rate import fill_budget, plan_steps
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.data.batch import PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.kernels.attention import AttentionBackend
from golf_lightning.model.gpt import GPT

Rate = Literal["budget", "fixed"]


@dataclass(kw_only=True)
class ExportConfig:
    """How a model becomes an artifact.

    Args:
        quantization: bits, clip points and GPTQ's constants.
        budget: the limit in bytes, and the bytes of code under it.
        rate: ``budget`` lets rate control choose every step, so that the file fills the budget with the least loss; the
            bits and clip points of ``quantization`` then count for nothing. ``fixed`` takes them as they are.
        coder: entropy coder: ``rans``, ``brotli`` as in the contest's records, or ``raw`` for none.
        calibration_batches: packed training batches that Hessians are summed over, on all ranks together.
        sensitivity_batches: how many of these rate control also takes gradients of, at least 2.
    """

    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    rate: Rate = "budget"
    coder: CoderName = "rans"
    calibration_batches: int = 64
    sensitivity_batches: int = 8

    def __post_init__(self) -> None:
        coder_named(self.coder)
        if self.rate not in get_args(Rate):
            raise GolfError(f"rate is {self.rate!r}; choose budget or fixed.")
        if self.calibration_batches < 1:
            raise GolfError(f"calibration_batches is {self.calibration_batches}; choose at least 1.")
        if self.rate == "budget" and self.quantization.method != "gptq":
            raise GolfError("Rate control needs the Hessians of gptq; choose rate fixed for round to nearest.")
        if self.rate == "budget" and self.sensitivity_batches < 2:
            raise GolfError(f"sensitivity_batches is {self.sensitivity_batches}; choose at least 2.")
        if self.trellis and self.coder == "brotli":
            raise GolfError(
                "brotli cannot see a trellis and would waste a bit a weight; set quantization.trellis false."
            )

    @property
    def trellis(self) -> bool:
        """Whether codes will be levels of the trellis."""
        return self.quantization.trellis and self.quantization.method == "gptq"


@dataclass(slots=True)
class ExportReport:
    """What an export did; :meth:`to_dict` gives plain JSON values.

    Attributes:
        artifact: path of the file.
        budget: bytes on disk against the limit; the caller decides when to ``budget.require()``.
        bytes_by_role: bytes in the file for each role, scales, vectors and header.
        seconds: of the stages ``calibrate``, ``sensitivities``, ``quantize``, ``encode`` and ``verify``.
        encodings: how many files were made until one filled the budget.
        calibration_tokens: tokens behind the Hessians, on all ranks; 0 without calibration.
        relative_error: by role, error over energy, summed over its matrices.
        nearest_relative_error: the same for round to nearest.
        raised_damping: number of matrices whose Hessian needed more damping than configured.
        predicted_nats: by role, the loss in nats per token that quantization should cost; only with rate control.
        k: by role, the clip point at 127 steps in standard deviations of a row, the geometric mean over its rows.
    """

    artifact: str
    budget: ByteBudget
    bytes_by_role: dict[str, int]
    seconds: dict[str, float]
    calibration_tokens: int
    relative_error: dict[str, float]
    nearest_relative_error: dict[str, float]
    raised_damping: int
    encodings: int
    predicted_nats: dict[str, float]
    k: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with ``total_bytes`` and ``headroom_bytes`` under ``budget``."""
        sums = {"total_bytes": self.budget.total_bytes, "headroom_bytes": self.budget.headroom_bytes}
        return asdict(self) | {"budget": asdict(self.budget) | sums}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExportReport":
        """Rebuild a report from :meth:`to_dict`."""
        budget = values["budget"]
        sizes = ByteBudget(budget["artifact_bytes"], budget["code_bytes"], budget["limit_bytes"])
        return cls(**(values | {"budget": sizes}))


def export_model(
    model: GPT,
    batches: Iterable[PackedBatch],
    path: str | Path,
    *,
    tokenizer_sha256: str,
    settings: ExportConfig,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Calibrate, quantize, write the artifact, read it back and compare it bit for bit.

    When ``torch.distributed`` is initialized every rank calls this, each with calibration batches of its own. All
    quantize, rank 0 encodes and writes, and all return its report or raise the error of any. The model does not change.
    Being over budget is no error here: the file is kept, and ``report.budget.require()`` raises when all is done.

    Args:
        model: the model with the weights to export (averaged weights already swapped in), recurrence as it will run.
        batches: packed batches of training data; ignored with the method rtn.
        path: the artifact to write.
        tokenizer_sha256: SHA-256 of the tokenizer file, 64 hexadecimal digits.
        settings: how to export.
        progress: called with a line of text when a stage begins.

    Raises:
        GolfError: weights that cannot be stored, no calibration data, or a file that cannot be written.
    """
    say = progress or (lambda line: None)
    device = model.embedding.device
    seconds: dict[str, float] = {}
    calibration, sensitivities = None, None
    if settings.quantization.method == "gptq":
        say(f"calibrating on {settings.calibration_batches} batches")
        kept: list[PackedBatch] = []
        if settings.rate == "budget":
            batches = _keep(batches, settings.sensitivity_batches, kept)
        with _timed("calibrate", seconds, device):
            calibration = collect_hessians(model, batches, count=settings.calibration_batches)
        if settings.rate == "budget":
            say(f"taking gradients of {settings.sensitivity_batches} batches")
            with _timed("sensitivities", seconds, device):
                sensitivities = collect_sensitivities(model, kept, calibration, count=settings.sensitivity_batches)

    result = _compress(model, calibration, sensitivities, tokenizer_sha256, settings, say, seconds)

    def write() -> dict[str, Any]:
        with _timed("encode", seconds, device):
            write_encoded(path, result.data)
        with _timed("verify", seconds, device):
            artifact = read_artifact(path)
            _verify(artifact, result.state, model.recurrent)
        relative, nearest = _relative_errors(result.errors)
        wanted = settings.quantization.damping
        return ExportReport(
            artifact=str(path),
            budget=measure_budget(path, settings.budget),
            bytes_by_role=artifact.bytes_by_role,
            seconds=seconds,
            calibration_tokens=0 if calibration is None else calibration.tokens,
            relative_error=relative,
            nearest_relative_error=nearest,
            raised_damping=sum(used > wanted for bank in result.errors.values() for used in bank.damping),
            encodings=result.encodings,
            predicted_nats=_predicted_nats(result.errors),
            k=_clip_points(model.state_dict(), result.state),
        ).to_dict()

    return ExportReport.from_dict(on_rank_zero(write))


@dataclass(slots=True)
class _Compressed:
    """What came of quantizing and encoding; ``data`` is empty but on rank 0."""

    state: QuantizedState
    errors: dict[str, BankErrors]
    data: bytes
    encodings: int


def _compress(
    model: GPT,
    calibration: Calibration | None,
    sensitivities: dict[str, Tensor] | None,
    tokenizer_sha256: str,
    settings: ExportConfig,
    say: Callable[[str], None],
    seconds: dict[str, float],
) -> _Compressed:
    """Quantize and encode, once with fixed clip points or as often as rate control asks."""
    weights, device = model.state_dict(), model.embedding.device
    hessians = None if calibration is None else calibration.hessians
    costs = None
    if calibration is not None and sensitivities is not None:
        costs = {name: sensitivity / (2 * calibration.tokens) for name, sensitivity in sensitivities.items()}
    results: list[_Compressed] = []

    def make(scales: dict[str, Tensor] | None) -> int:
        say("quantizing")
        with _timed("quantize", seconds, device):
            state, errors = quantize_state(
                weights, hessians, model.config, settings.quantization, scales=scales, costs=costs
            )
        say(f"encoding with {settings.coder}")

        def encode() -> dict[str, Any]:
            results[0].data = encode_artifact(
                state,
                config=model.config,
                recurrent=model.recurrent,
                tokenizer_sha256=tokenizer_sha256,
                coder=settings.coder,
            )
            return {"bytes": len(results[0].data)}

        results[:] = [_Compressed(state, errors, b"", 1)]
        with _timed("encode", seconds, device):
            return on_rank_zero(encode)["bytes"]

    if sensitivities is None:
        make(None)
    else:
        assert calibration is not None, "sensitivities are whitened by Hessians"
        with _timed("quantize", seconds, device):
            steps = plan_steps(
                weights,
                calibration,
                sensitivities,
                model.config,
                damping=settings.quantization.damping,
                trellis=settings.trellis,
            )
        steps.share()
        results[0].encodings = fill_budget(steps, settings.budget.artifact_bytes, make)
    return results[0]


def _keep(batches: Iterable[PackedBatch], count: int, kept: list[PackedBatch]) -> Iterator[PackedBatch]:
    """The same batches; the first ``count`` also go into ``kept``."""
    for batch in batches:
        if len(kept) < count:
            kept.append(batch)
        yield batch


def _predicted_nats(errors: dict[str, BankErrors]) -> dict[str, float]:
    nats: dict[str, float] = {}
    for name, bank in errors.items():
        if bank.nats:
            nats[ROLE_OF[name]] = nats.get(ROLE_OF[name], 0.0) + sum(bank.nats)
    return nats


def _clip_points(weights: dict[str, Tensor], state: QuantizedState) -> dict[str, float]:
    logs: dict[str, list[Tensor]] = {}
    for name, matrix in state.matrices.items():
        spread = weights[name].detach().float().std(dim=-1, correction=0)
        used = spread > 0
        ratio = 127 * matrix.scale.float()[used] / spread[used]
        logs.setdefault(matrix.role, []).append(ratio.log().flatten().cpu())
    return {role: float(torch.cat(parts).mean().exp()) for role, parts in logs.items() if sum(p.numel() for p in parts)}


def _relative_errors(errors: dict[str, BankErrors]) -> tuple[dict[str, float], dict[str, float]]:
    """Error over energy by role, of what was done and of round to nearest."""
    relative: dict[str, float] = {}
    nearest: dict[str, float] = {}
    for role in ROLES:
        banks = [bank for name, bank in errors.items() if ROLE_OF[name] == role]
        # Untrained output matrices are zero: no energy, no error.
        if energy := sum(sum(bank.energy) for bank in banks):
            relative[role] = sum(sum(bank.error) for bank in banks) / energy
            nearest[role] = sum(sum(bank.nearest) for bank in banks) / energy
    return relative, nearest


def _verify(artifact: Artifact, state: QuantizedState, recurrent: bool) -> None:
    read, wanted = artifact.state_dict(), state.cpu().state_dict()
    same = read.keys() == wanted.keys() and all(torch.equal(read[name], wanted[name]) for name in wanted)
    if not same or artifact.recurrent != recurrent:
        raise GolfError("The artifact did not read back as it was written; check the disk and export again.")


@contextlib.contextmanager
def _timed(stage: str, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def load_model(
    artifact: Artifact, *, compute_dtype: torch.dtype = torch.float32, attention: AttentionBackend = "auto"
) -> GPT:
    """The model of an artifact, on the CPU, with its recurrence as exported. Draws nothing from the random generators.

    Reading the artifact has checked that its parameters are those of its model.
    """
    with torch.random.fork_rng(devices=[]):
        model = GPT(artifact.config, compute_dtype=compute_dtype, attention=attention)
    model.load_state_dict(artifact.state_dict())
    model.recurrent = artifact.recurrent
    return model
