"""Programs as forks of a process that has imported what takes seconds, and so are the ranks that they start.

Signals, exit statuses, parents and output are those of programs that a shell starts; the command line of a process is
not its own.
"""

import concurrent.futures
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

from lightning.pytorch.strategies.launchers import subprocess_script
from ranks import preload

from golf_lightning.__main__ import end_process, main

Work = Callable[[list[str]], int]
"""What a program does with its arguments; returns its exit status."""


class Program:
    """A program that runs; what it leaves of :class:`subprocess.Popen`.

    Args:
        work: importable, since it goes to another process by its name.
        arguments: for ``work``.
        folder: where it runs, and all ranks that it starts.
        ranks: the most that Lightning's launcher may make of it.
    """

    def __init__(self, work: Work, *arguments: object, folder: Path, ranks: int = 1) -> None:
        (stdout, out), (stderr, err) = (multiprocessing.Pipe(duplex=False) for _ in range(2))
        preload()
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(work, [*map(str, arguments)], dict(os.environ), folder, ranks, out, err), daemon=True
        )
        self._process.start()
        out.close()
        err.close()
        self.stdout, self.stderr = _text(stdout), _text(stderr)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the number of a signal."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """The rest of what it and its ranks write, when all of them have ended."""
        with self.stdout, self.stderr, ThreadPoolExecutor() as pool:
            rest = [pool.submit(file.read) for file in (self.stdout, self.stderr)]
            try:
                output, errors = (part.result(timeout) for part in rest)
            except concurrent.futures.TimeoutError:
                # Its ranks end with it, and so does the reading.
                self._process.kill()
                raise
        self._process.join()
        return output, errors


def start_golf(*arguments: object, folder: Path, ranks: int = 1) -> Program:
    """``python -m golf_lightning`` in a process of its own."""
    return Program(main, *arguments, folder=folder, ranks=ranks)


def processes_in(folder: Path) -> list[int]:
    """Living processes that run in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cwd").readlink() == folder:
                    found.append(int(process.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended, or is not ours
    return found


def _text(connection: Connection) -> TextIO:
    with connection:
        return os.fdopen(os.dup(connection.fileno()))


def _run(
    work: Work,
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    ranks: int,
    out: Connection,
    err: Connection,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, connection in enumerate((out, err), start=1):
        with connection:
            os.dup2(connection.fileno(), number)
    sys.argv = ["program", *arguments]
    waiting: list[tuple[int, int]] = []
    for _ in range(ranks - 1):
        waiting.append(_wait_to_be_a_rank(work, waiting))

    class Rank(subprocess.Popen[bytes]):
        """The next of the processes that wait to be one."""

        def __init__(self, command: list[str], env: dict[str, str], cwd: None) -> None:
            self.environment = env
            super().__init__(command)

        def _execute_child(self, *details: Any) -> None:
            self.pid, write = waiting.pop(0)
            with os.fdopen(write, "w") as file:
                json.dump(self.environment, file)
            self._child_created = True

    subprocess_script.subprocess = SimpleNamespace(Popen=Rank)  # type: ignore[attr-defined]
    _work_and_end(work)


def _wait_to_be_a_rank(work: Work, others: list[tuple[int, int]]) -> tuple[int, int]:
    """A child that waits for its environment, or for this process to end; its id, and where to write."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(read)
        return pid, write
    for end in (write, *(end for _, end in others)):
        os.close(end)
    with os.fdopen(read) as file:
        environment = file.read()
    if environment:
        os.environ.clear()
        os.environ.update(json.loads(environment))
        _work_and_end(work)
    os._exit(0)


def _work_and_end(work: Work) -> NoReturn:
    """Do the work with the arguments of the process, and end as an interpreter does."""
    status = 1
    try:
        status = work(sys.argv[1:])
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        end_process(status)
