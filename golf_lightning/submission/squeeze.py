"""A context-mixing coder for source text, small enough to be read in front of what it unpacks.

The method is Mahoney's (PAQ6, 2005; lpaq1, 2007): every bit is predicted by several models, each by what followed its
context before, their log odds are mixed by online linear models, and an arithmetic coder spends -log2 p bits. It is
arithmetic of integers alone, and tables from correctly rounded decimals, so that every machine decodes the same.

Both sides know a primer, the source of the decoder itself: the models learn from it first, and its letters give every
byte a path of decisions, short for frequent ones (Fano, 1949), which makes a quarter less of them than eight a byte.

Probabilities that a bit is 1 have 16 bits; log odds are in units of 1/256; weights are in units of 1/65536. The code is
made of digits to base 253 and written without the bytes NUL, CR and backslash, which a Python literal would escape.
"""

import hashlib
from decimal import Context, Decimal
from operator import mul

MOST = 2559
"""Largest log odds."""
MATCH = 5
"""Bytes that must agree before the match model follows an earlier place."""
RADIX = 253
TOP = RADIX**7
"""The coder's interval has eight digits."""
ENOUGH = 2000
"""Errors of probability below this are not worth learning weights from; they are half of all."""
ABSENT, PRESENT = b"\0\r\\", b"\xfd\xfe\xff"
"""Digits whose bytes Python would not leave alone, and the bytes that stand for them."""
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


def byte_paths(primer: bytes) -> list[list[int]]:
    """The decisions that lead to each byte: halve what is left, in order, by how often its bytes are in ``primer``."""
    paths: list[list[int]] = [[] for _ in range(256)]
    waiting = [range(256)]
    while waiting:
        span = waiting.pop()
        if len(span) < 2:
            continue
        weights = [8 * primer.count(byte) + 1 for byte in span]
        cut = min(range(1, len(span)), key=lambda n: abs(2 * sum(weights[:n]) - sum(weights)))
        for place, byte in enumerate(span):
            paths[byte].append(int(place >= cut))
        waiting += [span[:cut], span[cut:]]
    return paths


def code(data: bytes, size: int, primer: bytes, decode: bool) -> bytes:
    """Code ``size`` bytes of text, one way or the other: the model sees the same.

    Args:
        data: the text, or with ``decode`` what this function made of it.
        size: bytes of the text.
        primer: what both sides know.
        decode: whether to give the text back.

    Raises:
        ValueError: the code ends long before ``size`` bytes.
    """
    squash = squash_table()
    stretch = stretch_table(squash)
    after, guesses = bit_histories()
    rates = [65536 * 2 // (2 * n + 3) for n in range(250)]
    paths = byte_paths(primer)
    leaves = {int("1" + "".join(map(str, path)), 2): byte for byte, path in enumerate(paths)}
    count = 10
    # Of each context: the states of the bits that followed it, by the path so far.
    tables: list[dict[object, dict[int, int]]] = [{} for _ in range(count)]
    # Of each kind of context: probability and log odds by state, and how often it was learned from.
    maps = [(guesses[:], [stretch[p >> 4] for p in guesses], [0] * len(guesses)) for _ in range(count)]
    # Weights by how many contexts are known and how deep, by the length of the match, by path, by the byte before.
    mixers: list[dict[int, list[int]]] = [{}, {}, {}, {}]
    shares = [16384] * 4
    trust = [32768 + 500 * n for n in range(33)]
    # By the last two operators and the path: probability by mixed log odds, every half.
    refined: dict[int, dict[int, list[int]]] = {}
    seen: dict[int, int] = {}
    known = primer if decode else primer + data
    text, packed = bytearray(), bytearray()
    low, high, position, value = 0, RADIX * TOP - 1, 8, 0
    for digit in (data + bytes(8))[:8]:
        value = value * RADIX + digit
    last = indent = word = before = operators = opener = commas = bracket = match = length = 0
    open_brackets: list[tuple[int, int, int]] = []
    for place in range(len(primer) + size):
        previous = last & 255
        keys = (
            *(last & (1 << 8 * order) - 1 for order in (1, 2, 3, 7)),
            word << 8 | previous,
            word << 9 | indent,
            (operators, word),
            (operators & 0xFFFFFFFFFF, word),
            (operators & 0xFFFF, previous, bracket),
            (opener, word, commas),
        )
        nodes = [table.setdefault(key, {}) for table, key in zip(tables, keys, strict=True)]
        rows = refined.setdefault(operators & 0xFFFF, {})
        follow = paths[text[match]] if length else []
        bits, depth = 1, 0
        while bits not in leaves:
            states = [node.get(bits, 0) for node in nodes]
            odds = [o[s] for (_, o, _), s in zip(maps, states, strict=True)]
            trusted = 0
            if follow:
                trusted = min(length, 32)
                q = stretch[trust[trusted] >> 4]
                odds += [q if follow[depth] else -q, 256]
            else:
                odds += [0, 256]
            chosen = [
                mixer.get(key) or mixer.setdefault(key, [14000] * len(odds))
                for mixer, key in zip(
                    mixers, (states.count(0) << 3 | min(depth, 7), trusted, bits, previous), strict=True
                )
            ]
            votes = [min(max(sum(map(mul, weights, odds)) >> 16, -MOST), MOST) for weights in chosen]
            mixed = min(max((sum(map(mul, shares, votes)) >> 16) + MOST, 0), 2 * MOST)
            refine = rows.get(bits) or rows.setdefault(bits, [*squash[::128], 65512])
            cell, part = mixed >> 7, mixed & 127
            p = (squash[mixed] + (refine[cell] * (128 - part) + refine[cell + 1] * part >> 7)) >> 1
            middle = low + ((high - low) * min(max(p, 24), 65512) >> 16)
            bit = paths[known[place]][depth] if place < len(known) else int(value <= middle)
            if place >= len(primer):
                if bit:
                    high = middle
                else:
                    low = middle + 1
                while low // TOP == high // TOP:
                    digit = low // TOP * TOP
                    packed.append(low // TOP)
                    low = (low - digit) * RADIX
                    high = (high - digit) * RADIX + RADIX - 1
                    if decode:
                        value = (value - digit) * RADIX + (data[position] if position < len(data) else 0)
                        position += 1
                        if position > len(data) + 8:
                            raise ValueError(DAMAGED)
            target = 65535 * bit
            for (p_of, odds_of, n_of), state, node in zip(maps, states, nodes, strict=True):
                n = n_of[state]
                p_of[state] = p = p_of[state] + ((target - p_of[state]) * rates[n] >> 16)
                odds_of[state] = stretch[p >> 4]
                if n < 249:
                    n_of[state] = n + 1
                node[bits] = after[state][bit]
            if follow:
                right = follow[depth] == bit
                trust[trusted] += (65535 * right - trust[trusted]) >> 6
                if not right:
                    follow = []
            error = target - squash[mixed]
            shares = [share + (error * vote >> 18) for share, vote in zip(shares, votes, strict=True)]
            for weights, vote in zip(chosen, votes, strict=True):
                error = target - squash[vote + MOST]
                if abs(error) > ENOUGH:
                    weights[:] = [w + (error * x + 16384 >> 15) for w, x in zip(weights, odds, strict=True)]
            cell += part >> 6
            refine[cell] += (target - refine[cell]) >> 5
            bits += bits + bit
            depth += 1
        byte = leaves[bits]
        text.append(byte)
        last = (last << 8 | byte) & 0xFFFFFFFFFFFFFF
        indent = 0 if byte == 10 else min(indent + (byte == 9), 511)
        if byte == 95 or chr(byte).isalnum():
            if not word:
                operators = (operators << 8 | 1) & 0xFFFFFFFFFFFFFFFF
            word = (word * 257 + byte) & 0xFFFFFFFFFFFF
        else:
            operators = (operators << 8 | byte) & 0xFFFFFFFFFFFFFFFF
            if byte in b"([{":
                open_brackets.append((opener, commas, bracket))
                opener, commas, bracket = word or before * 3 + byte, 0, byte
            elif byte in b")]}" and open_brackets:
                opener, commas, bracket = open_brackets.pop()
            elif byte in b"\n\0":
                open_brackets = []
                opener = commas = bracket = 0
            commas += byte == 44
            if word:
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
    return bytes(text[len(primer) :] if decode else [*packed, low // TOP + 1])


def pack(text: bytes, primer: bytes = b"") -> bytes:
    """Length and SHA-256 of ``text``, in 37 digits, then its code.

    Args:
        text: what to pack.
        primer: known text of the same kind; unpacking needs the same.
    """
    head = int.from_bytes(len(text).to_bytes(4, "big") + hashlib.sha256(text).digest(), "big")
    digits = bytes(head // RADIX**n % RADIX for n in range(37))
    return (digits + code(text, len(text), primer, False)).translate(bytes.maketrans(ABSENT, PRESENT))


def unpack_text(payload: bytes, primer: bytes = b"") -> bytes:
    """The text of :func:`pack`.

    Raises:
        ValueError: the payload is damaged.
    """
    digits = payload.translate(bytes.maketrans(PRESENT, ABSENT))
    head = sum(digit * RADIX**n for n, digit in enumerate(digits[:37]))
    if head >> 288 or (head >> 256) > 1 << 24:
        raise ValueError(DAMAGED)
    text = code(digits[37:], head >> 256, primer, True)
    if int.from_bytes(hashlib.sha256(text).digest(), "big") != head & (1 << 256) - 1:
        raise ValueError(DAMAGED)
    return text
