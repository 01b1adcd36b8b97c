"""Bytes of files that users bring, compressed or not, line by line.

Memory is bounded by `max_line_bytes` whatever the files hold: a longer line is passed over in pieces.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mini_chat.data.tally import DAMAGED, Tally
from mini_chat.errors import UserError

MAX_LINE_BYTES = 10_000_000
SKIP_PIECE_BYTES = 1 << 16
# 128 bytes of zstd can hold 32 run-length blocks of 128 KB: 4 MB at a time, and still over 400 MB/s on real text.
ZSTD_PIECE_BYTES = 128
PROGRESS_EVERY_LINES = 256

# Suffix → how its content begins (the second of .zst, from its second byte on, is a frame to skip).
MAGIC = {".gz": (b"\x1f\x8b",), ".bz2": (b"BZh",), ".zst": (b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18")}
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class DamagedInput(Exception):  # noqa: N818 - counted, never leaves a reader
    """A compressed stream broke off or contradicts itself near `position`, a byte of the file on disk."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


def read_lines(path: Path, tally: Tally, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file as (number from 1, bytes without the line end); None for a line over `max_line_bytes`.

    A byte-order mark is taken off. Nothing is counted here but `tally.input_bytes`.

    Raises:
        DamagedInput: the compressed stream broke; the lines before were yielded, the one cut by it was not.
        UserError: the file is UTF-16, or is not compressed as its name says.
    """
    consumed = tally.input_bytes
    with open(path, "rb") as raw, decompressed(raw, path) as stream:
        number = 0
        while True:
            try:
                line: bytes | None = stream.readline(max_line_bytes + 2)
                if not line:
                    return
                if len(line) == max_line_bytes + 2 and not line.endswith(b"\n"):
                    line = None
                    while (piece := stream.readline(SKIP_PIECE_BYTES)) and not piece.endswith(b"\n"):
                        pass
            except (EOFError, zlib.error) as error:
                raise DamagedInput(raw.tell()) from error
            except OSError as error:  # gzip and bz2 raise it without a number when the data is at fault, not the disk
                if error.errno is None:
                    raise DamagedInput(raw.tell()) from error
                raise
            number += 1
            if number % PROGRESS_EVERY_LINES == 0:
                tally.input_bytes = consumed + raw.tell()
            if line is not None:
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    if line.startswith(UTF16_BOMS):
                        raise UserError(f"{path}: the text is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
                    line = line.removeprefix(UTF8_BOM)
                if len(line) > max_line_bytes:
                    line = None
            yield number, line


def read_start(path: Path, size_bytes: int = 1 << 16) -> bytes:
    """The first bytes of a file, decompressed, without a byte-order mark: enough to tell what it is.

    Raises:
        UserError: the file is not compressed as its name says.
    """
    start = b""
    with open(path, "rb") as raw, decompressed(raw, path) as stream:
        try:
            while len(start) < size_bytes and (piece := stream.read1(size_bytes - len(start))):  # type: ignore[attr-defined]
                start += piece
        except (EOFError, zlib.error, OSError) as error:  # damage is counted by whoever reads on, not here
            if isinstance(error, OSError) and error.errno is not None:
                raise
    return start.removeprefix(UTF8_BOM)


def read_whole(path: Path, max_bytes: int) -> bytes:
    """All of a file, decompressed, without a byte-order mark.

    Raises:
        UserError: more than `max_bytes`, a damaged stream.
    """
    with open(path, "rb") as raw, decompressed(raw, path) as stream:
        try:
            data = stream.read(max_bytes + 1)
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            place = f"{path}: compressed stream damaged near byte {raw.tell()}"
            raise UserError(f"{place}; fetch or compress the file again") from error
    if len(data) > max_bytes:
        raise UserError(f"{path}: over {max_bytes / 1e6:g} MB, too large to hold; write it as .jsonl")
    return data.removeprefix(UTF8_BOM)


@contextlib.contextmanager
def counting_damage(path: Path, tally: Tally) -> Iterator[None]:
    """Count what a damaged stream hides as one unit, read and dropped, and note the place.

    What was yielded before stays. Of a flipped byte, gzip learns only at the end of the member (its one checksum is
    there), so the lines before the place can be garbled where they still are text; the note says so.
    """
    try:
        yield
    except DamagedInput as damage:
        tally.read += 1
        tally.drop(DAMAGED, str(path), f"near byte {damage.position}")
        place = f"{path}: compressed stream damaged near byte {damage.position}"
        tally.note(f"{place}; what came before is kept (its last lines may be garbled), fetch the file again")


def decompressed(raw: BinaryIO, path: Path) -> BinaryIO:
    """A buffered stream of the file's content; its compression is told by the suffix and checked by the first bytes."""
    suffix = path.suffix.lower()
    if suffix not in MAGIC:
        return raw
    start = raw.read(4)
    raw.seek(0)
    if not any(start.startswith(magic) or start[1:] == magic for magic in MAGIC[suffix]):
        raise UserError(f"{path}: not {suffix} data, whatever its name says; take the suffix off or compress it again")
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    return io.BufferedReader(_ZstdStream(raw, path), 1 << 17)


class _ZstdStream(io.RawIOBase):
    """Zstandard frames, one after another; it tells a stream cut short, as the library's own reader does not."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"{path}: reading .zst needs zstandard; pip install 'mini-chat[corpus]'") from error
        self._raw = raw
        self._error = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._in_frame = False
        self._unused = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            piece = self._unused or self._raw.read(ZSTD_PIECE_BYTES)
            if not piece:
                if self._in_frame:
                    raise EOFError("truncated frame")
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(piece))
            except self._error as error:
                raise OSError(str(error)) from error
            self._in_frame, self._unused = not self._frame.eof, b""
            if self._frame.eof:
                self._unused, self._frame = self._frame.unused_data, self._new_frame()
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
