"""Cutting XML into whole pages, however long one that never ends is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mini_chat.data.streams import DamagedInput
from mini_chat.data.tally import DAMAGED, Tally

TOO_LONG = "over max_page_bytes"
CUT_OFF = "page cut off"

BEGIN, END = b"<page>", b"</page>"
_TITLE = re.compile(rb"<title>([^<]*)</title>")


class PageCutter:
    """Takes XML in pieces and gives whole pages; holds little more than `max_page_bytes` of them.

    Args:
        where: the file, for the account.
        tally: counts pages that are too long, cut off, or behind a break.
    """

    def __init__(self, where: str, max_page_bytes: int, tally: Tally) -> None:
        self._where, self._max, self._tally = where, max_page_bytes, tally
        self._pending = b""
        self._skipping = False  # the rest of a page that is too long
        self._is_broken = False

    def cut(self, piece: bytes) -> bytes:
        """All up to the end of the last page that ends in this piece."""
        searched = max(len(self._pending) - len(END), 0)
        data = self._pending + piece
        if self._skipping:
            end = data.find(END)
            if end < 0:
                self._pending = data[-len(END) :]
                return b""
            data, searched, self._skipping = data[end + len(END) :], 0, False
        cut = data.rfind(END, searched) + len(END)
        if cut < len(END):
            cut = 0
        self._pending = data[cut:]
        if len(self._pending) > self._max:
            begin = self._pending.find(BEGIN)
            if begin < 0:  # what stands before the pages, or behind them
                self._pending = self._pending[-len(BEGIN) :]
            elif len(self._pending) - begin > self._max:
                self._tally.read += 1
                self._tally.drop(TOO_LONG, f"{self._where}: {title_of(self._pending[begin:])}")
                self._pending, self._skipping = self._pending[-len(END) :], True
        return data[:cut]

    def end(self) -> None:
        """The file ends here: a page that has begun is lost."""
        begin = self._pending.find(BEGIN)
        if begin < 0 or self._skipping or self._is_broken:
            return
        lost = self._pending[begin:]
        self._tally.read += 1
        self._tally.drop(CUT_OFF, f"{self._where}: {title_of(lost)}")
        self._tally.note(
            f"{self._where}: ends in the middle of a page, whose {len(lost):,} bytes are lost; fetch it again"
        )

    @contextlib.contextmanager
    def counting_damage(self, end_position: int, offset: int = 0) -> Iterator[None]:
        """Count what a break in the compressed stream hides as one page, and note how many bytes it hides.

        Args:
            end_position: where the stream ends in the file, as far as it was to be read [bytes].
            offset: where positions are counted from [bytes].
        """
        try:
            yield
        except DamagedInput as damage:
            self._is_broken = True
            position = damage.position + offset
            self._tally.read += 1
            self._tally.drop(DAMAGED, self._where, f"near byte {position:,}")
            lost = f"{end_position - position:,} bytes from there on are lost"
            self._tally.note(f"{self._where}: compressed stream damaged near byte {position:,}; {lost}, fetch it again")


def title_of(page: bytes) -> str:
    """The title of a page, for the account."""
    found = _TITLE.search(page, 0, 2_000)
    return found[1].decode(errors="replace")[:80] if found else "a page without a title"
