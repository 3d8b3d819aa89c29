"""A data folder changes from nothing, or from one dataset, to another dataset in one step.

Files are made in a hidden folder inside the data folder, which may itself be a mount point, and moved out of it when
all of them are complete; the manifest goes first from the old dataset and comes last into the new one.
"""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golf_lightning.data.interrupts import signals_blocked
from golf_lightning.data.manifest import MANIFEST_NAME, Manifest
from golf_lightning.errors import GolfError

STAGE_NAME = ".prepare"

_OURS = re.compile(r"manifest\.json|tokenizer\.model|fineweb_(train|val)_\d+\.bin|documents_(train|val)\.sha256")


def existing_dataset(folder: str | Path, recipe: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The dataset in ``folder`` if it was made by the same recipe and is intact, or ``None`` if one has to be made.

    Raises:
        GolfError: the folder holds something else and ``overwrite`` is off.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise GolfError(f"{folder} is a file; choose a folder for the data.")
    if overwrite or not _files(folder):
        return None
    if not (folder / MANIFEST_NAME).exists():
        raise GolfError(
            f"{folder} already holds {_files(folder)[0].name} but no manifest; choose another folder, "
            "or give --overwrite to replace its shards."
        )
    manifest = Manifest.load(folder)
    if manifest.recipe != recipe:
        raise GolfError(
            f"{folder} already holds data made from other inputs or settings; choose another folder, "
            "or give --overwrite to replace it."
        )
    manifest.verify_files(folder)
    return manifest


@contextlib.contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and put its files in place of the old dataset if the block ends well.

    After an error or an interrupt the temporary folder is removed and ``folder`` is as it was. Files that no
    ``prepare`` command writes are never touched.

    Raises:
        GolfError: the folder cannot be written.
    """
    folder = Path(folder)
    stage = folder / STAGE_NAME
    existed = folder.exists()
    try:
        try:
            if stage.exists():  # what a killed process left behind
                shutil.rmtree(stage)
            stage.mkdir(parents=True)
        except OSError as error:
            raise GolfError(f"Cannot write to {folder}: {error.strerror}; choose another folder.") from None
        yield stage
        with signals_blocked(signal.SIGINT, signal.SIGTERM):
            install(stage, folder)
    finally:
        if stage.exists():
            shutil.rmtree(stage)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def install(stage: Path, folder: Path) -> None:
    """Replace the dataset in ``folder`` by the one in ``stage``, which lies on the same file system."""
    new = sorted(stage.iterdir(), key=lambda path: path.name == MANIFEST_NAME)
    assert new and new[-1].name == MANIFEST_NAME, f"{stage} holds no finished dataset"
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in _files(folder):
        path.unlink()
    for path in new:
        os.replace(path, folder / path.name)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _OURS.fullmatch(path.name))
