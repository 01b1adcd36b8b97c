"""Brackets and punctuation that lost what they held: `（；）`, `( , )`, `（，x）`, `《》`, `（英语：）`, `、、`.

When a template, a reference or a link is taken out, the marks around it stay. Here they go: a pair with nothing in it
is removed, separators at the edges of a pair are, and so are labels before a colon behind which nothing is left.

One rule has a price: the call `main()` in running text becomes `main` (code in `<pre>`, `<source>` keeps its brackets).
"""

from __future__ import annotations

import re

# A class of brackets → (openers, closers). In the first one separators count as nothing: 「，」 may be about the comma.
ROUND = ("(（〔", ")）〕")
OTHERS = (("《", "》"), ("〈", "〉"), ("「", "」"), ("『", "』"), ("【", "】"), ("“", "”"))
_CLASS = {sign: number for number, pair in enumerate((ROUND, *OTHERS)) for signs in pair for sign in signs}
_OPENERS = frozenset("".join(pair[0] for pair in (ROUND, *OTHERS)))

SEPARATORS = ",;，；、"
_EDGE = SEPARATORS + " \t\u3000:：·/=&"  # what cannot be all there is in a pair
_BEGIN = SEPARATORS + " \t\u3000:：/"
_END = SEPARATORS + " \t\u3000"

_BRACKET = re.compile("([" + re.escape("".join(_CLASS)) + "])")
_SUSPECTS = (
    ("(", re.compile(rf"\((?:[{_BEGIN})）]|[^()]*+(?<=[{_END}])\))")),
    ("（", re.compile(rf"（(?:[{_BEGIN})）]|[^()（）]*+(?<=[{_END}])[)）])")),
    ("：", re.compile(r"：\s*[，；、,;)）]")),
    (":", re.compile(r":\s*[,;，；、)）]")),
    *((pair[0], re.compile(rf"{pair[0]}\s*{pair[1]}")) for pair in (("〔", "〕"), *OTHERS)),
)
_LABEL = re.compile(rf"(?:^|(?<=[{SEPARATORS}]))[^{SEPARATORS}:：()（）]{{0,30}}[:：]\s*(?=[{SEPARATORS}]|$)")
_LABEL_INSIDE = re.compile(_LABEL.pattern.replace("|$", ""))
_REPEATED = re.compile(rf"[{SEPARATORS}][\s{SEPARATORS}]*([{SEPARATORS}])")
_SPACE = re.compile(r" (?=[ ]|[,;.]\s)")
_DOUBLE_ZH = re.compile(r"[，、；：][ \u3000]*(?=[，、；。])")
_DOUBLE_COMMA = re.compile(",,+")
_DOUBLE_STOP = re.compile(r"。(?<!。。)。(?!。)")
_SPACE_BEFORE_ZH = re.compile(r" +(?=[，。；：、）》」』])")


def repair(text: str) -> str:
    """The text without empty brackets and orphaned punctuation; linear in its length."""
    lines: dict[int, int] = {}  # where lines with something to mend begin, and end
    for sign, suspect in _SUSPECTS:
        if sign not in text:
            continue
        end = -1
        for found in suspect.finditer(text):
            if found.start() > end:
                end = text.find("\n", found.start())
                end = len(text) if end < 0 else end
                lines[text.rfind("\n", 0, found.start()) + 1] = end
    if lines:
        pieces, position = [], 0
        for begin, end in sorted(lines.items()):
            pieces += [text[position:begin], _repair_line(text[begin:end])]
            position = end
        pieces.append(text[position:])
        text = "".join(pieces)
    return _spacing(text)


def _spacing(text: str) -> str:
    """Spaces and separators that are left where something went."""
    text = _SPACE.sub("", text)
    text = _DOUBLE_COMMA.sub(",", text)
    if "，" in text or "、" in text:
        text = _DOUBLE_ZH.sub("", text)
        text = _SPACE_BEFORE_ZH.sub("", text)
    if "。" in text:
        text = _DOUBLE_STOP.sub("。", text)
    return text


def _repair_line(line: str) -> str:
    """A line without empty pairs."""
    pieces: list[str] = []
    openers: list[tuple[int, int]] = []  # (class, index in pieces) of every bracket that is open
    counts = [0] * (len(OTHERS) + 1)
    for piece in _BRACKET.split(line):
        kind = _CLASS.get(piece)
        if kind is None:
            pieces.append(piece)
        elif piece in _OPENERS:
            openers.append((kind, len(pieces)))
            counts[kind] += 1
            pieces.append(piece)
        elif not counts[kind]:
            pieces.append(piece)
        else:
            while openers[-1][0] != kind:  # these were never closed
                counts[openers.pop()[0]] -= 1
            counts[kind] -= 1
            _close(pieces, openers.pop()[1], piece, is_round=kind == 0)
    return "".join(pieces)


def _close(pieces: list[str], start: int, closer: str, is_round: bool) -> None:
    """Close the pair whose opener is `pieces[start]`: mend what it holds, or take it out if it holds nothing."""
    if is_round:
        _mend_inside(pieces, start)
    while len(pieces) > start + 1 and not pieces[-1].strip():
        pieces.pop()
    if len(pieces) > start + 1 and not (is_round and len(pieces) == start + 2 and not pieces[-1].strip(_EDGE)):
        pieces.append(closer)
        return
    del pieces[start:]
    if pieces and pieces[-1].endswith(" "):
        pieces[-1] = pieces[-1].rstrip(" ") + " "


def _mend_inside(pieces: list[str], start: int) -> None:
    """Take labels and separators without a neighbour out of what stands in a round pair."""
    for number in range(len(pieces) - 1, start, -1):
        piece = pieces[number]
        is_last = number == len(pieces) - 1
        if piece in _CLASS:  # what stands in an inner pair was mended when that was closed
            break
        if ":" in piece or "：" in piece:
            piece = (_LABEL if is_last else _LABEL_INSIDE).sub("", piece)
        piece = _REPEATED.sub(r"\1", piece)
        if is_last:
            piece = piece.rstrip(_END)
        if is_last and not piece:
            pieces.pop()
        else:
            pieces[number] = piece
    number = start + 1
    while number < len(pieces) and pieces[number] not in _CLASS:
        pieces[number] = pieces[number].lstrip(_BEGIN)
        if pieces[number]:
            break
        number += 1
