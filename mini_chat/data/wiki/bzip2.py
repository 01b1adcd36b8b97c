"""bzip2: everything that stands before a break, and where the streams of a file begin."""

from __future__ import annotations

import bz2
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from mini_chat.data.streams import DamagedInput

READ_BYTES = 1 << 16
# The decompressor gives a block (900 kB) when it has read all of it, and checks it then; what comes with an error is
# lost. So it is fed little at a time: only a block that ends in the same few bytes as the break goes with the break.
PIECE_BYTES = 128
MOST_BYTES = 4_000_000  # given at once: a block of nothing but one letter is 46 MB

STREAM = re.compile(rb"BZh[1-9]1AY&SY")
"""How a stream begins: its header and that of its first block. Inside of one it is as likely as any ten bytes."""


def decompressed(raw: BinaryIO) -> Iterator[bytes]:
    """The content of the streams from where `raw` stands.

    Raises:
        DamagedInput: a block is corrupt or the file ends in one; all before its position is whole.
    """
    decoder = bz2.BZ2Decompressor()
    whole = position = raw.tell()
    begun = False
    while chunk := raw.read(READ_BYTES):
        for begin in range(0, len(chunk), PIECE_BYTES):
            piece = chunk[begin : begin + PIECE_BYTES]
            position += len(piece)
            while True:
                begun = begun or bool(piece)
                try:
                    content = decoder.decompress(piece, MOST_BYTES)
                except OSError as error:
                    raise DamagedInput(whole) from error
                if content:
                    whole = position
                    yield content
                piece = b""
                if decoder.eof:
                    piece = decoder.unused_data
                    whole = position - len(piece)
                    decoder, begun = bz2.BZ2Decompressor(), False
                if not piece and decoder.needs_input:
                    break
    if begun:
        raise DamagedInput(whole)


def decompressed_bytes(data: bytes) -> Iterator[bytes]:
    """The content of streams in memory.

    Raises:
        DamagedInput: as `decompressed`.
    """
    return decompressed(io.BytesIO(data))


def last_stream(data: bytes | bytearray) -> int:
    """Where the last stream in these bytes begins; -1 if none does."""
    end = len(data)
    while (found := data.rfind(b"1AY&SY", 0, end)) >= 4:
        if STREAM.match(data, found - 4):
            return found - 4
        end = found
    return -1
