"""A Wikipedia dump in blocks of whole pages, in constant memory.

A dump is `.xml`, alone or compressed. bzip2 takes longer to read than the pages to clean, so where it can be shared out
it is: a *multistream* dump has 100 pages in a stream, and here only the places are sought where streams begin. Blocks
are a function of the file, so that a stopped extraction goes on at the same one.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mini_chat.config import DUMP_NAME
from mini_chat.data.inputs import expand
from mini_chat.data.streams import DamagedInput, decompressed
from mini_chat.data.tally import Tally, reasons
from mini_chat.data.wiki import bzip2
from mini_chat.data.wiki.cutter import BEGIN, END, PageCutter
from mini_chat.errors import UserError

BLOCK_BYTES = 1 << 20
"""About the size of a block of XML."""
STREAMS_BYTES = 1 << 18
"""About the size of a block of compressed streams."""
PROBE_BYTES = 8_000_000
"""A stream of a multistream dump is far smaller than this, compressed or not."""

_IS_DUMP = re.compile(rb"<mediawiki\b|<page>")
_DATABASE = re.compile(
    rb"<dbname>([a-z_]+?)(?:wiki[a-z]*|wiktionary)</dbname>|<mediawiki\b[^>]*\bxml:lang=\"([\w-]+)\""
)


class Block(NamedTuple):
    """Pages to work on."""

    path: str
    language: str
    """The dump's, such as `en`; `auto` where it does not say."""
    data: bytes
    """Whole pages in XML and what stands between them; or streams of bzip2 that hold such."""
    is_compressed: bool
    position: int
    """Where the data begins in the file, if it is compressed [bytes]."""


def dump_files(path: str, tally: Tally) -> list[Path]:
    """The dumps that a file's path, a folder or a pattern names, sorted; a single file may have any name.

    Raises:
        UserError: there is none.
    """
    candidates = expand(path)
    if len(candidates) != 1:
        for candidate in candidates:
            if not DUMP_NAME.search(candidate.name):
                tally.skip_file(candidate, "not the name of a dump")
        candidates = [candidate for candidate in candidates if DUMP_NAME.search(candidate.name)]
    files = []
    for candidate in candidates:
        if not candidate.is_file():
            tally.skip_file(candidate, "not a regular file")
        elif candidate.stat().st_size == 0:
            tally.skip_file(candidate, "empty file")
        else:
            files.append(candidate)
    if not files:
        why = f" ({reasons(tally.skipped_files)})" if tally.skipped_files else ""
        raise UserError(f"{path}: no dump there{why}; name a file such as zhwiki-latest-pages-articles.xml.bz2")
    return files


def read_blocks(path: Path, tally: Tally, max_page_bytes: int) -> Iterator[Block]:
    """The pages of a dump, in blocks; what is lost on the way is counted in `tally`.

    Raises:
        UserError: the file cannot be read, is no dump, or is not compressed as its name says.
    """
    consumed = tally.input_bytes
    tally.files += 1
    try:
        with open(path, "rb") as raw:
            yield from _blocks(path, raw, tally, consumed, max_page_bytes)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot read ({reason}); check the file and its permissions") from error
    tally.input_bytes = consumed + path.stat().st_size


def _blocks(path: Path, raw: BinaryIO, tally: Tally, consumed: int, max_page_bytes: int) -> Iterator[Block]:
    with decompressed(raw, path) as stream:  # it holds the file's first bytes to its name
        if path.suffix.lower() != ".bz2":
            yield from _from_pieces(path, raw, _read(stream, raw), tally, consumed, max_page_bytes)
            return
    raw.seek(0)
    language = _multistream_language(raw)
    position = 0
    raw.seek(0)
    if language is not None:
        pending = bytearray()
        while chunk := raw.read(STREAMS_BYTES):
            pending += chunk
            cut = bzip2.last_stream(pending)
            if cut > 0:
                tally.input_bytes = consumed + position
                yield Block(str(path), language, bytes(pending[:cut]), True, position)
                position += cut
                del pending[:cut]
            elif len(pending) > PROBE_BYTES:
                break  # one long stream, whatever those before it were: it is read here
        else:
            if pending:
                yield Block(str(path), language, bytes(pending), True, position)
            return
    raw.seek(position)
    yield from _from_pieces(path, raw, bzip2.decompressed(raw), tally, consumed, max_page_bytes, language)


def _from_pieces(
    path: Path,
    raw: BinaryIO,
    pieces: Iterable[bytes],
    tally: Tally,
    consumed: int,
    max_page_bytes: int,
    language: str | None = None,
) -> Iterator[Block]:
    """Blocks of what is decompressed here."""
    cutter = PageCutter(str(path), max_page_bytes, tally)
    with cutter.counting_damage(path.stat().st_size):
        for chunk in _chunks(pieces):
            if language is None:
                language = _language(path, chunk)
            tally.input_bytes = consumed + raw.tell()
            if pages := cutter.cut(chunk):
                yield Block(str(path), language, pages, False, 0)
    cutter.end()


def _read(stream: BinaryIO, raw: BinaryIO) -> Iterator[bytes]:
    """What a stream over the file `raw` holds.

    Raises:
        DamagedInput: the compressed stream broke.
    """
    while True:
        try:
            piece = stream.read1(BLOCK_BYTES)  # type: ignore[attr-defined] # what was read before a break is not lost
        except (EOFError, zlib.error) as error:
            raise DamagedInput(raw.tell()) from error
        except OSError as error:  # without a number where the data is at fault, not the disk
            if error.errno is None:
                raise DamagedInput(raw.tell()) from error
            raise
        if not piece:
            return
        yield piece


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces put together anew: blocks must not depend on how a decompressor gives them. Before a break, all."""
    pending: list[bytes] = []
    size = 0
    broken = None
    try:
        for piece in pieces:
            pending.append(piece)
            size += len(piece)
            if size >= BLOCK_BYTES:
                data = b"".join(pending)
                whole = size - size % BLOCK_BYTES
                for begin in range(0, whole, BLOCK_BYTES):
                    yield data[begin : begin + BLOCK_BYTES]
                pending, size = [data[whole:]], size - whole
    except DamagedInput as damage:
        broken = damage
    if size:
        yield b"".join(pending)
    if broken is not None:
        raise broken


def _language(path: Path, start: bytes) -> str:
    """The language that the dump's first bytes name.

    Raises:
        UserError: this is no dump.
    """
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the text is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if not _IS_DUMP.search(start):
        raise UserError(f"{path}: no Wikipedia dump, its first {len(start):,} bytes have no <mediawiki> and no <page>")
    named = _DATABASE.search(start)
    return (named[1] or named[2]).decode().replace("_", "-") if named else "auto"


def _multistream_language(raw: BinaryIO) -> str | None:
    """The language of a dump whose streams hold whole pages; None for any other file."""
    start = raw.read(PROBE_BYTES)
    places = [found.start() for found in bzip2.STREAM.finditer(start)]
    if len(places) < 3:
        return None
    head, pages = (_probe(start[places[number] : places[number + 1]]) for number in (0, 1))
    if not _IS_DUMP.search(head) or not (pages.startswith(BEGIN) and pages.endswith(END)):
        return None
    named = _DATABASE.search(head)
    return (named[1] or named[2]).decode().replace("_", "-") if named else "auto"


def _probe(stream: bytes) -> bytes:
    """What a stream holds, without space around it; nothing if it is damaged or long."""
    try:
        return bz2.BZ2Decompressor().decompress(stream, PROBE_BYTES).strip()
    except OSError:
        return b""
