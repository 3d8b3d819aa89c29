"""``python -m golf_lightning inspect``: what is in an artifact, as a table, as JSON or as a picture."""

import argparse
import json
from pathlib import Path

from golf_lightning.compression.artifact import read_artifact
from golf_lightning.compression.quantize import ROLE_OF
from golf_lightning.reporting.artifact_facts import ArtifactFacts, CodeFacts, artifact_facts, count_codes

COLUMNS = "part", "weights", "bytes", "of file", "bits each", "order 0", "by row", "excess", "width", "clip", "clipped"
LEGEND = """\
bits each: bytes in the file per weight. order 0: entropy of the codes, one distribution for each bank. by row: ideal
length under a normal distribution of each row's own spread; excess: bytes above that. Of codes on the trellis it is
known whether they are even: both entropies are those of the rest. clip: clip point in standard deviations of a row.
clipped: share of codes at the clip point."""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m golf_lightning inspect",
        description="Show what is in an artifact: bytes and bits by role, entropy against actual size.",
        epilog=LEGEND,
    )
    parser.add_argument("file", type=Path, help="an artifact, usually runs/NAME/artifact.golf")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw bytes and weight histograms into a picture")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args(argv)
    artifact = read_artifact(arguments.file)
    counts = {name: count_codes(name, matrix) for name, matrix in artifact.state.matrices.items()}
    facts = artifact_facts(artifact, counts)
    if arguments.json:
        print(json.dumps(facts.to_dict(), indent=2, allow_nan=False))
    else:
        print(f"{arguments.file}: {table(facts)}")
    if arguments.png is not None:
        # Drawing needs a package that takes a second to import.
        from golf_lightning.reporting.artifact_picture import draw

        draw(arguments.png, facts, counts, title=str(arguments.file))
        if not arguments.json:
            print(f"drawn into {arguments.png}")
    return 0


def table(facts: ArtifactFacts) -> str:
    """The facts as aligned lines of text."""
    lines = [
        f"{facts.file_bytes:,} bytes, coder {facts.coder}, recurrence {'on' if facts.recurrent else 'off'}",
        f"{facts.parameters:,} parameters: {facts.model['layers']} layers of width {facts.model['width']}, "
        f"{facts.model['vocab_size']:,} pieces of the tokenizer {facts.tokenizer_sha256[:12]}",
        "",
        _line(*COLUMNS),
    ]
    for role, codes in facts.roles.items():
        lines.append(_code_line(role, codes, facts.file_bytes))
        banks = {name: bank for name, bank in facts.banks.items() if name != role and _is_in(name, role)}
        lines += [_code_line(f"  {name}", bank, facts.file_bytes) for name, bank in banks.items()]
    for part, number in facts.values.items():
        size = facts.bytes[part]
        lines.append(
            _line(part, f"{number:,}", f"{size:,}", _share(size, facts.file_bytes), f"{8 * size / number:.3f}")
        )
    header = facts.bytes["header"]
    lines.append(_line("header", "", f"{header:,}", _share(header, facts.file_bytes)))
    ideal = sum(codes.row_normal_bits * codes.weights for codes in facts.roles.values()) / 8
    if ideal:
        over = 100 * (facts.file_bytes / ideal - 1)
        lines += ["", f"the whole file is {abs(over):.2f}% {'above' if over >= 0 else 'below'} the ideal of its codes"]
    return "\n".join(line.rstrip() for line in lines)


def _is_in(section: str, role: str) -> bool:
    return ROLE_OF[section.partition("+")[0]] == role


def _code_line(name: str, codes: CodeFacts, file_bytes: int) -> str:
    ideal = codes.row_normal_bits * codes.weights / 8
    return _line(
        name,
        f"{codes.weights:,}",
        f"{codes.bytes:,}",
        _share(codes.bytes, file_bytes),
        f"{codes.bits_per_weight:.3f}",
        f"{codes.order_0_bits:.3f}",
        f"{codes.row_normal_bits:.3f}",
        f"{100 * (codes.bytes / ideal - 1):+.2f}%" if ideal else "",
        f"int{codes.bits}",
        f"{codes.clip_sd:.2f}",
        f"{100 * codes.clipped:.3f}%",
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%"


def _line(*cells: str) -> str:
    widths = (11, 12, 12, 9, 10, 9, 9, 9, 7, 8, 9)
    first, *others = cells
    return f"{first:<{widths[0]}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=False)
    )
