"""Words of Chinese and English for datatrove's blocks: characters and words, and sentences that lose nothing."""

from __future__ import annotations

import json
import os
import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("datatrove", reason="datatrove is not installed; pip install 'mini-chat[cluster]'")

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import load_word_tokenizer

from mini_chat.data.cleaning.tokens import tokenize
from mini_chat.data.engines.word_tokenizer import LANGUAGES, ChineseEnglishTokenizer, register

DATA = Path(os.environ.get("MINI_CHAT_DATA", Path(__file__).parents[3] / "../shared/data"))
TEXT = "小明说：“你好！” Don't go. He's 3.14 m tall... 第二句？第三句\nＡＢＣ123，new line. "

tokenizer = ChineseEnglishTokenizer()
common = st.text(st.sampled_from("的中。！？!?.…”\"' \n\tab1Ａ，(）é〇"), max_size=60)
texts = common | st.text(max_size=40)


def test_words_are_chinese_characters_and_runs_of_letters_and_digits() -> None:
    expected = "小 明 说 你 好 Don't go He's 3 14 m tall 第 二 句 第 三 句 ＡＢＣ123 new line"
    assert " ".join(tokenizer.word_tokenize(TEXT)) == expected


def test_sentences_end_with_chinese_marks_anywhere_and_full_stops_before_space() -> None:
    sentences = ["小明说：“你好！”", "Don't go.", "He's 3.14 m tall...", "第二句？", "第三句", "ＡＢＣ123，new line."]
    assert tokenizer.sent_tokenize(TEXT) == sentences


@given(texts)
def test_spans_cover_the_text_without_gaps(text: str) -> None:
    spans = tokenizer.span_tokenize(text)
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert "".join(text[start:end] for start, end in spans).split() == text.split()
    assert all(text[start:end].strip() for start, end in spans)


@settings(deadline=None)  # tables are made at the first call
@given(common)
def test_words_are_those_that_our_own_minhash_takes_but_for_apostrophes(text: str) -> None:
    text = text.replace("'", "").replace("’", "")
    assert len(tokenizer.word_tokenize(text)) == int(tokenize([text]).counts[0])


@pytest.mark.parametrize("unit", [".", ".x", "!", "a'", "\n ", '."', "中"])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit)) + "x"
    started = time.process_time()
    tokenizer.span_tokenize(text)
    tokenizer.word_tokenize(text)
    assert time.process_time() - started < 3


def test_datatrove_finds_it_by_the_names_of_both_languages() -> None:
    register()
    for language in LANGUAGES:
        assert isinstance(load_word_tokenizer(language), ChineseEnglishTokenizer)


def signatures(documents: list[str], folder: Path) -> np.ndarray:
    """datatrove's MinHash of documents [documents, 112]; of a document without words, zeros."""
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    block = MinhashDedupSignature(str(folder), config, language=tokenizer)
    block.run((Document(text, str(number)) for number, text in enumerate(documents)), 0, 1)
    columns = []
    for bucket in range(config.num_buckets):
        found = np.zeros((len(documents), config.hashes_per_bucket), np.uint64)
        layout = f"<{config.hashes_per_bucket}{config.hash_config.struct_format}I"
        for *hashes, number in struct.iter_unpack(
            layout, (folder / f"bucket_{bucket:03d}/00000.minhash.sig").read_bytes()
        ):
            found[number] = hashes
        columns.append(found)
    return np.concatenate(columns, axis=1)


def real_texts(name: str, field: str = "text", most: int = 40) -> list[str]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} in MINI_CHAT_DATA ({DATA})")
    with open(path, encoding="utf-8") as file:
        found = [json.loads(line)[field] for line, _ in zip(file, range(400), strict=False)]
    return [text[:3000] for text in found if len(text) > 600][:most]


@pytest.mark.parametrize("name", ["trpl-zh/trpl-zh.jsonl", "rust-book-en/rustbook-en.jsonl"])
def test_datatrove_minhash_tells_near_copies_of_real_text_by_it(name: str, tmp_path: Path) -> None:
    documents = real_texts(name)
    # One character of Chinese, one word of English in fifty is another; spaces and marks are another edition's.
    edited = [
        "".join(
            ("某" if place % 50 == 7 else word) + ("" if len(word) == 1 and not word.isascii() else " ")
            for place, word in enumerate(tokenizer.word_tokenize(text))
        )
        for text in documents
    ]
    own, copies = np.split(signatures(documents + edited, tmp_path), 2)
    similar = (own == copies).mean(axis=1)
    strangers = (own[:-1] == copies[1:]).mean(axis=1)
    assert len(documents) >= 20
    assert similar.min() > 0.6 and np.median(similar) > 0.75, "of 5-grams, 0.98^5 = 90% are in both: J = 0.82"
    assert np.quantile(strangers, 0.9) < 0.1
