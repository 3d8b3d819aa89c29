"""Progress of scoring: what is done, what it came to so far, and how long it will take."""

import logging
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from golf_lightning.evaluation.documents import DocumentStream
from golf_lightning.evaluation.engine import Engine
from golf_lightning.evaluation.journal import Journal
from golf_lightning.evaluation.scores import ScoreProgress
from golf_lightning.evaluation.slots import Step

log = logging.getLogger(__name__)


class Watch:
    """Counts steps, reports progress, and warns once when the evaluation clock will not suffice.

    Args:
        engine: what runs the steps.
        stream: the documents.
        bytes_before: ``[targets + 1]``, bytes of text before each target of the stream.
        progress: called with each report.
        interval_seconds: time between reports.
        elapsed_seconds: evaluation clock that has passed already, without earlier runs that the journal knows.
        warm_up_seconds: what warming up took, the last part of it.
        ranks: processes that share the stream; totals are then about this one's part.
        journal: told with each report what has been finished, and the seconds.

    Attributes:
        finished: documents that are done, in the order in which they ended.
    """

    def __init__(
        self,
        engine: Engine,
        stream: DocumentStream,
        bytes_before: npt.NDArray[np.int64],
        progress: Callable[[ScoreProgress], None] | None,
        interval_seconds: float,
        elapsed_seconds: float,
        *,
        warm_up_seconds: float = 0.0,
        ranks: int = 1,
        journal: Journal | None = None,
    ) -> None:
        self._engine, self._stream, self._bytes_before = engine, stream, bytes_before
        self._progress, self._interval = progress, interval_seconds
        self._elapsed, self._budget = elapsed_seconds, engine.config.budget_seconds
        self._warm_up = warm_up_seconds
        left = np.ones(len(stream), dtype=np.bool_)
        self._journal, self._ranks, self._written = journal, ranks, 0
        if journal is not None:
            left[list(journal.all_known)] = False
            self._elapsed += sum(journal.spent.values())
        targets_N = stream.targets * left
        self._work = int(engine.plan.work(targets_N).sum()) / ranks
        self._targets = round(targets_N.sum() / ranks)
        self._documents = round(np.count_nonzero(targets_N) / ranks)
        self._targets_done = self._bytes_done = self._work_done = 0
        self.finished: list[int] = []
        self._start = self._last = time.monotonic()

    def look(self, step: Step) -> None:
        """Count a step, and report if it is time to: the scores are on the device, and reading them waits for it."""
        position = self._stream.starts[step.documents] + step.first + step.row
        self._targets_done += int(step.count.sum())
        self._bytes_done += int((self._bytes_before[position + step.count] - self._bytes_before[position]).sum())
        self._work_done += int(step.rows.sum())
        self.finished += step.documents[~step.trains].tolist()
        if time.monotonic() - self._last >= self._interval:
            self.report()
            self._last = time.monotonic()

    def report(self) -> ScoreProgress:
        """Where scoring stands; waits for the device."""
        nats_N = self._engine.nats[:-1].cpu()
        seconds = time.monotonic() - self._start
        if self._journal is not None:
            new = self.finished[self._written :]
            finished = {i: (float(nats_N[i]), int(self._stream.targets[i])) for i in new}
            self._journal.write(finished, score=seconds, warm_up=self._warm_up)
            self._written = len(self.finished)
        now = ScoreProgress(
            documents=len(self.finished),
            documents_total=self._documents,
            targets=self._targets_done,
            targets_total=max(self._targets, self._targets_done),
            bytes=self._bytes_done,
            nats=float(nats_N.sum()),
            seconds=seconds,
            projected_seconds=seconds * self._work / self._work_done if self._work_done else 0.0,
        )
        if self._progress is not None:
            self._progress(now)
        expected = self._elapsed + now.projected_seconds
        if self._budget is not None and expected > self._budget:
            log.warning(
                "Scoring will take the evaluation clock to about %.0f s, over the budget of %.0f s; "
                "use larger chunks, a shorter window or a lower rank, or set --model.ttt.mode cached.",
                expected,
                self._budget,
            )
            self._budget = None
        return now
