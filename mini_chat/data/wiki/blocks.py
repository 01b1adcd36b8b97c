"""Lines of wikitext, free of everything inline, put together to paragraphs, headings and lists.

Paragraphs, headings and lists are apart by a blank line. A heading is its text; it is left out where its section is
empty, or holds no prose: references, links, further reading. Items of lists are `- …` and `1. …`, two spaces deeper a
level. Lines of one paragraph become one line.
"""

from __future__ import annotations

import re

from mini_chat.data.wiki.tags import BREAK

APPARATUS = frozenset(
    {
        "references", "reference", "notes", "notes and references", "references and notes", "footnotes", "citations",
        "sources", "bibliography", "further reading", "external links", "external link", "see also", "works cited",
        "literature cited", "general references", "other websites", "related pages", "gallery", "参考文献",
        "參考文獻", "参考资料", "參考資料", "参考", "參考", "参考来源", "參考來源", "参考书目", "參考書目",
        "资料来源", "資料來源", "注释", "註釋", "注釋", "註解", "注解", "脚注", "腳註", "备注", "備註", "引用",
        "注脚", "註腳", "附注", "附註", "参考网址", "參考網址", "外部链接", "外部連結", "外部鏈接", "外部连结",
        "相关链接", "相關連結", "相关条目", "相關條目", "参见", "參見", "参看", "參看", "另见", "另見", "延伸阅读",
        "延伸閱讀", "扩展阅读", "擴展閱讀", "进阶阅读", "進階閱讀", "参考文献与注释", "外部参考", "图集", "圖集",
    }
)  # fmt: skip
"""Headings, in lower case, of sections that hold no prose."""

_LIST = "*#:;"
_ORPHANS = ",，、；。)）"  # no line begins with one, unless what stood before it is gone
_WORD = re.compile(r"\w|[\x7f]")
_WIDE = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff“”‘’…—]")


class Blocks:
    """Gathers the blocks of one page."""

    def __init__(self, keep_apparatus: bool) -> None:
        self.blocks: list[str] = []
        self._keep_apparatus = keep_apparatus
        self._headings: list[tuple[int, str]] = []  # those under which nothing came yet
        self._skipped = 0  # level of the section that is being left out; 0: none is
        self._pieces: list[str] = []  # of the block at hand: line ends or spaces, and lines
        self._joins = False  # whether the last line of the block is of a paragraph
        self._numbers: list[int] = []

    def read(self, text: str) -> str:
        """The blocks of the text, apart by blank lines."""
        for line in text.split("\n"):
            first = line[:1]
            if not first or (first.isspace() and line.isspace()):
                if self._pieces:
                    self._end_block()
                continue
            if first == "=" and self._is_heading(line):
                continue
            if self._skipped:
                continue
            if first in _LIST:
                self._add_item(line)
            elif first == "|" or line.startswith("{|"):
                continue  # of a table that is broken
            elif line.startswith("----"):
                self._end_block()
            elif _WORD.search(line):
                self._add_line(line.lstrip(_ORPHANS) if first in _ORPHANS else line)
        self._end_block()
        return "\n\n".join(self.blocks)

    def _is_heading(self, line: str) -> bool:
        line = line.rstrip()
        level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
        title = line[level:-level].strip() if level else ""
        if not title.strip("= "):
            return False
        self._end_block()
        if self._skipped and level > self._skipped:
            return True
        self._skipped = 0
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        if title.lower().strip(" :：") in APPARATUS and not self._keep_apparatus:
            self._skipped = level
        else:
            self._headings.append((level, title.replace(BREAK, " ")))
        return True

    def _add_line(self, line: str) -> None:
        joins = line[0] != " "
        line = line.strip(" \t").lstrip(BREAK)
        if joins and self._joins:
            before = self._pieces[-1][-1]
            if before != BREAK:
                self._pieces.append("" if _WIDE.match(before) and _WIDE.match(line) else " ")
            self._pieces.append(line)
        else:
            self._pieces += ["\n", line]
        self._joins = joins
        self._numbers.clear()

    def _add_item(self, line: str) -> None:
        text = line.lstrip(_LIST)
        signs = line[: len(line) - len(text)]
        text = text.strip()
        if not _WORD.search(text):
            return
        depth = min(signs.count("*") + signs.count("#"), 8)
        if not depth or signs[-1] in ":;":
            self._pieces += ["\n", "  " * depth + text]
        else:
            del self._numbers[depth:]
            self._numbers += [0] * (depth - len(self._numbers))
            self._numbers[-1] = self._numbers[-1] + 1 if signs[-1] == "#" else 0
            sign = f"{self._numbers[-1]}." if self._numbers[-1] else "-"
            self._pieces += ["\n", "  " * (depth - 1) + f"{sign} {text}"]
        self._joins = False

    def _end_block(self) -> None:
        if not self._pieces:
            return
        self.blocks += [title for _, title in self._headings]
        self._headings.clear()
        self.blocks.append("".join(self._pieces)[1:].strip(BREAK).replace(BREAK, "\n"))
        self._pieces.clear()
        self._joins = False
        self._numbers.clear()
