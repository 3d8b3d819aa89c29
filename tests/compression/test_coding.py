import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from golf_lightning.compression.coding import ArraySpec, BrotliCoder, RawCoder, coder_named
from golf_lightning.errors import GolfError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
SECTIONS = st.one_of(
    st.lists(hnp.arrays(np.int8, SHAPES), min_size=1, max_size=4),
    st.lists(hnp.arrays(np.float16, SHAPES), min_size=1, max_size=4),
)


def specs_of(arrays):
    return [ArraySpec(array.dtype.name, array.shape) for array in arrays]


@pytest.mark.parametrize("name", ["rans", "brotli", "raw"])
@given(arrays=SECTIONS)
def test_decoding_gives_the_same_bits(name, arrays):
    coder = coder_named(name)
    back = coder.decode(coder.encode(arrays), specs_of(arrays))
    assert [array.shape for array in back] == [array.shape for array in arrays]
    assert [array.dtype for array in back] == [array.dtype for array in arrays]
    assert [array.tobytes() for array in back] == [array.tobytes() for array in arrays]


@pytest.mark.parametrize("name", ["rans", "brotli", "raw"])
@given(data=st.binary(max_size=200), shape=SHAPES, dtype=st.sampled_from(["int8", "float16"]))
def test_any_bytes_decode_to_the_declared_arrays_or_an_error(name, data, shape, dtype):
    spec = ArraySpec(dtype, shape)
    try:
        (array,) = coder_named(name).decode(data, [spec])
    except GolfError:
        return
    assert array.nbytes == spec.nbytes


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=300)
def test_corrupted_brotli_decodes_to_the_declared_size_or_an_error(flips):
    array = np.random.default_rng(0).normal(0, 3, (8, 40)).round().astype(np.int8)
    data = bytearray(BrotliCoder().encode([array]))
    for where, mask in flips:
        data[where % len(data)] ^= mask
    try:
        (back,) = BrotliCoder().decode(bytes(data), specs_of([array]))
    except GolfError:
        return
    assert back.shape == array.shape


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_truncated_brotli_is_an_error(cut):
    array = np.arange(-100, 100, dtype=np.int8)
    with pytest.raises(GolfError, match="ends too early"):
        BrotliCoder().decode(BrotliCoder().encode([array])[:cut], specs_of([array]))


@pytest.mark.parametrize("declared", [(10,), (2 * 10**6,)], ids=["smaller", "larger"])
def test_a_declared_size_that_is_wrong_is_an_error(declared):
    data = BrotliCoder().encode([np.zeros(10**6, np.int8)])
    with pytest.raises(GolfError, match="declare"):
        BrotliCoder().decode(data, [ArraySpec("int8", declared)])


def test_a_bomb_stops_at_the_declared_size(monkeypatch):
    bomb = brotli.compress(bytes(50_000_000), quality=5)
    made = []

    class Counting:
        def __init__(self):
            self.inner = decompressor()

        def process(self, data, **limits):
            part = self.inner.process(data, **limits)
            made.append(len(part))
            return part

        def __getattr__(self, name):
            return getattr(self.inner, name)

    decompressor = brotli.Decompressor
    monkeypatch.setattr(brotli, "Decompressor", Counting)
    with pytest.raises(GolfError, match="more than the 1000 bytes"):
        BrotliCoder().decode(bomb, [ArraySpec("int8", (1000,))])
    assert sum(made) < 2**20


def test_sixteen_bit_values_are_shuffled_by_byte():
    values = np.random.default_rng(0).normal(0, 1, 20_000).astype(np.float16)
    plain = len(brotli.compress(RawCoder().encode([values]), quality=11, lgwin=24))
    assert len(BrotliCoder().encode([values])) < 0.97 * plain


def test_codes_of_a_normal_cost_little_more_than_their_entropy():
    codes = np.random.default_rng(0).normal(0, 2.5, (4, 64, 256)).round().clip(-31, 31).astype(np.int8)
    counts = np.bincount(codes.ravel().astype(int) + 31)
    shares = counts[counts > 0] / codes.size
    entropy = -(shares * np.log2(shares)).sum()
    bits = 8 * len(BrotliCoder().encode([codes])) / codes.size
    assert entropy < bits < 1.03 * entropy


def test_an_unknown_coder_is_one_clear_sentence():
    with pytest.raises(GolfError, match="Coder 'zip' is unknown; this version knows rans, brotli, raw"):
        coder_named("zip")
