"""The commands beside Lightning's own: what each does, and the module that holds it."""

import importlib
from collections.abc import Sequence
from typing import NamedTuple


class Tool(NamedTuple):
    """A command.

    Attributes:
        module: whose ``main(argv)`` runs it and returns the exit status; imported only when asked for.
        summary: what it does, to follow its name.
    """

    module: str
    summary: str


TOOLS = {
    "prepare": Tool("golf_lightning.data.commands", "makes and checks data folders"),
    "bench": Tool("golf_lightning.benchmark.command", "measures the training step's speed by part"),
    "inspect": Tool("golf_lightning.reporting.inspection", "shows what is in an artifact"),
    "report": Tool("golf_lightning.reporting.report", "shows runs side by side, as a page and a picture"),
    "audit": Tool("golf_lightning.audit.commands", "checks an artifact's score against the rules"),
    "bundle": Tool("golf_lightning.submission.bundle", "writes a run's whole program as one file"),
    "submission": Tool("golf_lightning.submission.commands", "makes the contest's folder out of runs"),
}


def run_tool(name: str, argv: Sequence[str]) -> int:
    """Run one of :data:`TOOLS`; returns its exit status."""
    status: int = importlib.import_module(TOOLS[name].module).main(argv)
    return status


def describe_tools() -> str:
    """One sentence on all of them, for the help of the whole program."""
    parts = "; ".join(f"`{name}` {tool.summary}" for name, tool in TOOLS.items())
    return f"More commands, each with a --help of its own: {parts}."
