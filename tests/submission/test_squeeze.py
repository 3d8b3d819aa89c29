import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from golf_lightning.submission import squeeze

SOURCE = "".join(f"def name_{n}(self, x):\n\treturn self.{'abc'[n % 3]} + {n}\n" for n in range(80)).encode()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300) | st.text("abc \n=()", max_size=300).map(str.encode))
@example(b"")
@example(b"\0")
@example(b"\xff" * 300)
@example(bytes(range(256)))
def test_packing_and_unpacking_gives_the_text(text: bytes) -> None:
    assert squeeze.unpack_text(squeeze.pack(text)) == text


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.text("abc \n=()[]{},", max_size=200).map(str.encode))
def test_a_primer_changes_nothing_but_the_size(primer: bytes, text: bytes) -> None:
    assert squeeze.unpack_text(squeeze.pack(text, primer), primer) == text


def test_what_a_primer_holds_costs_little() -> None:
    assert len(squeeze.pack(SOURCE[:800], SOURCE)) < 0.5 * len(squeeze.pack(SOURCE[:800]))


def test_another_primer_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged"):
        squeeze.unpack_text(squeeze.pack(SOURCE, b"def f(x):return x"), b"def f(y):return y")


@given(st.binary(max_size=300))
def test_every_byte_has_a_path_and_frequent_ones_a_short_one(primer: bytes) -> None:
    paths = squeeze.byte_paths(primer)
    assert sum(2.0 ** -len(path) for path in paths) == 1
    assert len({tuple(path) for path in paths}) == 256
    assert sum(len(paths[byte]) for byte in primer) <= 9 * len(primer)


def test_noise_gives_the_text_and_grows_little() -> None:
    text = random.Random(1).randbytes(3000)
    packed = squeeze.pack(text)
    assert squeeze.unpack_text(packed) == text
    assert len(packed) < 1.1 * len(text)


def test_source_shrinks_to_a_tenth() -> None:
    packed = squeeze.pack(SOURCE)
    assert squeeze.unpack_text(packed) == SOURCE
    assert len(packed) < len(SOURCE) // 10


def test_the_format_stays() -> None:
    # Programs that were written must stay readable by the decoder beside them on any machine.
    assert squeeze.code(b"the cat and the cat", 19, b"the dog", False).hex() == "a63ef6773f9bb37f475953"


def test_tables_are_inverse_and_rise() -> None:
    squash = squeeze.squash_table()
    stretch = squeeze.stretch_table(squash)
    assert squash == sorted(squash) and stretch == sorted(stretch)
    assert squash[squeeze.MOST] == 32768
    assert all(abs(stretch[squash[odds + squeeze.MOST] >> 4] - odds) <= 2 for odds in range(-1000, 1001))


def test_no_byte_needs_an_escape() -> None:
    packed = squeeze.pack(random.Random(2).randbytes(3000))
    assert not set(packed) & set(squeeze.ABSENT)


@pytest.mark.parametrize("place", [0, 3, 4, 35, 36, 40])
def test_a_damaged_payload_is_refused(place: int) -> None:
    packed = bytearray(squeeze.pack(b"x = 1\n" * 40))
    packed[place] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        squeeze.unpack_text(bytes(packed))
