"""SentencePiece: text to token ids and back, and the training of a lossless tokenizer."""

import functools
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from golf_lightning.data.shards import Tokens
from golf_lightning.errors import GolfError
from golf_lightning.files import write_whole

BOS = 1
"""Id of the piece that opens every document."""

SPACE_MARK = "\u2581"
"""How SentencePiece writes a space inside its pieces. A literal one in a text could not be told from a space."""

LARGEST_VOCABULARY = 65_535

SMALLEST_VOCABULARY = 300  # 4 special pieces, 256 bytes and a few characters

# Texts on which a tokenizer that normalizes, trims or lacks byte fallback cannot hide it.
_PROBES = (
    " a",
    "a  b ",
    "\n\na\r\n\tb",
    "e\u0301\u00e9",
    "\uff21\ufb01\u2460\u00a0x",
    "\U0001f600\u4e2d",
    "\x00\ufeff",
)


def replace_space_marks(text: str) -> tuple[str, int]:
    """Replace literal U+2581 by a plain space, which is what SentencePiece would read it as.

    Returns:
        the text, and how many characters were replaced (each shortens the UTF-8 text by 2 bytes).
    """
    count = text.count(SPACE_MARK)
    return (text.replace(SPACE_MARK, " "), count) if count else (text, 0)


class Tokenizer:
    """A SentencePiece model read from a file.

    Args:
        path: the ``.model`` file.

    Raises:
        GolfError: the file is missing or not a SentencePiece model, its BOS piece is not id 1, or it has more pieces
            than a 16-bit token can name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            model = self.path.read_bytes()
        except OSError as error:
            raise GolfError(f"The tokenizer {path} cannot be read ({error.strerror}); check the path.") from None
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise GolfError(f"{path} is not a SentencePiece model; give the .model file of a tokenizer.") from None
        if not 0 < self.vocab_size <= LARGEST_VOCABULARY:
            raise GolfError(
                f"The tokenizer {path} has {self.vocab_size:,} pieces; shards hold 16-bit tokens, "
                f"use one with at most {LARGEST_VOCABULARY:,}."
            )
        if self.processor.bos_id() != BOS:
            raise GolfError(
                f"The BOS piece of the tokenizer {path} has id {self.processor.bos_id()} instead of {BOS}; "
                "train one with `python -m golf_lightning prepare tokenizer`."
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self.processor.vocab_size())

    @property
    def bos_id(self) -> int:
        """Id of the piece that opens every document."""
        return BOS

    def encode(self, text: str) -> Tokens:
        """Tokens of one document, ``[N]`` uint16, without BOS.

        A literal U+2581 is replaced by a plain space, with a warning.
        """
        text, replaced = replace_space_marks(text)
        if replaced:
            warnings.warn(f"Replaced {replaced} literal U+2581 by plain spaces.", stacklevel=2)
        return np.array(self.processor.encode(text), dtype=np.uint16)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of a document's tokens, given without BOS."""
        return str(self.processor.decode([int(token) for token in tokens]))

    @functools.cached_property
    def lossless(self) -> bool:
        """Whether text comes back from its tokens unchanged: no normalization, no trimming, byte fallback.

        Found by encoding a few texts, each of which a lossy setting changes; a leading space must also survive in the
        byte count, which needs the dummy prefix.
        """
        opens_with_mark = self.processor.id_to_piece(self.processor.encode("a"))[0].startswith(SPACE_MARK)
        return opens_with_mark and all(self.decode(self.encode(probe)) == probe for probe in _PROBES)


def train_tokenizer(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int = 1024,
    character_coverage: float = 0.9995,
    max_bytes: int = 200_000_000,
) -> Tokenizer:
    """Train a lossless BPE tokenizer, write it to ``path`` and read it back. The same texts give the same file.

    Identity normalization, all spaces kept, a dummy prefix, byte fallback for rare characters, and the lone space mark
    as a piece of its own. Ids 0 to 3 are pad, BOS, EOS and unknown, as in the contest's tokenizers.

    Args:
        texts: documents.
        path: the ``.model`` file to write.
        vocab_size: pieces, 300 to 65,535.
        character_coverage: share of the text's characters that become pieces; the rest is spelled in bytes.
        max_bytes: UTF-8 bytes of text to learn from; later documents are not read.

    Raises:
        GolfError: no text, or the vocabulary does not fit the text.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise GolfError(
            f"vocab_size is {vocab_size}; choose {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,} pieces "
            "(260 are the special and the byte pieces, more do not fit in 16-bit tokens)."
        )
    if not 0.9 <= character_coverage <= 1.0:
        raise GolfError(f"character_coverage is {character_coverage}; choose a share between 0.9 and 1.")
    documents = _first_bytes(texts, max_bytes)
    first = next(documents, None)
    if first is None:
        raise GolfError("There is no text to train a tokenizer on; give it documents that are not empty.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            required_chars=SPACE_MARK,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            max_sentence_length=2**30,  # its largest value; the default drops long documents
            shuffle_input_sentence=False,
            num_threads=1,  # the model file records the number, so it must not follow the machine
            pad_id=0,
            bos_id=BOS,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise GolfError(f"No tokenizer of {vocab_size} pieces can be trained on this text: {reason}") from None
    with write_whole(path) as file:
        file.write(model.getvalue())
    tokenizer = Tokenizer(path)
    mark = tokenizer.processor.piece_to_id(SPACE_MARK)
    assert not tokenizer.processor.is_unknown(mark), "the lone space mark is no piece"
    assert tokenizer.lossless, "the trained tokenizer is not lossless"
    return tokenizer


def _first_bytes(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    taken = replaced = 0
    for text in texts:
        if not text:
            continue
        if taken >= max_bytes:
            break
        clean, marks = replace_space_marks(text)
        replaced += marks
        taken += len(clean.encode("utf-8"))
        yield clean
    if replaced:
        warnings.warn(f"Replaced {replaced} literal U+2581 by plain spaces.", stacklevel=2)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
