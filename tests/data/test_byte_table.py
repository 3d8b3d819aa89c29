import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from data_texts import HARD_TEXTS, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from golf_lightning.data.byte_table import ByteTable
from golf_lightning.data.tokenizer import SPACE_MARK, Tokenizer


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> ByteTable:
    return ByteTable.from_tokenizer(tokenizer)


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    return np.concatenate([np.array([tokenizer.bos_id, *tokenizer.encode(text)]) for text in texts])


def reference_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> list[int]:
    """The rule written out piece by piece."""
    pieces = tokenizer.processor
    counts = []
    for previous, token in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        silent = [pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i) for i in (previous, token)]
        piece = pieces.id_to_piece(token)
        if silent[1]:
            counts.append(0)
        elif pieces.is_byte(token):
            counts.append(1)
        elif piece[0] == SPACE_MARK:
            counts.append(len(piece[1:].encode()) + (0 if silent[0] else 1))
        else:
            counts.append(len(piece.encode()))
    return counts


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_count_their_own_bytes(tokenizer: Tokenizer, table: ByteTable, text: str) -> None:
    assert table.total(stream(tokenizer, [text])) == len(text.encode())


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(st.text(max_size=30).filter(lambda text: SPACE_MARK not in text), max_size=4).filter(bool))
def test_any_stream_counts_its_own_bytes(tokenizer: Tokenizer, texts: list[str]) -> None:
    table = ByteTable.from_tokenizer(tokenizer)
    assert table.total(stream(tokenizer, texts)) == sum(len(text.encode()) for text in texts)


def test_count_follows_the_rule(tokenizer: Tokenizer, table: ByteTable) -> None:
    tokens = stream(tokenizer, make_texts(20) + HARD_TEXTS)
    assert table.count(tokens[:-1], tokens[1:]).tolist() == reference_bytes(tokenizer, tokens)


def test_total_is_the_sum_of_counts_at_any_cut(tokenizer: Tokenizer, table: ByteTable) -> None:
    tokens = stream(tokenizer, make_texts(2) + HARD_TEXTS)
    whole = int(table.count(tokens[:-1], tokens[1:]).sum())
    totals = {
        table.total(tokens[:cut]) + table.total(tokens[cut:], int(tokens[cut - 1])) for cut in range(1, len(tokens))
    }
    assert totals == {whole}


def test_no_tokens_have_no_bytes(table: ByteTable) -> None:
    assert table.total(np.array([], dtype=np.uint16)) == 0


def test_control_unknown_and_byte_pieces(tokenizer: Tokenizer, table: ByteTable) -> None:
    assert table.control[:4].all()
    assert not table.control[4:].any()
    assert table.bytes_of[:4].tolist() == [0] * 4
    assert table.bytes_of[4:260].tolist() == [1] * 256


def test_a_space_inside_a_piece_is_one_byte(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(30)),
        model_writer=model,
        vocab_size=330,
        byte_fallback=True,
        user_defined_symbols=["▁▁▁▁", "came▁in"],
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    (tmp_path / "spaces.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer(tmp_path / "spaces.model")
    pieces = [tokenizer.processor.id_to_piece(index) for index in range(tokenizer.vocab_size)]
    table = ByteTable.from_tokenizer(tokenizer)
    assert table.bytes_of[pieces.index("▁▁▁▁")] == 3
    assert table.bytes_of[pieces.index("came▁in")] == 7


def test_as_tensors_are_the_arrays(table: ByteTable) -> None:
    tensors = table.as_tensors()
    assert {name: tensor.numpy().tolist() for name, tensor in tensors.items()} == {
        "bytes_of": table.bytes_of.tolist(),
        "leading_space": table.leading_space.tolist(),
        "control": table.control.tolist(),
    }


def test_the_contests_table_is_near_the_raw_text(contest_tokenizer: Tokenizer) -> None:
    texts = make_texts(200)
    table = ByteTable.from_tokenizer(contest_tokenizer)
    tokens = stream(contest_tokenizer, texts)
    raw = sum(len(text.encode()) for text in texts)
    counted = table.total(tokens)
    print(f"table {counted} bytes, raw text {raw} bytes, difference {(counted - raw) / raw:+.3%}")
    assert counted != raw
    assert counted == pytest.approx(raw, rel=0.03)


def test_the_contests_table_follows_the_rule(contest_tokenizer: Tokenizer) -> None:
    tokens = stream(contest_tokenizer, make_texts(20) + HARD_TEXTS)
    table = ByteTable.from_tokenizer(contest_tokenizer)
    assert table.count(tokens[:-1], tokens[1:]).tolist() == reference_bytes(contest_tokenizer, tokens)
