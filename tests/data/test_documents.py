"""What `read_documents` promises: every unit accounted for, bad input named, memory bounded."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.data.documents import Document, read_documents
from mini_chat.data.inputs import input_size
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError

REAL_DATA = Path(os.environ.get("MINI_CHAT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}: set MINI_CHAT_DATA")


@dataclass
class Source:
    path: str
    language: str = "en"
    format: str = "auto"
    field: str = "text"
    weight: float = 1.0


def read(path: Path | str, max_line_bytes: int = 10_000_000, **about: Any) -> tuple[list[Document], Tally]:
    tally = Tally()
    documents = []
    for document in read_documents([Source(str(path), **about)], tally, max_line_bytes):
        tally.check()
        documents.append(document)
    tally.check()
    assert tally.written == len(documents)
    assert tally.bytes == sum(len(document.text.encode()) for document in documents)
    return documents, tally


def refusal(path: Path | str, **about: Any) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(UserError) as caught:
        read(path, **about)
    message = str(caught.value)
    assert "\n" not in message
    return message


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


# --- formats ----------------------------------------------------------------------------------------------------------


def test_lines_and_paragraphs_carry_the_number_of_their_first_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff一行\r\n二行\n\n　\n  three\nfour".encode())
    documents, tally = read(file, format="paragraphs", language="zh")
    assert documents == [
        Document("一行\n二行", "zh", str(file), 1),
        Document("  three\nfour", "zh", str(file), 5),
    ]
    assert tally.read == 2
    documents, tally = read(file, format="lines")
    assert [(document.text, document.number) for document in documents] == [
        ("一行", 1), ("二行", 2), ("  three", 5), ("four", 6),
    ]  # fmt: skip
    assert tally.dropped == {"empty": 2}


@pytest.mark.parametrize(("content", "expected"), [("a\nb\n\nc\n", ["a\nb", "c"]), ("a\nb\n\n", ["a", "b"])])
def test_auto_takes_a_blank_line_between_others_for_paragraphs(
    tmp_path: Path, content: str, expected: list[str]
) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert texts(read(tmp_path / "a.txt")[0]) == expected


def test_one_file_of_pairs_is_two_sources_by_field(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"en": "Hello", "zh": "你好"}\n', encoding="utf-8")
    assert texts(read(file, field="en")[0]) == ["Hello"]
    assert read(file, field="zh", language="auto")[0] == [Document("你好", "zh", str(file), 1)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_compression_changes_nothing(tmp_path: Path, name: str, suffix: str) -> None:
    expected = [f"line {i} 第{i}行" for i in range(5000)]
    lines = [json.dumps({"text": text}) if name.endswith("jsonl") else text for text in expected]
    file = tmp_path / (name + suffix)
    file.write_bytes(compress("\n".join(lines).encode(), suffix))
    documents, tally = read(file)
    assert texts(documents) == expected
    assert tally.input_bytes == file.stat().st_size == input_size([str(file)])


def compress(data: bytes, suffix: str) -> bytes:
    """`data` as two members or frames one after the other, as `cat a.gz b.gz` makes them."""
    if not suffix:
        return data
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        pack = zstandard.ZstdCompressor().compress
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    return pack(data[:1000]) + pack(data[1000:])


def test_folder_is_read_sorted_without_hidden_files_and_says_what_it_skips(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl", "a/.hidden.txt", ".git/x.txt", "notes.pdf", "more.pdf", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "j"}\n' if name.endswith("jsonl") else f"{name}\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    documents, tally = read(tmp_path)
    assert texts(documents) == ["b.txt", "c.txt", "j"]
    assert tally.skipped_files == {"suffix '.pdf' not among those read here": 2, "empty file": 1}
    assert f"{tmp_path / 'empty.txt'}: file skipped, empty file" in tally.notes
    assert texts(read(tmp_path, format="jsonl")[0]) == ["j"]


def test_glob_with_a_stated_format_reads_files_without_suffix(tmp_path: Path) -> None:
    for name in ("AA/wiki_00", "AB/wiki_01"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert texts(read(tmp_path / "*" / "wiki_*", format="jsonl")[0]) == ["AA/wiki_00", "AB/wiki_01"]


def test_nothing_inside_a_text_is_changed(tmp_path: Path) -> None:
    text = "  tab\there, line\nend, feed\x0c, emoji 🐼, rare 𠮷, \u3000full-width\u3000"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert texts(read(tmp_path / "a.jsonl")[0]) == [text]


# --- bad units: counted, with the place -------------------------------------------------------------------------------

BAD_LINES = [
    (b"caf\xe9", "invalid UTF-8"),
    (b"\xed\xa0\x80", "invalid UTF-8"),
    (b"a\x00b", "NUL byte"),
    (b"a\x1bb", "control character"),
    (b" \t ", "empty"),
    (b"x" * 101, "over max_line_bytes"),
]
BAD_JSON_LINES = [
    (b'{"text": "caf\xe9"}', "invalid UTF-8"),
    (b'{"text": "a\x00"}', "NUL byte"),
    (b'{"text": "a\\u0000"}', "NUL byte"),
    (b'{"text": "a\\u0007"}', "control character"),
    (b'{"text": "\\ud83d"}', "lone surrogate"),
    (b'{"text": " \\n"}', "empty"),
    (b"", "empty"),
    (b'{"text": "' + b"x" * 101 + b'"}', "over max_line_bytes"),
    (b'{"text": "cut', "not valid JSON"),
    (b"[" * 99, "not valid JSON"),
    (b"[1, 2]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"txt": "a"}', "field missing"),
    (b'{"text": null}', "field missing"),
    (b'{"text": 7}', "field is not a string"),
    (b'{"text": ["a"]}', "field is not a string"),
]


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [("a.txt", *case) for case in BAD_LINES] + [("a.jsonl", *case) for case in BAD_JSON_LINES],
)
def test_bad_line_is_set_aside_under_its_reason_and_place(tmp_path: Path, name: str, line: bytes, reason: str) -> None:
    good = b'{"text": "good"}' if name == "a.jsonl" else b"good"
    (tmp_path / name).write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    documents, tally = read(tmp_path / name, 100, format="jsonl" if name == "a.jsonl" else "lines")
    assert [(document.text, document.number) for document in documents] == [("good", 1), ("good", 3)]
    assert tally.dropped == {reason: 1}
    assert tally.examples[0].startswith(f"{tmp_path / name}:2: {reason}")


def test_json_nested_by_the_thousand_or_with_an_endless_number_is_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n' + "[" * 200_000 + '\n{"text": ' + "1" * 100_000 + "}\n")
    assert read(file)[1].dropped == {"not valid JSON": 2}


def test_bad_line_takes_its_paragraph_with_it_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n\ntwo\nbad \xff\n\nthree\n\n" + b"long line\n" * 30 + b"\nfour\n")
    documents, tally = read(file, 100, format="paragraphs")
    assert texts(documents) == ["one", "three", "four"]
    assert tally.dropped == {"invalid UTF-8": 1, "over max_line_bytes": 1}
    assert [example.split(": ")[0] for example in tally.examples] == [f"{file}:3", f"{file}:8"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_line_of_50_mb_is_passed_over_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.txt{suffix}"
    data = b"before\n" + b"x" * 50_000_000 + b"\nafter\n"
    file.write_bytes(compress(data, suffix))
    del data
    tracemalloc.start()
    documents, tally = read(file, 1_000_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(documents) == ["before", "after"]
    assert [document.number for document in documents] == [1, 3]
    assert tally.dropped == {"over max_line_bytes": 1}
    assert peak_bytes < 12_000_000


@pytest.mark.parametrize("limit", [99, 100, 101])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_limit_counts_the_line_without_its_end(tmp_path: Path, limit: int, end: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok\n" + b"x" * 100 + end)
    assert len(read(tmp_path / "a.txt", limit)[0]) == (1 if limit < 100 else 2)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_damaged_stream_keeps_what_came_before_and_says_where(tmp_path: Path, suffix: str, harm: str) -> None:
    lines = [f"line {i} {i * 7919 % 10007}" for i in range(200_000)]
    start, rest = "\n".join(lines[:100_000]) + "\n", "\n".join(lines[100_000:])
    data = compress(start.encode(), suffix)
    second = bytearray(compress(rest.encode(), suffix))
    if harm == "truncated":
        second = second[: len(second) // 2]
    else:
        second[len(second) // 2 : len(second) // 2 + 8] = b"\xff" * 8
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(data + second)
    documents, tally = read(file)
    assert texts(documents[:100_000]) == lines[:100_000]
    assert tally.dropped["damaged stream"] == 1
    if harm == "truncated":  # a flipped byte is noticed only where the format has a checksum: gzip at its end
        assert texts(documents) == lines[: len(documents)]
        assert tally.dropped == {"damaged stream": 1}
    (note,) = [note for note in tally.notes if "damaged" in note]
    assert re.match(rf"{re.escape(str(file))}: compressed stream damaged near byte \d+; what came before is kept", note)
    assert any(re.fullmatch(rf"{re.escape(str(file))}: damaged stream \(near byte \d+\)", e) for e in tally.examples)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*BAD_LINES, *BAD_JSON_LINES]).map(lambda case: case[0]), st.binary(max_size=30))
    ),
    st.sampled_from(["lines", "paragraphs", "jsonl"]),
    st.sampled_from(["", ".gz"]),
)
def test_read_is_written_plus_dropped_whatever_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], kind: str, suffix: str
) -> None:
    data = b"\n".join([b'{"text": "good"}', b"", *lines])
    file = tmp_path_factory.mktemp("any") / f"a.txt{suffix}"
    file.write_bytes(gzip.compress(data) if suffix else data)
    _, tally = read(file, 100, format=kind)
    if kind != "paragraphs":  # there, how many units there are is the reader's own decision
        assert tally.read == len(data.split(b"\n")) - data.endswith(b"\n")


def test_a_reader_that_is_left_early_is_in_balance(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n\nb\nc\n")
    tally = Tally()
    reader = read_documents([Source(str(tmp_path), format="lines")], tally)
    assert next(reader).text == "a"
    assert next(reader).text == "b"
    del reader
    tally.check()
    assert (tally.read, tally.written, tally.dropped) == (3, 2, {"empty": 1})


def test_examples_leave_room_for_every_reason(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" + b"\n" * 1000 + b"\xff\n")
    tally = read(tmp_path / "a.txt", format="lines")[1]
    assert tally.dropped == {"empty": 1000, "invalid UTF-8": 1}
    assert len(tally.examples) == 6
    assert tally.lines()[0] == "1,002 read = 1 kept (0.0 MB) + 1,001 set aside"
    assert json.loads(json.dumps(tally.to_json()))["dropped"] == {"empty": 1000, "invalid UTF-8": 1}


# --- bad sources: refused in one line ---------------------------------------------------------------------------------


def test_missing_path_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.txt") == f"{tmp_path}/no.txt: no such file or folder; check the path in the recipe"
    assert (
        refusal(tmp_path / "*.txt") == f"{tmp_path}/*.txt: no file matches this pattern; check the path in the recipe"
    )
    assert refusal(tmp_path) == f"{tmp_path}: no file in this folder; check the path in the recipe"


def test_missing_path_of_a_later_source_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(UserError, match="no such file"):
        next(read_documents([Source(str(tmp_path / "a.txt")), Source(str(tmp_path / "b.txt"))], Tally()))


def test_name_in_a_path_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    monkeypatch.setenv("MY_TEXTS", str(tmp_path))
    assert texts(read("$MY_TEXTS/a.txt")[0]) == ["a"]
    monkeypatch.delenv("MY_TEXTS")
    message = "$MY_TEXTS/a.txt: MY_TEXTS is not set in the environment; export MY_TEXTS=… or write the path out"
    assert refusal("$MY_TEXTS/a.txt") == message


def test_format_of_another_kind_of_source_is_refused(tmp_path: Path) -> None:
    line = f"{tmp_path}: documents have no format 'json'; state one of auto, lines, paragraphs, jsonl, parquet"
    assert refusal(tmp_path, format="json") == line


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    line = f"{tmp_path}/a.txt: the file is empty; fill it or take it out of the sources"
    assert refusal(tmp_path / "a.txt") == line
    assert "no readable file in it (empty file: 1)" in refusal(tmp_path)


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("a")
    assert "its name tells no format; rename it to one of .txt, .jsonl" in refusal(tmp_path / "a.pdf")
    assert "no readable file in it (suffix '.pdf' not among those read here: 1)" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_file_that_is_not_compressed_as_it_says_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.txt{suffix}"
    file.write_text("plain\n")
    assert (
        refusal(file) == f"{file}: not {suffix} data, whatever its name says; take the suffix off or compress it again"
    )


def test_utf16_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("你好\n".encode("utf-16"))
    assert refusal(tmp_path / "a.txt").endswith("the text is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")


def test_source_with_nothing_usable_is_refused_with_the_reasons(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("第一行\n第二行\n".encode("gb18030"))
    message = refusal(file, format="lines")
    assert message.startswith(f"{file}: nothing usable in it (invalid UTF-8: 2); for example {file}:1: invalid UTF-8")
    (tmp_path / "b.txt").write_text("good\n")
    assert "convert it: iconv -f GB18030 -t UTF-8" in read(tmp_path, format="lines")[1].notes[0]


def test_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "not a regular file" in refusal(tmp_path / "pipe.txt")


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd....")
    message = refusal(tmp_path / name)
    assert f"needs {package}" in message
    assert message.endswith("pip install 'mini-chat[corpus]'")


# --- parquet ----------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)


def test_parquet_gives_one_document_a_row_and_counts_the_rest(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    bad = pa.array([b"one", None, b"\xff", b"", b"two\n2", b"a\x00"], pa.binary()).view(pa.string())
    write_parquet(tmp_path / "a.parquet", {"text": bad, "n": [1, 2, 3, 4, 5, 6]})
    documents, tally = read(tmp_path / "a.parquet")
    assert [(document.text, document.number) for document in documents] == [("one", 1), ("two\n2", 5)]
    assert tally.dropped == {"field missing": 1, "invalid UTF-8": 1, "empty": 1, "NUL byte": 1}


def test_parquet_without_the_column_or_with_numbers_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, {"texts": ["a"], "n": [1]})
    assert refusal(file) == f"{file}: no column 'text'; set field to one of texts, n, such as texts"
    assert refusal(file, field="n") == f"{file}: column 'n' holds int64, not text; set field to a text column"


def test_parquet_that_is_none_or_cut_short_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"text": ["a" * 1000]})
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    assert "not a parquet file, or cut short" in refusal(tmp_path / "a.parquet")


def test_damaged_parquet_page_counts_every_row_that_it_hides(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = [f"row {i} {i * 7919 % 10007}" for i in range(4000)]
    write_parquet(file, {"text": rows}, row_group_size=1000, use_dictionary=False, compression="zstd")
    data = bytearray(file.read_bytes())
    data[len(data) * 6 // 10 : len(data) * 6 // 10 + 50] = b"\xff" * 50
    file.write_bytes(data)
    documents, tally = read(file)
    assert texts(documents) == rows[: len(documents)]
    assert len(documents) >= 1000
    assert tally.read == 4000
    assert tally.dropped == {"damaged stream": 4000 - len(documents)}


# --- real data --------------------------------------------------------------------------------------------------------


@needs_real_data
@pytest.mark.parametrize(
    ("path", "field", "at_least"),
    [
        ("wikitext-2/valid.txt", "text", 1_000),
        ("tinyshakespeare/input.txt", "text", 7_000),
        ("classic-novels-zh", "text", 10_000),
        ("libreoffice-help", "text", 68_000),
        ("llama-factory/c4_demo.jsonl", "text", 300),
        ("zhwiki-extracted", "text", 175),
        ("python-docs-zh-en/pairs.jsonl", "en", 50_000),
        ("python-docs-zh-en/pairs.jsonl", "zh", 50_000),
    ],
)
def test_real_text_is_read_nearly_whole(path: str, field: str, at_least: int) -> None:
    _, tally = read(REAL_DATA / path, field=field)
    assert tally.written >= at_least
    assert sum(tally.dropped.values()) < 0.001 * tally.read
