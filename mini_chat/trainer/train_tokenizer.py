"""The tokenizer stage: English merges, plus one token for each common Chinese character.

    python -m mini_chat.trainer.train_tokenizer --sources config/tokenizer-32k.txt --data FOLDER --output out

What is made is a byte-level BPE (Radford et al., 2019) whose layout is, by id:

    0 … 255         the bytes, by value
    then            helpers: the beginnings of Chinese characters (`tokenizer_merges` explains them)
    then            the characters of 通用规范汉字表 and the full-width marks, a token each
    then            English, learnt from the corpus
    then            Chinese words of several characters, learnt from the corpus, where `chinese_words` asks for them
    the last ones   <|endoftext|>, <|im_start|>, <|im_end|>, <|reserved_0|>, <|reserved_1|>, …

The text before BPE is untouched (no normalizer), so nothing is lost, and cut as Qwen2 cuts it, to the letter:
llama.cpp knows pre-tokenizers by name only, and `qwen2` is the name an exported model carries.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.console import Bar, progress, say
from mini_chat.data.documents import read_documents
from mini_chat.data.encoding import DOCUMENT_END, TURN_END, TURN_START, encode_texts
from mini_chat.data.hanzi import CHARACTER_SETS, DOUBLE_MARKS, MARKS, character_set, is_han
from mini_chat.data.holdout import holdout_share
from mini_chat.data.inputs import expand, input_size
from mini_chat.data.streams import MAGIC
from mini_chat.data.tally import Tally
from mini_chat.data.tokenizer_sources import TokenizerSource, read_source_list, read_texts
from mini_chat.errors import UserError
from mini_chat.files import sha256_file, write_json
from mini_chat.trainer.tokenizer_counts import BASE_BYTES, CorpusCounts, Text, Wanted, count_corpus
from mini_chat.trainer.tokenizer_files import MODEL_MAX_LENGTH, assemble, save_tokenizer
from mini_chat.trainer.tokenizer_merges import LETTER_BYTES, character_merges, learn_merges

logger = logging.getLogger(__name__)

MAX_VOCAB_SIZE = 1 << 16
"""So that shards hold ids as uint16; those of a larger tokenizer that is brought ready are uint32."""

CORE_SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END)

Hanzi = Literal["3500", "6500", "6763", "8105", "corpus"]


class TokenizerSettings(Protocol):
    """What the stage reads of its configuration."""

    @property
    def vocab_size(self) -> int:
        """Entries in all, special ones too; met exactly. A multiple of 64 keeps matrix products fast."""

    @property
    def hanzi(self) -> Hanzi:
        """Which characters get a token: that many of 通用规范汉字表, those of GB 2312 (6763), or of the corpus."""

    @property
    def chinese_words(self) -> int:
        """Entries for words of two and more Chinese characters; 0 keeps one token a character."""

    @property
    def english_from(self) -> Literal["english", "all"]:
        """Which documents English is learnt from: those that are not Chinese, or what is not Chinese in any."""

    @property
    def min_frequency(self) -> int:
        """How often a pair must occur to be merged and, with `corpus`, a character to get a token."""

    @property
    def reserved_tokens(self) -> int:
        """Special tokens kept for the future (at least so many: what the corpus cannot fill becomes reserved too)."""

    @property
    def memory_bytes(self) -> int:
        """Memory of all processes together."""


class TrainedTokenizer(NamedTuple):
    """A tokenizer and what it is made of."""

    tokenizer: PreTrainedTokenizerFast
    entries: dict[str, int]
    """Entries by kind: bytes, helpers, characters, doubles, english, chinese, special, reserved; their sum is the
    vocabulary."""
    counted: CorpusCounts
    """What it was learnt from; the words themselves are gone."""


def train_tokenizer(
    english_texts: Iterable[str],
    chinese_texts: Iterable[str] | None,
    config: TokenizerSettings,
    model_max_length: int = MODEL_MAX_LENGTH,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on texts by language; see `train_on`, which also says what became of the vocabulary."""
    english = (Text(text, False, f"English text {number}") for number, text in enumerate(english_texts, 1))
    chinese = (Text(text, True, f"Chinese text {number}") for number, text in enumerate(chinese_texts or (), 1))
    texts = chain(english, chinese) if any(wanted_of_chinese(config)) else english
    return train_on(texts, config, model_max_length).tokenizer


def wanted_of_chinese(config: TokenizerSettings) -> Wanted:
    """What Chinese text is read for: with a ready set of characters and nothing to learn, it is not read at all."""
    return Wanted(config.hanzi == "corpus", config.chinese_words > 0, config.english_from == "all")


def train_on(
    texts: Iterable[Text],
    config: TokenizerSettings,
    model_max_length: int = MODEL_MAX_LENGTH,
    processes: int = 1,
) -> TrainedTokenizer:
    """Train a tokenizer on documents, each read once and not kept.

    Args:
        texts: English merges are learnt from those that are not Chinese (Chinese in them is passed over), or from all
            (`english_from`); of the Chinese ones the characters are counted for `hanzi: corpus`, and words for
            `chinese_words`.
        model_max_length: tokens, what the tokenizer tells stock tools to truncate at. The model's own limit is in
            its `config.json`.
        processes: that count; 0 for one per core.

    Raises:
        UserError: settings that cannot be met, a corpus without text, a lone surrogate.
    """
    _check_settings(config)
    counts = count_corpus(texts, wanted_of_chinese(config), config.memory_bytes, processes)
    if not counts.pieces:
        raise UserError(
            "the English text is empty, there is nothing to learn a tokenizer from; check the sources and their "
            "language, or learn from what is English in Chinese text: set english_from to all"
        )
    characters = _characters(counts, config)
    doubles = [double for double in DOUBLE_MARKS if set(double) <= set(characters)]
    table = character_merges(characters, doubles)
    n_special = len(CORE_SPECIAL_TOKENS) + config.reserved_tokens
    if (needed := len(table.ids) + n_special + config.chinese_words) > config.vocab_size:
        words = f"{config.chinese_words} for Chinese words, " if config.chinese_words else ""
        raise UserError(
            f"vocab_size {config.vocab_size} is too small: 256 bytes, {table.helpers + len(characters) + len(doubles)} "
            f"for Chinese characters, {words}and {n_special} special tokens take {needed}; "
            "raise vocab_size, or choose fewer characters with hanzi or min_frequency"
        )

    entries = {"bytes": 256, "helpers": table.helpers, "characters": len(characters), "doubles": len(doubles)}
    max_letters = max(1000, (config.memory_bytes - BASE_BYTES) * 3 // 4 // LETTER_BYTES)
    for kind, counter, wanted_entries in (
        ("english", counts.english, config.vocab_size - needed),
        ("chinese", counts.chinese, config.chinese_words),
    ):
        entries[kind] = learn_merges(table, counter.counts, wanted_entries, config.min_frequency, max_letters)
    entries["special"] = len(CORE_SPECIAL_TOKENS)
    entries["reserved"] = config.vocab_size - sum(entries.values())
    _warn(config, entries)
    specials = [*CORE_SPECIAL_TOKENS, *(f"<|reserved_{index}|>" for index in range(entries["reserved"]))]
    return TrainedTokenizer(assemble(table, specials, model_max_length), entries, counts)


def train_on_sources(sources: Sequence[Source], recipe: Recipe) -> TrainedTokenizer:
    """Train a run's tokenizer on its pretraining text, in one pass over it, and say what was counted.

    Of a corpus over `max_bytes` (by its files; compressed ones count fourfold) each document is counted or not by the
    hash of its text: the same sample in every run.
    """
    settings = recipe.tokenizer
    share = min(1.0, settings.max_bytes / max(1, sum(text_bytes(source.path) for source in sources)))
    tally = Tally()

    def texts(bar: Bar) -> Iterator[Text]:
        for document in read_documents(sources, tally, recipe.data.max_line_bytes):
            bar.reach(tally.input_bytes)
            is_chinese = document.language == "zh"
            if is_chinese and not any(wanted_of_chinese(settings)):
                continue
            if share == 1 or holdout_share(document.text + "\n#tokenizer", share):
                yield Text(document.text, is_chinese, f"{document.source}:{document.number}")

    with progress("tokenizer", input_size(source.path for source in sources) or None, "bytes") as bar:
        trained = train_on(
            texts(bar), settings, recipe.model.max_position_embeddings, processes=recipe.machine.processes
        )
    counted = trained.counted
    corpus = (
        "the whole corpus" if share == 1 else f"a sample of {share:.1%} of the documents, by the hash of their text"
    )
    exact = f"counts of words are too low by {counted.forgotten} at most" if counted.forgotten else "every word counted"
    say(f"  tokenizer: {counted.documents:,} documents, {counted.size_bytes / 1e6:,.1f} MB counted ({corpus}); {exact}")
    return trained


def text_bytes(path: str) -> int:
    """About how much text the files of a source hold [bytes]."""
    return sum(file.stat().st_size * (4 if file.suffix in MAGIC else 1) for file in expand(path) if file.is_file())


def _warn(config: TokenizerSettings, entries: dict[str, int]) -> None:
    left = entries["reserved"] - config.reserved_tokens
    if left:
        learnt = entries["english"] + entries["chinese"]
        logger.warning(
            "the text is enough for %d merges of %d; the other %d entries are reserved tokens (give more text, or a "
            "vocab_size of %d)",
            learnt, learnt + left, left, config.vocab_size - left,
        )  # fmt: skip
    if config.vocab_size % 64:
        logger.info("vocab_size %d is no multiple of 64, which would train faster", config.vocab_size)


def _check_settings(config: TokenizerSettings) -> None:
    problems = []
    if config.vocab_size > MAX_VOCAB_SIZE:
        problems.append(f"vocab_size {config.vocab_size} is over {MAX_VOCAB_SIZE}, ids must fit 16 bits; lower it")
    if config.hanzi not in (*CHARACTER_SETS, "corpus"):
        problems.append(f"hanzi {config.hanzi!r} is unknown; use {', '.join(CHARACTER_SETS)} or corpus")
    if config.min_frequency < 1:
        problems.append(f"min_frequency {config.min_frequency} is under 1; raise it")
    if config.chinese_words < 0:
        problems.append(f"chinese_words {config.chinese_words} is negative; use 0 or more")
    if config.reserved_tokens < 0:
        problems.append(f"reserved_tokens {config.reserved_tokens} is negative; use 0 or more")
    if problems:
        raise UserError("tokenizer: " + "; ".join(problems))


def _characters(counts: CorpusCounts, config: TokenizerSettings) -> list[str]:
    """The characters that get a token, in the order of their ids."""
    if config.hanzi != "corpus":
        return [*character_set(config.hanzi), *MARKS]
    counted = counts.characters
    frequent = [character for character, n in counted.items() if n >= config.min_frequency]
    hanzi = sorted(filter(is_han, frequent), key=lambda character: (-counted[character], character))
    if not hanzi:
        raise UserError(
            f"hanzi is 'corpus', but no Chinese character occurs {config.min_frequency} times in the Chinese text; "
            "give Chinese text, or set hanzi to 3500"
        )
    return [*hanzi, *(mark for mark in MARKS if mark in set(frequent))]


# ---------------------------------------------------------------------------------------------------------------------
# On its own: the tokenizer that ships in out/

HOLDOUT_SHARE = 0.02
"""Of the documents; never trained on, so that the measured bytes per token are those of unseen text."""


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], batch: int = 1024) -> dict[str, float]:
    """UTF-8 bytes, tokens and their ratio over `texts`, as `{"bytes": …, "tokens": …, "bytes_per_token": …}`."""
    n_bytes = n_tokens = 0
    waiting: list[str] = []

    def measure() -> int:
        lengths = [len(ids) for ids in encode_texts(tokenizer, waiting)]
        waiting.clear()
        return sum(lengths)

    for text in texts:
        n_bytes += len(text.encode("utf-8", "surrogatepass"))
        waiting.append(text)
        if len(waiting) == batch:
            n_tokens += measure()
    n_tokens += measure()
    return {"bytes": n_bytes, "tokens": n_tokens, "bytes_per_token": round(n_bytes / max(n_tokens, 1), 4)}


def train_from_list(
    sources: list[TokenizerSource],
    config: TokenizerSettings,
    model_max_length: int = MODEL_MAX_LENGTH,
    processes: int = 1,
) -> tuple[PreTrainedTokenizerFast, dict[str, Any]]:
    """Train on the sources' documents but for the held-out ones, and measure on those.

    Returns:
        The tokenizer and its manifest: settings, entries by kind, sources with fingerprints, bytes per token.
    """
    rows: list[dict[str, Any]] = []

    def training_texts() -> Iterator[Text]:
        for source in sources:
            is_chinese = source.language == "zh"
            if not source.trained or (is_chinese and not any(wanted_of_chinese(config))):
                continue
            n_documents = n_bytes = 0
            for text in read_texts(source):
                if not holdout_share(text, HOLDOUT_SHARE):
                    n_documents += 1
                    n_bytes += len(text.encode("utf-8", "surrogatepass"))
                    yield Text(text, is_chinese, f"{source.path}: document {n_documents}")
            rows.append(_source_row(source) | {"documents": n_documents, "bytes": n_bytes})

    tokenizer, entries, counted = train_on(training_texts(), config, model_max_length, processes)
    held_out: dict[str, dict[str, float]] = {}
    by_source = []
    for source in sources:
        texts = (text for text in read_texts(source) if holdout_share(text, HOLDOUT_SHARE))
        measured = bytes_per_token(tokenizer, texts)
        by_source.append({"language": source.language, "path": source.name, "trained": source.trained, **measured})
        total = held_out.setdefault(source.language, {"bytes": 0, "tokens": 0})
        for key in ("bytes", "tokens"):
            total[key] += measured[key]
        total["bytes_per_token"] = round(total["bytes"] / max(total["tokens"], 1), 4)
    names = ("vocab_size", "hanzi", "chinese_words", "english_from", "min_frequency", "reserved_tokens", "memory_bytes")
    manifest = {
        "settings": {name: getattr(config, name) for name in names},
        "entries": entries,
        "counts_too_low_by_at_most": counted.forgotten,
        "trained_on": rows,
        "holdout_share": HOLDOUT_SHARE,
        "held_out": held_out,
        "held_out_by_source": by_source,
        "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
    }
    return tokenizer, manifest


def _source_row(source: TokenizerSource) -> dict[str, Any]:
    return {"language": source.language, "path": source.name, "take": source.take, "sha256": sha256_file(source.path)}


def main(arguments: list[str] | None = None) -> int:
    """Train from a list of sources; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mini_chat.trainer.train_tokenizer",
        description="Train the tokenizer that ships: English merges, and a token for each common Chinese character.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    data = os.environ.get("MINI_CHAT_DATA", ".")
    add("--sources", type=Path, required=True, help="list of files, such as config/tokenizer-32k.txt")
    add("--data", type=Path, default=data, help="folder that the list's paths start from, else $MINI_CHAT_DATA")
    add("--output", type=Path, required=True, help="directory for the tokenizer's files")
    add("--vocab-size", type=int, default=32_000, help="entries in all")
    add("--hanzi", choices=[*CHARACTER_SETS, "corpus"], default="3500", help="characters with their own token")
    add("--chinese-words", type=int, default=0, help="entries for words of two and more Chinese characters")
    add("--english-from", choices=["english", "all"], default="english", help="documents that English is learnt from")
    add("--min-frequency", type=int, default=2, help="how often a pair must occur to be merged")
    add("--reserved-tokens", type=int, default=32, help="special tokens kept free")
    add("--memory-bytes", type=int, default=1_000_000_000, help="memory of all processes together [bytes]")
    add("--processes", type=int, default=1, help="processes that count, 0 for one per core")
    add("--model-max-length", type=int, default=MODEL_MAX_LENGTH, help="what stock tools truncate at [tokens]")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        sources = read_source_list(options.sources, options.data)
        tokenizer, manifest = train_from_list(sources, options, options.model_max_length, options.processes)
        save_tokenizer(tokenizer, options.output)
        write_json(options.output / "tokenizer_manifest.json", manifest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for language, total in manifest["held_out"].items():
        print(f"{total['bytes_per_token']:.3f} bytes per token on {total['bytes']:,.0f} held-out bytes: {language}")
    entries = ", ".join(f"{n:,} {kind}" for kind, n in manifest["entries"].items())
    print(f"{len(tokenizer):,} entries in {options.output}: {entries}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
