"""What the tokenizer promises, held against a small one, one with the whole table, and the shipped one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2 import Qwen2Tokenizer

from mini_chat.config import Recipe, Source
from mini_chat.data.encoding import encode_text, load_tokenizer
from mini_chat.data.hanzi import DOUBLE_MARKS, FULL_WIDTH_MARKS, LEVEL_SIZES, MARKS, character_set, hanzi_table, is_han
from mini_chat.data.token_bytes import byte_letters
from mini_chat.errors import UserError
from mini_chat.trainer import train_tokenizer as train_tokenizer_module
from mini_chat.trainer.tokenizer_counts import QWEN2_PATTERN, Text
from mini_chat.trainer.tokenizer_files import qwen2_pre_tokenizer
from mini_chat.trainer.train_tokenizer import (
    bytes_per_token,
    main,
    save_tokenizer,
    train_on,
    train_on_sources,
    train_tokenizer,
)

REPOSITORY = Path(__file__).parents[2]
SHIPPED = REPOSITORY / "out"
DATA = Path(os.environ.get("MINI_CHAT_DATA", REPOSITORY / "../shared/data"))

ENGLISH = [
    "The cat sat on the mat. The dog didn't mind; it's an old dog, and the mat isn't its own.\n\nThey've met before.",
    "“Where is Anna?” asked Tom. “She’s in the garden – as always – with her brother’s dog,” said the teacher…",
    "A teacher reads a story to the children. The children listen to the story, and then they ask: who is the cat?",
    "def read(path):\n    return [line.strip() for line in open(path)]\n\n\nprint(read('story.txt'))  # the story",
    "In 1984 there were 365 days, 12 months and 4 seasons; a café in Zürich sold 1,024 cups of tea — and 中文书 too。",
]
CHINESE = [
    "小猫坐在垫子上。小狗不在意；它是一只老狗！",
    "“安娜在哪里？”老师问：“她在花园里……”",
    "𠮷野家——一个地方，𠮷字少见。",
]


@dataclass
class Settings:
    vocab_size: int = 1536
    hanzi: Any = "corpus"
    min_frequency: int = 1
    reserved_tokens: int = 4
    chinese_words: int = 0
    english_from: Any = "english"
    memory_bytes: int = 1_000_000_000


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerFast:
    return train_tokenizer(ENGLISH, CHINESE, Settings())


@pytest.fixture(scope="module")
def whole_table() -> PreTrainedTokenizerFast:
    return train_tokenizer(ENGLISH, None, Settings(vocab_size=9600, hanzi="8105"))


@pytest.fixture(scope="module")
def with_words() -> PreTrainedTokenizerFast:
    settings = Settings(chinese_words=50, min_frequency=2)
    return train_tokenizer(ENGLISH * 2, [*CHINESE, "小猫坐在垫子上，小狗坐在花园里。老师问小狗。"] * 3, settings)


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    return load_tokenizer(SHIPPED)


@pytest.fixture(scope="module", params=["small", "with_words", "whole_table", "shipped"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["small", "whole_table", "shipped"])
def isolating(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One in which a Chinese character is never joined to another."""
    return request.getfixturevalue(request.param)


def n_common(tokenizer: PreTrainedTokenizerFast) -> int:
    """How many characters of the table the tokenizer was asked to cover."""
    return {9600: LEVEL_SIZES[2], 32000: LEVEL_SIZES[0]}.get(len(tokenizer), 0)


def common_characters(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    if n := n_common(tokenizer):
        return [*hanzi_table(n), *MARKS]
    return sorted({c for c in "".join(CHINESE) if is_han(c) or c in MARKS})


def bytes_of_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    special = set(tokenizer.added_tokens_decoder)
    vocab = tokenizer.get_vocab().items()
    return {i: bytes(byte_of[letter] for letter in token) for token, i in vocab if i not in special}


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
awkward_text = st.lists(
    st.one_of(
        any_text,
        st.sampled_from(["👩‍👩‍👧‍👦", "🇨🇳", "é", "ﬁ", "\x00", "\x1b[0m", "\u3000", "\ufeff"]),
        st.sampled_from(["𪚥", "㐀", "ſ", "'S", "\xa0", "\u0301"]),
        st.sampled_from(["<|im_end|>", "<|endoftext|>", "<|reserved_0|>", "don't", "don’t", "——", "……", "1234"]),
        st.sampled_from(["\r\n", " \n ", "   ", "\t\t"]),
        st.text(st.sampled_from([*hanzi_table(), *MARKS]), max_size=8),
        st.text(st.characters(min_codepoint=0x20000, max_codepoint=0x3FFFF, exclude_categories=["Cs"]), max_size=4),
    ),
    max_size=8,
).map("".join)


@given(text=awkward_text)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(encode_text(tokenizer, text)) == text
    assert tokenizer.decode(tokenizer.encode(text)) == text  # special tokens parsed, and spelt out again


@given(text=awkward_text)
@settings(max_examples=60, deadline=None)
def test_tokens_arriving_one_by_one_add_up_to_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = DecodeStream(skip_special_tokens=False)
    assert "".join(stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids) == text


def test_each_common_character_and_mark_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for character in [*common_characters(tokenizer), *DOUBLE_MARKS]:
        assert len(encode_text(tokenizer, character)) == 1, character


def test_random_runs_of_all_common_characters_are_one_token_each(isolating: PreTrainedTokenizerFast) -> None:
    characters = common_characters(isolating)
    for seed in range(3):
        text = "".join(random.Random(seed).sample(characters * 3, len(characters) * 3))
        tokens = [isolating.decode([i]) for i in encode_text(isolating, text)]
        assert tokens == re.findall("——|……|.", text)


@given(data=st.data(), before=awkward_text, after=awkward_text)
@settings(max_examples=150, deadline=None)
def test_a_common_character_is_its_own_token_beside_any_text(
    isolating: PreTrainedTokenizerFast, data: st.DataObject, before: str, after: str
) -> None:
    chinese = [c for c in common_characters(isolating) if is_han(c) or c in FULL_WIDTH_MARKS]
    character = data.draw(st.sampled_from(chinese))
    text = before + character + after
    (token_id,) = encode_text(isolating, character)
    assert encode_text(isolating, text).count(token_id) == text.count(character)


def test_chinese_words_are_tokens_and_cost_their_characters_nothing(
    with_words: PreTrainedTokenizerFast, small: PreTrainedTokenizerFast
) -> None:
    tokens = {bytes_.decode("utf-8", "ignore") for bytes_ in bytes_of_tokens(with_words).values()}
    words = {token for token in tokens if len(token) > 1 and is_han(token[0])}
    assert {"小猫", "小狗", "老师", "花园里"} <= words
    assert all(map(is_han, "".join(words)))
    for character in common_characters(with_words):
        assert len(encode_text(with_words, character)) == 1
    text = "小猫坐在垫子上，老师问小狗。"
    assert len(encode_text(with_words, text)) < 0.7 * len(encode_text(small, text))


def test_chinese_text_alone_is_enough_where_english_is_learnt_from_all() -> None:
    texts = ["小猫说 hello hello，老师说 hello！"] * 4
    with pytest.raises(UserError, match=r"the English text is empty.*set english_from to all"):
        train_tokenizer([], texts, Settings(vocab_size=512))
    tokenizer = train_tokenizer([], texts, Settings(vocab_size=512, english_from="all"))
    assert len(encode_text(tokenizer, " hello")) == 1
    assert [tokenizer.decode([i]) for i in encode_text(tokenizer, "小猫说 hello")] == ["小", "猫", "说", " hello"]


def test_no_english_token_reaches_into_chinese(isolating: PreTrainedTokenizerFast) -> None:
    for data in bytes_of_tokens(isolating).values():
        text = data.decode("utf-8", "ignore")
        if len(text) > 1 and text not in DOUBLE_MARKS:
            assert not any(is_han(c) or c in FULL_WIDTH_MARKS for c in text), text


def test_every_token_is_reached_by_its_own_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tokenizer.backend_tokenizer.model
    letters = byte_letters()
    for token_id, data in bytes_of_tokens(tokenizer).items():
        assert [t.id for t in model.tokenize("".join(letters[byte] for byte in data))] == [token_id]


def test_ids_are_bytes_then_merges_in_order_of_rank(tokenizer: PreTrainedTokenizerFast) -> None:
    vocab = tokenizer.get_vocab()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert [vocab[letter] for letter in byte_letters()] == list(range(256))
    assert [vocab[left + right] for left, right in merges] == list(range(256, 256 + len(merges)))


def test_the_vocabulary_is_exactly_full(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) in (1536, 9600, 32000)
    assert tokenizer.vocab_size == len(tokenizer)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    specials = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    assert specials[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>"]
    assert max(tokenizer.added_tokens_decoder) == len(tokenizer) - 1


def test_the_pre_tokenizer_is_qwen2s_to_the_letter(tokenizer: PreTrainedTokenizerFast) -> None:
    stock = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
    ours = json.loads(tokenizer.backend_tokenizer.to_str())
    assert ours["pre_tokenizer"] == stock["pre_tokenizer"]
    assert ours["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": QWEN2_PATTERN}
    assert ours["decoder"] == stock["decoder"]
    assert ours["normalizer"] is None  # stock has NFC, which loses what the user wrote


def test_a_turns_end_stops_and_padding_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer("hello").input_ids == encode_text(tokenizer, "hello")  # nothing is added of itself


@pytest.mark.parametrize("model_type", [None, "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("plain", [False, True], ids=["save_tokenizer", "save_pretrained"])
def test_stock_transformers_load_the_same_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str | None, plain: bool
) -> None:
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer.save_pretrained(tmp_path) if plain else save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_max_length == tokenizer.model_max_length == 32_768
    assert loaded.clean_up_tokenization_spaces is False
    text = " ".join([*ENGLISH, *CHINESE, "e\u0301 ﬁ ,"])
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


def test_saving_leaves_a_model_alone_and_repeats_its_bytes(small: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    save_tokenizer(small, tmp_path)
    first = files_of(tmp_path)
    assert set(first) == {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    save_tokenizer(load_tokenizer(tmp_path), tmp_path)
    assert files_of(tmp_path) == first


def test_training_depends_on_nothing_but_the_text(small: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(small, tmp_path / "first")
    save_tokenizer(train_tokenizer(iter(ENGLISH[::-1]), iter(CHINESE[::-1]), Settings()), tmp_path / "reversed")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_train_tokenizer import *; "
        "save_tokenizer(train_tokenizer(ENGLISH, CHINESE, Settings()), Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "17", "RAYON_NUM_THREADS": "1"}
    here, other = str(Path(__file__).parent), str(tmp_path / "other process")
    subprocess.run([sys.executable, "-c", program, here, other], cwd=REPOSITORY, env=environment, check=True)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "reversed") == files_of(tmp_path / "other process")


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_template_marks_exactly_what_the_assistant_says(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "你好！"},
        {"role": "assistant", "content": "Hello，小猫。"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
        {"role": "user", "content": "Thanks"},
    ]
    out: Any = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=True
    )
    assert tokenizer.decode(out["input_ids"]) == (
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n你好！<|im_end|>\n"
        "<|im_start|>assistant\nHello，小猫。<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"
        "<|im_start|>assistant\nIt is 42.<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n"
    )
    said = [i for i, by_assistant in zip(out["input_ids"], out["assistant_masks"], strict=True) if by_assistant]
    assert tokenizer.decode(said) == "Hello，小猫。<|im_end|>It is 42.<|im_end|>"


@pytest.mark.parametrize(
    ("message", "complaint"),
    [({"role": "robot", "content": "x"}, "unknown role 'robot'"), ({"role": "user", "content": None}, "is no text")],
)
def test_the_template_refuses_what_it_cannot_say(
    small: PreTrainedTokenizerFast, message: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(Exception, match=complaint):
        small.apply_chat_template([message])


def test_entries_by_kind_add_up_and_a_shortage_is_said(caplog: pytest.LogCaptureFixture) -> None:
    texts = [Text("aaaa bbbb", False, "en"), *(Text(text, True, "zh") for text in CHINESE)]
    tokenizer, entries, _ = train_on(texts, Settings(vocab_size=1000))
    assert sum(entries.values()) == len(tokenizer) == 1000
    assert entries["english"] < 10
    assert entries["reserved"] > 500
    assert "other" in caplog.text and "reserved" in caplog.text


def test_the_role_of_each_turn_is_one_token_in_a_realistic_corpus() -> None:
    tokenizer = train_tokenizer(ENGLISH * 100, CHINESE, Settings(vocab_size=1024))
    assert all(len(encode_text(tokenizer, role)) == 1 for role in ("system", "user", "assistant", "tool"))


@pytest.mark.parametrize(
    ("changes", "english", "complaint"),
    [
        ({"vocab_size": 65_537}, ENGLISH, "65537 is over 65536"),
        ({"vocab_size": 4000, "hanzi": "3500"}, ENGLISH, "vocab_size 4000 is too small: 256 bytes, .* take 4129"),
        ({"hanzi": "4000"}, ENGLISH, "hanzi '4000' is unknown; use 3500, 6500, 6763, 8105 or corpus"),
        ({"chinese_words": -1}, ENGLISH, "chinese_words -1 is negative; use 0 or more"),
        ({"chinese_words": 2000}, ENGLISH, "2000 for Chinese words, and 7 special tokens take"),
        ({"min_frequency": 0, "reserved_tokens": -1}, ENGLISH, "min_frequency 0 .*reserved_tokens -1"),
        ({"min_frequency": 99}, ENGLISH, "no Chinese character occurs 99 times"),
        ({}, [], "the English text is empty"),
        ({}, ["", "fine", "cut \ud83d off"], r"English text 3: character 4 is a lone surrogate \(U\+D83D\)"),
    ],
)
def test_bad_settings_and_text_end_in_one_line(changes: dict[str, Any], english: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        train_tokenizer(english, CHINESE, Settings(**changes))
    assert "\n" not in str(caught.value)


def test_the_table_is_the_official_one() -> None:
    assert Counter(map(len, hanzi_table())) == {1: 8105}
    assert (hanzi_table()[0], hanzi_table()[3499], hanzi_table()[6499], hanzi_table()[8104]) == ("一", "矗", "齉", "蠼")
    assert all(map(is_han, hanzi_table()))


def test_gb_2312_is_the_standards() -> None:
    characters = character_set("6763")
    assert (len(set(characters)), characters[0], characters[3754], characters[3755], characters[-1]) == (
        6763, "啊", "座", "亍", "齄",
    )  # fmt: skip
    assert all(map(is_han, characters))
    tokenizer = train_tokenizer(ENGLISH, None, Settings(vocab_size=7680, hanzi="6763"))
    assert len(encode_text(tokenizer, "".join(characters))) == 6763


def test_the_command_trains_measures_and_writes_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = [line for line in ENGLISH[0].splitlines() if line]
    (tmp_path / "en.txt").write_text("\n".join(f"{line} {n}" for n in range(50) for line in sentences))
    (tmp_path / "zh.jsonl").write_text("\n".join(json.dumps({"a": {"text": f"{CHINESE[0]}{n}"}}) for n in range(200)))
    sources = tmp_path / "sources.txt"
    sources.write_text("# a comment\nen en.txt\nmeasure-zh zh.jsonl text\n")
    arguments = ["--sources", str(sources), "--data", str(tmp_path), "--output", str(tmp_path / "tokenizer")]
    assert main([*arguments, "--vocab-size", "4608"]) == 0
    manifest = json.loads((tmp_path / "tokenizer" / "tokenizer_manifest.json").read_text())
    (row,) = manifest["trained_on"]  # the Chinese is measured only
    assert row["sha256"] == hashlib.sha256((tmp_path / "en.txt").read_bytes()).hexdigest()
    assert 80 < row["documents"] < 100  # two in a hundred are held out
    assert manifest["held_out"]["zh"]["bytes_per_token"] > 2
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer")) == 4608

    capsys.readouterr()
    (tmp_path / "en.txt").unlink()
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_shipped_tokenizer_is_the_one_its_manifest_describes(shipped: PreTrainedTokenizerFast) -> None:
    manifest = json.loads((SHIPPED / "tokenizer_manifest.json").read_text())
    assert sum(manifest["entries"].values()) == len(shipped) == 32_000
    assert shipped.chat_template == (REPOSITORY / "mini_chat/data/chat_template.jinja").read_text()
    assert manifest["held_out"]["zh"]["bytes_per_token"] > 2.8
    assert manifest["held_out"]["en"]["bytes_per_token"] > 4.0
    assert all(len(encode_text(shipped, role)) == 1 for role in ("system", "user", "assistant", "tool"))


@pytest.mark.skipif(not (DATA / "trpl-zh").exists(), reason=f"no real text in {DATA}; set MINI_CHAT_DATA to its folder")
def test_the_shipped_tokenizer_loses_nothing_of_real_text(shipped: PreTrainedTokenizerFast) -> None:
    texts = [json.loads(line)["text"] for line in (DATA / "trpl-zh/trpl-zh.jsonl").open(encoding="utf-8")]
    texts += (DATA / "tinyshakespeare/input.txt").read_text(encoding="utf-8").splitlines()
    for text in texts:
        assert shipped.decode(encode_text(shipped, text)) == text
    assert bytes_per_token(shipped, texts[:100])["bytes_per_token"] > 2.7


def test_the_training_pattern_is_the_saved_one() -> None:
    pieces = [piece for piece, _ in qwen2_pre_tokenizer().pre_tokenize_str("I've 12 cats！\n\n  ok")]
    assert pieces == ["I", "'ve", "Ġ", "1", "2", "Ġcats", "ï¼ģĊĊ", "Ġ", "Ġok"]


def test_a_runs_tokenizer_reads_its_sources_once_and_says_what_was_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, lines in (("en.txt", ENGLISH[:3] * 40), ("zh.txt", CHINESE * 40)):
        (tmp_path / name).write_text("\n".join(f"{line} {n}".replace("\n", " ") for n, line in enumerate(lines)))
    sources = [Source(path=str(tmp_path / f"{language}.txt"), language=language) for language in ("en", "zh")]
    settings = {"vocab_size": 1088, "hanzi": "corpus", "chinese_words": 20}
    recipe = Recipe.model_validate({"tokenizer": settings, "machine": {"processes": 1}})
    read = Mock(wraps=train_tokenizer_module.read_documents)
    monkeypatch.setattr(train_tokenizer_module, "read_documents", read)
    trained = train_on_sources(sources, recipe)
    assert read.call_count == 1
    assert trained.counted.documents == 240
    assert trained.counted.size_bytes == sum((tmp_path / name).stat().st_size for name in ("en.txt", "zh.txt")) - 238
    assert "240 documents, 0.0 MB counted (the whole corpus); every word counted" in capsys.readouterr().err

    recipe.tokenizer.max_bytes = 10_000
    first, second = train_on_sources(sources, recipe), train_on_sources(sources[::-1], recipe)
    assert 20 < first.counted.documents < 180
    assert first.counted.documents == second.counted.documents
    assert first.tokenizer.backend_tokenizer.to_str() == second.tokenizer.backend_tokenizer.to_str()
    assert "of the documents, by the hash of their text)" in capsys.readouterr().err


def test_training_loads_no_torch() -> None:
    program = "import sys; import mini_chat.trainer.train_tokenizer; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
