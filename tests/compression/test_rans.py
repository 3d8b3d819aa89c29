import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from test_trellis import levels

from golf_lightning.compression.coding import ArraySpec, RansCoder
from golf_lightning.compression.symbols import PREFIX
from golf_lightning.compression.trellis import low_bits
from golf_lightning.errors import GolfError

CODER = RansCoder()


def specs_of(arrays):
    return [ArraySpec(array.dtype.name, array.shape) for array in arrays]


def returned(arrays):
    return CODER.decode(CODER.encode(arrays), specs_of(arrays))


def normal_codes(rows: np.ndarray, columns: np.ndarray, seed: int = 0) -> np.ndarray:
    """Codes whose spread is that of the row times that of the column."""
    noise = np.random.default_rng(seed).normal(size=(1, len(rows), len(columns)))
    return (noise * rows[:, None] * columns).round().clip(-127, 127).astype(np.int8)


def bits_of_row_normals(codes: np.ndarray) -> float:
    """Code length under a normal of each row's own spread, which nobody pays for."""
    values = codes.reshape(-1, codes.shape[-1]).astype(float)
    spread = values.std(axis=1, keepdims=True)
    p = ndtr((values + 0.5) / spread) - ndtr((values - 0.5) / spread)
    return float(-np.log2(p).sum())


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((3, 40, 5), np.int8),
        np.full((1, 7, 7), -128, np.int8),
        np.array([[[127, -128, 0, 1]]], np.int8),
        np.full((1, 1, 1), 2, np.int8),
        np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16),
    ],
    ids=["zeros", "lowest", "extremes", "one", "all"],
)
def test_unusual_codes_come_back(codes):
    assert np.array_equal(returned([codes])[0], codes)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 20, 129, 300]), st.sampled_from([0.3, 3.0, 12.0]))
@settings(max_examples=20, deadline=None)
def test_levels_of_the_trellis_come_back(seed, rows, spread):
    codes = levels((2, rows, 3), spread=spread, seed=seed)
    assert np.array_equal(returned([codes])[0], codes)


def test_rows_and_columns_of_different_spread_cost_their_own_entropy():
    generator = np.random.default_rng(3)
    rows, columns = 2 ** generator.uniform(0, 3, 512), 2 ** generator.uniform(-1, 1, 384)
    codes = normal_codes(rows, columns)
    exact = 0.0
    for row in range(len(rows)):
        spread = rows[row] * columns
        value = codes[0, row].astype(float)
        exact -= np.log2(ndtr((value + 0.5) / spread) - ndtr((value - 0.5) / spread)).sum()
    coded = 8 * len(CODER.encode([codes]))
    assert coded < 0.98 * bits_of_row_normals(codes)
    assert coded < 1.015 * exact


def test_normal_rows_cost_half_a_percent_more_than_their_entropy():
    codes = normal_codes(np.full(2048, 2.4), np.ones(512))
    assert 8 * len(CODER.encode([codes])) < 1.005 * bits_of_row_normals(codes)


def test_the_trellis_costs_what_a_grid_of_twice_the_step_costs():
    codes = levels((1, 512, 96), spread=6.0)
    grid = normal_codes(np.full(512, 3.0), np.ones(96))
    assert len(CODER.encode([codes])) < 1.01 * len(CODER.encode([grid]))


def test_few_distinct_halves_cost_their_entropy():
    values = np.random.default_rng(0).integers(0, 16, 20_000).astype(np.float16)
    assert len(CODER.encode([values])) < 1.01 * 20_000 * 4 / 8 + 60


def small_codes() -> np.ndarray:
    return (np.arange(2 * 12 * 8) ** 2 * 7919 // 1000 % 23 - 11).astype(np.int8).reshape(2, 12, 8)


def small_levels() -> np.ndarray:
    """A path of the trellis made without floating point, over a restart."""
    drive = (np.arange(2 * 140 * 2) ** 2 // 5 % 7 % 2).astype(np.uint8).reshape(2, 140, 2)
    quarter = (np.arange(2 * 140 * 2) ** 3 // 11 % 3 - 1).reshape(2, 140, 2)
    return (4 * quarter + 2 * drive + low_bits(drive)).astype(np.int8)


ENCODED = {
    "codes": (
        "-2eapcK`qY00000AKU==2kK|?n^x5MG>cEtBosZJj$&fD*u+BkW%T=5-|K7MYmR3=bFMk=G2f28_wm2ay^nMAci<-mz!Q7{DFHta"
        "As1LFBltp#bo4^e9vx{|qfGtu#D<j=RSrf23yn3j0jbbU*18ZR2sVfyf;IpEfc{R2riB^o-!#(7&Q+O!bdoM9=JazMaYy^>E>9@r"
        "3Pm*>BNBC=xV0Yd=(6vcDEdMuW|!gy(D;Y9e|t&6jGPC4PGU(Z+;PpI73TBk906gS(g~Far_~uEgb_dn0000"
    ),
    "trellis": (
        ">H+`&WB~vG5C8xGAL#=4FAI1>eCj>mMHLC3HT1=WI}yn1)dbJBm!8%~KQft%BEpS3@|Uak^)JbUCFB6o>lR8>`AV}=B>yiE60oMT"
        "&Jq&}t+WGxAc1+n#fnI=X3eBoHK#)cfWQR@mt4kU?Jg`49G?61Zce(Jgn68-k<Ga<H4ln;wlIWU<viTmecoac>#D7E4UV35gqTy`"
        "(n4EsIpefoQJ5Kd<2LN{xlwtnIR`ae60x<*7+%bino3NTEo$AIS)<OCV64;d+*`e=&&-7DVfIl(hE|u<Q}3&cO2tBAu&~rn^Iemx"
        "dG3Y9jl;Kwb#J63vZkAAAEn2o#Kl%J=QIFF&^!NG&qJ18{xvY51zWITL6TNv0tHhr6)eF5P;fx-SJ*F5^nL?JWr1M`qJVL3_>BW("
        "f&$Zz1H5qnKL@}otY8<+RtUuRa)AC3+`qmE-t?6KZxZnQA^@ubA_zbu01a#dYNcgrc~+*CiEgE&S!GpNFq`+t?7P0hV0i8i!@9EH"
        "k>ff1ySO^FiX)Rhi5}3G0mZmAn6B<>D3HX_A<j!~i2FQk9@NX2{Y(Ok+bQEbJF4s=PRO8wUaA_2UzK`aFUAe`nFw6MTMTrh57Ju{"
        "re@zv5;Y_#EUK6Q"
    ),
    "halves": ("82|tP9RL6T000004-9|@00000JOBg$0ssO40RRC902><{8yXrK1GY?z>F&C~`MYL54Wu)#7;e@WRlJ-j5d"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_what_this_version_wrote_decodes_on_any_machine(kind):
    array = {"codes": small_codes, "trellis": small_levels, "halves": small_halves}[kind]()
    (back,) = CODER.decode(base64.b85decode(ENCODED[kind]), specs_of([array]))
    assert np.array_equal(back, array)


def small_halves() -> np.ndarray:
    return (np.arange(60) % 7).astype(np.float16)


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
    kind=st.sampled_from(["codes", "trellis", "listed", "plain"]),
)
@settings(max_examples=300, deadline=None)
def test_corrupted_data_decode_to_the_declared_arrays_or_an_error(flips, kind):
    arrays = {
        "codes": normal_codes(np.full(30, 3.0), np.ones(20)),
        "trellis": levels((1, 30, 8)),
        "listed": np.ones(50, np.float16),
        "plain": np.random.default_rng(0).normal(size=50).astype(np.float16),
    }
    data = bytearray(CODER.encode([arrays[kind]]))
    for where, mask in flips:
        data[where % len(data)] ^= mask
    try:
        (back,) = CODER.decode(bytes(data), specs_of([arrays[kind]]))
    except GolfError:
        return
    assert back.shape == arrays[kind].shape and back.dtype == arrays[kind].dtype


@pytest.mark.parametrize("cut", [0, 5, 11, 20])
def test_data_that_end_before_the_symbols_are_an_error(cut):
    with pytest.raises(GolfError):
        CODER.decode(CODER.encode([small_codes()])[:cut], specs_of([small_codes()]))


def test_a_bomb_in_the_side_information_is_refused():
    data = PREFIX.pack(2**31, 20, 0) + bytes(20)
    with pytest.raises(GolfError, match="do not fit"):
        CODER.decode(data, [ArraySpec("int8", (4, 4))])


def test_data_of_a_larger_array_are_refused():
    data = CODER.encode([normal_codes(np.full(30, 3.0), np.ones(20))])
    with pytest.raises(GolfError, match="damaged"):
        CODER.decode(data, [ArraySpec("int8", (1, 20, 20))])
