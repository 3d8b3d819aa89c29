"""Compiled code goes to the folder that the user names."""

import os
from pathlib import Path

import pytest
import torch

from golf_lightning.optim.warmup import keep_compiled_code


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_code_is_kept_in_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    ):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    keep_compiled_code(tmp_path / "cache")
    x = torch.randn(7)
    torch.testing.assert_close(torch.compile(lambda y: (y * 2).relu() + 7)(x), (x * 2).relu() + 7)
    assert any((tmp_path / "cache" / "inductor").rglob("*.cpp"))
