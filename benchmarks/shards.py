"""Documents → shards beside datatrove's tokenizer and merger, memory at 100 MB and 5 GB, and batches read back.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.shards [--large-bytes 5000000000]

Both run as whole processes in turn, on two processes, on the same text with the same tokenizer, as a user runs them;
rates and ratios are medians over the rounds. Ours does more: it holds out, looks for near-duplicates, checks its ids
against the slow tokenizer, and hashes every shard. Memory is the peak of all the processes of a run together, what they
share counted in each, sampled every 20 ms.

The text is made of pieces of real prose in both languages, some 200 characters long, drawn anew for every document: so
there is as much of it as is asked for, and no document is a near-duplicate of another.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.extract import run
from benchmarks.venv import bench_python
from mini_chat.data.keys import document_keys, stream
from mini_chat.data.shuffle import INFO, Documents, RunWriter, merged
from mini_chat.errors import UserError

ROUNDS = 3
SMALL_BYTES, LARGE_BYTES = 100_000_000, 5_000_000_000
PIECE_CHARACTERS = 200
PACKAGES = ["datatrove[io,processing]==0.10.1"]
TOKENIZER = Path(__file__).parent.parent / "out"
ENGLISH = ("wikitext-2/*.jsonl", "rust-book-en/*.jsonl", "nltk-public-domain/*.jsonl", "tinyshakespeare/*.txt")
CHINESE = ("classic-novels-zh/*.txt", "pingcap-docs-zh/*.jsonl", "d2l-zh/*.jsonl", "trpl-zh/*.jsonl")
ROW_TOKENS, BATCH_ROWS = 1024, 64


def pieces(data: Path, patterns: tuple[str, ...]) -> list[str]:
    """Real prose cut into pieces."""
    found = []
    for path in (path for pattern in patterns for path in sorted(data.glob(pattern))):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if path.suffix == ".jsonl":
            text = "\n".join(str(json.loads(line).get("text", "")) for line in text.splitlines())
        found += [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]
    if not found:
        raise UserError(f"{data}: no prose in {', '.join(patterns)}; set MINI_CHAT_DATA to the folder that has it")
    return found


def write_text(folder: Path, data: Path, size_bytes: int) -> None:
    """Two files of documents of so many bytes together, of both languages in equal parts of bytes."""
    folder.mkdir()
    draw = random.Random(size_bytes)
    prose = [pieces(data, ENGLISH), pieces(data, CHINESE)]
    for name in ("a", "b"):
        written = [0, 0]
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            while sum(written) < size_bytes // 2:
                language = int(written[0] > written[1])
                # A third of a kilobyte to some ten: the median document has about 200 tokens, the mean 400.
                count = min(60, max(1, int(draw.lognormvariate(1.1, 0.9))))
                text = "".join(draw.choices(prose[language], k=count))
                written[language] += len(text.encode())
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def ours(folder: Path, out: Path) -> list[str]:
    """The command that a user types."""
    files = [str(path) for path in sorted(folder.glob("*.jsonl"))]
    options = ["--tokenizer", str(TOKENIZER), "--output", str(out), "--processes", "2"]
    return [sys.executable, "-m", "mini_chat.data.prepare_shards", *files, *options]


def batches_per_second(directory: Path) -> float:
    """Tokens a second of batches read from mapped shards that are in memory, one process."""
    from mini_chat.data.packing import PackedDocuments
    from mini_chat.data.token_shards import TokenDocuments

    packed = PackedDocuments(TokenDocuments(directory, "train", verify=True), ROW_TOKENS, 1, prefix=0)
    rates = []
    for first in range(10):
        began, batches = time.perf_counter(), 50
        for number in range(batches):
            packed.batch((first * batches + number) * BATCH_ROWS, BATCH_ROWS)
        rates.append(batches * BATCH_ROWS * ROW_TOKENS / (time.perf_counter() - began))
    return statistics.median(rates)


def shuffle_rate(folder: Path, size_bytes: int = 300_000_000) -> float:
    """Bytes of tokens a second through the shuffle alone: sorted into runs, written, read, merged."""
    draw = np.random.default_rng(0)
    lengths = np.minimum(20_000, draw.lognormal(5.3, 0.9, 1_000_000)).astype(np.int64) + 1

    def documents() -> Iterator[Documents]:
        done = number = 0
        while done < size_bytes:
            infos = np.zeros(2048, INFO)
            infos["size"] = 2 * draw.choice(lengths, 2048)
            payload = bytes(int(infos["size"].sum()))
            numbers = np.arange(number, number + 2048, dtype=np.uint64)
            yield Documents(document_keys(np.full(1, stream(1, 0, 0), np.uint64), numbers), infos, payload)
            done, number = done + len(payload), number + 2048

    given = list(documents())
    paths: list[Path] = []
    began = time.perf_counter()
    writer = RunWriter(64_000_000)
    for some in given:
        writer.add(some)
        if writer.full:
            paths.append(folder / f"{len(paths)}.run")
            writer.write(paths[-1])
    paths.append(folder / f"{len(paths)}.run")
    writer.write(paths[-1])
    total = sum(len(piece.payload) for piece in merged(paths, 64_000_000))
    return total / (time.perf_counter() - began)


def measure(
    rounds: int = ROUNDS, small_bytes: int = SMALL_BYTES, large_bytes: int = LARGE_BYTES
) -> dict[str, float | int]:
    """The figures; `large_bytes` 0 leaves the large run out."""
    data = os.environ.get("MINI_CHAT_DATA")
    if not data:
        raise UserError("MINI_CHAT_DATA is not set; set it to the folder that has the real text")
    python = bench_python(PACKAGES)
    figures: dict[str, float | int] = {}
    with tempfile.TemporaryDirectory(prefix="mini-chat-shards-") as scratch:
        folder = Path(scratch)
        write_text(folder / "small", Path(data), small_bytes)
        measured: dict[str, list[tuple[float, float, int]]] = {"ours": [], "theirs": []}
        side = str(Path(__file__).with_name("datatrove_side.py"))
        # -P: or a benchmark of ours would stand in for a package of its name.
        for number in range(rounds):
            out = folder / f"ours-{number}"
            measured["ours"].append(run(ours(folder / "small", out), folder))
            their_out = str(folder / f"theirs-{number}")
            tokenizer = str(TOKENIZER / "tokenizer.json")
            measured["theirs"].append(
                run([str(python), "-P", side, str(folder / "small"), their_out, tokenizer], folder)
            )
        seconds = {name: [one[0] for one in results] for name, results in measured.items()}
        figures |= {
            "shards_over_datatrove": median_ratio(seconds["theirs"], seconds["ours"]),
            "shards_MB_per_s": small_bytes / 1e6 / statistics.median(seconds["ours"]),
            "datatrove_MB_per_s": small_bytes / 1e6 / statistics.median(seconds["theirs"]),
            "shards_peak_bytes_100MB": max(one[2] for one in measured["ours"]),
            "datatrove_peak_bytes_100MB": max(one[2] for one in measured["theirs"]),
            "batches_tokens_per_s": batches_per_second(folder / "ours-0"),
        }
        (folder / "runs").mkdir()
        figures["shuffle_MB_per_s"] = shuffle_rate(folder / "runs") / 1e6
        if large_bytes:
            write_text(folder / "large", Path(data), large_bytes)
            taken, _, peak = run(ours(folder / "large", folder / "ours-large"), folder)
            figures["shards_peak_bytes_5GB"] = peak
            figures["shards_large_bytes"] = large_bytes
            figures["shards_large_MB_per_s"] = large_bytes / 1e6 / taken
    return figures


def median_ratio(theirs: list[Any], ours: list[Any]) -> float:
    """Of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(theirs, ours, strict=True))


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds beside datatrove (default 3)")
    parser.add_argument("--small-bytes", type=int, default=SMALL_BYTES, help="text of a round (default 100 MB)")
    parser.add_argument("--large-bytes", type=int, default=LARGE_BYTES, help="text of the large run (default 5 GB)")
    given = parser.parse_args()
    try:
        figures = measure(given.rounds, given.small_bytes, given.large_bytes)
    except UserError as error:
        print(f"benchmarks.shards: error: {error}", file=sys.stderr)
        return 1
    for name, value in figures.items():
        print(f"{name:<42} {value:,.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
