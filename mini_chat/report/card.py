"""The report card: what a run achieved, in a terminal of 80 columns, in words that a beginner can read."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len, chop_cells, set_cell_size

from mini_chat.chat.text_stream import LineWrapper, printable
from mini_chat.console import duration
from mini_chat.report.exchanges import for_the_card
from mini_chat.report.words import (
    Report,
    baseline_name,
    count,
    gigabytes,
    language_name,
    languages,
    last_stage,
    percent,
    skills,
    summary,
)

WIDTH = 80
COLUMN = 6
SHORT = {"untrained": "new", "pretrain": "pre", "sft": "SFT", "dpo": "DPO"}
REPLY_CELLS = 3 * (WIDTH - 12)  # an answer longer than three lines is cut


def render_card(report: Report, directory: Path) -> str:
    """The whole card."""
    lines = [heading(f"Report card: {report['recipe']['name']}"), ""]
    for sentence in summary(report):
        lines += wrap(sentence)
    lines += ["", *render_scores(report), "", *training(report), ""]
    lines += exchanges(report)
    lines += [
        "Talk to it:    " + chat_command(directory),
        f"Read it all:   {directory / 'report' / 'index.html'}",
    ]
    return "\n".join(lines)


def render_scores(report: Report) -> list[str]:
    """The tables of scores: exam, crossing, bits per byte, preference accuracy."""
    lines = [legend(report)]
    if "exam" in report:
        lines += ["", *exam(report)]
    if "crossing" in report:
        lines += ["", *crossing(report)]
    lines += ["", *bits_per_byte(report)]
    if "preference_accuracy" in report:
        lines += ["", *preferences(report)]
    return lines


def legend(report: Report) -> str:
    """What the columns' short names mean."""
    trained = ", ".join(short(stage) for stage in report["stages"][1:])
    return f"Columns: {short('untrained')} = the untrained model; {trained} = after that stage."


def exam(report: Report) -> list[str]:
    """Scores by skill and language, and the baselines under them."""
    stages, tongues = report["stages"], languages(report, "exam")
    lines = title("EXAM", f"share of {report['exam_items']:,} unseen questions answered right, in %")
    width = COLUMN * len(stages)
    lines.append(fit("", 20) + "".join(f"{language_name(language):>{width}}" for language in tongues))
    lines.append(fit("  skill", 20) + "".join(f"{short(stage):>{COLUMN}}" for _ in tongues for stage in stages))
    for skill in [*skills(report), "all"]:
        scores = [report["exam"][stage].get(language, {}).get(skill) for language in tongues for stage in stages]
        lines.append(fit(f"  {skill}", 20) + "".join(f"{percent(score, ''):>{COLUMN}}" for score in scores))
    if report.get("baselines"):
        lines.append("  What answers without understanding get (in the best skill for them):")
    for name, of_language in report.get("baselines", {}).items():
        parts = []
        for language in sorted(of_language):
            by_skill = report["baselines_by_skill"][name][language]
            best = max((score for skill, score in by_skill.items() if skill != "all"), default=of_language[language])
            parts.append(f"{language_name(language)} {percent(of_language[language])} ({percent(best)})")
        lines.append(fit(f"    {baseline_name(name)}", 32) + ", ".join(parts))
    return lines


def crossing(report: Report) -> list[str]:
    """How much of what one language said is known in the other."""
    lines = title("CROSSING", "facts stated only in the other language, answered right, in %")
    return lines + by_language(report, "crossing", lambda scores: percent(scores["all"], ""))


def bits_per_byte(report: Report) -> list[str]:
    """How well held-out text is predicted."""
    lines = title("BITS PER BYTE", "what held-out text costs to predict: less is better; SFT may raise it again")
    return lines + by_language(report, "bpb", lambda bits: f"{bits:.2f}")


def by_language(report: Report, name: str, show: object) -> list[str]:
    """A row per language, a column per stage."""
    stages = report["stages"]
    lines = [fit("", 20) + "".join(f"{short(stage):>{COLUMN}}" for stage in stages)]
    for language in languages(report, name):
        found = [report[name].get(stage, {}).get(language) for stage in stages]
        cells = ["–" if value is None else show(value) for value in found]  # type: ignore[operator]
        lines.append(fit(f"  {language_name(language)}", 20) + "".join(f"{cell:>{COLUMN}}" for cell in cells))
    return lines


def preferences(report: Report) -> list[str]:
    """How often the better answer is the likelier one."""
    lines = title("PREFERENCE ACCURACY", "how often it finds the better of two answers likelier, in %")
    stages, found = report["stages"], report["preference_accuracy"]
    lines.append(fit("", 20) + "".join(f"{short(stage):>{COLUMN}}" for stage in stages))
    cells = "".join(f"{percent(found.get(stage), ''):>{COLUMN}}" for stage in stages)
    return [*lines, fit("  held-out pairs", 20) + cells]


def training(report: Report) -> list[str]:
    """Time, rate and memory of each stage."""
    lines = title("TRAINING", "the limit is the machine's measured rate of matrix products")
    lines.append(f"{'':<12}{'tokens':>9}{'time':>14}{'tokens/s':>11}{'share of limit':>23}{'memory':>10}")
    for stage, tokens in report["tokens"].items():
        limit = report["limit_flops"].get(stage)
        share = percent(report["share_of_limit"][stage]) + (f" of {limit / 1e9:,.0f} GFLOP/s" if limit else "")
        lines.append(
            f"  {stage:<10}{count(tokens):>9}{duration(report['seconds'][stage]):>14}"
            f"{report['tokens_per_second'][stage]:>11,.0f}{share:>23}"
            f"{gigabytes(report['peak_memory_bytes'].get(stage)):>10}"
        )
    lines.append(f"  {'whole run':<19}{duration(report['seconds']['total']):>14}")
    return lines


def exchanges(report: Report) -> list[str]:
    """A few real ones: the first of the exam's items of some skills, or the recipe's samples."""
    last, lines = last_stage(report), []
    if report.get("exchanges"):
        lines = title("EXCHANGES", "the first exam question of some skills: + right, - wrong")
        for row in for_the_card(report["exchanges"]):
            for message in row["messages"]:
                lines += say_line(
                    {"user": "you", "assistant": "model"}.get(message["role"], message["role"]), message["content"]
                )
            lines += say_line("+ model" if row["right"][last] else "- model", row["replies"][last])
            lines += [*([] if row["right"][last] else say_line("right", row["answer"])), ""]
    elif report.get("samples"):
        lines = title("EXCHANGES", "the recipe's samples, answered by the last stage")
        for row in report["samples"]:
            lines += [*say_line("you", row["prompt"]), *say_line("model", row["replies"][last]), ""]
    return lines


def say_line(who: str, text: str) -> list[str]:
    """What one side says, indented under its name."""
    text = " ".join(printable(text).split()) or "(nothing)"
    if cell_len(text) > REPLY_CELLS:
        text = chop_cells(text, REPLY_CELLS - 2)[0] + " …"
    return wrap(text, f"  {who:>7}: ")


def chat_command(directory: Path) -> str:
    """How to chat, as it works in the shell that this was started from."""
    program, beside = "mini-chat", Path(sys.executable).parent / "mini-chat"
    if shutil.which(program) is None and beside.is_file():
        program = os.path.relpath(beside)
    return f"{program} chat {directory}"


def short(stage: str) -> str:
    """The stage's name over a narrow column."""
    return SHORT.get(stage, stage[: COLUMN - 1])


def title(name: str, meaning: str) -> list[str]:
    """A section's name, and in the same breath what its numbers mean."""
    return wrap(f"{name}: {meaning}", "")


def heading(text: str) -> str:
    """The first line."""
    return f"── {text} " + "─" * max(0, WIDTH - cell_len(text) - 4)


def fit(text: str, width: int) -> str:
    """The text in so many cells, cut or filled; Chinese characters take two."""
    return set_cell_size(text, width)


def wrap(text: str, first: str = "") -> list[str]:
    """Lines of at most 80 cells; `first` stands before the first and as much space before the others."""
    indent = cell_len(first)
    wrapper = LineWrapper(lambda: WIDTH - indent)
    wrapped = (wrapper.push(text) + wrapper.finish()).split("\n")
    return [(first if not number else " " * indent) + line for number, line in enumerate(wrapped)]


def print_lines(lines: Sequence[str]) -> None:
    """Print to standard output, whatever its encoding can show."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    print("\n".join(lines), flush=True)
