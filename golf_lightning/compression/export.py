"""From a trained model to a verified artifact: calibrate, quantize, encode, read back."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from golf_lightning.compression.artifact import Artifact, encode_artifact, read_artifact, write_encoded
from golf_lightning.compression.banks import BankErrors, quantize_state
from golf_lightning.compression.budget import BudgetConfig, measure_budget
from golf_lightning.compression.coding import CoderName, coder_named
from golf_lightning.compression.hessians import Calibration, collect_hessians
from golf_lightning.compression.quantize import ROLES, QuantizationConfig, QuantizedState
from golf_lightning.compression.ranks import on_rank_zero
from golf_lightning.compression.rate import fill_budget, plan_steps
from golf_lightning.compression.report import ExportReport, clip_points, predicted_nats, relative_errors
from golf_lightning.compression.search import LEAST_LARGEST
from golf_lightning.compression.sensitivity import collect_sensitivities
from golf_lightning.data.batch import PackedBatch
from golf_lightning.errors import GolfError
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

        for role in ROLES if self.trellis and self.rate == "fixed" else ():
            if self.quantization.precision(role).largest < LEAST_LARGEST:
                raise GolfError(
                    f"{role}_bits is too small for the trellis; choose at least 4, or set quantization.trellis false."
                )

    @property
    def trellis(self) -> bool:
        """Whether codes will be levels of the trellis."""
        return self.quantization.trellis and self.quantization.method == "gptq"


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
        relative, nearest = relative_errors(result.errors)
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
            predicted_nats=predicted_nats(result.errors),
            k=clip_points(model.state_dict(), result.state),
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
