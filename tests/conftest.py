"""Settings of every test process and of the programs that tests start."""

import os
import signal

import pytest

# Before torch is imported: worker processes inherit it, and two busy thread pools on two cores stall each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that runs the tests in the background has Ctrl-C ignored, and programs started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: one that begins last keeps one worker busy while the others have nothing left to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
