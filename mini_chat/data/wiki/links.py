"""Links: `[[target|label]]` → label; files, categories and links to the same article in other languages go.

Nearly all links are plain. They are taken apart by one regular expression, whose groups are the text; the others, such
as a file whose caption holds links, are read by a scanner.
"""

from __future__ import annotations

import re

MAX_DEPTH = 20  # of links in links; what is deeper counts as text of the one around it

# No colon in the target, so it is in the main namespace; nothing nested in the label.
_PLAIN = re.compile(r"\[\[([^\[\]|:{}\n]++\|)?+((?(1)[^\[\]|{}]++|[^\[\]|:{}\n]++))\]\]")
_EXTERNAL = re.compile(r"\[(?:https?:|ftps?:|ircs?:|mailto:|news:|//)[^\[\]\s]*+(?:\s([^\[\]\n]*+))?\]", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}|simple)(?:-[a-z]{2,10}){0,2}")
_QUALIFIER = re.compile(r"\s*(?:\([^()]*\)|（[^（）]*）)\s*$")

UNSEEN = frozenset(
    {
        "file", "image", "media", "category", "文件", "档案", "檔案", "图像", "圖像", "图片", "圖片", "媒体", "媒體",
        "媒体文件", "分类", "分類",
    }
)  # fmt: skip
"""Namespaces whose links show no text, in lower case."""


def plain_links(text: str) -> str:
    """The text with its plain links replaced by what they show."""
    if "[[" not in text:
        return text
    parts = _PLAIN.split(text)  # text, target, label, text, …
    del parts[1::3]
    return "".join(parts)


def other_links(text: str) -> str:
    """The text with all links replaced by what they show; signs without a partner go. Linear in its length."""
    if "[[" not in text and "]]" not in text:
        return text
    top: list[str] = []
    stack = [top]
    too_deep = 0
    for opened, piece in enumerate(text.split("[[")):
        if opened:
            if len(stack) > MAX_DEPTH:
                too_deep += 1
            else:
                top = []
                stack.append(top)
        if "]]" not in piece:
            top.append(piece)
            continue
        for closed, part in enumerate(piece.split("]]")):
            if closed:
                if too_deep:
                    too_deep -= 1
                elif len(stack) > 1:
                    inside = "".join(stack.pop())
                    top = stack[-1]
                    top.append(_shown(inside))
            top.append(part)
    return "".join([piece for frame in stack for piece in frame])


def external_links(text: str) -> str:
    """`[https://example.org label]` → label; without a label nothing is left."""
    return _EXTERNAL.sub(lambda link: link[1] or "", text) if "[" in text else text


def _shown(inside: str) -> str:
    """What the link with this inside shows."""
    target, bar, label = inside.partition("|")
    prefix, colon, rest = target.partition(":")
    if colon:
        prefix = prefix.strip()
        if not prefix:  # [[:Category:Music]] is a link that is seen
            target = rest
        elif prefix.lower() in UNSEEN or _LANGUAGE.fullmatch(prefix):
            return ""
    if label.strip() or not bar:
        return label if bar else target
    return _QUALIFIER.sub("", target.rpartition(":")[2])
