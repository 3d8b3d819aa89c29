"""A run's options without those that the program would have by itself."""

from collections.abc import Iterable
from typing import Any

import yaml
from jsonargparse import Namespace
from typing_extensions import override

from golf_lightning.__main__ import named_callbacks
from golf_lightning.cli import GolfCLI
from golf_lightning.errors import GolfError


class _OptionsOnly(GolfCLI):
    """The command line without what it would set off."""

    @override
    def _set_seed(self) -> None:
        pass

    @override
    def before_instantiate_classes(self) -> None:
        pass

    @override
    def instantiate_classes(self) -> None:
        pass

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The options of ``fit`` that differ from their defaults.

    Args:
        values: options as in a run's ``config.yaml``. Where they are not those of the plain command line, since a
            program of your own has more, they all come back.
    """
    try:
        cli = _OptionsOnly(named_callbacks(), {"subcommand": "fit", "fit": values})
    except GolfError:
        return values
    assert isinstance(cli.config, Namespace)
    text = cli.parser_of_subcommand().dump(cli.config.fit, skip_none=False, skip_default=True)
    return yaml.safe_load(text) or {}


def without(values: dict[str, Any], dropped: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """A nested mapping without the options ``dropped``, given with dots."""
    return {
        key: without(value, dropped, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in dropped
    }
