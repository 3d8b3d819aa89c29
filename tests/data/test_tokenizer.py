from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from data_texts import HARD_TEXTS, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from golf_lightning.data.tokenizer import SPACE_MARK, Tokenizer, replace_space_marks, train_tokenizer
from golf_lightning.errors import GolfError


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_round_trip_of_hard_texts(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=60).filter(lambda text: SPACE_MARK not in text))
def test_round_trip_of_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_gives_16_bit_tokens_without_bos(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("The boats came in.")
    assert tokens.dtype == np.uint16
    assert tokenizer.bos_id not in tokens


def test_the_lone_space_mark_is_a_piece(tokenizer: Tokenizer) -> None:
    assert tokenizer.processor.id_to_piece(tokenizer.processor.piece_to_id(SPACE_MARK)) == SPACE_MARK
    assert not tokenizer.processor.is_unknown(tokenizer.processor.piece_to_id(SPACE_MARK))


def test_special_pieces(tokenizer: Tokenizer) -> None:
    assert [tokenizer.processor.id_to_piece(index) for index in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.bos_id == 1
    assert tokenizer.vocab_size == 400


def test_a_literal_space_mark_becomes_a_space(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match="Replaced 2 literal U\\+2581"):
        tokens = tokenizer.encode("a\u2581b\u2581c")
    assert tokenizer.decode(tokens) == "a b c"


def test_replaced_marks_are_counted() -> None:
    assert replace_space_marks("\u2581a\u2581") == (" a ", 2)


def test_training_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(make_texts(60), tmp_path / "elsewhere.model", vocab_size=400)
    assert again.path.read_bytes() == tokenizer.path.read_bytes()


def test_training_stops_at_max_bytes(tmp_path: Path) -> None:
    texts = make_texts(60)
    taken = len(texts[0].encode()) + len(texts[1].encode())
    first = train_tokenizer(texts[:2], tmp_path / "a.model", vocab_size=310)
    limited = train_tokenizer(texts, tmp_path / "b.model", vocab_size=310, max_bytes=taken)
    assert first.sha256 == limited.sha256


def test_training_reads_long_documents(tmp_path: Path) -> None:
    long = "zyzzyva quixotic " * 2000
    tokenizer = train_tokenizer([long, *make_texts(20)], tmp_path / "a.model", vocab_size=400)
    assert len(tokenizer.encode("zyzzyva")) == 1


def test_trained_tokenizer_is_lossless(tokenizer: Tokenizer) -> None:
    assert tokenizer.lossless


def test_the_contests_tokenizer_is_not_lossless(contest_tokenizer: Tokenizer) -> None:
    assert not contest_tokenizer.lossless
    assert contest_tokenizer.vocab_size == 8192


@pytest.mark.parametrize(("vocab_size", "sentence"), [(100, "choose 300 to 65,535"), (70_000, "choose 300 to 65,535")])
def test_vocabulary_out_of_range(tmp_path: Path, vocab_size: int, sentence: str) -> None:
    with pytest.raises(GolfError, match=sentence):
        train_tokenizer(make_texts(3), tmp_path / "a.model", vocab_size=vocab_size)


def test_vocabulary_too_large_for_the_text(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="No tokenizer of 8000 pieces can be trained"):
        train_tokenizer(make_texts(3), tmp_path / "a.model", vocab_size=8000)
    assert not (tmp_path / "a.model").exists()


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="no text to train"):
        train_tokenizer(["", ""], tmp_path / "a.model")


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="cannot be read"):
        Tokenizer(tmp_path / "absent.model")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x00" * 100])
def test_foreign_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(content)
    with pytest.raises(GolfError, match="not a SentencePiece model"):
        Tokenizer(path)


def test_model_with_another_bos(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(9)),
        model_prefix=str(tmp_path / "other"),
        vocab_size=310,
        byte_fallback=True,
        bos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(GolfError, match="has id -1 instead of 1"):
        Tokenizer(tmp_path / "other.model")
