"""The settings of a run, out of its resolved configuration."""

from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from golf_lightning.errors import GolfError
from golf_lightning.evaluation.config import TTTConfig


def ttt_of_run(folder: str | Path, *, tested: bool) -> TTTConfig:
    """How a run scored its documents.

    Args:
        folder: the run folder.
        tested: whether the score that counts is that of ``test``; then its ``config.test.yaml`` holds where there is
            one, else ``config.yaml``.

    Raises:
        GolfError: the file is missing, damaged, or of another version.
    """
    wanted = ("config.test.yaml", "config.yaml") if tested else ("config.yaml",)
    names = [name for name in wanted if (Path(folder) / name).is_file()]
    if not names:
        raise GolfError(f"{folder} has no config.yaml; give --run the folder of a run.")
    path = Path(folder) / names[0]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--ttt", type=TTTConfig)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["ttt"]
        settings: TTTConfig = parser.instantiate_classes(parser.parse_object({"ttt": values})).ttt
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ArgumentError) as error:
        reason = " ".join(str(error).split())
        raise GolfError(f"{path} has no settings of test-time training that can be read ({reason}).") from None
    return settings
