"""A run on one or two GPUs, without compilation, large enough that the device and not the host sets the pace."""

from pathlib import Path
from typing import Any

from small_run import write_recipe

GPT = {
    "width": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp_width": 2048, "rope_dims": 16, "max_seqlen": 2048
}  # fmt: skip


def write_gpu_recipe(folder: Path, prepared: Path, devices: int, **sections: dict[str, Any]) -> Path:
    """A recipe that only trains."""
    settings: dict[str, Any] = {
        "trainer": {"accelerator": "gpu", "devices": devices, "max_steps": 16, "limit_val_batches": 0},
        "console": {"every_steps": 100},
        "clock": {"budget_s": 300.0, "reserve_s": 1.0},
        "data": {"train_tokens": 65_536, "max_segments": 256, "val_tokens": 4096},
        "model": {"gpt": GPT, "kernels": "reference", "compile": False},
        "gptq": {"at_train_end": False},
        "ttt": {"enabled": False},
    }
    return write_recipe(folder, prepared, **settings | sections)
