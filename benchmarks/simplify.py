"""Traditional to Simplified Chinese: our choice, OpenCC's wheel, beside what else there is.

    MINI_CHAT_DATA=/path/to/data python -m benchmarks.simplify

Every candidate converts the same Traditional text (Wikipedia paragraphs and articles, a classic, 3.6 MB), document by
document, in a process of its own, and is asked OpenCC's own test cases. Rounds of all candidates alternate, so that a
busy moment of the machine meets all of them; rates (of one core's time) and ratios are medians over the rounds.

The bench environment's Python runs this same file as a script (`--candidate NAME`), so its top imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3
DOCUMENT_CHARACTERS = 2_000
CASES = ("t2s", "tw2s", "tw2sp", "hk2s")
PACKAGES = ["opencc==1.4.2", "opencc-pyo3==0.12.0", "zhconv==1.4.3", "zhconv-rs==0.4.2"]
LICENCES = {
    "mini_chat": "MIT (OpenCC: Apache-2.0)",
    "opencc": "Apache-2.0",
    "opencc_pyo3": "MIT",
    "zhconv": "GPL-2.0+",
    "zhconv_rs": "GPL-2.0+",
}
OURS = "mini_chat"


def converter(candidate: str, config: str) -> Callable[[str], str] | None:
    """The candidate's conversion; None if it has none of this kind."""
    if candidate == OURS:
        from mini_chat.data.zh_simplify import simplify_text

        return lambda text: simplify_text(text, config)
    if candidate == "opencc":
        import opencc

        convert: Callable[[str], str] = opencc.OpenCC(config).convert
        return convert
    if candidate == "opencc_pyo3":
        import opencc_pyo3

        other = opencc_pyo3.OpenCC(config)
        return lambda text: other.convert(text, False)
    if config != "t2s":  # the tables of MediaWiki know no such distinctions
        return None
    if candidate == "zhconv":
        import zhconv

        return lambda text: zhconv.convert(text, "zh-hans")
    import zhconv_rs

    return lambda text: zhconv_rs.zhconv(text, "zh-hans")


def traditional_documents(data: Path) -> list[str]:
    """Real Traditional text in documents of equal size."""
    paragraphs = json.loads((data / "drcd/DRCD_dev.json").read_text(encoding="utf-8"))["data"]
    articles = (data / "zhwiki-extracted/wiki_00.raw-traditional.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [paragraph["context"] for article in paragraphs for paragraph in article["paragraphs"]]
    texts += [json.loads(article)["text"] for article in articles]
    texts += [(data / "trad-zh" / name).read_text(encoding="utf-8") for name in ("data689k.txt", "25328-0.txt")]
    text = "\n".join(texts)
    return [text[place : place + DOCUMENT_CHARACTERS] for place in range(0, len(text), DOCUMENT_CHARACTERS)]


def opencc_cases(data: Path, config: str) -> list[tuple[str, str]]:
    """OpenCC's own test cases of a conversion; the file has commas that JSON has not."""
    text = (data / "opencc/test/testcases/testcases.json").read_text(encoding="utf-8")
    cases = json.loads(re.sub(r",(?=\s*[}\]])", "", text))["cases"]
    return [(case["input"], case["expected"][config]) for case in cases if config in case["expected"]]


def candidate_figures(candidate: str, data: Path) -> dict[str, float]:
    """One candidate's figures, in the process that this is called in."""
    before = peak_memory_bytes()
    convert = converter(candidate, "t2s")
    assert convert is not None
    convert("載入表格")  # the tables are read once in a process
    memory = peak_memory_bytes() - before
    documents = traditional_documents(data)
    seconds = []
    for _ in range(3):
        began = time.process_time()  # what other programs take of the machine does not count
        for document in documents:
            convert(document)
        seconds.append(time.process_time() - began)
    figures = {
        "MB_per_s": sum(len(document.encode()) for document in documents) / 1e6 / min(seconds),
        "tables_bytes": float(memory),
    }
    for config in CASES:
        if (convert := converter(candidate, config)) is not None:
            cases = opencc_cases(data, config)
            figures[f"cases_{config}"] = len(cases)
            figures[f"agreed_{config}"] = sum(convert(text) == expected for text, expected in cases)
    return figures


def peak_memory_bytes() -> int:
    """The most memory that this process held; `getrusage` counts what its parent held before it was started, too."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+)", status.read_text())
        return int(found[1]) * 1024 if found else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step_rate(data: Path) -> float:
    """Text through the whole step in one process, JSONL to compressed parts [MB/s]."""
    import tempfile

    from mini_chat.config import Recipe, Source
    from mini_chat.data.zh_simplify import simplify

    documents = traditional_documents(data) * 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "zh.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        began = time.perf_counter()
        recipe = Recipe.model_validate({"machine": {"processes": 1}})
        simplify([Source(path=str(path), language="zh")], Path(folder) / "out", recipe)
        seconds = time.perf_counter() - began
    return sum(len(document.encode()) for document in documents) / 1e6 / seconds


def data_folder() -> Path:
    """The folder of real text.

    Raises:
        UserError: `MINI_CHAT_DATA` does not name it.
    """
    from mini_chat.errors import UserError

    data = Path(os.environ.get("MINI_CHAT_DATA", ""))
    if not (data / "opencc").is_dir():
        raise UserError(
            "benchmarks.simplify: no real text; set MINI_CHAT_DATA to the folder that has opencc/ and drcd/"
        )
    return data.resolve()


def measure() -> dict[str, float]:
    """All figures: rates and memory of each candidate, our ratios to them, shares of OpenCC's cases that agree."""
    from benchmarks.venv import bench_python, run

    data = data_folder()
    python = bench_python(PACKAGES)
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(ROUNDS):
        figures = {}
        for candidate in LICENCES:
            command = [str(python), __file__] if candidate != OURS else [sys.executable, "-m", "benchmarks.simplify"]
            figures[candidate] = json.loads(run([*command, "--candidate", candidate, "--data", str(data)]))
        rounds.append(figures)

    result = {"simplify_step_MB_per_s": step_rate(data)}
    for name in LICENCES:
        result.update(summary(name, rounds))
    return {name: round(value, 4) for name, value in result.items()}


def summary(name: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """A candidate's figures over all rounds."""
    own, ours = [figures[name] for figures in rounds], [figures[OURS] for figures in rounds]
    result = {
        f"simplify_{name}_MB_per_s": statistics.median(one["MB_per_s"] for one in own),
        f"simplify_{name}_tables_bytes": statistics.median(one["tables_bytes"] for one in own),
        f"simplify_{name}_agreed_t2s": own[0]["agreed_t2s"] / own[0]["cases_t2s"],
    }
    if "cases_tw2s" in own[0]:
        agreed, cases = (sum(own[0][f"{kind}_{config}"] for config in CASES) for kind in ("agreed", "cases"))
        result[f"simplify_{name}_agreed_all"] = agreed / cases
    if name != OURS:
        ratios = [our["MB_per_s"] / one["MB_per_s"] for our, one in zip(ours, own, strict=True)]
        result[f"simplify_over_{name}"] = statistics.median(ratios)
    return result


def table(figures: dict[str, float]) -> str:
    """The figures for a terminal."""

    def cell(key: str, form: str) -> str:
        return form.format(figures[key]) if key in figures else "–"

    lines = [f"{'':<12} {'MB/s':>7} {'ours is':>8} {'tables':>8} {'t2s cases':>10} {'all cases':>10}  licence"]
    for name, licence in LICENCES.items():
        key = f"simplify_{name}"
        memory = figures[f"{key}_tables_bytes"] / 2**20
        rate, ratio = cell(f"{key}_MB_per_s", "{:.1f}"), cell(f"simplify_over_{name}", "{:.2f} x")
        plain, everything = cell(f"{key}_agreed_t2s", "{:.1%}"), cell(f"{key}_agreed_all", "{:.1%}")
        lines.append(f"{name:<12} {rate:>7} {ratio:>8} {memory:>4.0f} MiB {plain:>10} {everything:>10}  {licence}")
    return "\n".join([*lines, f"the whole step, one process: {figures['simplify_step_MB_per_s']:.1f} MB/s"])


def main() -> int:
    """Measure and print the table; with `--candidate`, one candidate's figures as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.simplify", description=__doc__.splitlines()[0])
    parser.add_argument("--candidate", choices=list(LICENCES), help="measure this one here and print its figures")
    parser.add_argument("--data", type=Path, help="folder of the real text, for --candidate")
    given = parser.parse_args()
    if given.candidate:
        print(json.dumps(candidate_figures(given.candidate, given.data)))
        return 0
    from mini_chat.errors import UserError

    try:
        print(table(measure()))
    except UserError as error:
        print(f"benchmarks.simplify: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
