"""What cleaning costs and what it drops, on real text; and its signatures beside rensa's.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.clean [--copies 8]

The whole stage runs as a user runs it, on two processes, on the documents of config/real-small.yaml, then on several
copies of each: the memory of all its processes together must not grow with them. Rates of the pure functions are of
one core's own time, so that what else the machine does counts little. Near duplicates are held to the true Jaccard
similarity of what is dropped and what it repeats.

The bench environment's Python runs this same file (`--rensa`), so its top imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ["rensa==0.5.0"]
BANDS, ROWS = 14, 8
SIGNED = (("python-docs-zh-en/pairs.jsonl", "en"), ("pingcap-docs-zh/pingcap-zh.jsonl", "text"))
"""Text to sign: English paragraphs, Chinese pages."""


def texts_of(data: Path, file: str, field: str) -> list[str]:
    """The texts of a JSONL file."""
    with open(data / file, encoding="utf-8") as lines:
        return [json.loads(line)[field] for line in lines]


def rensa_seconds(texts: Sequence[str]) -> float:
    """Core seconds that signatures take by the fastest package, tokens by the usual pattern."""
    from rensa import RMinHash

    token = re.compile("[\u3400-\u9fff]|[^\\W_]+")
    began = time.process_time()
    for text in texts:
        tokens = token.findall(text.lower())
        signature = RMinHash(num_perm=BANDS * ROWS, seed=1)
        signature.update([" ".join(tokens[place : place + 5]) for place in range(max(1, len(tokens) - 4))])
        signature.digest()
    return time.process_time() - began


def our_seconds(texts: Sequence[str]) -> float:
    """The same by our own."""
    from mini_chat.data.cleaning.minhash import band_keys
    from mini_chat.data.cleaning.tokens import tokenize

    tokenize(["tables are made once"])
    began = time.process_time()
    for start in range(0, len(texts), 512):
        band_keys(tokenize(texts[start : start + 512]), BANDS)
    return time.process_time() - began


def pure_rates(data: Path) -> dict[str, float]:
    """Rates of the pure functions, one core [MB/s]."""
    from benchmarks.venv import bench_python, run
    from mini_chat.config import Clean
    from mini_chat.data.cleaning.cleaner import Cleaner

    figures: dict[str, float] = {}
    theirs = json.loads(run([str(bench_python(PACKAGES)), __file__, "--rensa", "--data", str(data)]))
    for file, field in SIGNED:
        texts = texts_of(data, file, field)
        size = sum(len(text.encode()) for text in texts) / 1e6
        language = "en" if field == "en" else "zh"
        ours = min(our_seconds(texts) for _ in range(2))
        figures[f"clean_signatures_{language}_MB_per_s"] = size / ours
        figures[f"clean_signatures_{language}_over_rensa"] = theirs[file] / ours
        for name, dedup in (("rules", "off"), ("all", "near")):
            cleaner = Cleaner(Clean.model_validate({"dedup": dedup}))
            began = time.process_time()
            for start in range(0, len(texts), 256):
                some = texts[start : start + 256]
                cleaner(some, [language] * len(some))
            figures[f"clean_{name}_{language}_MB_per_s"] = size / (time.process_time() - began)
    return figures


def recipe_of(data: Path, folder: Path, copies: int) -> Path:
    """The documents of config/real-small.yaml, each source so many times with other first words."""
    import yaml

    text = Path("config/real-small.yaml").read_text(encoding="utf-8").replace("$MINI_CHAT_DATA", str(data))
    documents = yaml.safe_load(text)["data"]["documents"]
    if copies > 1:
        documents = [copied(source, folder, copies) for source in documents]
    recipe = {"out": str(folder / "run"), "machine": {"processes": 2}, "data": {"documents": documents}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return folder / "recipe.yaml"


def copied(source: dict[str, Any], folder: Path, copies: int) -> dict[str, Any]:
    """A source that holds another's documents several times, every fifth word of the copies another one."""
    from mini_chat.config import Source
    from mini_chat.data.documents import read_documents
    from mini_chat.data.tally import Tally

    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for copy in range(copies):
            for document in read_documents([Source.model_validate(source)], Tally()):
                words = document.text.split(" ")
                words[::5] = [f"{word}{'abcdefghijklmnop'[copy]}" if word.isalpha() else word for word in words[::5]]
                file.write(json.dumps({"text": " ".join(words)}, ensure_ascii=False) + "\n")
    return {"path": str(path), "language": source["language"]}


def stage(data: Path, copies: int) -> tuple[dict[str, float], Path]:
    """The whole stage: rate, the most memory of all processes together, shares of what was dropped."""
    folder = Path(tempfile.mkdtemp(prefix="bench-clean-"))
    recipe = recipe_of(data, folder, copies)
    began, cpu = time.perf_counter(), cpu_of_children()
    process = subprocess.Popen([sys.executable, "main.py", "clean", str(recipe), "--quiet"])
    peak = watch(process.pid, lambda: process.poll() is None)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    manifests = sorted((folder / "run" / "clean").glob("*/manifest.json"))
    accounts = {path.parent.name: json.loads(path.read_text())["accounting"] for path in manifests}
    kept = sum(account["bytes"] for account in accounts.values())
    size = kept / 1e6
    rates = {"MB": size, "MB_per_s": size / seconds, "MB_per_core_s": size / (cpu_of_children() - cpu)}
    return {**rates, "peak_bytes": peak, **shares(accounts)}, folder


def cpu_of_children() -> float:
    """Core seconds of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watch(pid: int, runs: Callable[[], bool]) -> float:
    """The most memory of a process and its children together: what each has alone and its part of what they share."""
    import psutil

    peak = 0
    while runs():
        total = 0
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for member in family:
            try:
                total += member.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        peak = max(peak, total)
        time.sleep(0.25)
    return float(peak)


def shares(accounts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Shares of documents dropped, in all and by the most frequent reasons."""
    read = sum(account["read"] for account in accounts.values())
    reasons: dict[str, int] = {}
    for account in accounts.values():
        for reason, count in account["dropped"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    names = {reason: re.sub(r"\W+", "_", reason).strip("_") for reason in reasons}
    return {f"dropped_{names[reason]}": count / read for reason, count in sorted(reasons.items())}


def near_duplicates(folder: Path) -> dict[str, float]:
    """Of what the bands alone would drop, and of what is dropped: how much has a true similarity under 0.7."""
    import numpy as np

    from mini_chat.config import Clean, load_recipe
    from mini_chat.data.cleaning import duplicates
    from mini_chat.data.cleaning.cleaner import Cleaner
    from mini_chat.data.cleaning.minhash import shingles, similarity
    from mini_chat.data.cleaning.tokens import tokenize
    from mini_chat.data.documents import read_documents
    from mini_chat.data.tally import Tally
    from mini_chat.pipeline import Run, concerned_sources

    sources = concerned_sources(Run(load_recipe(folder / "recipe.yaml")), "clean")
    cleaner, texts, keys = Cleaner(Clean()), [], []
    group: list[Any] = []
    for document in read_documents(sources, Tally()):
        group.append(document)
        if len(group) == 256:
            cleaned, own = cleaner([one.text for one in group], [one.language for one in group])
            texts += [one.text for one in cleaned if one.reason is None]
            keys.append(own)
            group = []
    columns = folder / "columns"
    columns.mkdir()
    all_keys = np.concatenate(keys)
    documents = duplicates.write_columns(columns, iter(keys), all_keys.shape[1])
    duplicates.EXAMPLES = 1 << 60  # all pairs
    found = [
        duplicates.find(task)
        for task in duplicates.tasks([duplicates.Columns(columns, documents)], BANDS, 1e-9, 1 << 30, folder / "search")
    ]
    exact = set(found[0].pairs[:, 0].tolist())
    pairs = {tuple(pair) for band in found[1:] for pair in band.pairs.tolist() if pair[0] not in exact}

    def shingle_set(number: int) -> set[int]:
        return set(shingles(tokenize([texts[number]]))[0].tolist())

    most: dict[str, dict[int, float]] = {"bands": {}, "verified": {}}
    errors = []
    for later, first in sorted(pairs):
        some, other = shingle_set(later), shingle_set(first)
        true = len(some & other) / len(some | other)
        guess = float(similarity(*(np.ascontiguousarray(all_keys[[n], 2:]) for n in (later, first)))[0])
        errors.append(guess - true)
        most["bands"][later] = max(most["bands"].get(later, 0.0), true)
        if guess >= Clean().similarity:
            most["verified"][later] = max(most["verified"].get(later, 0.0), true)
    result = {"clean_similarity_error": float(np.std(errors))}
    for name, values in most.items():
        result[f"clean_near_{name}"] = len(values)
        result[f"clean_near_{name}_under_0.7"] = sum(value < 0.7 for value in values.values()) / len(values)
    return result


def data_folder() -> Path:
    """The folder of real text.

    Raises:
        UserError: `MINI_CHAT_DATA` does not name it.
    """
    from mini_chat.errors import UserError

    data = Path(os.environ.get("MINI_CHAT_DATA", ""))
    if not (data / "python-docs-zh-en").is_dir():
        raise UserError("benchmarks.clean: no real text; set MINI_CHAT_DATA to the folder that has python-docs-zh-en/")
    return data.resolve()


def measure(copies: int = 4) -> dict[str, float]:
    """All figures: rates [MB/s], peak memory of all processes [bytes], shares dropped, false near duplicates."""
    data = data_folder()
    figures = pure_rates(data)
    small, folder = stage(data, 1)
    figures |= {f"clean_{name}": value for name, value in small.items()}
    figures |= near_duplicates(folder)
    large, _ = stage(data, copies)
    figures |= {f"clean_large_{name}": large[name] for name in ("MB", "MB_per_s", "MB_per_core_s", "peak_bytes")}
    return {name: round(value, 4) for name, value in figures.items()}


def main() -> int:
    """Measure and print; with `--rensa`, that package's seconds as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.clean", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--copies", type=int, default=4, help="copies of the corpus in the larger run (1 to 16)")
    parser.add_argument("--rensa", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rensa:
        print(json.dumps({file: rensa_seconds(texts_of(given.data, file, field)) for file, field in SIGNED}))
        return 0
    from benchmarks.results import table, write
    from mini_chat.errors import UserError

    try:
        figures = measure(given.copies)
    except UserError as error:
        print(f"benchmarks.clean: error: {error}", file=sys.stderr)
        return 1
    print(table(figures))
    write("clean", figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
