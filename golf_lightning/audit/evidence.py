"""What a run has written down about itself, held against the files and the contest's limits."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from golf_lightning.audit.counting import raw_tokens
from golf_lightning.audit.record import RunRecord
from golf_lightning.audit.report import Check
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.tokenizer import BOS

SCORING_STAGES = ("load", "compile", "compile ttt", "warm up", "score")
"""Stages of the ledger that belong to the evaluation clock, where a run has them."""


def check_disjoint(manifest: Manifest, train: Sequence[Path], val: Sequence[Path], texts: Sequence[Path]) -> Check:
    """Whether no document is in both splits.

    Args:
        manifest: of the data folder.
        train: training shards; none where the folder has no training split.
        val: validation shards.
        texts: the two files of document hashes, where the folder has them.
    """
    name, expected = "train and validation disjoint", f"{manifest.shared_documents:,} shared documents"
    if not train:
        missing = "the data folder has no training split"
        return Check(
            name=name,
            passed=None,
            measured=missing,
            expected=expected,
            sentence="Give the data folder that the run was trained on.",
        )
    hashes = [document_hashes(paths) for paths in (train, val)]
    shared = len(hashes[0] & hashes[1])
    lines = [set(path.read_bytes().split()) for path in texts]
    shared_texts = len(lines[0] & lines[1]) if lines else 0
    published = manifest.as_published and shared == manifest.shared_documents
    return Check(
        name=name,
        passed=(shared == 0 or published) and shared_texts == 0,
        measured=f"{max(shared, shared_texts):,} shared documents"
        + (", as the shards were published" if shared and published else ""),
        expected=expected,
        sentence=f"{len(hashes[0]):,} different documents of training and {len(hashes[1]):,} of validation were hashed "
        f"as tokens{' and compared as text by the hashes of the manifest' if lines else ''}. Documents that are "
        "equal are found; ones that differ by a word are not.",
        figures={
            "train_documents": len(hashes[0]),
            "val_documents": len(hashes[1]),
            "shared": shared,
            "shared_texts": shared_texts,
        },
    )


def document_hashes(paths: Sequence[Path]) -> set[bytes]:
    """SHA-256 of the tokens of each document of a split; a document may run from one shard into the next."""
    found: set[bytes] = set()
    rest = np.empty(0, dtype="<u2")
    for path in paths:
        tokens = np.concatenate([rest, raw_tokens(path)])
        starts = np.flatnonzero(tokens == BOS)
        if not len(starts):
            rest = tokens
            continue
        found |= {hashlib.sha256(part.tobytes()).digest() for part in np.split(tokens, starts)[:-1] if len(part)}
        rest = tokens[starts[-1] :]
    return found | {hashlib.sha256(rest.tobytes()).digest()}


def check_bytes(artifact: Path, code: Path | None, declared: int | None, limit: int) -> Check:
    """Whether artifact and program fit the limit, by the sizes of their files.

    Args:
        artifact: the artifact.
        code: the program that loads and scores it, or ``None``.
        declared: bytes that the run set aside for it, where it says so.
        limit: most bytes of both.
    """
    size = artifact.stat().st_size
    code_bytes = code.stat().st_size if code is not None else declared
    total = size + (code_bytes or 0)
    source = f"program {code_bytes:,} (declared by the run)" if code is None and declared else "no program given"
    if code is not None:
        source = f"program {code_bytes:,}"
    return Check(
        name="bytes on disk",
        passed=False if total > limit else None if code is None else True,
        measured=f"artifact {size:,} + {source} = {total:,}",
        expected=f"at most {limit:,}" + ("" if code is not None else "; give the program's file with --code"),
        sentence="Sizes of the files themselves, in decimal bytes. The artifact was read back, its checksum verified, "
        "and the checks of scores ran on what it holds.",
        figures={"artifact_bytes": size, "code_bytes": code_bytes, "code_measured": code is not None, "limit": limit},
    )


def check_training_clock(record: RunRecord | None, limit_s: float) -> Check:
    """Whether training, with the collection of Hessians, ended in time."""
    name, expected = "training clock", f"at most {limit_s:g} s"
    if record is None:
        return _no_run(name, expected)
    ledger = record.result.get("ledger", {})
    if "train" not in ledger:
        return Check(
            name=name,
            passed=False,
            measured="the run's ledger has no training",
            expected=expected,
            sentence="result.json must be that of a training run.",
        )
    train = max(ledger["train"], record.trained_s)
    total = train + ledger.get("calibrate", 0.0)
    return Check(
        name=name,
        passed=total <= limit_s,
        measured=f"{train:.1f} s of training and {ledger.get('calibrate', 0.0):.1f} s of Hessians = {total:.1f} s",
        expected=expected,
        sentence="From the run's ledger and the clock in its metrics, the larger of the two. Compile warm-up on random "
        f"tokens and validation stand outside. The run was on {record.hardware}; the contest's machine is 8 H100s.",
        figures={"train_s": train, "total_s": total, "compile_s": ledger.get("compile", 0.0), "limit_s": limit_s},
    )


def check_scoring_clock(record: RunRecord | None, limit_s: float) -> Check:
    """Whether scoring, with loading and compiling, ended in time."""
    name, expected = "evaluation clock", f"at most {limit_s:g} s"
    if record is None:
        return _no_run(name, expected)
    ledger = record.scored.get("ledger", {})
    # In a run of fit, compile is that of training.
    stages = {
        stage: ledger[stage]
        for stage in SCORING_STAGES
        if stage in ledger and (stage != "compile" or record.test is not None)
    }
    total = sum(stages.values())
    return Check(
        name=name,
        passed="score" in stages and total <= limit_s,
        measured=" + ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items()) + f" = {total:.1f} s"
        if "score" in stages
        else "the run has no score with test-time training",
        expected=expected,
        sentence=f"From the ledger of the {'test' if record.test else 'fit'} that scored the artifact, everything from "
        "loading on, and of earlier parts where it was interrupted; scoring at learning rate 0 is for information and "
        f"left out. On {record.hardware}.{_passed_over(record)}",
        figures={"stages": stages, "total_s": total, "limit_s": limit_s},
    )


def check_access(record: RunRecord | None) -> Check:
    """Whether the run opened validation only after its last training step."""
    name, expected = "validation unread in training", "no opening of validation before training ends"
    if record is None:
        return _no_run(name, expected)
    entries = record.access
    begun = [entry for entry in entries or [] if entry["event"] == "training begins"]
    if entries is None or not begun:
        return Check(
            name=name,
            passed=None,
            measured="the run has no log of its training",
            expected=expected,
            sentence="access.json is missing, or is not that of a training run; train again with this version.",
        )
    early = [entry for entry in entries if entry["split"] == "val" and entry["phase"] == "training"]
    ended = any(entry["event"] == "training ends" for entry in entries)
    last = max(entry["step"] for entry in entries)
    opened = [entry for entry in entries if entry["split"] == "val" and entry["phase"] != "training"]
    first = f"first opened at {opened[0]['time']} after step {opened[0]['step']}" if opened else "never opened"
    return Check(
        name=name,
        passed=not early and ended and all(entry["step"] == last for entry in opened),
        measured=f"{len(early)} early openings; {first}" + ("" if ended else "; training never ended"),
        expected=expected,
        sentence="The data module is the only way of the program to a shard; it refuses validation until the last step "
        "is done and logs every opening. The log is the run's own: it proves what this program did, not what a changed "
        "one might have.",
        figures={"early": early, "log": entries},
    )


def check_reported(record: RunRecord | None, artifact_sha256: str, rescored_nats: float | None) -> Check:
    """Whether the reported bits per byte follow from the sums, and the sums from the artifact.

    Args:
        record: the run.
        artifact_sha256: SHA-256 of the artifact, in hexadecimal.
        rescored_nats: nats of the whole split, as scored by this audit; ``None`` where it was not asked to.
    """
    name = "reported score"
    expected = (
        "bits per byte = nats / ln 2 / bytes, of this artifact by its SHA-256, and the same nats when scored again"
    )
    if record is None:
        return _no_run(name, expected)
    faults = [
        f"{label} says {score['bpb']:.6f} where its sums give {score['nats'] / math.log(2) / score['table_bytes']:.6f}"
        for label, score in record.scores.items()
        if not math.isclose(score["bpb"], score["nats"] / math.log(2) / score["table_bytes"], rel_tol=1e-9)
    ]
    faults += [f"{label} covers a part of the split" for label, score in record.scores.items() if score["partial"]]
    final = record.scored.get("scores", {}).get("ttt")
    if final is None:
        faults.append("there is no score with test-time training")
    elif record.scored_another(artifact_sha256):
        source = "result.json" if record.test is None else record.test.get("run", {}).get("from_file", "test.json")
        faults.append(
            f"the score is of another file than this artifact ({source}, SHA-256 {str(record.scored_sha256)[:12]}, not "
            f"{artifact_sha256[:12]}); score it with `test`"
        )
    unknown = final is not None and record.scored_sha256 is None and rescored_nats is None
    again = None
    if final is not None and rescored_nats is not None:
        again = rescored_nats / math.log(2) / final["table_bytes"]
        if abs(again - final["bpb"]) > 5e-4:
            faults.append(f"the artifact scores {again:.5f} here")
    reported = f"{final['bpb']:.5f} bits per byte reported" if final else "nothing reported"
    return Check(
        name=name,
        passed=False if faults else None if rescored_nats is None else True,
        measured="; ".join(faults)
        or reported
        + (f", {again:.5f} here" if again is not None else ", not scored again")
        + ("; which file was scored is not known, score the artifact with `test`" if unknown else ""),
        expected=expected + ("" if rescored_nats is not None else " (ask for it with --whole)"),
        sentence="Bits per byte were computed again from the recorded sums of every score, the artifact's SHA-256 was "
        "compared with that of the file that was scored"
        + (", and the whole split was scored again from the artifact." if rescored_nats is not None else ".")
        + _passed_over(record),
        figures={
            "reported": final,
            "rescored_nats": rescored_nats,
            "scored_sha256": record.scored_sha256,
            "faults": faults,
        },
    )


def _passed_over(record: RunRecord) -> str:
    ended = record.passed_over
    return "" if ended is None else f" A later scoring ({ended}) did not end and was passed over."


def _no_run(name: str, expected: str) -> Check:
    return Check(
        name=name,
        passed=None,
        measured="no run was given",
        expected=expected,
        sentence="Give the run's folder with --run.",
    )
