"""Documents to a data folder: tokens in shards, and a manifest that proves what they are."""

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from golf_lightning.data.encode import available_workers, batches, encode_batch, ordered_map
from golf_lightning.data.folder import existing_dataset, staged
from golf_lightning.data.manifest import TOKENIZER_NAME, Manifest, documents_name
from golf_lightning.data.readers import Document, list_inputs, read_documents
from golf_lightning.data.shards import Split
from golf_lightning.data.split_writer import SplitWriter
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of, write_whole

Duplicates = Literal["remove", "refuse"]


@dataclass(kw_only=True, slots=True)
class PrepareConfig:
    """How documents become shards.

    Args:
        shard_tokens: tokens of one shard, at most; a single longer document gets a shard of its own.
        duplicates: what to do with training documents whose text is also in validation: ``remove`` or ``refuse``.
        workers: processes that encode; they change the time it takes and nothing else.
        overwrite: replace the dataset that the folder holds.
        progress: show a progress bar on the terminal.
    """

    shard_tokens: int = 100_000_000
    duplicates: Duplicates = "remove"
    workers: int = field(default_factory=available_workers)
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise GolfError(f"shard_tokens is {self.shard_tokens}; a shard holds at least 1 token.")
        if self.workers < 1:
            raise GolfError(f"workers is {self.workers}; at least 1 process has to do the work.")
        if self.duplicates not in ("remove", "refuse"):
            raise GolfError(f"duplicates is {self.duplicates!r}; choose remove or refuse.")


@dataclass(kw_only=True, slots=True)
class Source:
    """The documents of one split.

    Args:
        documents: in the order in which they are written.
        size: value of the last document's ``position``, for the progress bar.
    """

    documents: Iterable[Document]
    size: int


def prepare_text(
    folder: str | Path,
    *,
    tokenizer_path: str | Path,
    train: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    text_field: str = "text",
    config: PrepareConfig,
) -> Manifest:
    """Make a data folder out of files of text, or find that it is already there.

    Args:
        folder: the data folder to make.
        tokenizer_path: SentencePiece model; a copy goes into the folder.
        train: files and folders of training text.
        val: files and folders of validation text; their order is the official order of the documents.
        text_field: key or column of the text in JSON lines and Parquet.
        config: the rest.

    Raises:
        GolfError: bad inputs, a bad tokenizer, shared documents under ``refuse``, or a folder that is taken.
    """
    tokenizer = Tokenizer(tokenizer_path)
    given: dict[Split, Sequence[str | Path]] = {"train": train, "val": val}
    inputs = {split: list_inputs(paths) for split, paths in given.items() if paths}
    if not inputs:
        raise GolfError("No text was given; name files with --train, --val or both.")
    recipe = {
        "kind": "text",
        "tokenizer_sha256": tokenizer.sha256,
        "inputs": {split: [[path.name, sha256_of(path)] for path in paths] for split, paths in inputs.items()},
        "text_field": text_field,
        "shard_tokens": config.shard_tokens,
        "duplicates": config.duplicates,
    }
    if manifest := existing_dataset(folder, recipe, config.overwrite):
        return manifest
    sources = {split: _source(paths, text_field) for split, paths in inputs.items()}
    return write_dataset(folder, tokenizer=tokenizer, sources=sources, recipe=recipe, config=config)


def write_dataset(
    folder: str | Path,
    *,
    tokenizer: Tokenizer,
    sources: Mapping[Split, Source],
    recipe: dict[str, Any],
    config: PrepareConfig,
) -> Manifest:
    """Encode documents into a data folder, in place of the dataset that it may hold.

    Every document is BOS and its tokens; nothing ends it, and none runs across two shards. Documents without tokens are
    left out. Validation is written first, so that training documents with its text or its tokens can be left out.

    Args:
        folder: the data folder; nothing in it changes before everything is done.
        tokenizer: encodes; its file is copied.
        sources: documents of each split.
        recipe: kept in the manifest, to recognize the same dataset.
        config: the rest.

    Raises:
        GolfError: a split without documents, shared documents under ``refuse``, or the disk is full.
    """
    console = Console(stderr=True, quiet=not config.progress)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with (
        staged(folder) as stage,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar,
    ):
        with write_whole(stage / TOKENIZER_NAME) as file:
            file.write(tokenizer.path.read_bytes())
        manifest = Manifest(
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            lossless=tokenizer.lossless,
            splits={},
            recipe=recipe,
        )
        validation: set[bytes] = set()
        for split in ("val", "train"):
            if split in sources:
                task = bar.add_task(split, total=sources[split].size)
                _write_split(stage, split, sources[split], manifest, validation, config, bar, task)
        manifest.save(stage)
    if manifest.replaced_space_marks:
        warnings.warn(
            f"Replaced {manifest.replaced_space_marks} literal U+2581 by plain spaces in {folder}.", stacklevel=2
        )
    return manifest


def _write_split(
    stage: Path,
    split: Split,
    source: Source,
    manifest: Manifest,
    validation: set[bytes],
    config: PrepareConfig,
    bar: Progress,
    task: TaskID,
) -> None:
    encode = functools.partial(encode_batch, stage / TOKENIZER_NAME)
    with contextlib.ExitStack() as stack:
        hashes = stack.enter_context(write_whole(stage / documents_name(split), "w"))
        writer = SplitWriter(stage, split, config.shard_tokens, hashes)
        encoded = stack.enter_context(
            contextlib.closing(ordered_map(encode, batches(source.documents), config.workers))
        )
        for batch in encoded:
            for document in batch.documents:
                if len(document.tokens) == 1:
                    manifest.empty_documents += 1
                elif split == "train" and not validation.isdisjoint((document.text_hash, document.token_hash)):
                    manifest.removed_from_train += 1
                    if config.duplicates == "refuse":
                        raise GolfError(
                            f"The training document with SHA-256 {document.text_hash.hex()} is also in validation; "
                            "remove it from one of them or use --duplicates remove."
                        )
                else:
                    writer.add(document)
                    manifest.replaced_space_marks += document.replaced_marks
                    if split == "val":
                        validation |= {document.text_hash, document.token_hash}
            bar.update(task, completed=batch.position, description=f"{split} {writer.entry.tokens:,} tokens")
        entry = writer.finish()
    entry.documents_sha256 = sha256_of(stage / documents_name(split))
    manifest.splits[split] = entry
    manifest.lossless = manifest.lossless and entry.source_bytes == entry.table_bytes


def _source(paths: Sequence[Path], text_field: str) -> Source:
    return Source(documents=_documents(paths, text_field), size=sum(path.stat().st_size for path in paths))


def _documents(paths: Sequence[Path], text_field: str) -> Iterator[Document]:
    before = 0
    for path in paths:
        for text, position in read_documents(path, text_field):
            yield Document(text, before + position)
        before += path.stat().st_size
