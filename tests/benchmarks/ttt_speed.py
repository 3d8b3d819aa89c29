"""Speed of document test-time training on one device: targets/s, warm-up, memory, bits per byte, kernels by time.

    python tests/benchmarks/ttt_speed.py --artifact runs/golf/artifact.golf --data data/fineweb --json ttt.json
    python tests/benchmarks/ttt_speed.py --size tiny --documents 8        # any machine, random weights

The workload is the contest's: documents of log-normal length (median 475 tokens, sigma 1.03, at most 30,000), made from
the validation text by cutting and joining it to these lengths; ``--real`` scores documents as they are. Settings are
those of TTTConfig, ``name=value`` each, and several settings given with ``--run`` are timed one after the other, and
compared with the first, document by document:

    --run chunk=32 --run chunk=64 --run mode=cached,chunk=16,adapters.rank=80
"""

import argparse
import dataclasses
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golf_lightning.compression.artifact import read_artifact
from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.shards import find_shards, map_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.evaluation.config import TTTConfig
from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.scores import DocumentScores, ScoreProgress
from golf_lightning.evaluation.ttt import score_documents
from golf_lightning.model.adapters import AdapterConfig
from golf_lightning.model.config import GPTConfig
from golf_lightning.model.gpt import GPT

SIZES = {
    "golf": GPTConfig(),
    "tiny": GPTConfig(vocab_size=128, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=128, max_seqlen=256),
}


def contest_lengths(documents: int, seed: int = 0, most: int = 30_000) -> npt.NDArray[np.int64]:
    """Targets of each document: log-normal, median 475, sigma 1.03."""
    drawn = 475 * np.exp(1.03 * np.random.default_rng(seed).standard_normal(documents))
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def cut_to(lengths: npt.NDArray[np.int64], text: npt.NDArray[np.integer]) -> npt.NDArray[np.uint16]:
    """Documents of these lengths from running text, used over where it does not suffice."""
    body = np.resize(text[text != 1], int(lengths.sum()))
    tokens = np.insert(body, np.concatenate([[0], np.cumsum(lengths)[:-1]]) - np.arange(len(lengths)), 1)
    return tokens[: lengths.sum() + 1].astype(np.uint16)


def setting(text: str) -> dict[str, Any]:
    """``a=1,adapters.rank=80`` as keyword arguments of TTTConfig."""
    fields: dict[str, Any] = {}
    adapters: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        parsed = {"true": True, "false": False, "null": None}.get(value)
        if value not in ("true", "false", "null"):
            parsed = float(value) if any(c in value for c in ".e") and value[0].isdigit() else value
            parsed = int(value) if value.lstrip("-").isdigit() else parsed
        (adapters if name.startswith("adapters.") else fields)[name.removeprefix("adapters.")] = parsed
    return fields | {"adapters": AdapterConfig(**adapters)}


def measure(
    model: GPT, stream: DocumentStream, table: ByteTable | None, text: str
) -> tuple[dict[str, Any], DocumentScores]:
    """Score the stream with one setting."""
    device = model.embedding.device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    config = TTTConfig(**setting(text))
    count = (lambda previous, targets: 0 * targets) if table is None else table.count
    scores = score_documents(model, stream, config, token_bytes=count)
    figures = {
        "setting": text,
        "targets_per_second": scores.total_targets / scores.seconds,
        "seconds": scores.seconds,
        "warm_up_seconds": scores.warm_up_seconds,
        "all_seconds": time.perf_counter() - began,
        "targets": scores.total_targets,
        "nats_per_target": scores.mean_nats,
        "bpb": scores.bpb if scores.total_bytes else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    }
    return figures, scores


def difference(scores: DocumentScores, base: DocumentScores) -> dict[str, float]:
    """Bits per byte over the base's, and the standard error of that, from the differences of the documents."""
    bits_N, bytes_N = (scores.nats - base.nats) / np.log(2), base.bytes.double()
    mean = float(bits_N.sum() / bytes_N.sum())
    error = float((bits_N - mean * bytes_N).square().sum().sqrt() / bytes_N.sum())
    return {"bpb_over_first": mean, "standard_error": error}


def profile(model: GPT, stream: DocumentStream, text: str, first: int, passes: int) -> list[str]:
    """Kernels of some passes, by time on the device."""
    config = dataclasses.replace(TTTConfig(**setting(text)), budget_seconds=None)
    trace = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    seen = []

    def watched(progress: ScoreProgress) -> None:
        seen.append(progress)
        if len(seen) == first:
            trace.start()
        elif len(seen) == first + passes:
            trace.stop()

    zero = lambda previous, targets: 0 * targets  # noqa: E731
    score_documents(model, stream, config, token_bytes=zero, progress=watched, interval_seconds=0.0)
    if len(seen) < first + passes:
        trace.stop()
    targets = seen[min(first + passes, len(seen)) - 1].targets - seen[first - 1].targets
    rows = [(event.key, event.self_device_time_total / 1e3, event.count) for event in trace.key_averages()]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    lines = [f"{text}: {sum(r[1] for r in rows):.1f} ms of kernels in {passes} passes over {targets} targets"]
    return lines + [f"{ms:10.2f} ms {count:7d} x {1e3 * ms / count:9.1f} us  {name[:140]}" for name, ms, count in rows]


def build(args: argparse.Namespace, device: torch.device) -> GPT:
    """The artifact's network, or one with random weights."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    artifact = read_artifact(args.artifact) if args.artifact else None
    config = SIZES[args.size] if artifact is None else artifact.config
    model = GPT(config, compute_dtype=dtype, attention=args.attention, kernels=args.kernels)
    model.recurrent = True if artifact is None else artifact.recurrent
    if artifact is not None:
        model.load_state_dict(artifact.state_dict())
    return model.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="default: random weights")
    parser.add_argument("--size", choices=SIZES, default="golf", help="shape of random weights")
    parser.add_argument("--data", type=Path, help="prepared data; default: random tokens")
    parser.add_argument("--documents", type=int, default=1024)
    parser.add_argument("--real", action="store_true", help="the first documents of the split as they are")
    parser.add_argument("--run", action="append", help="a setting; may be given several times")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--seed", type=int, default=2, help="of the lengths; 2 has the contest's mean")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--profile", type=Path, help="file for a table of kernels of the first setting")
    parser.add_argument("--profiled", type=int, nargs=2, default=(20, 10), help="first pass of that, and how many")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(args, device)
    table = None
    vocabulary = model.config.vocab_size
    text: npt.NDArray[np.integer] = np.random.default_rng(1).integers(2, vocabulary, 1 << 20)
    if args.data:
        text = np.concatenate([np.asarray(map_shard(path)) for path in find_shards(args.data, "val")])
        table = ByteTable.from_tokenizer(Tokenizer(args.data / "tokenizer.model"))
    tokens = text.astype(np.uint16) if args.real else cut_to(contest_lengths(args.documents, args.seed), text)
    stream = DocumentStream(tokens).part(max_documents=args.documents)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    longest, mean = int(stream.targets.max()), stream.total_targets / len(stream)
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "documents": len(stream)}
    result |= {"targets": stream.total_targets, "mean_targets": mean, "longest": longest, "real": args.real, "runs": []}
    print(json.dumps(result), flush=True)
    first: DocumentScores | None = None
    for run in args.run or [""]:
        figures, scores = measure(model, stream, table, run)
        if first is not None and table is not None:
            figures |= difference(scores, first)
        first = first or scores
        result["runs"].append(figures)
        print(json.dumps(result["runs"][-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.profile:
        first, passes = args.profiled
        args.profile.write_text("\n".join(profile(model, stream, (args.run or [""])[0], first, passes)) + "\n")


if __name__ == "__main__":
    main()
