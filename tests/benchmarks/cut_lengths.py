"""A data folder whose training text is cut and joined to the contest's document lengths, to time `fit` on.

    python tests/benchmarks/cut_lengths.py data/fineweb data/cut

Lengths are log-normal (median 475 tokens, sigma 1.03, at most 30,000); the tokenizer and the validation split stay.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from ttt_speed import contest_lengths, cut_to

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.manifest import Manifest, ShardEntry, SplitEntry, documents_name
from golf_lightning.data.shards import find_shards, map_shard, shard_name, write_shard
from golf_lightning.data.tokenizer import Tokenizer
from golf_lightning.files import sha256_of


def cut_folder(source: Path, target: Path, documents: int, seed: int = 1) -> SplitEntry:
    """Write the folder.

    Args:
        source: a prepared data folder.
        target: the folder to make; it must not exist.
        documents: how many to cut; the text is used over where it does not suffice.
        seed: of the lengths.

    Returns:
        The new training split.
    """
    old = find_shards(source, "train")
    tokens = cut_to(contest_lengths(documents, seed), np.concatenate([np.asarray(map_shard(path)) for path in old]))
    left_out = shutil.ignore_patterns(documents_name("train"), *(path.name for path in old))
    shutil.copytree(source, target, ignore=left_out)
    shard = target / shard_name("train", 0)
    write_shard(shard, tokens)
    manifest = Manifest.load(source)
    entry = manifest.splits["train"] = SplitEntry(
        documents=documents,
        tokens=len(tokens),
        table_bytes=ByteTable.from_tokenizer(Tokenizer(source / manifest.tokenizer)).total(tokens),
        shards=[ShardEntry(name=shard.name, tokens=len(tokens), sha256=sha256_of(shard))],
    )
    manifest.recipe = {"kind": "cut to the contest's lengths", "documents": documents, "seed": seed}
    manifest.save(target)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a prepared data folder")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--documents", type=int, default=22_000, help="17.6 million tokens")
    parser.add_argument("--seed", type=int, default=1, help="of the lengths")
    args = parser.parse_args()
    entry = cut_folder(args.source, args.target, args.documents, args.seed)
    print(f"{args.target}: {entry.documents:,} training documents, {entry.tokens:,} tokens")


if __name__ == "__main__":
    main()
