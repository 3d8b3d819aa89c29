"""A finished run and its data, which tests only read or copy."""

from pathlib import Path

import pytest
from small_run import golf, make_data, write_recipe


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run that went all the way, with a program of 30,000 bytes beside it."""
    folder = tmp_path_factory.mktemp("finished")
    assert golf("fit", "--config", write_recipe(folder, data)) == 0
    run = folder / "runs" / "small"
    (run / "train_gpt.py").write_bytes(b"#" * 30_000)
    return run
