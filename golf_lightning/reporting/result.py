"""What a run has to tell, in one file and in one table."""

from pathlib import Path
from typing import Any

from golf_lightning.evaluation.bpb import Score
from golf_lightning.files import write_json
from golf_lightning.reporting.documents import DocumentTable

SCORES = {
    "before_quantization": "before quantization",
    "quantized": "quantized",
    "ttt_lr0": "TTT path, learning rate 0",
    "ttt": "after TTT",
}
"""Scores in the order in which a run makes them, with their names in the table."""


class Result:
    """Collects the figures of a run as its parts report them.

    Attributes:
        values: plain JSON values by section: ``run``, ``data``, ``model``, ``train``, ``scores``, ``artifact``,
            ``export``, ``ledger``.
        documents: nats of single documents, once test-time training has scored them.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.documents: DocumentTable | None = None

    def record(self, section: str, **values: Any) -> None:
        """Add values to a section; a later value of the same name replaces an earlier one."""
        self.values.setdefault(section, {}).update(values)

    def record_score(
        self, name: str, score: Score, *, split_targets: int, split_text_bytes: int | None = None, **more: Any
    ) -> None:
        """Add one of :data:`SCORES`; see :meth:`~golf_lightning.evaluation.bpb.Score.to_dict`."""
        assert name in SCORES, name
        score_values = score.to_dict(split_targets=split_targets, split_text_bytes=split_text_bytes)
        self.record("scores", **{name: score_values | more})

    def write(self, path: str | Path) -> None:
        """Write the values as JSON, whole or not at all."""
        write_json(path, self.values)

    def table(self) -> str:
        """The figures as aligned lines of text."""
        lines = [*_score_lines(self.values.get("scores", {})), *self._fact_lines()]
        if ledger := self.values.get("ledger"):
            parts = [f"{name} {seconds:.1f}" for name, seconds in ledger.items()]
            lines.append(f"seconds              {', '.join(parts)}")
        return "\n".join(lines)

    def _fact_lines(self) -> list[str]:
        lines = []
        if artifact := self.values.get("artifact"):
            lines.append(
                f"artifact             {artifact['artifact_bytes']:,} bytes + code {artifact['code_bytes']:,} "
                f"= {artifact['total_bytes']:,}; headroom {artifact['headroom_bytes']:,}"
            )
        if model := self.values.get("model"):
            lines.append(f"parameters           {model['parameters']:,}")
        if train := self.values.get("train"):
            lines.append(
                f"training             {train['steps']:,} steps, {train['tokens']:,} tokens, "
                f"{train['tokens_per_second']:,.0f} tokens/s"
            )
        return lines


def _score_lines(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return []
    lines = [f"{'score':<34}{'bits per byte':>14}{'nats':>10}{'targets':>12}"]
    for name, title in SCORES.items():
        if score := scores.get(name):
            label = title + (" (part)" if score["partial"] else "")
            lines.append(f"{label:<34}{score['bpb']:>14.4f}{score['nats_per_target']:>10.4f}{score['targets']:>12,}")
            if score.get("bpb_text", score["bpb"]) != score["bpb"]:
                # A tokenizer that normalizes: its table counts other bytes than the text has.
                lines.append(f"{'  against the text as it was':<34}{score['bpb_text']:>14.4f}")
    return lines
