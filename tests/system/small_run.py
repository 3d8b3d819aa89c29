"""A dataset and a recipe so small that a whole run takes a second or two."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from golf_lightning.__main__ import main
from golf_lightning.data.prepare import PrepareConfig, prepare_text
from golf_lightning.data.tokenizer import train_tokenizer

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
)

RECIPE: dict[str, Any] = {
    "run": {"name": "small"},
    "clock": {"budget_s": None},
    "console": {"every_steps": 2},
    "ema": {"decay": 0.9},
    "trainer": {"accelerator": "cpu", "max_steps": 6},
    "data": {"train_tokens": 128, "val_tokens": 96, "max_segments": 24},
    "model": {
        "gpt": {
            "vocab_size": 320,
            "layers": 4,
            "width": 16,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 8,
            "mlp_width": 32,
            "rope_dims": 4,
            "max_seqlen": 48,
            "loop_first": 1,
            "loop_last": 2,
            "loop_passes": 2,
            "lanes_start": 3,
        },
        "export": {"calibration_batches": 2, "budget": {"code_bytes": 26_505}},
        "ttt": {"window": 48, "chunk": 16, "slots": 4, "rows": 512, "adapters": {"rank": 2}},
    },
}


def text(seed: int, words: int) -> str:
    """Words drawn by a little congruential generator, the same everywhere."""
    state, chosen = seed + 1, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        chosen.append(WORDS[state // 65536 % len(WORDS)])
    return " ".join(chosen) + "."


def make_data(folder: Path) -> Path:
    """A prepared data folder with some 6,000 training and 1,200 validation tokens."""
    sources = {"train": range(40), "val": range(100, 108)}
    for split, seeds in sources.items():
        (folder / "text" / split).mkdir(parents=True)
        for seed in seeds:
            (folder / "text" / split / f"{seed}.txt").write_text(text(seed, 30 + seed * 37 % 150))
    tokenizer = folder / "small.model"
    train_tokenizer([text(seed, 60) for seed in range(40)], tokenizer, vocab_size=320)
    prepare_text(
        folder / "data",
        tokenizer_path=tokenizer,
        train=[folder / "text" / "train"],
        val=[folder / "text" / "val"],
        config=PrepareConfig(workers=1, progress=False),
    )
    return folder / "data"


def write_recipe(folder: Path, prepared: Path, **sections: dict[str, Any]) -> Path:
    """A config file with ``sections`` laid over :data:`RECIPE`; runs go to ``folder/runs``."""
    recipe = _over(RECIPE, {"data": {"folder": str(prepared)}, "run": {"root": str(folder / "runs")}})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(_over(recipe, sections)))
    return path


def golf_alone(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The same as a user starts it."""
    command = [sys.executable, "-m", "golf_lightning", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def golf(*arguments: object) -> int:
    """``python -m golf_lightning`` in this process; its exit status.

    Lightning leaves the address of its process group in the environment, where other tests' processes would find it.
    """
    before = dict(os.environ)
    try:
        return main([str(argument) for argument in arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _over(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged
