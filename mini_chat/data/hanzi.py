"""Which Chinese characters and marks are common enough for a token of their own.

The characters are those of 通用规范汉字表 (2013), kept in `hanzi_table.txt` in the table's own order, so that
the first 3,500 are its level 1 (99% of running simplified text) and the first 6,500 its levels 1 and 2.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

LEVEL_SIZES = (3500, 6500, 8105)
"""How many characters levels 1, 1 to 2 and 1 to 3 of the table hold."""

GB_2312_SIZE = 6763
"""Characters of GB 2312-80, the standard that fonts and input methods of the 1990s were made for."""

CHARACTER_SETS = ("3500", "6500", "6763", "8105")
"""The sets that a tokenizer can be asked for, by size."""

# Without a token of their own these cost 2 or 3 tokens each, and one character in nine of Chinese prose is one of
# them. Chosen from what occurs in the Chinese text this was measured on, pairs completed by their other half.
SHARED_MARKS = "…—·“”‘’°×÷℃"
"""Marks that English prose uses too: English merges may join them to English, never two of them to one another."""

FULL_WIDTH_MARKS = (
    "，。、；：？！～（）《》〈〉「」『』【】〔〕〖〗［］｛｝￥％＋－＝＜＞／＼｜＆＠＃＊＿＂＇．＄＾｀・〇\u3000"
)
"""Marks of Chinese text alone (the last one is the ideographic space)."""

MARKS = SHARED_MARKS + FULL_WIDTH_MARKS

DOUBLE_MARKS = ("……", "——")
"""What Chinese writes as two characters and reads as one mark (GB/T 15834-2011), so each pair is one token."""

# https://www.unicode.org/Public/UCD/latest/ucd/Blocks.txt: the CJK ideograph blocks and their compatibility forms.
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


HAN_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _HAN_RANGES)
"""The ideographs as the inside of a regular expression's class."""


def is_han(character: str) -> bool:
    """Whether `character` is a CJK ideograph, common or not."""
    code = ord(character)
    return any(first <= code <= last for first, last in _HAN_RANGES)


@cache
def character_set(name: str) -> tuple[str, ...]:
    """The characters of one of `CHARACTER_SETS`: a part of 通用规范汉字表, or those of GB 2312 in its order."""
    if int(name) != GB_2312_SIZE:
        return hanzi_table(int(name))
    # Rows 16 to 55 are level 1, by sound, the last of them not full; rows 56 to 87 level 2, by radical.
    codes = (bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF))
    characters = tuple(filter(None, (code.decode("gb2312", "ignore") for code in codes)))
    assert len(characters) == GB_2312_SIZE
    return characters


@cache
def hanzi_table(count: int = LEVEL_SIZES[-1]) -> tuple[str, ...]:
    """The first `count` characters of 通用规范汉字表."""
    text = resources.files(__package__).joinpath("hanzi_table.txt").read_text(encoding="utf-8")
    characters = "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert len(characters) == len(set(characters)) == LEVEL_SIZES[-1], "hanzi_table.txt is damaged"
    return tuple(characters[:count])
