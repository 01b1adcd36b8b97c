"""Wikipedia dumps to text: our extraction beside wikiextractor 3.1.0, on the same dump of real pages.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.extract

Both run as whole processes in turn, as a user runs them, with one worker each, on plain XML: the pages of the data
folder repeated to 100 MB. Rates and ratios are medians over the rounds. A second ratio compares seconds of the
processor: wikiextractor reads and writes in processes beside its worker, which costs it nothing where cores are idle.
Memory is the peak of all the processes of a run together, sampled every 20 ms.

What is kept is compared paragraph by paragraph: of each of wikiextractor's with eight words or more (Chinese: eight
characters), the share of its pairs of neighbouring words that our text of the article has too. Its placeholders
(`formula_1`) and the quotation marks that it puts around italics count for nothing, and sections that we leave out by
default are kept for this.

wikiextractor is AGPL and only compared with. It runs on Python 3.11 as it is.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path

from mini_chat.errors import UserError

ROUNDS = 5
DUMP_BYTES = 100_000_000
PACKAGE = "wikiextractor==3.1.0"
WORDS = 8
RETAINED_SHARE = 0.9
SAMPLE_SECONDS = 0.02

EMPTY = re.compile(r"[(（][\s,;:，；：、]*[)）]|《\s*》|「\s*」|『\s*』|“\s*”")
MARKUP = re.compile(r"-\{|\{\{|\[\[|<ref")
_WORD = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]")
_PLACEHOLDER = re.compile(r"\b(?:formula|codice)_\d+")


def real_pages(data: Path) -> tuple[bytes, list[bytes]]:
    """The header of a dump, and every real page of the data folder, as plain XML.

    Raises:
        UserError: there are none.
    """
    import bz2

    sources = [*sorted(data.glob("gensim-wiki/*.bz2")), *sorted(data.glob("wikiclean-pages/*wiki-*.xml"))]
    if not sources:
        raise UserError(f"{data}: no real pages in it; set MINI_CHAT_DATA to the folder that has gensim-wiki")
    header, pages = b"", []
    for path in sources:
        text = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        header = header or text[: text.index(b"<page>")]
        for page in re.findall(rb"<page>.*?</page>", text, re.DOTALL):
            # dumps of before 2012 have no namespace, without which wikiextractor passes a page by
            has_namespace = b"<ns>" in page
            pages.append(page if has_namespace else page.replace(b"</title>", b"</title>\n    <ns>0</ns>", 1))
    return header, pages


def write_dump(path: Path, header: bytes, pages: list[bytes], size_bytes: int) -> None:
    """The pages, over and over up to this size, as one dump."""
    body = b"\n".join(pages) + b"\n"
    with open(path, "wb") as file:
        file.write(header)
        for _ in range(max(size_bytes // len(body), 1)):
            file.write(body)
        file.write(b"</mediawiki>\n")


def run(command: list[str], cwd: Path) -> tuple[float, float, int]:
    """Run a command to its end: seconds, seconds of the processor, peak memory of all its processes [bytes].

    Raises:
        UserError: it failed.
    """
    import psutil

    before, began = os.times(), time.monotonic()
    peak = 0
    with open(cwd / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            try:
                for one in (watched, *watched.children(recursive=True)):
                    total += one.memory_info().rss
            except psutil.Error:  # one has left meanwhile
                pass
            peak = max(peak, total)
            time.sleep(SAMPLE_SECONDS)
    seconds, after = time.monotonic() - began, os.times()
    if process.returncode:
        raise UserError(f"{' '.join(command[:3])} …: {(cwd / 'log').read_text()[-300:]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent, peak


def ours(dump: Path, out: Path, keep_apparatus: bool = False) -> list[str]:
    """The command that extracts a dump with Mini-Chat, in one process."""
    recipe = {
        "out": str(out),
        "stages": ["extract"],
        "data": {"documents": [{"path": str(dump)}]},
        "extract": {"keep_apparatus": keep_apparatus},
        "machine": {"processes": 1},
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return [sys.executable, str(Path(__file__).parent.parent / "main.py"), "extract", str(path)]


def theirs(python: Path, dump: Path, out: Path) -> list[str]:
    """The command that extracts a dump with wikiextractor, by one worker; the dump defines no templates."""
    module = [str(python), "-m", "wikiextractor.WikiExtractor"]
    return [*module, "--no-templates", "--processes", "1", "--json", "-q", "-o", str(out), str(dump)]


def texts(out: Path) -> dict[str, str]:
    """Title → text of what either of them wrote."""
    import zstandard

    found = {}
    for path in sorted(out.rglob("*")):
        if path.name.endswith(".jsonl.zst"):
            data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
        elif path.name.startswith("wiki_"):
            data = path.read_bytes()
        else:
            continue
        for line in data.splitlines():
            record = json.loads(line)
            found[record["title"]] = record["text"]
    return found


def pairs(text: str) -> list[tuple[str, str]]:
    """Neighbouring words, or Chinese characters, in order."""
    words = _WORD.findall(_PLACEHOLDER.sub(" ", unescape(text)).replace('"', "").lower())
    return list(pairwise(words))


def retention(reference: dict[str, str], extracted: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """For each of the reference's paragraphs of `WORDS` words: title, paragraph, share of its pairs that are kept.

    Articles that were left out whole, as disambiguation pages are, are not compared.
    """
    for title, text in reference.items():
        if title not in extracted:
            continue
        known = set(pairs(extracted[title]))
        for paragraph in text.split("\n"):
            found = pairs(paragraph)
            if len(found) >= WORDS - 1:
                yield title, paragraph, sum(pair in known for pair in found) / len(found)


def quality(python: Path, header: bytes, pages: list[bytes], folder: Path) -> tuple[dict[str, float | int], list[str]]:
    """Figures of what both make of each page once, and the paragraphs of which we keep the least."""
    dump = folder / "once.xml"
    write_dump(dump, header, pages, 0)
    run(ours(dump, folder / "once"), folder)
    run(ours(dump, folder / "all", keep_apparatus=True), folder)
    run(theirs(python, dump, folder / "reference"), folder)
    own, everything, reference = (texts(folder / name) for name in ("once", "all", "reference"))
    compared = list(retention(reference, everything))
    exceptions = [(share, title, paragraph) for title, paragraph, share in compared if share < RETAINED_SHARE]
    figures: dict[str, float | int] = {
        "extract_articles": len(own),
        "extract_empty_brackets": sum(len(EMPTY.findall(text)) for text in own.values()),
        "wikiextractor_empty_brackets": sum(len(EMPTY.findall(text)) for text in reference.values()),
        "extract_markup_left": sum(len(MARKUP.findall(text)) for text in own.values()),
        "wikiextractor_markup_left": sum(len(MARKUP.findall(text)) for text in reference.values()),
        "extract_paragraphs_compared": len(compared),
        "extract_paragraphs_below_90_percent": len(exceptions),
        "extract_mean_retention": round(statistics.mean(share for _, _, share in compared), 5),
    }
    return figures, [f"{share:.2f} {title}: {paragraph[:150]}" for share, title, paragraph in sorted(exceptions)]


def measure(rounds: int = ROUNDS, size_bytes: int = DUMP_BYTES, show: bool = False) -> dict[str, float | int]:
    """The figures by name; `show` prints the paragraphs of which less than nine tenths are kept.

    Raises:
        UserError: no data folder, or wikiextractor cannot be installed.
    """
    from benchmarks.venv import bench_python

    header, pages = real_pages(Path(os.environ.get("MINI_CHAT_DATA", "")).resolve())
    python = bench_python([PACKAGE])
    measured: dict[str, list[tuple[float, float, int]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures, exceptions = quality(python, header, pages, folder)
        dump = folder / "dump.xml"
        write_dump(dump, header, pages, size_bytes)
        megabytes = dump.stat().st_size / 1e6
        for number in range(rounds):
            measured["ours"].append(run(ours(dump, folder / f"ours{number}"), folder))
            measured["theirs"].append(run(theirs(python, dump, folder / f"theirs{number}"), folder))
    if show:
        print("\n".join(exceptions))
    both = list(zip(measured["ours"], measured["theirs"], strict=True))
    return {
        "extract_over_wikiextractor": round(statistics.median(b[0] / a[0] for a, b in both), 2),
        "extract_over_wikiextractor_cpu": round(statistics.median(b[1] / a[1] for a, b in both), 2),
        "extract_MB_per_s": round(statistics.median(megabytes / a[0] for a, _ in both), 1),
        "wikiextractor_MB_per_s": round(statistics.median(megabytes / b[0] for _, b in both), 1),
        "extract_peak_bytes": max(a[2] for a, _ in both),
        "wikiextractor_peak_bytes": max(b[2] for _, b in both),
        "extract_dump_MB": round(megabytes, 1),
        **figures,
    }


if __name__ == "__main__":
    try:
        for figure, value in measure(show="--show" in sys.argv).items():
            print(f"{figure:40} {value:>14,}")
    except UserError as error:
        sys.exit(f"benchmarks.extract: error: {error}")
