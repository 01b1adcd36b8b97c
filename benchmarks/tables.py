"""The tables of the documentation, made from `benchmarks/results/*.json`.

    python -m benchmarks.tables            # writes them into docs/ and the READMEs
    python -m benchmarks.tables --check    # says which are not as the results have them

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.results import RESULTS

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README_zh.md", "docs")
_TABLE = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Figures = Mapping[str, float | str]


def megabytes(value: float | str) -> str:
    """Bytes as MB."""
    return f"{float(value) / 1e6:,.0f} MB"


def rate(value: float | str) -> str:
    """Megabytes per second."""
    return f"{float(value):,.1f} MB/s" if float(value) < 100 else f"{float(value):,.0f} MB/s"


def times(value: float | str) -> str:
    """A ratio."""
    return f"{float(value):.2f}×"


def count(value: float | str) -> str:
    """A whole number."""
    return f"{float(value):,.0f}"


def share(value: float | str) -> str:
    """A share in per cent."""
    return f"{float(value):.1%}"


Form = Callable[[float | str], str]
# Table → (results file, rows of (what in both languages, figure, form)).
TABLES: dict[str, tuple[str, list[tuple[str, str, str, Form]]]] = {
    "corpus": (
        "data",
        [
            (
                "extract over wikiextractor, by the clock",
                "extract 相对 wikiextractor（墙钟）",
                "extract_over_wikiextractor",
                times,
            ),
            (
                "extract over wikiextractor, processor time",
                "extract 相对 wikiextractor（CPU 时间）",
                "extract_over_wikiextractor_cpu",
                times,
            ),
            ("extract, one process", "extract，单进程", "extract_MB_per_s", rate),
            ("extract, peak memory", "extract 峰值内存", "extract_peak_bytes", megabytes),
            ("empty brackets left by extract", "extract 留下的空括号", "extract_empty_brackets", count),
            (
                "empty brackets left by wikiextractor",
                "wikiextractor 留下的空括号",
                "wikiextractor_empty_brackets",
                count,
            ),
            ("simplify, the whole step, one process", "simplify 整步，单进程", "simplify_step_MB_per_s", rate),
            ("clean, the whole step", "clean 整步", "clean_MB_per_s", rate),
            ("clean, peak memory of all processes", "clean 全部进程峰值内存", "clean_peak_bytes", megabytes),
            (
                "MinHash signatures over rensa, English",
                "MinHash 相对 rensa（英文）",
                "clean_signatures_en_over_rensa",
                times,
            ),
            ("encoding English, one core", "英文编码，单核", "encode_en_MB_per_s", rate),
            ("encoding Chinese, one core", "中文编码，单核", "encode_zh_MB_per_s", rate),
            (
                "tokenizer training on 100 MB of Chinese, peak memory",
                "100 MB 中文训练分词器，峰值内存",
                "tokenizer_peak_bytes_100MB_zh",
                megabytes,
            ),
            ("shards over datatrove, 2 processes", "shards 相对 datatrove（2 进程）", "shards_over_datatrove", times),
            (
                "shards of 100 MB, peak memory of all processes",
                "100 MB 语料分片，全部进程峰值内存",
                "shards_peak_bytes_100MB",
                megabytes,
            ),
            (
                "shards of 5 GB, peak memory of all processes",
                "5 GB 语料分片，全部进程峰值内存",
                "shards_peak_bytes_5GB",
                megabytes,
            ),
            (
                "reading batches from a warm memory map",
                "从内存映射读批次",
                "batches_tokens_per_s",
                lambda v: f"{float(v) / 1e6:,.0f}M tokens/s",
            ),
            ("steps killed with -9 at random instants", "随机时刻 kill -9 的次数", "kills", count),
            ("of those, ended in the bytes of an undisturbed run", "其中结果逐字节相同", "kills_identical", count),
        ],
    ),
}


def rendered(name: str, chinese: bool) -> str:
    """A table in one of the languages; figures that were not measured are left out."""
    file, rows = TABLES[name]
    figures: Figures = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    heads = ("测量", "数值") if chinese else ("measured", "figure")
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---:|"]
    for english, translated, key, form in rows:
        if key in figures:
            lines.append(f"| {translated if chinese else english} | {form(figures[key])} |")
    about = f"{figures['machine']}, {figures['date']}"
    lines += ["", f"（{about}，`make bench-{file}`）" if chinese else f"({about}, `make bench-{file}`)"]
    return "\n".join(lines) + "\n"


def pages() -> list[Path]:
    """The files that may hold tables."""
    paths = [ROOT / page for page in PAGES]
    return [file for path in paths for file in (sorted(path.glob("*.md")) if path.is_dir() else [path])]


def filled(path: Path) -> tuple[str, str]:
    """A page as it is, and as the results would have it."""
    text = path.read_text(encoding="utf-8")
    chinese = path.stem.endswith(("_zh", ".zh"))
    return text, _TABLE.sub(lambda found: found[1] + rendered(found[2], chinese) + found[4], text)


def main(arguments: list[str]) -> int:
    """Write the tables, or with `--check` only say which differ."""
    stale = []
    for path in pages():
        text, wanted = filled(path)
        if text != wanted:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(wanted, encoding="utf-8")
    if stale:
        print(f"{'not as the results have them' if '--check' in arguments else 'written'}: {', '.join(stale)}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
