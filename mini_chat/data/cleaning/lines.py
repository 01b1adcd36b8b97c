"""Lines that belong to no text: those of a page's frame, and those that come again and again.

Code and tables repeat lines for good reason: what stands in a fence, is indented, or is a table's row is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterator

FRAME_CHARACTERS = 100
"""A longer line is prose, whatever it mentions."""
REPEATED_CHARACTERS = 10
"""Shorter lines may come again: list items, headings, closing brackets."""
REPEATS = 3
"""Occurrences within a document from which on a line is kept once only."""

# The line rules of C4 (arXiv:1910.10683, section 2.2: Javascript warnings, policy notices), on short lines and as
# whole phrases, since our users' text may be about programs; and their Chinese counterparts, among them the "read
# more" lines of MAP-CC (arXiv:2404.04167, and the filter published with it).
_HINTS = ("javascript", "cookie", "policy", "terms of", "all rights", "所有", "转载", "复制", "icp", "公网安备")
_NOTICE = re.compile(
    r"(?:enable|requires?|turn on|activate|without) javascript|javascript (?:is|must be|has been) (?:dis|en)abled"
    r"|(?:uses?|accept|allow) (?:all |our )?cookies|cookie policy|privacy policy|terms of (?:use|service)"
    r"|all rights reserved|版权所有|著作权所有|未经(?:书面)?(?:授权|许可|允许).{0,12}(?:转载|复制)"
    r"|[京沪粤浙苏闽川鲁]icp[备证]|公网安备"
)
_BUTTONS = frozenset(
    """read more, see more, show more, view more, load more, click here, share this, tweet this, previous article,
    next article, previous post, next post, previous page, next page, advertisement, advertisements, sign in, sign up,
    log in, back to top, 阅读全文, 查看全文, 展开全文, 查看更多, 阅读更多, 点击查看, 点击查看更多,
    展开, 更多, 收起, 返回顶部, 广告,
    上一篇, 下一篇, 上一页, 下一页, 相关阅读, 相关推荐, 延伸阅读, 分享到, 分享至""".replace("\n   ", "").split(", ")
)
_CREDITS = (
    "责任编辑：",
    "责任编辑:",
    "责编：",
    "责编:",
    "上一篇：",
    "上一篇:",
    "下一篇：",
    "下一篇:",
    "分享到：",
    "分享到:",
)
_BUTTON_CHARACTERS, _CREDIT_CHARACTERS = 24, 40
_TRIM = " \t.…>»→:：[]【】()（）|-"
_FENCE = ("```", "~~~")


def remove_frame_lines(text: str) -> str:
    """The text without the short lines of a web page's frame: policies, cookies, sharing, "read more"."""
    low = text.lower()
    has_notice = any(hint in low for hint in _HINTS)
    lines = text.split("\n")
    if not has_notice and len(lines) == 1 and len(text) > _CREDIT_CHARACTERS:
        return text
    longest = FRAME_CHARACTERS if has_notice else _CREDIT_CHARACTERS
    kept = [line for line in lines if len(line) > longest or not line or not _is_frame(line, has_notice)]
    return text if len(kept) == len(lines) else "\n".join(kept)


def _is_frame(line: str, has_notice: bool) -> bool:
    if len(line) <= _BUTTON_CHARACTERS and line.strip(_TRIM).lower() in _BUTTONS:
        return True
    if len(line) <= _CREDIT_CHARACTERS and line.startswith(_CREDITS):
        return True
    return has_notice and _NOTICE.search(line.lower()) is not None


def remove_repeated_lines(text: str, everywhere: Container[int] = frozenset(), within: bool = True) -> str:
    """The text without the second and later copies of a line that occurs three times or more.

    Args:
        everywhere: keys (`line_keys`) of lines that are repeated across documents; none of their copies is kept.
        within: whether copies within the document are looked for.
    """
    if "\n" not in text:
        return text
    lines = text.split("\n")
    prose = dict(prose_lines(lines))
    counts = Counter(prose.values())
    within = within and max(counts.values(), default=0) >= REPEATS
    if not everywhere and not within:
        return text
    seen: set[str] = set()
    kept = []
    for number, line in enumerate(lines):
        plain = prose.get(number)
        if plain is not None:
            if everywhere and line_key(plain) in everywhere:
                continue
            if within and counts[plain] >= REPEATS and plain in seen:
                continue
            seen.add(plain)
        kept.append(line)
    return text if len(kept) == len(lines) else "\n".join(kept)


def line_keys(text: str) -> set[int]:
    """64-bit keys of the lines that would count as boilerplate if other documents had them too.

    A text of a single line has none: that is a document, and its copies are duplicates.
    """
    lines = text.split("\n")
    return {line_key(line) for _, line in prose_lines(lines)} if len(lines) > 1 else set()


def line_key(line: str) -> int:
    """A key of a line, the same in every process."""
    return int.from_bytes(hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prose_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are long enough, and neither code nor a table's rows."""
    fenced = False
    for number, line in enumerate(lines):
        if line.lstrip()[:3] in _FENCE:
            fenced = not fenced
        elif not fenced and len(line) >= REPEATED_CHARACTERS and line[0] not in " \t|":
            yield number, line.rstrip()
