"""How often ``fit`` compiles: once for each order of layers, before the clock starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import golf, write_recipe
from torch._dynamo.testing import CompileCounter

from golf_lightning.model.gpt import GPT


def test_validation_and_the_artifacts_score_use_what_training_compiled(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()  # type: ignore[no-untyped-call]

    def compile_in_place(model: GPT) -> None:
        model.compile(backend=counter, dynamic=False, fullgraph=True)

    told: list[tuple[str, Any]] = []
    monkeypatch.setattr("golf_lightning.module.compile_in_place", compile_in_place)
    monkeypatch.setattr("callbacks.compile_warmup.say", lambda text: told.append((text[:6], counter.frame_count)))
    torch.compiler.reset()
    recipe = write_recipe(tmp_path, data, data={"val_tokens": 128})
    options = ("--model.compile", "true", "--model.attention", "reference", "--ttt.enabled", "false")
    assert golf("fit", "--config", recipe, *options) == 0
    assert told == [("warmed", 2)] and counter.frame_count == 2
