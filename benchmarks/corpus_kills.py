"""Every corpus step killed with -9 at random instants: does the same command end in the bytes of an undisturbed run?

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.corpus_kills [--kills 20]

Each step is run once undisturbed and timed; then, each time on a fresh copy of what the steps before it left, it is
killed after a random part of that time (some are killed twice), started again by the same command, and every file that
it wrote is compared. `step.json` is left out: it holds the times of the input files, which a copy does not share.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

STEPS = ("extract", "simplify", "clean", "tokenizer", "shards")
PASSING = {"step.json", ".lock", "stages.json"}
TEXT_BYTES = 3_000_000  # of each language, besides the pages


def recipe_of(folder: Path, data: Path) -> Path:
    """A recipe over real pages and real prose, cut to a few megabytes."""
    sources = [{"path": str(folder / "pages.xml"), "language": "zh"}]
    (folder / "pages.xml").write_bytes(dump(data))
    for language, name in (("en", "rust-book-en/rustbook-en.jsonl"), ("zh", "d2l-zh/d2l-zh.jsonl")):
        target = folder / f"{language}.jsonl"
        target.write_bytes(b"".join(lines_up_to(data / name, TEXT_BYTES)))
        sources.append({"path": str(target), "language": language})
    recipe = {
        "name": "kills",
        "stages": list(STEPS),
        "data": {"documents": sources},
        "tokenizer": {"vocab_size": 6400, "hanzi": "corpus"},
        "shards": {"shard_bytes": 500_000},
    }
    written = folder / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return written


def dump(data: Path) -> bytes:
    """The single pages of the data folder as one dump, several times over."""
    pages = []
    for path in sorted((data / "wikiclean-pages").rglob("*.xml")):
        text = path.read_text(encoding="utf-8")
        start, end = text.find("<page"), text.rfind("</page>")
        if start >= 0 < end:
            pages.append(text[start : end + len("</page>")])
    assert pages, f"{data}/wikiclean-pages: no pages in it"
    while sum(map(len, pages)) < TEXT_BYTES:
        pages += pages
    return ("<mediawiki>\n" + "\n".join(pages) + "\n</mediawiki>\n").encode()


def lines_up_to(path: Path, limit: int) -> Iterator[bytes]:
    """Lines of a file, until they are so many bytes."""
    total = 0
    with open(path, "rb") as file:
        for line in file:
            total += len(line)
            if total > limit:
                return
            yield line


def command(step: str, recipe: Path, out: Path) -> list[str]:
    """What the user types."""
    return [sys.executable, "-m", "mini_chat", step, str(recipe), "--out", str(out), "--quiet"]


def killed_after(words: list[str], seconds: float) -> bool:
    """Run a command and kill it after so long, it alone, as the kernel would; whether it was still at work."""
    process = subprocess.Popen(words, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def content(directory: Path, step: str) -> dict[str, bytes]:
    """Every byte that a step left."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in PASSING]
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in paths
        if path.relative_to(directory).parts[0] in {step, f"{step}.json"}
    }


def measure(kills: int = 20, seed: int = 1) -> dict[str, float]:
    """`kills` of every step; how many in all, and how many ended in the same bytes."""
    data = Path(os.environ["MINI_CHAT_DATA"])
    draw = random.Random(seed)
    done = identical = 0
    with tempfile.TemporaryDirectory(prefix="mini-chat-kills-") as scratch:
        folder = Path(scratch)
        recipe, before = recipe_of(folder, data), folder / "before"
        before.mkdir()
        for step in STEPS:
            undisturbed = folder / "out"
            shutil.rmtree(undisturbed, ignore_errors=True)
            shutil.copytree(before, undisturbed)
            began = time.monotonic()
            subprocess.run(command(step, recipe, undisturbed), check=True)
            seconds = time.monotonic() - began
            expected = content(undisturbed, step)
            assert expected, f"{step} wrote nothing"
            finished = folder / "finished"
            undisturbed.rename(finished)
            same = 0
            for number in range(kills):
                shutil.rmtree(undisturbed, ignore_errors=True)
                shutil.copytree(before, undisturbed)
                words = command(step, recipe, undisturbed)
                for _ in range(1 + (number % 4 == 0)):  # every fourth time twice in a row
                    done += killed_after(words, draw.uniform(0.1, 1.0) * seconds)
                subprocess.run(words, check=True)
                same += content(undisturbed, step) == expected
            print(f"  {step:<10} {seconds:5.1f} s undisturbed, {same} of {kills} ended in the same bytes", flush=True)
            identical += same
            shutil.rmtree(before)
            finished.rename(before)
    return {"kills": kills * len(STEPS), "kills_identical": identical, "kill_signals": done}


def main() -> int:
    """Print what came out; the exit status says whether every run ended in the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="runs of each step that are killed (default 20)")
    figures = measure(parser.parse_args().kills)
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    return int(figures["kills_identical"] != figures["kills"])


if __name__ == "__main__":
    sys.exit(main())
