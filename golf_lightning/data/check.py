"""Reads a data folder from end to end and says everything that is wrong with it."""

from dataclasses import dataclass, field
from pathlib import Path

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.manifest import TOKENIZER_NAME, Manifest, SplitEntry, documents_name
from golf_lightning.data.scan import SplitScan, scan_split
from golf_lightning.data.shards import SPLITS, Split, find_shards, map_shard, read_header
from golf_lightning.data.tokenizer import BOS, Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of


@dataclass(kw_only=True, slots=True)
class DataReport:
    """What a check found.

    Attributes:
        faults: sentences, one for each thing that is wrong; a folder without any is a valid dataset.
        notes: sentences about things that are worth knowing and not wrong.
        splits: what was counted in each split whose shards could be read.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[Split, SplitScan] = field(default_factory=dict)


def check_data(folder: str | Path, tokenizer_path: str | Path | None = None) -> DataReport:
    """Check headers, lengths, token range, BOS, hashes, counts of bytes and documents, and the overlap of the splits.

    Args:
        folder: a data folder; without a manifest this is a fault, and everything else is still checked.
        tokenizer_path: SentencePiece model for a folder that has none.

    Raises:
        GolfError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GolfError(f"The data folder {folder} does not exist; make it with `python -m golf_lightning prepare`.")
    report = DataReport()
    manifest = _manifest(folder, report)
    table = _table(folder, tokenizer_path, manifest, report)
    for split in SPLITS:
        entry = manifest.splits.get(split) if manifest else None
        if entry is None and not list(folder.glob(f"fineweb_{split}_[0-9]*.bin")):
            continue
        if paths := _shards(folder, split, entry, report):
            scan = report.splits[split] = scan_split(map(map_shard, paths), table)
            _check_tokens(split, scan, table, report)
            if entry is not None and len(paths) == len(entry.shards):
                _compare(folder, split, scan, entry, report)
    if not report.splits:
        report.faults.append(f"{folder} holds no shards that can be read.")
    _check_overlap(folder, manifest, report)
    return report


def _manifest(folder: Path, report: DataReport) -> Manifest | None:
    try:
        return Manifest.load(folder)
    except GolfError as error:
        report.faults.append(str(error))
        return None


def _table(
    folder: Path, tokenizer_path: str | Path | None, manifest: Manifest | None, report: DataReport
) -> ByteTable | None:
    if tokenizer_path is None:
        tokenizer_path = folder / (manifest.tokenizer if manifest else TOKENIZER_NAME)
    try:
        tokenizer = Tokenizer(tokenizer_path)
    except GolfError as error:
        report.faults.append(str(error))
        return None
    if manifest and (tokenizer.sha256, tokenizer.vocab_size) != (manifest.tokenizer_sha256, manifest.vocab_size):
        report.faults.append(f"{tokenizer_path} is not the tokenizer that made these shards.")
    return ByteTable.from_tokenizer(tokenizer)


def _shards(folder: Path, split: Split, entry: SplitEntry | None, report: DataReport) -> list[Path]:
    """The shards of a split that can be read, after their headers, hashes and numbers have been checked."""
    listed = {shard.name: shard for shard in entry.shards} if entry else {}
    try:
        found = find_shards(folder, split)
    except GolfError as error:
        report.faults.append(str(error))
        return []
    names = [path.name for path in found]
    report.faults += [
        f"{folder / name} is listed in the manifest and missing." for name in sorted(set(listed) - set(names))
    ]
    numbers = [int(path.stem.rsplit("_", 1)[1]) for path in found if path.stem.rsplit("_", 1)[1].isdigit()]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        report.faults.append(f"The numbers of the {split} shards have a gap: {numbers}; fetch the missing ones.")
    readable = []
    for path in found:
        try:
            tokens = read_header(path)
        except GolfError as error:
            report.faults.append(str(error))
            continue
        readable.append(path)
        if entry is None:
            continue
        if path.name not in listed:
            report.faults.append(f"{path} is not listed in the manifest.")
        elif tokens != listed[path.name].tokens:
            report.faults.append(f"{path} holds {tokens} tokens, the manifest says {listed[path.name].tokens}.")
        elif sha256_of(path) != listed[path.name].sha256:
            report.faults.append(f"{path} was changed: its SHA-256 is not the manifest's.")
    return readable


def _check_tokens(split: Split, scan: SplitScan, table: ByteTable | None, report: DataReport) -> None:
    if table is not None and scan.largest_token >= table.vocab_size:
        report.faults.append(
            f"A token of {split} is {scan.largest_token}, but the tokenizer has only {table.vocab_size} pieces."
        )
    if not scan.documents:
        report.faults.append(f"There is no BOS token ({BOS}) in {split}, so its documents cannot be told apart.")
    elif not scan.starts_with_bos:
        report.faults.append(f"The first shard of {split} does not start with the BOS token ({BOS}).")


def _compare(folder: Path, split: Split, scan: SplitScan, entry: SplitEntry, report: DataReport) -> None:
    counted = {"documents": scan.documents, "tokens": scan.tokens, "table_bytes": scan.table_bytes}
    for name, value in counted.items():
        if value is not None and value != (stated := getattr(entry, name)):
            report.faults.append(f"{split} has {value} {name}, the manifest says {stated}.")
    if entry.documents_sha256 is None:
        return
    hashes = folder / documents_name(split)
    if not hashes.is_file():
        report.faults.append(f"{hashes} is listed in the manifest and missing.")
    elif sha256_of(hashes) != entry.documents_sha256:
        report.faults.append(f"{hashes} was changed: its SHA-256 is not the manifest's.")
    elif (lines := len(hashes.read_bytes().splitlines())) != entry.documents:
        report.faults.append(f"{hashes} has {lines} hashes for {entry.documents} documents.")


def _check_overlap(folder: Path, manifest: Manifest | None, report: DataReport) -> None:
    if set(report.splits) != set(SPLITS):
        return
    shared = len(report.splits["train"].document_hashes & report.splits["val"].document_hashes)
    if manifest is not None and manifest.as_published and shared == manifest.shared_documents:
        if shared:
            report.notes.append(f"{shared} documents are in both splits as they were published.")
    elif shared:
        report.faults.append(f"{shared} documents are in both splits.")
    texts = [folder / documents_name(split) for split in SPLITS]
    if all(path.is_file() for path in texts):
        train, val = (set(path.read_bytes().splitlines()) for path in texts)
        if train & val:
            report.faults.append(f"{len(train & val)} document hashes are in both {texts[0].name} and {texts[1].name}.")
