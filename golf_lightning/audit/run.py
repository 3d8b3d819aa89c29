"""All checks of an artifact, in order."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from golf_lightning.audit import counting, evidence
from golf_lightning.audit.causality import check_flips, check_lengths, check_repeats
from golf_lightning.audit.distribution import check_probabilities
from golf_lightning.audit.learning import check_first_chunks, check_replay
from golf_lightning.audit.record import RunRecord
from golf_lightning.audit.report import AuditReport, Check
from golf_lightning.audit.settings import ttt_of_run
from golf_lightning.audit.subject import DocumentScorer, Subject, TokenBytes, small_config, small_split, whole
from golf_lightning.compression.artifact import Artifact, read_artifact
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.manifest import Manifest, documents_name
from golf_lightning.data.shards import SPLITS
from golf_lightning.data.tokenizer import BOS, Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.ttt import score_documents
from golf_lightning.files import sha256_of
from golf_lightning.model.gpt import GPT

Precision = Literal["auto", "bfloat16", "float32", "float64"]


@dataclass(kw_only=True)
class AuditConfig:
    """How much is looked at.

    Args:
        positions: tokens that the flip test changes, one at a time.
        lengths: places at which a document is ended early, each in two ways.
        distributions: places at which every token of the vocabulary is scored; 0 leaves that check out.
        documents: documents whose beginnings make the sample.
        chunks: longest beginning, in chunks of test-time training.
        window_chunks: window of the sample, in chunks, so that windows slide; never longer than the run's.
        whole: also score the whole split as the run did, and compare.
        limit_bytes: most bytes of artifact and program.
        training_limit_s: most seconds of training.
        scoring_limit_s: most seconds of scoring.
        precision: dtype in which the network computes; auto is bfloat16 on a GPU and float32 on a CPU.
        device: cpu, cuda, cuda:1 and so on, or auto for a GPU where there is one.
        seed: of everything that is drawn.
    """

    positions: int = 20
    lengths: int = 4
    distributions: int = 2
    documents: int = 6
    chunks: int = 6
    window_chunks: int = 4
    whole: bool = False
    limit_bytes: int = 16_000_000
    training_limit_s: float = 600.0
    scoring_limit_s: float = 600.0
    precision: Precision = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("positions", 1),
            ("lengths", 1),
            ("distributions", 0),
            ("documents", 2),
            ("chunks", 3),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise GolfError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise GolfError(f"device is {self.device!r}; choose auto, cpu, cuda, or one GPU such as cuda:1.")
        if not 2 <= self.window_chunks < self.chunks:
            raise GolfError(
                f"window_chunks is {self.window_chunks}; choose 2 or more, and fewer than the {self.chunks} chunks of "
                "a document, so that windows slide."
            )


def audit(
    artifact: str | Path,
    data_folder: str | Path,
    *,
    run_folder: str | Path | None = None,
    code: str | Path | None = None,
    config: AuditConfig | None = None,
    ttt: TTTConfig | None = None,
    scorer: DocumentScorer = score_documents,
    token_bytes: TokenBytes | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> AuditReport:
    """Check an artifact's score against the rules, with the data, and with what its run has written down.

    Args:
        artifact: the artifact.
        data_folder: the prepared data folder.
        run_folder: the run that made the artifact; without it nothing is said about clocks, totals and data access.
        code: the program that counts towards the bytes; the run folder's ``train_gpt.py`` where there is one.
        config: how much is looked at.
        ttt: how documents are scored; by default as the run's configuration says, else the recipe's.
        scorer: scores documents; the project's own unless a method of your own is audited.
        token_bytes: bytes of each target as the run counts them; by default the table of the data's tokenizer.
        progress: told what is being done.

    Raises:
        GolfError: a file is missing or damaged, or artifact and data belong to different tokenizers.
    """
    began, config = time.monotonic(), config or AuditConfig()
    artifact, folder = Path(artifact), Path(data_folder)
    record = None if run_folder is None else RunRecord.load(run_folder)
    program, declared = _program(record, code)
    content = read_artifact(artifact)
    manifest = Manifest.load(folder)
    splits = [split for split in SPLITS if split in manifest.splits and (split == "val" or _present(folder, manifest))]
    manifest.verify_files(folder, splits)
    tokenizer = Tokenizer(folder / manifest.tokenizer)
    content.require_tokenizer(tokenizer.sha256)
    ttt = ttt or (TTTConfig() if record is None else ttt_of_run(record.folder, tested=record.test is not None))
    shards = {split: [folder / shard.name for shard in manifest.splits[split].shards] for split in splits}
    tokens = np.concatenate([counting.raw_tokens(path) for path in shards["val"]])
    stream = DocumentStream(tokens, bos_id=BOS)
    generator = np.random.default_rng(config.seed)
    longest = config.chunks * ttt.chunk
    subject = Subject(
        model=_model(content, config),
        scorer=scorer,
        config=small_config(ttt, config.window_chunks),
        tokens=small_split(stream, generator, documents=config.documents, longest=longest),
        token_bytes=token_bytes or ByteTable.from_tokenizer(tokenizer).count,
        generator=generator,
        progress=progress,
    )
    pieces = counting.PieceBytes(tokenizer.processor)
    checks = check_scores(subject, pieces, config)
    progress("counting the raw shards")
    checks.append(counting.check_text_bytes(tokens, tokenizer.processor, subject.token_bytes))
    totals = counting.count_split(shards["val"], pieces)
    scores = None if record is None else record.scores
    checks.append(counting.check_totals(totals, manifest.splits["val"], manifest, scores))
    sha256 = sha256_of(artifact)
    checks.append(evidence.check_reported(record, sha256, _whole_nats(subject, stream, ttt) if config.whole else None))
    progress("hashing documents")
    texts = [folder / documents_name(split) for split in SPLITS]
    texts = texts if all(path.is_file() for path in texts) else []
    checks.append(evidence.check_disjoint(manifest, shards.get("train", []), shards["val"], texts))
    checks.append(evidence.check_access(record))
    checks.append(evidence.check_bytes(artifact, program, declared, config.limit_bytes))
    checks.append(evidence.check_training_clock(record, config.training_limit_s))
    checks.append(evidence.check_scoring_clock(record, config.scoring_limit_s))
    description = {
        "artifact": str(artifact),
        "artifact_sha256": sha256,
        "data": str(folder),
        "data_fingerprint": manifest.fingerprint(),
        "run": None if record is None else str(record.folder),
        "device": _device_name(subject.model),
        "precision": str(subject.model.compute_dtype).removeprefix("torch."),
        "sample_documents": len(subject.stream),
        "sample_targets": subject.stream.total_targets,
        "sample_window": subject.config.window,
        "run_window": ttt.window,
        "chunk": ttt.chunk,
        "seed": config.seed,
    }
    return AuditReport(checks=checks, subject=description, seconds=time.monotonic() - began)


def check_scores(subject: Subject, pieces: counting.PieceBytes, config: AuditConfig) -> list[Check]:
    """The checks that need a scorer and nothing of a run."""
    subject.progress("scoring the sample")
    scores = subject.score()
    nats = subject.nats_of(scores)
    targets = counting.check_targets(subject, scores, pieces)
    repeats, noise = check_repeats(subject, nats)
    return [
        repeats,
        check_flips(subject, nats, noise, config.positions),
        check_lengths(subject, nats, noise, config.lengths),
        check_probabilities(subject, config.distributions),
        check_first_chunks(subject),
        check_replay(subject, nats),
        targets,
    ]


def _model(content: Artifact, config: AuditConfig) -> GPT:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise GolfError(f"There is no GPU {device} here; give --device cpu, or auto.")
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, precision)
    model = GPT(content.config, compute_dtype=dtype)
    model.load_state_dict(content.state_dict())
    model.recurrent = content.recurrent
    return model.to(device, torch.promote_types(dtype, torch.float32)).eval()


def _whole_nats(subject: Subject, stream: DocumentStream, ttt: TTTConfig) -> float:
    subject.progress("scoring the whole split")
    scores = subject.scorer(
        subject.model,
        stream,
        whole(ttt),
        token_bytes=subject.token_bytes,
        keep_target_nats=False,
    )
    return scores.total_nats


def _present(folder: Path, manifest: Manifest) -> bool:
    """Whether the training shards are here; scoring an artifact does not need them."""
    return all((folder / shard.name).is_file() for shard in manifest.splits["train"].shards)


def _program(record: RunRecord | None, code: str | Path | None) -> tuple[Path | None, int | None]:
    """The program's file, and how many bytes the run set aside for it."""
    if code is not None:
        if not Path(code).is_file():
            raise GolfError(f"The program {code} does not exist; give --code the file that loads and scores.")
        return Path(code), None
    if record is None:
        return None, None
    bundled = record.folder / "train_gpt.py"
    declared = record.result.get("artifact", {}).get("code_bytes")
    return (bundled, None) if bundled.is_file() else (None, declared)


def _device_name(model: GPT) -> str:
    device = model.embedding.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
