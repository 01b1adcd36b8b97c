"""The tables of the documentation, made from `benchmarks/results/*.json`.

    python -m benchmarks.tables            # writes them into docs/ and the READMEs
    python -m benchmarks.tables --check    # says which are not as the results have them

A table stands between `<!-- table NAME -->` and `<!-- end -->`. What was not measured yet is said to be so.
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


def seconds(value: float | str) -> str:
    """A time, where there is one."""
    return value if isinstance(value, str) else f"{value:,.0f} s"


def bits(value: float | str) -> str:
    """Bits per byte."""
    return f"{float(value):.3f}"


def small(value: float | str) -> str:
    """A number near nothing."""
    return f"{float(value):.1e}"


def gflops(value: float | str) -> str:
    """A rate of products."""
    return f"{float(value) / 1e9:,.0f} GFLOP/s"


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
            ("simplify's conversion over zhconv", "simplify 的转换相对 zhconv", "simplify_over_zhconv", times),
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
    "training_speed": (
        "train",
        [
            ("precision that our loop takes here", "本项目的循环在这台机器上用的精度", "precision", str),
            ("rate of matrix products in it", "该精度下的矩阵乘法速率", "limit_flops", gflops),
            ("124M: tokens/s", "1.24 亿参数：tokens/s", "124m_ours_tokens_per_s", count),
            ("124M: over stock in float32", "1.24 亿参数：相对 float32 原版循环", "over_fp32", times),
            ("124M: over stock under bf16 autocast", "1.24 亿参数：相对 bf16 autocast 原版循环", "over_bf16", times),
            ("124M: share of the rate of products", "1.24 亿参数：占矩阵乘法速率的比例", "share_of_limit", share),
            (
                "124M: the same with Muon, at so small a batch",
                "1.24 亿参数：批量这样小时改用 Muon",
                "124m_muon_tokens_per_s",
                count,
            ),
            (
                "124M: packed short documents over one a row",
                "1.24 亿参数：打包短文档相对每行一篇",
                "packed_short_over_long",
                times,
            ),
            (
                "124M: peak memory at 8 × 1,024 tokens",
                "1.24 亿参数：8 × 1,024 token 时的峰值内存",
                "peak_bytes",
                megabytes,
            ),
            ("124M: that over the plain loop's", "1.24 亿参数：相对原版循环的峰值内存", "peak_over_plain", share),
            ("small: tokens/s", "小模型：tokens/s", "small_ours_tokens_per_s", count),
            ("small: the same with Muon", "小模型：改用 Muon", "small_muon_tokens_per_s", count),
            ("small: over stock in float32", "小模型：相对 float32 原版循环", "small_over_fp32", times),
            ("small: over stock under bf16 autocast", "小模型：相对 bf16 autocast 原版循环", "small_over_bf16", times),
            ("small: share of the rate of products", "小模型：占矩阵乘法速率的比例", "small_share_of_limit", share),
            (
                "small: rate kept with one core taken by another process",
                "小模型：另一进程占一个核时保持的速率",
                "small_shared_core",
                share,
            ),
        ],
    ),
    "training_quality": (
        "train",
        [
            ("plain loop, bits per byte after 15 minutes", "朴素循环 15 分钟后的每字节比特数", "plain_15min_bpb", bits),
            ("ours reaches that after", "本项目达到它用时", "plain_15min_reached_s", seconds),
            ("the latest of three seeds", "三个种子中最晚的", "plain_15min_reached_latest_s", seconds),
            ("ours, bits per byte after 45 seconds", "本项目 45 秒后的每字节比特数", "ours_45s_bpb", bits),
            ("from the best to the worst of three seeds", "三个种子中最好与最差之差", "ours_45s_spread", bits),
            (
                "strong loop, bits per byte after 10 minutes",
                "强循环 10 分钟后的每字节比特数",
                "strong_10min_bpb",
                bits,
            ),
            ("ours reaches that after", "本项目达到它用时", "strong_10min_reached_s", seconds),
            ("ours, bits per byte after 5 minutes", "本项目 5 分钟后的每字节比特数", "ours_5min_bpb", bits),
            ("strong loop's precision", "强循环的精度", "strong_precision", str),
            (
                "strong loop's learning rate, the best of three",
                "强循环的学习率，三者中最好的",
                "strong_rate",
                lambda v: f"{float(v):g}",
            ),
        ],
    ),
    "training_survival": (
        "train",
        [
            ("runs killed with -9 at random instants", "随机时刻 kill -9 的次数", "kills", count),
            ("of those, ended in the weights of an undisturbed run", "其中最终权重逐位相同", "kills_identical", count),
            ("of those, with compiled layers", "其中使用编译的层", "kills_compiled", count),
            ("of those, while a checkpoint was being written", "其中正在写检查点", "kills_while_saving", count),
            ("steps between checkpoints", "检查点间隔的步数", "kills_checkpoint_every", count),
            ("most steps made again after a kill", "一次中断后重做的最多步数", "kills_most_steps_lost", count),
            (
                "two processes beside one, AdamW: largest difference of a loss",
                "两进程相对一进程，AdamW：损失最大相对差",
                "two_process_loss_difference",
                small,
            ),
            ("the same in shards (FSDP2)", "同上，参数分片（FSDP2）", "two_process_loss_difference_sharded", small),
            ("the same with Muon", "同上，Muon", "two_process_loss_difference_muon", small),
            (
                "the same with Muon, in shards",
                "同上，Muon，参数分片",
                "two_process_loss_difference_sharded_muon",
                small,
            ),
            ("plan's largest error, memory", "plan 的最大误差：内存", "plan_memory_error", share),
            ("plan's largest error, time of a step", "plan 的最大误差：每步时间", "plan_time_error", share),
        ],
    ),
    "training_gpu": (
        "gpu",
        [
            ("rate of bf16 matrix products", "bf16 矩阵乘法速率", "limit_flops", gflops),
            ("tokens/s", "tokens/s", "ours_tokens_per_s", count),
            ("share of the rate of products", "占矩阵乘法速率的比例", "ours_mfu", share),
            ("over stock in float32", "相对 float32 原版循环", "over_plain", times),
            ("over stock under bf16 autocast", "相对 bf16 autocast 原版循环", "over_bf16", times),
            ("over the same, compiled", "相对编译后的同一循环", "over_bf16_compiled", times),
            ("peak memory", "峰值内存", "ours_peak_bytes", megabytes),
            (
                "peak memory of stock under bf16 autocast",
                "bf16 autocast 原版循环的峰值内存",
                "bf16_peak_bytes",
                megabytes,
            ),
            ("packed short documents, tokens/s", "打包短文档，tokens/s", "ours_packed_tokens_per_s", count),
            ("with Muon, tokens/s", "用 Muon，tokens/s", "ours_muon_tokens_per_s", count),
            (
                "four times the rows, share of the rate of products",
                "四倍的行数，占矩阵乘法速率的比例",
                "ours_large_mfu",
                share,
            ),
            ("two runs end in the same bits (1: yes)", "两次运行结果逐位相同（1：是）", "same_bits", count),
        ],
    ),
}
COMMANDS = {
    "data": "make bench-data",
    "train": "make bench-train",
    "gpu": "python -m benchmarks.train_gpu",
    "tokenizer_training": "python -m benchmarks.tokenizer_training --flops 1e15 --shape medium",
}
"""Results file → what measures it."""


PICTURES = {
    "training_curves": (
        "images/pretraining-curves.png",
        "held-out bits per byte over seconds of training, our loop and the others",
        "留出文本的每字节比特数随训练秒数的变化：本项目的循环与其他循环",
    )
}
"""Tables that are pictures, of a page in docs/: the file beside it, what it shows in both languages."""


TOKENIZERS = [
    ("GPT-2", "GPT-2", 50_257, "gpt2", ""),
    ("cl100k_base", "cl100k_base", 100_277, "cl100k_base", ""),
    ("o200k_base", "o200k_base", 200_019, "o200k_base", ""),
    ("ours, as shipped: 3,500 characters", "随附：3,500 个汉字", 32_000, "ours", "32k"),
    ("6,763 characters (GB 2312)", "6,763 个汉字（GB 2312）", 32_000, "ours_gb2312", ""),
    ("8,105 characters", "8,105 个汉字", 32_000, "ours_8105", "8105"),
    ("with 8,000 Chinese words", "加 8,000 个中文词", 32_000, "ours_words", "words"),
    ("smaller", "更小的词表", 16_000, "ours_16k", "16k"),
    ("smaller, with 6,000 Chinese words", "更小，加 6,000 个中文词", 16_000, "ours_16k_words", "16k_words"),
    ("smallest", "最小的词表", 8_192, "ours_8k", "8k"),
    ("smallest, with 2,000 Chinese words", "最小，加 2,000 个中文词", 8_192, "ours_8k_words", "8k_words"),
]
"""What they are in both languages, entries, keys of the figures."""


def loaded(file: str) -> Figures:
    """A file of results; empty if there is none."""
    path = RESULTS / f"{file}.json"
    figures: Figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return figures


def rendered(name: str, chinese: bool) -> str:
    """A table in one of the languages, or the picture that stands for one."""
    if name in PICTURES:
        picture, english, translated = PICTURES[name]
        text = translated if chinese else english
        there = (ROOT / "docs" / picture).is_file()
        return f"![{text}]({picture})\n" if there else f"({text}: {'未测' if chinese else 'not measured'})\n"
    if name == "tokenizers":
        return tokenizers(chinese)
    file, rows = TABLES[name]
    figures = loaded(file)
    heads, missing = (("测量", "数值"), "未测") if chinese else (("measured", "figure"), "not measured")
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---:|"]
    for english, translated, key, form in rows:
        shown = form(figures[key]) if key in figures else missing
        lines.append(f"| {translated if chinese else english} | {shown} |")
    return "\n".join([*lines, "", origin(file, figures, chinese)]) + "\n"


def origin(file: str, figures: Figures, chinese: bool) -> str:
    """Where and when a file's figures were made, and by which command."""
    about = [f"{figures.get('gpu', figures['machine'])}, {figures['date']}"] if figures else []
    parts = [key.removesuffix("_machine") for key in figures if key.endswith("_machine")]
    about += [f"{part}: {figures[f'{part}_machine']}, {figures[f'{part}_date']}" for part in parts]
    about += [f"`{COMMANDS[file]}`"]
    return f"（{'；'.join(about)}）" if chinese else f"({'; '.join(about)})"


def tokenizers(chinese: bool) -> str:
    """Tokenizers beside each other: bytes per token of held-out text, and bits per byte of models for the same work."""
    packed, trained = loaded("data"), loaded("tokenizer_training")
    heads = "tokenizer | entries | bytes per token, English | Chinese | bits per byte for the same work | at 124M"
    if chinese:
        heads = "分词器 | 词表 | 字节/token 英文 | 中文 | 同等计算量的每字节比特数 | 按 1.24 亿参数模型折算"
    lines = [f"| {heads} |", "|---" + "|---:" * 5 + "|"]
    for english, translated, entries, key, name in TOKENIZERS:
        cells = [translated if chinese else english, f"{entries:,}"]
        for figures, form, keys in (
            (packed, ".2f", [f"bytes_per_token_{language}_{key}" for language in ("en", "zh")]),
            (trained, ".3f", [f"{work}_bpb_mean_{name}" for work in ("same_flops", "same_flops_at_124m")]),
        ):
            cells += [format(float(figures[key]), form) if key in figures else "–" for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    low, high = (packed.get(f"bytes_per_token_zh_minimind_published_{end}", "–") for end in ("low", "high"))
    lines.insert(5, f"| minimind, {'公布值' if chinese else 'as published'} | 6,400 | – | {low} … {high} | – | – |")
    origins = origin("data", packed, chinese), origin("tokenizer_training", trained, chinese)
    return "\n".join([*lines, "", *origins]) + "\n"


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
