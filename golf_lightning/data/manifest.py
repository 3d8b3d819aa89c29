"""What a prepared data folder holds: the file ``manifest.json``, written last, without which a folder is no dataset."""

import dataclasses
import hashlib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from golf_lightning.data.shards import SPLITS, Split, measured_tokens, read_header
from golf_lightning.errors import GolfError
from golf_lightning.files import read_json, sha256_of, write_json

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"
FORMAT = "golf_lightning data 1"

T = TypeVar("T")


def documents_name(split: Split) -> str:
    """File name of a split's document hashes: one line of SHA-256 per document, in order."""
    return f"documents_{split}.sha256"


@dataclass(kw_only=True, slots=True)
class ShardEntry:
    """One shard of a split.

    Args:
        name: file name inside the folder.
        tokens: tokens in the file.
        sha256: of the whole file, in hexadecimal.
    """

    name: str
    tokens: int
    sha256: str


@dataclass(kw_only=True, slots=True)
class SplitEntry:
    """One split, train or val.

    Args:
        documents: documents, which is the number of BOS tokens.
        tokens: tokens, BOS included.
        table_bytes: bytes of all tokens by the tokenizer's byte table.
        source_bytes: UTF-8 bytes of the documents' text; null where the text is not known (downloaded shards).
        shards: the files in reading order.
        documents_sha256: SHA-256 of the file of document hashes; null where the text is not known.
    """

    documents: int
    tokens: int
    table_bytes: int
    source_bytes: int | None = None
    shards: list[ShardEntry] = field(default_factory=list)
    documents_sha256: str | None = None


@dataclass(kw_only=True, slots=True)
class Manifest:
    """Description of a prepared data folder.

    Args:
        tokenizer: file name of the SentencePiece model inside the folder.
        tokenizer_sha256: of that file.
        vocab_size: pieces of the tokenizer; every token is below it.
        lossless: text comes back from its tokens unchanged, so table bytes equal source bytes.
        splits: what is in ``train`` and ``val``; a folder may hold only one of them.
        shared_documents: training documents that are also in validation; 0 unless ``as_published``.
        as_published: the shards were downloaded and are kept as they are; shared documents are counted, not removed.
        removed_from_train: training documents left out because validation has the same text.
        empty_documents: documents left out because they had no text.
        replaced_space_marks: literal U+2581 characters replaced by plain spaces; each made the text 2 bytes shorter.
        recipe: what the folder was made from; equal recipes give equal folders.
    """

    tokenizer: str = TOKENIZER_NAME
    tokenizer_sha256: str
    vocab_size: int
    lossless: bool
    splits: dict[Split, SplitEntry]
    shared_documents: int = 0
    as_published: bool = False
    removed_from_train: int = 0
    empty_documents: int = 0
    replaced_space_marks: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write ``manifest.json``, whole or not at all.

        Raises:
            GolfError: the file cannot be written.
        """
        write_json(Path(folder) / MANIFEST_NAME, {"format": FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read and check ``manifest.json``; the files that it lists are not looked at.

        Raises:
            GolfError: the folder or its manifest is missing, damaged or of another version.
        """
        path = Path(folder) / MANIFEST_NAME
        if not Path(folder).is_dir():
            raise GolfError(
                f"The data folder {folder} does not exist; make it with `python -m golf_lightning prepare`."
            )
        if not path.is_file():
            raise GolfError(
                f"{folder} has no {MANIFEST_NAME}, so it is not a complete dataset; "
                "make it with `python -m golf_lightning prepare`."
            )
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise GolfError(f"{path} was not written by this version of golf_lightning; prepare the data again.")
        manifest = _build(cls, values, path)
        for name, values in manifest.splits.items():
            entry = manifest.splits[name] = _build(SplitEntry, values, path)
            entry.shards = [_build(ShardEntry, shard, path) for shard in entry.shards]
        manifest._validate(path)
        return manifest

    def verify_files(
        self, folder: str | Path, splits: Sequence[Split] = SPLITS, *, unopened: Sequence[Split] = ()
    ) -> None:
        """Check that the listed files are there with the right sizes, and the tokenizer with the right hash.

        Quick enough for every start; ``prepare check`` also hashes and reads the shards.

        Args:
            folder: the data folder.
            splits: the splits that will be used; scoring an artifact must not need the training data.
            unopened: those of them whose files are only measured: training must not open validation.

        Raises:
            GolfError: a file is missing, damaged, or does not match the manifest, or a shard is not listed.
        """
        folder = Path(folder)
        for split in splits:
            if split not in self.splits:
                raise GolfError(f"{folder} has no {split} split; prepare it again with --{split}.")
            entry = self.splits[split]
            for shard in entry.shards:
                path = folder / shard.name
                measure = measured_tokens if split in unopened else read_header
                if (tokens := measure(path)) != shard.tokens:
                    raise GolfError(
                        f"{path} holds {tokens} tokens but {MANIFEST_NAME} says {shard.tokens}; prepare the data again."
                    )
            listed = {shard.name for shard in entry.shards}
            if extra := sorted({path.name for path in folder.glob(f"fineweb_{split}_[0-9]*.bin")} - listed):
                raise GolfError(
                    f"{folder / extra[0]} is not in {MANIFEST_NAME}; move it away or prepare the data again."
                )
        tokenizer = folder / self.tokenizer
        if not tokenizer.is_file():
            raise GolfError(f"The tokenizer {tokenizer} is missing; prepare the data again.")
        if sha256_of(tokenizer) != self.tokenizer_sha256:
            raise GolfError(f"{tokenizer} is not the tokenizer that made these shards; prepare the data again.")

    def fingerprint(self) -> str:
        """One SHA-256 over the tokenizer and every shard, in order: equal exactly for equal tokens."""
        return hashlib.sha256("\n".join(self._hashes()).encode()).hexdigest()

    def _hashes(self) -> Iterator[str]:
        yield self.tokenizer_sha256
        for split in SPLITS:
            yield split
            if split in self.splits:
                yield from (shard.sha256 for shard in self.splits[split].shards)

    def _validate(self, path: Path) -> None:
        faults = []
        if not self.splits or not set(self.splits) <= set(SPLITS):
            faults.append(f"its splits are {sorted(self.splits)}")
        for name, entry in self.splits.items():
            if entry.tokens != sum(shard.tokens for shard in entry.shards):
                faults.append(f"the shards of {name} do not add up to {entry.tokens} tokens")
            if not 0 < entry.documents <= entry.tokens:
                faults.append(f"{name} has {entry.documents} documents in {entry.tokens} tokens")
        if self.shared_documents and not self.as_published:
            faults.append(f"{self.shared_documents} documents are in both splits")
        if any(Path(name).name != name for name in self._names()):
            faults.append("a file name leads out of the folder")
        if faults:
            raise GolfError(f"{path} is not valid: {'; '.join(faults)}; prepare the data again.")

    def _names(self) -> Iterator[str]:
        yield self.tokenizer
        for entry in self.splits.values():
            yield from (shard.name for shard in entry.shards)


def _build(kind: type[T], values: Any, path: Path) -> T:
    """Make a dataclass of JSON values after checking the names and the types of its fields."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    required = {name for name, entry in fields.items() if _has_no_default(entry)}
    if not isinstance(values, dict) or not required <= set(values) <= set(fields):
        raise GolfError(f"{path} does not have the fields of a {kind.__name__}; prepare the data again.")
    for name, value in values.items():
        expected: Any = fields[name].type
        if typing.get_origin(expected) in (list, dict):
            expected = typing.get_origin(expected)
        if not isinstance(value, expected):
            raise GolfError(f"{name} in {path} is {value!r}, which is not of its type; prepare the data again.")
    return kind(**values)


def _has_no_default(entry: "dataclasses.Field[Any]") -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
