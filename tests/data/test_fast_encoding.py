"""The fast path gives the ids of `AutoTokenizer`, or gives way to what does."""

from __future__ import annotations

import bz2
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mini_chat.data import fast_encoding
from mini_chat.data.encoding import encode_texts, load_tokenizer
from mini_chat.data.fast_encoding import AWKWARD, FastEncoder
from mini_chat.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "out"
DATA = Path(os.environ.get("MINI_CHAT_DATA", REPOSITORY / "../shared/data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no real text in {DATA}; set MINI_CHAT_DATA to its folder")

PIECES = [
    *("'s", "'S", "'ſ", "'ll", "'Re", "\n", "\r", "\t", " ", "  ", "a", "B", " the", "1", "２", "½", "_", "-", "."),
    *("é", "e\u0301", "ß", "İ", "ﬁ", "字", "，", "。", "—", "…", "“", "\u3000", "\xa0", "\x85", "\x1c", "\x00", "("),
    *("\u2028", "<|im_end|>", "<|endoftext|>", "<|", "|>", "\u0345", "\u200b", "\ufeff", "\U0010ffff"),
    *("😀", "が", "ก", "𠮷", "𱍐"),
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
awkward_text = st.lists(st.one_of(st.sampled_from(PIECES), any_text), max_size=16).map("".join)


@pytest.fixture(scope="module")
def exact() -> PreTrainedTokenizerFast:
    return load_tokenizer(SHIPPED)


@pytest.fixture(scope="module")
def encoder() -> FastEncoder:
    encoder = FastEncoder.from_directory(SHIPPED)
    assert encoder.is_fast
    return encoder


def lists(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


@given(texts=st.lists(awkward_text, max_size=4))
@settings(max_examples=500, deadline=None)
def test_the_ids_are_those_of_autotokenizer(
    encoder: FastEncoder, exact: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    encoded = encoder.encode_documents(texts)
    assert lists(encoded) == encode_texts(exact, texts)
    assert all(ids.dtype == np.uint16 and not ids.flags.writeable for ids in encoded)
    assert [encoder.decode(ids) for ids in encoded] == texts


def test_every_code_point_has_the_same_ids_beside_letters_spaces_and_line_ends(
    encoder: FastEncoder, exact: PreTrainedTokenizerFast
) -> None:
    random_part = random.Random(4).sample(range(0x2000, 0x110000), 5000)
    characters = [chr(code) for code in (*range(0x2000), *random_part) if not 0xD800 <= code < 0xE000]
    texts = [f"a{c}b {c}{c} {c}\n{c}'s {c}" for c in characters]
    assert lists(encoder.encode_documents(texts)) == encode_texts(exact, texts)


@given(ids=st.lists(st.integers(-2, 32_010), max_size=400), as_array=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_ids_decode_as_autotokenizer_decodes_them(
    encoder: FastEncoder, exact: PreTrainedTokenizerFast, ids: list[int], as_array: bool
) -> None:
    known = [token_id for token_id in ids if 0 <= token_id < len(exact)]
    text = exact.decode(known)
    assert encoder.decode(np.array(ids, np.int64) if as_array else ids) == text
    decoder = encoder.stream_decoder()
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == text
    assert "".join(encoder.stream_decoder().stream(ids)) == text


def test_a_stream_gives_each_character_with_its_last_byte(encoder: FastEncoder) -> None:
    ids = encoder.encode("a𱍐猫").tolist()
    pushed = list(map(encoder.stream_decoder().push, ids))
    assert pushed == ["a", *[""] * (len(ids) - 3), "𱍐", "猫"]


def texts_of(path: Path) -> Iterator[str]:
    """The lines of a file; of JSON, its strings; of archives, their members' lines."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            data = b"\n".join(archive.read(name) for name in archive.namelist())
    elif path.suffix == ".bz2":
        data = bz2.decompress(path.read_bytes())
    else:
        data = path.read_bytes()
    text = data.decode("utf-8", "replace")
    for unit in [text] if path.suffix == ".json" else text.split("\n"):
        try:
            yield from strings(json.loads(unit))
        except ValueError:
            yield from unit.split("\n")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def real_files() -> list[Path]:
    return sorted(path for path in DATA.rglob("*") if path.is_file() and path.suffix not in {".gz", ".md"})


def differing(encoder: FastEncoder, exact: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    pairs = zip(texts, encoder.encode_documents(texts), encode_texts(exact, texts), strict=True)
    return [text for text, ids, right in pairs if ids.tolist() != right or encoder.decode(ids) != text]


@needs_data
def test_no_sampled_line_of_real_text_differs(encoder: FastEncoder, exact: PreTrainedTokenizerFast) -> None:
    checked = 0
    for path in real_files():
        if path.stat().st_size > 6_000_000 or path.suffix not in {".txt", ".jsonl", ".yml", ".zip"}:
            continue
        texts = list(texts_of(path))
        sample = random.Random(path.name).sample(texts, min(len(texts), 150))
        assert differing(encoder, exact, [text[:2000] for text in sample]) == [], path
        checked += len(sample)
    assert checked > 3000


@needs_data
@pytest.mark.slow
def test_no_line_of_the_real_text_differs(encoder: FastEncoder, exact: PreTrainedTokenizerFast) -> None:
    n_bytes = 0
    for path in real_files():
        batch: list[str] = []
        for text in texts_of(path):
            batch.append(text)
            n_bytes += len(text.encode())
            if len(batch) == 4096:
                assert differing(encoder, exact, batch) == [], path
                batch = []
        assert differing(encoder, exact, batch) == [], path
    assert n_bytes > 80_000_000


@needs_data
def test_encoding_is_several_times_as_fast_as_tokenizers(encoder: FastEncoder) -> None:
    novel = (DATA / "classic-novels-zh" / "红楼梦.txt").read_text(encoding="utf-8")[:300_000]
    prose = (DATA / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:900_000]
    for text in (novel, prose):
        lines = text.split("\n")
        seconds = {}
        for name, encode in (("fast", encoder._encode), ("exact", encoder._encode_exactly)):
            started = time.process_time()  # of all threads: the rate of one core
            encode(lines, "text")
            seconds[name] = time.process_time() - started
        assert seconds["exact"] > 3 * seconds["fast"], seconds


class Liar:
    """A fast library that is silently wrong."""

    def __init__(self, lie_about: str) -> None:
        self.lie_about = lie_about
        self.honest = fast_encoding._fastokens((SHIPPED / "tokenizer.json").read_text())

    def encode_batch_flat(self, texts: list[str], **options: bool) -> tuple[bytes, bytes]:
        return self.honest.encode_batch_flat([text.replace(self.lie_about, "?") for text in texts], **options)


class Failing:
    """A fast library that fails on a text, as a panic in Rust does."""

    class PanicException(BaseException):
        pass

    def __init__(self, on: str = "") -> None:
        self.on = on
        self.honest = fast_encoding._fastokens((SHIPPED / "tokenizer.json").read_text())

    def encode_batch_flat(self, texts: list[str], **options: bool) -> tuple[bytes, bytes]:
        if any(self.on in text for text in texts):
            raise self.PanicException("match limit exceeded\nat line 7")
        return self.honest.encode_batch_flat(texts, **options)


def missing(tokenizer_json: str) -> Any:
    raise ImportError("no fastokens")


def refusing(tokenizer_json: str) -> Any:
    raise ValueError("unknown pre-tokenizer\nfound")


@pytest.mark.parametrize(
    ("library", "complaint"),
    [
        (lambda: Liar("\u3000"), "fastokens gives other ids for '小猫坐在垫子上"),
        (Failing, "fastokens fails (match limit exceeded)"),
        (lambda: missing, "fastokens is not installed, so encoding runs at a tenth of its rate"),
        (lambda: refusing, "fastokens does not take this tokenizer (unknown pre-tokenizer)"),
    ],
    ids=["lies", "fails", "missing", "refuses"],
)
def test_a_library_that_lies_fails_or_is_missing_is_replaced_and_named(
    library: Callable[[], Any],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exact: PreTrainedTokenizerFast,
) -> None:
    made = library()
    monkeypatch.setattr(fast_encoding, "_fastokens", made if callable(made) else lambda json: made)
    encoder = FastEncoder.from_directory(SHIPPED)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and complaint in lines[0]
    assert not encoder.is_fast
    texts = [*AWKWARD, "小猫"]
    assert lists(encoder.encode_documents(texts)) == encode_texts(exact, texts)
    with pytest.raises(UserError, match="lone surrogate"):
        encoder.encode_documents(["fine", "\ud800"])


def test_a_lie_that_only_the_runs_own_text_shows_is_found_on_its_first_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exact: PreTrainedTokenizerFast
) -> None:
    liar = Liar("zebra")
    monkeypatch.setattr(fast_encoding, "_fastokens", lambda json: liar)
    encoder = FastEncoder.from_directory(SHIPPED)
    assert encoder.is_fast and capsys.readouterr().err == ""
    texts = ["a horse"] * 5 + ["a zebra"] + ["a horse"] * 50
    assert lists(encoder.encode_documents(texts)) == encode_texts(exact, texts)
    assert "gives other ids for 'a zebra'" in capsys.readouterr().err


def test_a_failure_in_the_middle_of_a_run_costs_speed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exact: PreTrainedTokenizerFast
) -> None:
    failing = Failing("zebra")
    monkeypatch.setattr(fast_encoding, "_fastokens", lambda json: failing)
    encoder = FastEncoder.from_directory(SHIPPED)
    for texts in (["a horse"], ["a zebra", "a horse"], ["a horse"]):
        assert lists(encoder.encode_documents(texts)) == encode_texts(exact, texts)
    assert capsys.readouterr().err.count("fastokens fails (match limit exceeded)") == 1


def test_ids_that_16_bits_cannot_hold_take_32(exact: PreTrainedTokenizerFast) -> None:
    parsed = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))
    parsed["model"]["vocab"] |= {f"unused{number}": 32_000 + number for number in range(40_000)}
    encoder = FastEncoder(json.dumps(parsed))
    (ids,) = encoder.encode_documents(["The cat，小猫"])
    assert (encoder.is_fast, ids.dtype, ids.tolist()) == (True, np.uint32, exact.encode("The cat，小猫"))
    assert encoder.decode([71_999]) == "unused39999"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "\ud83d\ude00"])
def test_lone_surrogates_are_refused_with_their_place(encoder: FastEncoder, text: str) -> None:
    with pytest.raises(UserError, match=r"docs\[1\]: character \d is a lone surrogate \(U\+D[0-9A-F]{3}\)"):
        encoder.encode_documents(["fine", text], "docs")


def test_nul_and_nothing_are_text(encoder: FastEncoder) -> None:
    assert encoder.encode_documents([]) == []
    assert [len(ids) for ids in encoder.encode_documents(["", "\x00\x00"])] == [0, 2]
    assert encoder.decode([]) == encoder.decode(np.array([], np.uint16)) == ""


def test_a_line_of_50_megabytes_is_one_document(encoder: FastEncoder) -> None:
    sentence = "The cat sat on the mat, and 小猫坐在垫子上。"
    (ids,) = encoder.encode_documents([sentence * (50_000_000 // len(sentence.encode()))])
    (one,) = encoder.encode_documents([sentence])
    assert np.array_equal(ids.reshape(-1, len(one)), np.broadcast_to(one, (len(ids) // len(one), len(one))))


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable tokenizer\.json in it"):
        FastEncoder.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "added')
    with pytest.raises(UserError, match="does not load") as caught:
        FastEncoder.from_directory(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_worker_that_encodes_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; from mini_chat.data.fast_encoding import FastEncoder; "
        f"FastEncoder.from_directory({str(SHIPPED)!r}).encode_documents(['text']); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
