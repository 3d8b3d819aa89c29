"""The texts of a submission's folder, made from what the runs have written down."""

import ast
import csv
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from golf_lightning.reporting.result import SCORES, Result
from golf_lightning.submission.seeds import SeedRun

OWN = ("golf_lightning", "callbacks")

README = """\
# {{ entry.name }}

{{ entry.blurb }}

**{{ '%.5f' | format(entry.val_bpb) }} bits per byte** (
{%- if entry.seeds | length > 1 -%}
mean of {{ entry.seeds | length }} seeds, standard deviation
{{ '%.5f' | format(entry.val_bpb_std) }}
{%- else -%}
one seed
{%- endif %}), which is {{ '%.5f' | format(entry.val_loss) }} nats per target. Largest
submission: {{ '{:,}'.format(entry.bytes_total) }} bytes of {{ '{:,}'.format(limit) }}. Trained and scored on
{{ entry.hardware }}.

{{ results }}

Scores are bits per byte on the whole validation split: {{ '{:,}'.format(targets) }} targets,
{{ '{:,}'.format(table_bytes) }} bytes. The predictor {{ entry.predictor }}.
{%- if test %}

Against {{ test.against_bpb }} bits per byte: better by {{ '%.5f' | format(test.gain_bpb) }} bits per byte, by
{{ '%.5f' | format(test.gain_nats) }} nats. One-sided t-test of the seeds:
{%- if test.p_better is none %} not possible, the seeds have no spread.
{%- else %} p = {{ '%.2g' | format(test.p_better) }} for no gain at all, p = {{ '%.2g' | format(test.p_better_by_bar) }}
for a gain of {{ test.bar_nats }} nats.
{%- endif %}
{%- endif %}

## Rules

`python -m golf_lightning audit` was run on every seed; its reports are `audit_seed*.json`.

{{ checks }}

## Again

    pip install -r requirements.txt
{%- if prepare %}
    python -m golf_lightning {{ prepare }}
{%- endif %}
    python train_gpt.py fit --seed_everything {{ entry.seeds[0] }}
    python train_gpt.py test --ckpt_path runs/{{ run_name }}/artifact.golf

`train_gpt.py` holds the whole program{% if entry.commit %} of commit {{ entry.commit }}{% endif %}
{%- if entry.uncommitted %}, with changes that were not committed,{% endif %}
with this configuration as its defaults; seeds differ in `--seed_everything` alone.
Fingerprint of the data: {{ entry.data }}.

```yaml
{{ config }}```
"""


def readme(values: dict[str, Any]) -> str:
    """The README of a submission."""
    # Markdown for people, not a page for a browser: nothing is to be escaped.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(README).render(values)


def results_table(entry: dict[str, Any]) -> str:
    """One line for each seed, from ``submission.json``."""
    results = entry["seed_results"]
    scored = [name for name in SCORES if all(name in result["bpb"] for result in results.values())]
    header = [
        "seed",
        "steps",
        *(SCORES[name] for name in scored),
        "artifact bytes",
        "with program",
        "training s",
        "scoring s",
    ]
    rows = [
        [
            seed,
            f"{result['steps']:,}",
            *(f"{result['bpb'][name]:.5f}" for name in scored),
            f"{result['artifact_bytes']:,}",
            f"{result['artifact_bytes'] + entry['bytes_code']:,}",
            f"{result['train_seconds']:.1f}",
            f"{result['eval_seconds']:.1f}",
        ]
        for seed, result in results.items()
    ]
    return _table(header, rows, right=True)


def checks_table(entry: dict[str, Any]) -> str:
    """The verdicts of the audits, from ``submission.json``; what is not a pass stands out."""
    audits = entry["audit"]
    verdicts = {name: [audit[name] for audit in audits.values()] for name in next(iter(audits.values()))}
    rows = [[name, *(v if v == "passed" else f"**{v}**" for v in found)] for name, found in verdicts.items()]
    return _table(["check", *(f"seed {seed}" for seed in audits)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    lines = [header, ["---:" if right else "---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings(config: dict[str, Any]) -> str:
    """What of a resolved configuration decides the result, as YAML."""
    kept: dict[str, Any] = {
        name: config[name] for name in ("clock", "recurrence", "ema", "data", "model") if name in config
    }
    trainer = config.get("trainer", {})
    kept["trainer"] = {name: trainer[name] for name in ("devices", "accumulate_grad_batches") if name in trainer}
    return yaml.safe_dump(kept, sort_keys=False)


def seed_log(run: SeedRun) -> str:
    """Everything that a run has written down, as one text: surroundings, log, curve, figures, data access."""
    folder, result = run.record.folder, Result()
    result.values = dict(run.record.result)
    parts = {"environment": json.dumps(run.record.environment, indent=2)}
    if (folder / "log.txt").is_file():
        parts["log"] = (folder / "log.txt").read_text(encoding="utf-8")
    for path in sorted(folder.glob("metrics/*/metrics.csv")):
        parts[f"curve {path.parent.name}"] = _curve(path)
    parts["result of fit"] = result.table()
    if run.record.test is not None:
        result.values = dict(run.record.test)
        parts["result of test"] = result.table()
    if run.record.access is not None:
        parts["data access"] = "\n".join(
            " ".join(str(value) for value in entry.values()) for entry in run.record.access
        )
    parts["configuration"] = yaml.safe_dump(run.config, sort_keys=False)
    return "\n".join(f"==== {title}\n{text.rstrip()}\n" for title, text in parts.items())


def _curve(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return "\n".join(" ".join(f"{name}={value}" for name, value in row.items() if value) for row in rows)


def requirements(modules: Iterable[str], packages: dict[str, str]) -> str:
    """Pinned packages that the program imports.

    Args:
        modules: the program's own modules; what they import from elsewhere is required.
        packages: versions of the run by package; for others the installed version counts.
    """
    versions = {name.lower(): (name, version) for name, version in packages.items()}
    for imported in sorted(_imported(modules)):
        for package in importlib.metadata.packages_distributions().get(imported, []):
            versions.setdefault(package.lower(), (package, importlib.metadata.version(package)))
    # A local build is not on any index: 2.11.0+cu130 is asked for as 2.11.0.
    return "".join(f"{name}=={version.partition('+')[0]}\n" for _, (name, version) in sorted(versions.items()))


def _imported(modules: Iterable[str]) -> set[str]:
    """Top-level names that modules import and that are neither Python's nor the program's."""
    found: set[str] = set()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(OWN)
