"""Dumps are read whole, in bounded memory, up to the break if there is one."""

from __future__ import annotations

import bz2
import gzip
import itertools
import random
import re
import tracemalloc
from pathlib import Path

import pytest
import wiki_pages
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.config import DUMP_NAME, Source
from mini_chat.data.streams import DamagedInput
from mini_chat.data.tally import DAMAGED, INVALID_UTF8, SetAside, Tally
from mini_chat.data.wiki import bzip2
from mini_chat.data.wiki.cutter import CUT_OFF, TOO_LONG, PageCutter
from mini_chat.data.wiki.dump import Block, dump_files, read_blocks
from mini_chat.data.wiki.pages import NOT_XML, parse_page, split_pages
from mini_chat.errors import UserError

LIMIT = 1_000_000


def read(path: Path, limit: int = LIMIT) -> tuple[list[Block], Tally]:
    tally = Tally()
    return list(read_blocks(path, tally, limit)), tally


def titles(blocks: list[Block]) -> list[str]:
    """The titles of all pages in the blocks."""
    found = []
    for block in blocks:
        data = b"".join(bzip2.decompressed_bytes(block.data)) if block.is_compressed else block.data
        found += [parse_page(page).title for page in split_pages(data)]
    return found


EXPECTED = [f"Article {number}" for number in range(700)]


@pytest.fixture(scope="module")
def xml() -> bytes:
    """A dump of 1.2 MB."""
    return wiki_pages.dump(wiki_pages.pages(len(EXPECTED)))


@pytest.mark.parametrize(
    "name", ["a.xml", "a.xml.bz2", "a.xml.gz", "a.xml.zst", "a.xml-p1p700.bz2", "multi.xml.bz2", "pbzip2.xml.bz2"]
)
def test_every_form_of_dump_gives_every_page_in_order(name: str, xml: bytes, tmp_path: Path) -> None:
    data = {
        "a.xml": lambda: xml,
        "a.xml.gz": lambda: gzip.compress(xml),
        "a.xml.zst": lambda: zstandard.compress(xml),
        "multi.xml.bz2": lambda: wiki_pages.multistream(wiki_pages.pages(len(EXPECTED)), 100),
        # pbzip2 cuts anywhere: its streams hold no whole pages
        "pbzip2.xml.bz2": lambda: b"".join(bz2.compress(xml[at : at + 50_000]) for at in range(0, len(xml), 50_000)),
    }.get(name, lambda: bz2.compress(xml))()
    blocks, tally = read(wiki_pages.write(tmp_path / name, data))
    assert titles(blocks) == EXPECTED
    assert {block.language for block in blocks} == {"en"}
    assert {block.is_compressed for block in blocks} == {name == "multi.xml.bz2"}
    assert tally.input_bytes == len(data)
    assert not tally.notes


def test_blocks_do_not_depend_on_the_compression(xml: bytes, tmp_path: Path) -> None:
    plain, _ = read(wiki_pages.write(tmp_path / "a.xml", xml))
    packed, _ = read(wiki_pages.write(tmp_path / "b.xml.bz2", bz2.compress(xml)))
    assert [block.data for block in plain] == [block.data for block in packed]
    assert len(plain) > 1


def test_the_language_is_the_dumps_own(tmp_path: Path) -> None:
    for language in ("zh", "simple", "zh_yue"):
        data = wiki_pages.dump(wiki_pages.pages(1), language)
        blocks, _ = read(wiki_pages.write(tmp_path / f"{language}.xml", data))
        assert blocks[0].language == language.replace("_", "-")
    blocks, _ = read(wiki_pages.write(tmp_path / "bare.xml", "".join(wiki_pages.pages(1)).encode()))
    assert blocks[0].language == "auto"


# What is damaged.


@pytest.mark.parametrize("kept_share", [0.3, 0.6, 0.95])
def test_a_truncated_bz2_keeps_every_page_before_the_break(kept_share: float, tmp_path: Path) -> None:
    noise = random.Random(1)
    written = [
        wiki_pages.page(f"Article {n}", noise.randbytes(2_000).hex()) for n in range(700)
    ]  # 2.8 MB, 3 blocks and more
    whole = bz2.compress(wiki_pages.dump(written))
    data = whole[: int(len(whole) * kept_share)]
    blocks, tally = read(wiki_pages.write(tmp_path / "a.xml.bz2", data))
    readable = bz2.BZ2Decompressor().decompress(data)
    assert titles(blocks) == EXPECTED[: readable.count(b"</page>")]
    assert tally.dropped == {DAMAGED: 1} and tally.read == 1
    lost = re.search(r"near byte ([\d,]+); ([\d,]+) bytes", tally.notes[0])
    assert lost is not None
    near, gone = (int(number.replace(",", "")) for number in lost.groups())
    assert near + gone == len(data)


def test_a_corrupt_bz2_keeps_every_page_before_the_bad_block_and_nothing_garbled(tmp_path: Path) -> None:
    noise = random.Random(2)
    written = [wiki_pages.page(f"Article {n}", noise.randbytes(2_000).hex()) for n in range(700)]
    xml = wiki_pages.dump(written)
    data = bytearray(bz2.compress(xml))
    for position in (len(data) // 2, len(data) // 2 + 1):
        data[position] ^= 0xFF
    blocks, tally = read(wiki_pages.write(tmp_path / "a.xml.bz2", bytes(data)))
    assert tally.dropped == {DAMAGED: 1}
    kept = b"".join(block.data for block in blocks)
    assert xml.startswith(kept)
    assert len(kept) > len(xml) / 2 - 1_900_000  # the bad block, of 900 kB, and a page


def test_a_damaged_stream_of_a_multistream_dump_costs_itself_only(tmp_path: Path) -> None:
    data = bytearray(wiki_pages.multistream(wiki_pages.pages(700), 100))
    places = [found.start() for found in bzip2.STREAM.finditer(data)]
    data[places[3] + 200] ^= 0xFF
    blocks, _ = read(wiki_pages.write(tmp_path / "a.xml.bz2", bytes(data)))
    assert all(block.is_compressed for block in blocks)
    found, damaged = [], 0
    for block in blocks:
        begins = [match.start() for match in bzip2.STREAM.finditer(block.data)]
        for begin, end in zip(begins, [*begins[1:], len(block.data)], strict=True):
            try:
                content = b"".join(bzip2.decompressed_bytes(block.data[begin:end]))
            except DamagedInput:
                damaged += 1
                continue
            found += [parse_page(page).title for page in split_pages(content)]
    assert damaged == 1
    assert found == EXPECTED[:200] + EXPECTED[300:]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_truncated_gz_or_zst_keeps_what_came_before(ending: str, xml: bytes, tmp_path: Path) -> None:
    whole = gzip.compress(xml) if ending == ".gz" else zstandard.ZstdCompressor().compress(xml)
    blocks, tally = read(wiki_pages.write(tmp_path / f"a.xml{ending}", whole[: len(whole) // 2]))
    found = titles(blocks)
    assert found == EXPECTED[: len(found)]
    assert len(found) > 100
    assert tally.dropped == {DAMAGED: 1}


def test_garbage_behind_the_last_stream_is_said(xml: bytes, tmp_path: Path) -> None:
    blocks, tally = read(wiki_pages.write(tmp_path / "a.xml.bz2", bz2.compress(xml) + b"garbage"))
    assert titles(blocks) == EXPECTED
    assert "7 bytes from there on are lost" in tally.notes[0]


def test_xml_cut_in_a_page_loses_that_page_and_says_how_much(xml: bytes, tmp_path: Path) -> None:
    cut = xml.index(b"<page>", len(xml) // 2) + 150
    blocks, tally = read(wiki_pages.write(tmp_path / "a.xml", xml[:cut]))
    assert titles(blocks) == EXPECTED[: xml[:cut].count(b"</page>")]
    assert tally.dropped == {CUT_OFF: 1}
    assert "whose 150 bytes are lost" in tally.notes[0]


def test_a_page_of_a_hundred_megabytes_is_set_aside_in_bounded_memory(tmp_path: Path) -> None:
    begin, end = wiki_pages.page("Long", "BODY").split("BODY")
    path = tmp_path / "a.xml"
    with open(path, "w") as file:
        file.write(wiki_pages.HEADER.format(language="en") + wiki_pages.pages(1)[0] + begin)
        for _ in range(100):
            file.write("words " * 166_667)
        file.write(end + wiki_pages.pages(1, 1)[0] + wiki_pages.FOOTER)
    tracemalloc.start()
    try:
        tally = Tally()
        found = [name for block in read_blocks(path, tally, LIMIT) for name in titles([block])]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == EXPECTED[:2]
    assert tally.dropped == {TOO_LONG: 1} and tally.examples == [f"{path}: Long: {TOO_LONG}"]
    assert peak < 12 * LIMIT


def test_a_bz2_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    xml = wiki_pages.dump([wiki_pages.page("Long", "x" * 100_000_000), *wiki_pages.pages(1)])
    path = wiki_pages.write(tmp_path / "a.xml.bz2", bz2.compress(xml))
    del xml
    tracemalloc.start()
    try:
        blocks, tally = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert titles(blocks) == EXPECTED[:1]
    assert tally.dropped == {TOO_LONG: 1}
    assert peak < 40 * LIMIT


@settings(max_examples=60)
@given(st.lists(st.integers(0, 500), max_size=6), st.lists(st.integers(1, 200), min_size=1), st.integers(60, 400))
def test_the_cutter_gives_the_same_pages_however_the_pieces_fall(
    written: list[int], sizes: list[int], limit: int
) -> None:
    pages = [f"<page><title>{n}</title>{'x' * n}</page>" for n in written]
    xml = ("<mediawiki>" + "\n".join(pages) + "</mediawiki>").encode()
    tally = Tally()
    cutter = PageCutter("a.xml", limit, tally)
    found, position = b"", 0
    for size in itertools.cycle(sizes):
        if position >= len(xml):
            break
        found += cutter.cut(xml[position : position + size])
        position += size
    cutter.end()
    kept = [page.decode() for page in split_pages(found)]
    assert [page for page in kept if len(page) <= limit] == [page for page in pages if len(page) <= limit]
    assert len(kept) + tally.dropped[TOO_LONG] == len(pages)
    assert not tally.dropped[CUT_OFF]


# What is no dump.


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.xml", b"<?xml version='1.0'?><feed><entry/></feed>", "no Wikipedia dump"),
        ("a.xml.bz2", b"<mediawiki>", "not .bz2 data"),
        ("a.xml.gz", b"BZh91AY&SY", "not .gz data"),
        ("a.xml", "<mediawiki>".encode("utf-16"), "UTF-16"),
        ("a.xml.bz2", bz2.compress(b"hello"), "no Wikipedia dump"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    path = wiki_pages.write(tmp_path / name, data)
    with pytest.raises(UserError, match=said) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_folders_patterns_and_files_of_any_name(tmp_path: Path) -> None:
    for name in ("b.xml", "sub/a.xml-p1p2.bz2", "notes.txt"):
        wiki_pages.write(tmp_path / name, b"x")
    wiki_pages.write(tmp_path / "empty.xml", b"")
    tally = Tally()
    assert dump_files(str(tmp_path), tally) == [tmp_path / "b.xml", tmp_path / "sub/a.xml-p1p2.bz2"]
    assert sum(tally.skipped_files.values()) == 2
    assert dump_files(str(tmp_path / "*.xml"), Tally()) == [tmp_path / "b.xml"]
    assert dump_files(str(tmp_path / "notes.txt"), Tally()) == [tmp_path / "notes.txt"]


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    wiki_pages.write(tmp_path / "empty.xml", b"")
    for name in ("folder", "nothing.xml", "*.xml.bz2", "empty.xml"):
        with pytest.raises(UserError, match="no dump there"):
            dump_files(str(tmp_path / name), Tally())


def test_names_of_dumps() -> None:
    names = (
        "zhwiki-latest-pages-articles-multistream.xml.bz2",
        "enwiki-20240101-pages-articles1.xml-p1p41242.bz2",
        "a.XML",
    )
    assert all(DUMP_NAME.search(name) and Source(path=f"dir.d/{name}").is_dump for name in names)
    others = ("zhwiki-latest-pages-articles-multistream-index.txt.bz2", "a.jsonl", "xml.txt", "a.xml.txt")
    assert not any(DUMP_NAME.search(name) or Source(path=name).is_dump for name in others)


# A page.


def test_a_page_is_parsed_as_xml_says() -> None:
    parsed = parse_page(wiki_pages.page("A & <B>", "x < y & \"z\"\n\n'''b'''", 4, "C").encode())
    assert parsed == ("A & <B>", 4, True, "x < y & \"z\"\n\n'''b'''")
    other = b"<page><title>T</title><text><![CDATA[a <b>]]></text><text>c&#100;</text></page>"
    assert parse_page(other) == ("T", 0, False, "cd")  # of several revisions the last
    assert parse_page(b'<page><title>T</title><text deleted="deleted" /></page>').text == ""


def test_a_page_that_is_no_text_or_no_xml_is_set_aside_for_that() -> None:
    good = wiki_pages.page("A", "text").encode()
    for bad, reason in ((good.replace(b"text<", b"\xff<"), INVALID_UTF8), (good.replace(b"</title>", b""), NOT_XML)):
        with pytest.raises(SetAside) as raised:
            parse_page(bad)
        assert raised.value.reason == reason


def test_a_page_without_an_end_does_not_take_the_next_along() -> None:
    first, second = (page.encode() for page in wiki_pages.pages(2))
    assert list(split_pages(first.replace(b"</page>", b"") + second)) == [second.strip()]
