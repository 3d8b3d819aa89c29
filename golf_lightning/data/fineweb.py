"""The contest's own data: FineWeb token shards and their tokenizer, from the Hugging Face hub.

The contest's download script reads a dataset repository with the shards under ``datasets/datasets/<name>/`` and the
tokenizers under ``datasets/tokenizers/``; the 8192-piece export is published by kevclark. Both places are options.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.folder import existing_dataset, staged
from golf_lightning.data.hub import RemoteFile, Repository, fetch, list_repository
from golf_lightning.data.manifest import MANIFEST_NAME, TOKENIZER_NAME, Manifest, ShardEntry, SplitEntry
from golf_lightning.data.scan import SplitScan, scan_split
from golf_lightning.data.shards import SPLITS, Split, map_shard, read_header
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of

DOWNLOAD_NAME = ".download"

CONTEST_VAL_TABLE_BYTES = 151_080_891
CONTEST_VAL_SOURCE_BYTES = 151_080_645
"""The validation split of the 8192-piece export: bytes by its table, and bytes of the raw text, which shards do not
tell."""


@dataclass(kw_only=True, slots=True)
class FinewebConfig:
    """What to download.

    Args:
        repository: dataset repository, owner/name.
        revision: branch, tag or commit of the repository.
        shards_folder: folder of the shards inside the repository.
        tokenizer_file: SentencePiece model inside the repository.
        train_shards: training shards to fetch, the first ones by name; validation is always fetched whole.
        endpoint: address of the hub; null for the usual one.
        overwrite: replace the dataset that the folder holds.
    """

    repository: str = "kevclark/parameter-golf"
    revision: str = "main"
    shards_folder: str = "datasets/datasets/fineweb10B_sp8192"
    tokenizer_file: str = "datasets/tokenizers/fineweb_8192_bpe.model"
    train_shards: int = 80
    endpoint: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.train_shards < 0:
            raise GolfError(f"train_shards is {self.train_shards}; 0 fetches validation alone, more that many shards.")


def prepare_fineweb(folder: str | Path, config: FinewebConfig) -> Manifest:
    """Download the contest's shards and tokenizer and write their manifest.

    A download that was cut off continues with the first file that is not complete. Files that are already in the folder
    are kept if their hashes are right, so the same command with more ``train_shards`` fetches only the new ones.

    Raises:
        GolfError: no network, no such repository or file, a damaged download, or a folder that is taken.
    """
    folder = Path(folder)
    recipe: dict[str, Any] = {
        "kind": "fineweb",
        "repository": config.repository,
        "revision": config.revision,
        "shards_folder": config.shards_folder,
        "tokenizer_file": config.tokenizer_file,
        "train_shards": config.train_shards,
    }
    if not (config.overwrite or _is_smaller(folder, recipe)) and (manifest := existing_dataset(folder, recipe, False)):
        return manifest
    repository = Repository(config.repository, config.revision, config.endpoint)
    commit, remote = list_repository(repository)
    tokenizer, shards = choose_files(remote, config)
    downloads = folder / DOWNLOAD_NAME
    targets = {TOKENIZER_NAME: tokenizer} | {file.name: file for files in shards.values() for file in files}
    fetched = {name: fetch(repository, file, commit, folder / name, downloads) for name, file in targets.items()}
    with staged(folder) as stage:
        for name, path in fetched.items():
            _place(path, stage / name)
        manifest = describe(stage, {split: [file.name for file in files] for split, files in shards.items()}, recipe)
        manifest.save(stage)
    if downloads.exists():
        shutil.rmtree(downloads)
    return manifest


def choose_files(remote: list[RemoteFile], config: FinewebConfig) -> tuple[RemoteFile, dict[Split, list[RemoteFile]]]:
    """The tokenizer, all validation shards and the first training shards.

    Raises:
        GolfError: the repository lacks one of them.
    """
    files = {file.path: file for file in remote}
    if config.tokenizer_file not in files:
        raise GolfError(
            f"{config.repository} has no file {config.tokenizer_file}; set --tokenizer_file to its SentencePiece model."
        )
    shards: dict[Split, list[RemoteFile]] = {}
    for split in SPLITS:
        pattern = re.compile(rf"{re.escape(config.shards_folder)}/fineweb_{split}_\d+\.bin")
        shards[split] = [files[path] for path in sorted(filter(pattern.fullmatch, files))]
    if not shards["val"]:
        raise GolfError(f"{config.repository} has no validation shards in {config.shards_folder}; set --shards_folder.")
    if len(shards["train"]) < config.train_shards:
        raise GolfError(
            f"{config.repository} has {len(shards['train'])} training shards in {config.shards_folder}, "
            f"fewer than the {config.train_shards} asked for; lower --train_shards."
        )
    shards["train"] = shards["train"][: config.train_shards]
    return files[config.tokenizer_file], {split: files for split, files in shards.items() if files}


def describe(folder: Path, shards: dict[Split, list[str]], recipe: dict[str, Any]) -> Manifest:
    """Read shards that someone else made and write down what they hold.

    Raises:
        GolfError: a shard is damaged, or its tokens do not fit the tokenizer.
    """
    tokenizer = Tokenizer(folder / TOKENIZER_NAME)
    table = ByteTable.from_tokenizer(tokenizer)
    scans: dict[Split, SplitScan] = {}
    entries: dict[Split, SplitEntry] = {}
    for split, names in shards.items():
        scan = scans[split] = scan_split((map_shard(folder / name) for name in names), table)
        if scan.table_bytes is None:
            raise GolfError(
                f"A {split} token is {scan.largest_token} but the tokenizer has {table.vocab_size} pieces; "
                "set --tokenizer_file and --shards_folder to a pair that belongs together."
            )
        if not scan.starts_with_bos:
            raise GolfError(f"The {split} shards do not start with a BOS token; set --shards_folder to text with BOS.")
        known = split == "val" and scan.table_bytes == CONTEST_VAL_TABLE_BYTES
        entries[split] = SplitEntry(
            documents=scan.documents,
            tokens=scan.tokens,
            table_bytes=scan.table_bytes,
            source_bytes=CONTEST_VAL_SOURCE_BYTES if known else None,
            shards=[
                ShardEntry(name=name, tokens=read_header(folder / name), sha256=sha256_of(folder / name))
                for name in names
            ],
        )
    shared = scans["train"].document_hashes & scans["val"].document_hashes if len(scans) == 2 else set()
    return Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lossless=tokenizer.lossless,
        splits=entries,
        shared_documents=len(shared),
        as_published=True,
        recipe=recipe,
    )


def _is_smaller(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds fewer training shards of the same download."""
    if not (folder / MANIFEST_NAME).is_file():
        return False
    present = Manifest.load(folder).recipe
    same = {**present, "train_shards": None} == {**recipe, "train_shards": None}
    return same and present["train_shards"] < recipe["train_shards"]


def _place(path: Path, target: Path) -> None:
    # a second name for the same file, so that neither a download nor the old dataset is lost if a later step fails
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
