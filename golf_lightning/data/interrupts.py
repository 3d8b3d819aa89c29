"""What Ctrl-C and SIGTERM may cut off, and what not."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from golf_lightning.errors import Interrupted


@contextlib.contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Hold back signals until the block ends. Processes started inside keep them blocked."""
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # The mask is this thread's alone: another thread may take the signal, and Python would raise it here all the same.
    main = threading.current_thread() is threading.main_thread()
    handlers = {signal_: signal.signal(signal_, hold) for signal_ in signals} if main else {}
    try:
        yield
    finally:
        for signal_, handler in handlers.items():
            signal.signal(signal_, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in held:
            signal.raise_signal(number)


@contextlib.contextmanager
def termination_raised() -> Iterator[None]:
    """Turn SIGTERM into :class:`Interrupted` inside the block, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)
