"""Texts that the data tests share."""

PARAGRAPHS = [
    "The boats came in before noon, and the harbour was loud with gulls.",
    "In 1907 the bridge cost $12,500; the town paid half of it, and the county the rest.",
    "  An indented line, then  two spaces.\nA line break.\n\nAnd an empty line.",
    "She asked whether the café was open. — Not until nine, he said.",
    "Numbers: 3.14159, 2,718 and 1,024. Quotes: 'single', \"double\".",
]

HARD_TEXTS = [
    "",
    " ",
    "  ",
    " a",
    "a ",
    "\n",
    "\n\n  a\t\r\n",
    "<s></s>",
    "<0x41>",
    "\x00\x01",
    "\ufeff",
    "😀👩‍👩‍👧 中文",
    "ﬁ e\u0301",
]


def make_texts(count: int, start: int = 0) -> list[str]:
    """Documents that are all different, of one to seven paragraphs."""
    return [
        f"Document {index}.\n\n" + "\n\n".join(PARAGRAPHS[(index + step) % 5] for step in range(1 + index % 7))
        for index in range(start, start + count)
    ]
