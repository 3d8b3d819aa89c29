"""A context-mixing coder for source text, small enough to be read in front of what it unpacks.

The method is Mahoney's (PAQ6, 2005; lpaq1, 2007): every bit is predicted by several models, each by what followed its
context before, their log odds are mixed by an online linear model, and an arithmetic coder spends -log2 p bits. It is
arithmetic of integers alone, and tables from correctly rounded decimals, so that every machine decodes the same.

Probabilities that a bit is 1 have 16 bits; log odds are in units of 1/256; weights are in units of 1/65536.
"""

import hashlib
from decimal import Context, Decimal
from operator import mul

MOST = 2559
"""Largest log odds."""
MATCH = 5
"""Bytes that must agree before the match model follows an earlier place."""
DAMAGED = "this file is damaged: its SHA-256 or length is wrong; copy it again as a binary file."


def squash_table() -> list[int]:
    """Probability by log odds + MOST."""
    rounded = Context(28)
    return [
        min(int(65536 / (1 + rounded.exp(Decimal(-odds) / 256))), 65512) for odds in range(-MOST, MOST + 1)
    ]  # fmt: skip


def stretch_table(squash: list[int]) -> list[int]:
    """Log odds by the upper 12 bits of a probability."""
    table, odds = [], 0
    for p in range(8, 65536, 16):
        while odds < 2 * MOST and squash[odds] < p:
            odds += 1
        table.append(odds - MOST)
    return table


def bit_histories() -> tuple[list[list[int]], list[int]]:
    """The state after each bit by state, and each state's first guess of the probability.

    A state says how often 0 and 1 came, up to 40, and which came last; when one comes, a large count of the other
    shrinks. State 0 has seen nothing.
    """
    states, after = [(0, 0, 0)], []
    number = {states[0]: 0}
    for state in states:
        pair = []
        for bit in (0, 1):
            same, other = min(state[bit] + 1, 40), state[1 - bit]
            if other > 2:
                other = (other + 5) // 3 if other > 5 else max(other - 1, 2)
            new = (other, same, 1) if bit else (same, other, 0)
            if new not in number:
                number[new] = len(states)
                states.append(new)
            pair.append(number[new])
        after.append(pair)
    return after, [(2 * ones + 1) * 32768 // (zeros + ones + 1) for zeros, ones, _ in states]


def code(data: bytes, size: int, decode: bool) -> bytes:
    """Code ``size`` bytes of text, one way or the other: the model sees the same.

    Args:
        data: the text, or with ``decode`` what this function made of it.
        size: bytes of the text.
        decode: whether to give the text back.

    Raises:
        ValueError: the code ends long before ``size`` bytes.
    """
    squash = squash_table()
    stretch = stretch_table(squash)
    after, guesses = bit_histories()
    rates = [65536 * 2 // (2 * n + 3) for n in range(250)]
    count = 9
    # Of each context: the states of the bits that followed it, by the bits of the byte before them.
    tables: list[dict[int, dict[int, int]]] = [{} for _ in range(count)]
    # Of each kind of context: probability by state, and how often it was learned from.
    maps = [(guesses[:], [0] * len(guesses)) for _ in range(count)]
    # Weights by how many contexts are known and which bit it is, and by the length of the match.
    by_known = [[14000] * (count + 2) for _ in range(8 * count + 8)]
    by_match = [[14000] * (count + 2) for _ in range(33)]
    trust = [32768 + 500 * n for n in range(33)]
    # By the byte before and the bits: probability by mixed log odds, every half.
    refined: dict[int, list[int]] = {}
    seen: dict[int, int] = {}
    text, packed = bytearray(), bytearray()
    low, high, position = 0, 0xFFFFFFFF, 4
    value = int.from_bytes(data[:4], "big")
    last = indent = word = before = match = length = 0
    for place in range(size):
        keys = [last & (1 << 8 * order) - 1 for order in (1, 2, 3, 4, 5, 6)]
        keys += [word << 8 | last & 255, (word * 0x2F0B4C47 + before) & 0xFFFFFFFFFFFF, word << 9 | indent]
        nodes = [table.setdefault(key, {}) for table, key in zip(tables, keys, strict=True)]
        expected = text[match] | 256 if length else 0
        row = (last & 255) << 8
        bits = 1
        for shift in range(7, -1, -1):
            states = [node.get(bits, 0) for node in nodes]
            odds = [stretch[p[s] >> 4] for (p, _), s in zip(maps, states, strict=True)]
            known = 0
            if expected >> shift + 1 == bits:
                known = min(length, 32)
                guess = expected >> shift & 1
                q = stretch[trust[known] >> 4]
                odds += [q if guess else -q, 256]
            else:
                odds += [0, 256]
            first = by_known[(count - states.count(0)) * 8 + shift]
            second = by_match[known]
            one = min(max(sum(map(mul, first, odds)) >> 16, -MOST), MOST)
            two = min(max(sum(map(mul, second, odds)) >> 16, -MOST), MOST)
            mixed = (one + two + 2 * MOST) >> 1
            refine = refined.get(row | bits) or refined.setdefault(row | bits, [*squash[::128], 65512])
            cell, part = mixed >> 7, mixed & 127
            p = (squash[mixed] + (refine[cell] * (128 - part) + refine[cell + 1] * part >> 7)) >> 1
            middle = low + ((high - low) * min(max(p, 24), 65512) >> 16)
            bit = int(value <= middle) if decode else data[place] >> shift & 1
            if bit:
                high = middle
            else:
                low = middle + 1
            while (low ^ high) >> 24 == 0:
                packed.append(high >> 24)
                low = low << 8 & 0xFFFFFFFF
                high = high << 8 & 0xFFFFFFFF | 255
                if decode:
                    value = value << 8 & 0xFFFFFFFF | (data[position] if position < len(data) else 0)
                    position += 1
                    if position > len(data) + 4:
                        raise ValueError(DAMAGED)
            target = 65535 * bit
            for (p_of, n_of), state, node in zip(maps, states, nodes, strict=True):
                n = n_of[state]
                p_of[state] += (target - p_of[state]) * rates[n] >> 16
                if n < 249:
                    n_of[state] = n + 1
                node[bits] = after[state][bit]
            if known:
                trust[known] += (65535 * (guess == bit) - trust[known]) >> 6
            error = target - squash[one + MOST]
            first[:] = [w + (error * x + 32768 >> 16) for w, x in zip(first, odds, strict=True)]
            error = target - squash[two + MOST]
            second[:] = [w + (error * x + 32768 >> 16) for w, x in zip(second, odds, strict=True)]
            cell += part >> 6
            refine[cell] += (target - refine[cell]) >> 5
            bits += bits + bit
        byte = bits & 255
        indent = 0 if byte == 10 else min(indent + (byte == 9), 511)
        text.append(byte)
        last = (last << 8 | byte) & 0xFFFFFFFFFFFFFFFF
        if byte == 95 or chr(byte).isalnum():
            word = (word * 257 + byte) & 0xFFFFFFFFFFFF
        elif word:
            before, word = word, 0
        key = last & (1 << 8 * MATCH) - 1
        if length and text[match] == byte:
            match += 1
            length += 1
        else:
            match = seen.get(key, 0)
            length = 0
            while length < 32 and length < match and text[match - 1 - length] == text[place - length]:
                length += 1
        seen[key] = place + 1
    return bytes(text) if decode else bytes(packed) + high.to_bytes(4, "big")


def pack(text: bytes) -> bytes:
    """Length (4 bytes) and SHA-256 of ``text``, then its code."""
    return len(text).to_bytes(4, "big") + hashlib.sha256(text).digest() + code(text, len(text), False)


def unpack_text(payload: bytes) -> bytes:
    """The text of :func:`pack`.

    Raises:
        ValueError: the payload is damaged.
    """
    text = code(payload[36:], int.from_bytes(payload[:4], "big"), True)
    if hashlib.sha256(text).digest() != payload[4:36]:
        raise ValueError(DAMAGED)
    return text
