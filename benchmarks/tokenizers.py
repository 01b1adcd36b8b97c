"""Bytes per token, rates and memory of the tokenizer, beside those that users know and our own alternatives.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.tokenizers

Bytes per token are of held-out text: two documents in a hundred of `config/tokenizer-32k.txt`'s sources, which none of
ours is trained on. Rates are bytes of text by seconds of the processor, so they are of one core, and hold for a machine
that does other things too; each encoder starts with empty caches. Memory is the peak of all processes of
`mini-chat tokenizer` on 100 MB of Chinese.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers.decoders import DecodeStream

from benchmarks.extract import run as run_watched
from benchmarks.known_vocabularies import known_vocabularies
from benchmarks.results import table, write
from benchmarks.venv import bench_python
from mini_chat.config import Tokenizer
from mini_chat.console import say
from mini_chat.data.fast_encoding import FastEncoder
from mini_chat.data.hanzi import hanzi_table
from mini_chat.data.holdout import holdout_share
from mini_chat.data.token_bytes import TokenBytes
from mini_chat.data.tokenizer_sources import read_source_list, read_texts
from mini_chat.trainer.tokenizer_counts import QWEN2_PATTERN, Text
from mini_chat.trainer.train_tokenizer import HOLDOUT_SHARE, train_on

REPOSITORY = Path(__file__).parent.parent
SHIPPED = REPOSITORY / "out"
LANGUAGES = ("en", "zh")
BATCH = 512  # documents encoded at once, as the shards stage does
SLOW_SHARE = 8  # of the documents, one in so many is enough to time what is slow
CHINESE_BYTES = 100_000_000

ALTERNATIVES = {
    "8105": Tokenizer(hanzi="8105"),
    "gb2312": Tokenizer(hanzi="6763"),
    "from_all": Tokenizer(english_from="all"),
    "words": Tokenizer(chinese_words=8000),
    "words_from_all": Tokenizer(chinese_words=8000, english_from="all"),
    "16k": Tokenizer(vocab_size=16_000),
    "16k_words": Tokenizer(vocab_size=16_000, chinese_words=6000),
    "8k": Tokenizer(vocab_size=8192),
    "8k_words": Tokenizer(vocab_size=8192, chinese_words=2000),
}
"""What else could ship; the one that does is 32,000 entries with 3,500 characters."""

MINIMIND_ZH_CHARACTERS = (1.5, 1.7)
"""Chinese characters per token of minimind's 6,400 entries, as its training scripts say (help of --max_seq_len); for
English nothing is published. 3 bytes each; measured by its author, on other text."""


class Texts(NamedTuple):
    """Documents by language."""

    train: dict[str, list[str]]
    held_out: dict[str, list[str]]


def real_texts(data: Path) -> Texts:
    """The documents of the shipped tokenizer's list; Chinese is trained on too, for the alternatives that need it."""
    texts = Texts({language: [] for language in LANGUAGES}, {language: [] for language in LANGUAGES})
    for source in read_source_list(REPOSITORY / "config" / "tokenizer-32k.txt", data):
        for text in read_texts(source):
            if holdout_share(text, HOLDOUT_SHARE):
                texts.held_out[source.language].append(text)
            elif source.trained or source.language == "zh":
                texts.train[source.language].append(text)
    return texts


def trained(texts: Texts, settings: Tokenizer) -> str:
    """The `tokenizer.json` that the settings give on the training documents."""
    documents = (Text(text, language == "zh", language) for language in LANGUAGES for text in texts.train[language])
    return train_on(documents, settings).tokenizer.backend_tokenizer.to_str()


def size_of(texts: list[str]) -> int:
    """Bytes in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def bytes_per_token(encoder: FastEncoder, texts: list[str]) -> float:
    """Of some texts together."""
    return size_of(texts) / sum(map(len, encoder.encode_documents(texts)))


def per_second(texts: list[str], work: Callable[[], object]) -> float:
    """Megabytes of the texts by seconds of the processor that the work takes."""
    began = time.process_time()
    work()
    return size_of(texts) / (time.process_time() - began) / 1e6


def batches(texts: list[str]) -> Iterator[list[str]]:
    """As many at once as the shards stage takes."""
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def our_rates(texts: list[str], rounds: int = 3) -> dict[str, float]:
    """Encoding, decoding and streaming with the shipped tokenizer."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        encoder = FastEncoder.from_directory(SHIPPED)
        assert encoder.is_fast, "fastokens is not installed"
        for name, rate in rates(
            texts,
            lambda batch, encoder=encoder: encoder.encode_documents(batch),  # type: ignore[misc]
            encoder.decode,
            lambda ids, encoder=encoder: streamed(encoder, ids),  # type: ignore[misc]
        ).items():
            found.setdefault(name, []).append(rate)
    return {name: statistics.median(values) for name, values in found.items()}


def rates(
    texts: list[str],
    encode: Callable[[list[str]], Sequence[Any]],
    decode: Callable[[Any], str],
    stream: Callable[[list[int]], object],
) -> dict[str, float]:
    """Megabytes a second of encoding batches, decoding documents, and decoding them token by token."""
    ids: list[Any] = []
    found = {"encode": per_second(texts, lambda: ids.extend(one for batch in batches(texts) for one in encode(batch)))}
    found["decode"] = per_second(texts, lambda: [decode(some) for some in ids])
    lists = [some if isinstance(some, list) else some.tolist() for some in ids]
    found["stream"] = per_second(texts, lambda: [stream(some) for some in lists])
    return found


def streamed(encoder: FastEncoder, ids: list[int]) -> None:
    """A document's tokens, one by one."""
    decoder = encoder.stream_decoder()
    for token_id in ids:
        decoder.push(token_id)
    decoder.finish()


def library_rates(texts: list[str]) -> dict[str, float]:
    """The same by `tokenizers`."""
    library = LibraryTokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    library.encode_special_tokens = True

    def encode(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in library.encode_batch_fast(batch, add_special_tokens=False)]

    def stream(ids: list[int]) -> None:
        decoder = DecodeStream(skip_special_tokens=False)
        for token_id in ids:
            decoder.step(library, token_id)

    return rates(texts, encode, lambda ids: library.decode(ids, skip_special_tokens=False), stream)


def known(texts: Texts, samples: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """Bytes per token of vocabularies that users know, and tiktoken's rates with ours."""
    of_id = TokenBytes.from_json((SHIPPED / "tokenizer.json").read_text(encoding="utf-8")).of_id
    special = len(LibraryTokenizer.from_file(str(SHIPPED / "tokenizer.json")).get_added_tokens_decoder())
    tokens = [base64.b64encode(data).decode() for data in of_id[: len(of_id) - special]]
    (folder / "ours.json").write_text(json.dumps({"pattern": QWEN2_PATTERN, "tokens": tokens}), encoding="utf-8")
    files = {}
    for kind, by_language in (("held_out", texts.held_out), ("run", samples)):
        for language in LANGUAGES:
            files[f"{kind}_{language}"] = str(folder / f"{kind}_{language}.json")
            Path(files[f"{kind}_{language}"]).write_text(json.dumps(by_language[language]), encoding="utf-8")
    vocabularies = {"ours": str(folder / "ours.json"), **{k: str(v) for k, v in known_vocabularies().items()}}
    (folder / "task.json").write_text(json.dumps({"texts": files, "vocabularies": vocabularies, "timed": "ours"}))
    words = [str(bench_python(["tiktoken==0.14.0"])), str(Path(__file__).with_name("tiktoken_side.py"))]
    answer = json.loads(subprocess.run([*words, str(folder / "task.json")], check=True, capture_output=True).stdout)
    figures = {}
    encoder = FastEncoder.from_directory(SHIPPED)
    for language in LANGUAGES:
        timed = answer["ours"][language]
        ours = encoder.encode_documents(samples[language][: len(timed["ids"])])
        assert [ids.tolist() for ids in ours] == timed["ids"], "tiktoken gives other ids"
        figures[f"encode_{language}_tiktoken_MB_per_s"] = timed["encode"] / 1e6
        figures[f"decode_{language}_tiktoken_MB_per_s"] = timed["decode"] / 1e6
        for name in answer.keys() - {"ours"}:
            figures[f"bytes_per_token_{language}_{name}"] = size_of(texts.held_out[language]) / answer[name][language]
    return figures


def chinese_megabytes(texts: list[str], size_bytes: int) -> Iterator[str]:
    """So much Chinese whose words do not repeat more than in real text.

    The real text comes first; after it, it comes again with every character exchanged for another one, which leaves
    its statistics as they are and makes its words new.
    """
    table = hanzi_table(3500)
    made = shift = 0
    while made < size_bytes:
        exchange = str.maketrans(dict(zip(table, table[shift:] + table[:shift], strict=True)))
        for text in texts:
            text = text.translate(exchange)
            made += len(text.encode())
            yield text
            if made >= size_bytes:
                return
        shift += 101


def peaks(texts: Texts, folder: Path) -> dict[str, float]:
    """Memory of `mini-chat tokenizer` on 100 MB of Chinese and a little English, all its processes together [bytes]."""
    for language, documents in (
        ("en", texts.held_out["en"]),
        ("zh", chinese_megabytes(texts.train["zh"], CHINESE_BYTES)),
    ):
        with open(folder / f"{language}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    figures: dict[str, float] = {}
    for name, settings in (
        ("tokenizer", {"vocab_size": 8192, "hanzi": "corpus", "min_frequency": 20}),
        ("tokenizer_words", {"chinese_words": 8000}),
        ("tokenizer_words_300MB_budget", {"chinese_words": 8000, "memory_bytes": 300_000_000}),
    ):
        sources = [{"path": str(folder / f"{language}.jsonl"), "language": language} for language in LANGUAGES]
        recipe = {"out": str(folder / name), "data": {"documents": sources}, "tokenizer": settings}
        (folder / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        words = [sys.executable, str(REPOSITORY / "main.py"), "tokenizer", str(folder / f"{name}.yaml")]
        seconds, _, peak = run_watched(words, folder)
        say(f"  {name}: {peak / 1e6:.0f} MB, {seconds:.0f} s")
        figures[f"{name}_peak_bytes_100MB_zh"] = peak
        figures[f"{name}_seconds_100MB_zh"] = seconds
    return figures


def measure() -> dict[str, float]:
    """Every figure by its name."""
    texts = real_texts(Path(os.environ["MINI_CHAT_DATA"]))
    figures: dict[str, float] = {}
    whole = {language: texts.train[language] + texts.held_out[language] for language in LANGUAGES}
    samples = {language: whole[language][::SLOW_SHARE] for language in LANGUAGES}
    for language in LANGUAGES:
        for name, rate in our_rates(whole[language]).items():
            figures[f"{name}_{language}_MB_per_s"] = rate
        for name, rate in library_rates(samples[language]).items():
            figures[f"{name}_{language}_tokenizers_MB_per_s"] = rate
    with tempfile.TemporaryDirectory(prefix="mini-chat-bench-") as folder:
        figures |= known(texts, samples, Path(folder))
        for language in LANGUAGES:
            figures[f"encode_{language}_over_tokenizers"] = (
                figures[f"encode_{language}_MB_per_s"] / figures[f"encode_{language}_tokenizers_MB_per_s"]
            )
        encoders = {"ours": FastEncoder.from_directory(SHIPPED)}
        for name, settings in ALTERNATIVES.items():
            encoders[f"ours_{name}"] = FastEncoder(trained(texts, settings), name)
        for name, encoder in encoders.items():
            for language in LANGUAGES:
                figures[f"bytes_per_token_{language}_{name}"] = bytes_per_token(encoder, texts.held_out[language])
        low, high = MINIMIND_ZH_CHARACTERS
        figures["bytes_per_token_zh_minimind_published_low"] = 3 * low
        figures["bytes_per_token_zh_minimind_published_high"] = 3 * high
        figures |= peaks(texts, Path(folder))
    return dict(sorted(figures.items()))


def main() -> int:
    """Measure, print and write."""
    figures = measure()
    print(table(figures))
    print(write("data", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
