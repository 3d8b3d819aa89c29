"""From a trained model to a verified artifact: calibrate, quantize, encode, read back."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from golf_lightning.compression.artifact import Artifact, read_artifact, write_artifact
from golf_lightning.compression.banks import BankErrors, quantize_state
from golf_lightning.compression.budget import BudgetConfig, ByteBudget, measure_budget
from golf_lightning.compression.coding import CoderName, coder_named
from golf_lightning.compression.hessians import collect_hessians
from golf_lightning.compression.quantize import ROLE_OF, ROLES, QuantizationConfig, QuantizedState
from golf_lightning.compression.ranks import on_rank_zero
from golf_lightning.data.batch import PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.kernels.attention import AttentionBackend
from golf_lightning.model.gpt import GPT


@dataclass(kw_only=True)
class ExportConfig:
    """How a model becomes an artifact.

    Args:
        quantization: bits, clip points and GPTQ's constants.
        budget: the limit in bytes, and the bytes of code under it.
        coder: entropy coder: ``brotli``, or ``raw`` for none.
        calibration_batches: packed training batches that Hessians are summed over, on all ranks together.
    """

    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    coder: CoderName = "brotli"
    calibration_batches: int = 64

    def __post_init__(self) -> None:
        coder_named(self.coder)
        if self.calibration_batches < 1:
            raise GolfError(f"calibration_batches is {self.calibration_batches}; choose at least 1.")


@dataclass(slots=True)
class ExportReport:
    """What an export did; :meth:`to_dict` gives plain JSON values.

    Attributes:
        artifact: path of the file.
        budget: bytes on disk against the limit; the caller decides when to ``budget.require()``.
        bytes_by_role: bytes in the file for each role, scales, vectors and header.
        seconds: of the stages ``calibrate``, ``quantize``, ``encode`` and ``verify``.
        calibration_tokens: tokens behind the Hessians, on all ranks; 0 without calibration.
        relative_error: by role, error over energy, summed over its matrices.
        nearest_relative_error: the same for round to nearest.
        raised_damping: number of matrices whose Hessian needed more damping than configured.
    """

    artifact: str
    budget: ByteBudget
    bytes_by_role: dict[str, int]
    seconds: dict[str, float]
    calibration_tokens: int
    relative_error: dict[str, float]
    nearest_relative_error: dict[str, float]
    raised_damping: int

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

    When ``torch.distributed`` is initialized every rank calls this, each with calibration batches of its own; rank 0
    quantizes and writes, and all ranks return its report or raise its error. The model is not changed. Being over
    budget is no error here: the file is kept, and ``report.budget.require()`` raises when the caller is done.

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
    hessians, tokens = None, 0
    if settings.quantization.method == "gptq":
        say(f"calibrating on {settings.calibration_batches} batches")
        with _timed("calibrate", seconds, device):
            calibration = collect_hessians(model, batches, count=settings.calibration_batches)
        hessians, tokens = calibration.hessians, calibration.tokens

    def write() -> dict[str, Any]:
        say("quantizing")
        with _timed("quantize", seconds, device):
            state, errors = quantize_state(model.state_dict(), hessians, model.config, settings.quantization)
        say(f"encoding with {settings.coder}")
        with _timed("encode", seconds, device):
            write_artifact(
                path,
                state,
                config=model.config,
                recurrent=model.recurrent,
                tokenizer_sha256=tokenizer_sha256,
                coder=settings.coder,
            )
        with _timed("verify", seconds, device):
            artifact = read_artifact(path)
            _verify(artifact, state, model.recurrent)
        relative, nearest = _relative_errors(errors)
        wanted = settings.quantization.damping
        return ExportReport(
            artifact=str(path),
            budget=measure_budget(path, settings.budget),
            bytes_by_role=artifact.bytes_by_role,
            seconds=seconds,
            calibration_tokens=tokens,
            relative_error=relative,
            nearest_relative_error=nearest,
            raised_damping=sum(used > wanted for bank in errors.values() for used in bank.damping),
        ).to_dict()

    return ExportReport.from_dict(on_rank_zero(write, device))


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
    seconds[stage] = time.perf_counter() - start


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
