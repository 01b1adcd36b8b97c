"""Counts are those of the pre-tokenizer's words, the same on any number of processes, and bounded in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from mini_chat.data.encoding import ROLES
from mini_chat.errors import UserError
from mini_chat.trainer import tokenizer_counts
from mini_chat.trainer.tokenizer_counts import (
    QWEN2_PATTERN,
    CorpusCounts,
    Text,
    Wanted,
    WordCounter,
    count_corpus,
    english_words,
)

REPOSITORY = Path(__file__).parents[2]
ALL = Wanted(characters=True, words=True)


def english(*texts: str) -> list[Text]:
    return [Text(text, False, f"en:{number}") for number, text in enumerate(texts, 1)]


def chinese(*texts: str) -> list[Text]:
    return [Text(text, True, f"zh:{number}") for number, text in enumerate(texts, 1)]


def without_roles(counts: CorpusCounts) -> dict[str, int]:
    return {word: count for word, count in counts.english.counts.items() if word not in ROLES}


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_words_are_the_saved_pre_tokenizers_with_chinese_cut_out(text: str) -> None:
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
    words = Counter(word for piece in pieces if len(piece) <= 64 for word in english_words(piece) if word)
    counts = count_corpus(english(text), ALL, 10**9)
    assert without_roles(counts) == {word: count for word, count in words.items() if word not in ROLES}
    assert counts.pieces == sum(len(piece) <= 64 for piece in pieces)


def test_chinese_counts_as_words_of_up_to_four_and_as_characters() -> None:
    counts = count_corpus(chinese("一二三四五六，七八。九\n十"), ALL, 10**9)
    assert counts.chinese.counts == {"一二三四": 1, "五六": 1, "七八": 1}
    assert counts.characters == Counter("一二三四五六，七八。九\n十")
    assert not counts.english.counts
    nothing = count_corpus(chinese("一二三四 cat"), Wanted(), 10**9)
    assert not nothing.chinese.counts and not nothing.characters and not nothing.pieces and nothing.documents == 1
    other = count_corpus(chinese("一二三四 cat"), Wanted(english=True), 10**9)
    assert without_roles(other) == {" cat": 1}


def test_a_chinese_clause_never_becomes_an_english_word() -> None:
    assert [word for word in english_words("，小猫cat坐在mat上。") if word] == ["cat", "mat"]
    assert list(english_words(".”“—and")) == [".”", "“", "—and"]


def test_long_pieces_and_nothing_are_passed_over() -> None:
    counts = count_corpus(english("=" * 1000, "", "a b"), ALL, 10**9)
    assert without_roles(counts) == {"a": 1, " b": 1}
    assert counts.documents == 3


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.integers(1, 9)), max_size=20), st.integers(2, 8)
)
def test_counts_are_never_too_high_and_never_too_low_by_more_than_is_said(
    batches: list[dict[str, int]], max_words: int
) -> None:
    counter, truth = WordCounter(max_words), Counter[str]()
    for batch in batches:
        counter.add(batch)
        truth.update(batch)
        assert len(counter.counts) <= max_words
    for word, count in truth.items():
        assert count - counter.forgotten <= counter.counts[word] <= count
    assert counter.forgotten * (max_words // 2 + 1) <= sum(truth.values())  # Misra and Gries' bound


def test_rare_words_are_forgotten_before_memory_fills_and_frequent_ones_are_not() -> None:
    counter = WordCounter(max_words=100)
    for number in range(5000):
        counter.add({f"rare{number}": 1, "frequent": 1, "also": 2})
        assert len(counter.counts) <= 100
    assert 5000 - counter.forgotten <= counter.counts["frequent"]
    assert 0 < counter.forgotten < 110
    assert set(counter.counts) >= {"frequent", "also"}


def test_counts_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_counts, "BATCH_CHARACTERS", 2000)
    monkeypatch.setattr(tokenizer_counts, "PARALLEL_FROM_CHARACTERS", 4000)
    memory = tokenizer_counts.BASE_BYTES + 8 * tokenizer_counts.WORKER_BYTES
    monkeypatch.setattr(tokenizer_counts, "WORD_BYTES", memory)  # so few words that some are forgotten
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(number)) for number in range(900)]
    texts = [text for word in words for text in (*english(f"the {word}"), *chinese(f"第{word}回，小猫坐着"))]
    one, two = (count_corpus(texts, ALL, memory, processes) for processes in (1, 2))
    assert one == two
    assert one.forgotten > 0
    assert one.documents == 1800 and one.size_bytes == sum(len(text.text.encode()) for text in texts)


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(UserError, match=r"en:2: character 4 is a lone surrogate \(U\+D83D\)"):
        count_corpus(english("fine", "cut \ud83d off"), ALL, 10**9)


PEAK = """
import json, random, sys
from mini_chat.trainer.tokenizer_counts import Text, Wanted, count_corpus
from mini_chat.trainer.train_tokenizer import train_on
from mini_chat.config import Tokenizer
from mini_chat.pipeline import peak_memory_bytes
han = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
def texts(megabytes):
    yield Text("the cat sat on the mat " * 100, False, "en")
    draw = random.Random(1)
    for number in range(megabytes):
        yield Text("，".join("".join(draw.choices(han, k=12)) for _ in range(27_000)), True, "zh")
        yield Text("小猫，" * 100, True, "zh")
settings = Tokenizer(hanzi="corpus", chinese_words=2000, memory_bytes=int(sys.argv[2]))
trained = train_on(texts(int(sys.argv[1])), settings)
measured = {"peak": peak_memory_bytes(), "forgotten": trained.counted.forgotten, **trained.entries}
print(json.dumps(measured))
"""


def test_memory_stays_in_the_budget_on_chinese_in_which_every_word_is_new() -> None:
    memory_bytes = 200_000_000
    command = [sys.executable, "-c", PEAK, "12", str(memory_bytes)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    measured = json.loads(result.stdout)
    assert measured["peak"] < memory_bytes
    assert measured["forgotten"] > 0 and measured["chinese"] > 0


def test_a_line_of_50_megabytes_is_counted_in_the_same_memory() -> None:
    program = (
        "from mini_chat.pipeline import peak_memory_bytes; from mini_chat.trainer.tokenizer_counts import *; "
        "counts = count_corpus([Text('the cat 小猫 ' * 3_000_000, False, 'en')], Wanted(True, True), 10**9); "
        "assert counts.english.counts[' cat'] > 2_999_000; "
        "print(peak_memory_bytes())"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 400_000_000  # the line itself, as text and as bytes, takes 150 of them
