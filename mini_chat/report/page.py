"""The report as one HTML page: nothing is loaded from anywhere, no script runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mini_chat.chat.text_stream import printable
from mini_chat.console import duration
from mini_chat.report.exchanges import for_the_card
from mini_chat.report.words import (
    Report,
    count,
    gigabytes,
    language_name,
    languages,
    last_stage,
    percent,
    skills,
    stage_name,
    summary,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content security policy: the browser itself is told to fetch nothing."""
MISTAKES_SHOWN = 6


def render_page(report: Report, plots: Mapping[str, str], directory: Path) -> str:
    """The page's HTML."""
    name = escape(report["recipe"]["name"])
    style = resources.files("mini_chat.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        f"<h1>{name}: a chat model, from nothing</h1>",
        paragraph(" ".join(summary(report))),
        f'<p class="soft">{escape(report["date"][:10])}, seed {report["recipe"]["seed"]}, '
        f"{escape(last_stage(report))} is the last stage.</p>",
        *scores(report),
        *exchanges(report),
        *mistakes(report),
        *curves(plots),
        *training(report),
        *accounts(report),
        *chatting(report, directory),
        *details(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Mini-Chat report: {name}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def scores(report: Report) -> list[str]:
    """Exam, crossing, bits per byte, preference accuracy."""
    parts = []
    if "exam" in report:
        parts += [
            section("Exam", "考试"),
            paragraph(
                f"How many of a hundred questions were answered right, out of {report['exam_items']:,}. None of them "
                "occurs in training, so what is measured is understanding and not recall. The last two columns "
                "show what one gets without understanding: by always giving the skill's most frequent answer "
                "(frequent), and by giving the answer of the most similar training dialogue (nearest)."
            ),
            chinese("答对题目的百分比。考题从未在训练中出现；最后两列是不理解也能得到的分数。"),
            exam_tables(report),
        ]
    if "crossing" in report:
        parts += [
            section("Crossing between the languages", "跨语言"),
            paragraph(
                "The share of right answers about facts that the training text states in the other language only."
            ),
            chinese("只用另一种语言陈述过的事实，用这种语言提问时答对的比例。"),
            language_table(report, "crossing", lambda scores: (percent(scores["all"]), scores["all"])),
        ]
    parts += [
        section("Bits per byte", "每字节比特数"),
        paragraph(
            "How many bits the model needs for a byte of text that it has never seen: the fewer, the better it "
            "predicts the language. Unlike a loss per token it may be compared between "
            "tokenizers. Fine-tuning for chat may raise it again: plain text is no longer what is trained on."
        ),
        chinese("模型预测一段没见过的文本时，平均每个字节需要的比特数：越低越好。"),
        language_table(report, "bpb", lambda bits: (f"{bits:.3f}", None)),
    ]
    if "preference_accuracy" in report:
        found = report["preference_accuracy"]
        cells = [(percent(found.get(stage)), found.get(stage)) for stage in report["stages"]]
        parts += [
            section("Preference accuracy", "偏好准确率"),
            paragraph(
                "How often the model finds the better of two answers likelier, on held-out pairs; a coin gets 50%."
            ),
            chinese("两个回答中，模型认为更好的那个更可能的比例；抛硬币是 50%。"),
            table(["", *map(stage_name, report["stages"])], [["held-out pairs", *map(score_cell, cells)]]),
        ]
    return parts


def exam_tables(report: Report) -> str:
    """Skill × stage with the baselines, a table for each language."""
    stages, names = report["stages"], list(report.get("baselines", {}))
    labels = [{"sft": "SFT", "dpo": "DPO"}.get(stage, stage) for stage in stages] + names
    tables = []
    for language in languages(report, "exam"):
        rows = []
        for skill in [*skills(report), "all"]:
            found = [report["exam"][stage].get(language, {}).get(skill) for stage in stages]
            found += [report["baselines_by_skill"][name].get(language, {}).get(skill) for name in names]
            rows.append([skill, *(score_cell((percent(score, ""), score)) for score in found)])
        tables.append(f"<div><h3>{escape(language_name(language))}</h3>{table(['skill', *labels], rows, 'exam')}</div>")
    return f'<div class="pair">{"".join(tables)}</div>'


def score_cell(shown: tuple[str, float | None]) -> str:
    """A table cell; a score between 0 and 1 colours it."""
    text, share = shown
    attributes = "" if share is None else f' class="score" style="--share:{share:.2f}"'
    return f"<td{attributes}>{escape(text)}</td>"


def language_table(report: Report, name: str, show: Any) -> str:
    """A row per language, a column per stage."""
    rows = []
    for language in languages(report, name):
        found = [report[name].get(stage, {}).get(language) for stage in report["stages"]]
        cells = [("–", None) if value is None else show(value) for value in found]
        rows.append([language_name(language), *map(score_cell, cells)])
    return table(["", *map(stage_name, report["stages"])], rows)


def exchanges(report: Report) -> list[str]:
    """The same questions, answered by each stage's model side by side."""
    parts = []
    if rows := report.get("exchanges", []):
        first = for_the_card(rows)
        parts += [
            section("The same questions before and after each stage", "各阶段的回答"),
            paragraph("The first exam question of some skills, as each stage's model answers it; none for its looks."),
            exchange_table(report, first),
            "<details><summary>The first question of every skill</summary>",
            exchange_table(report, rows),
            "</details>",
        ]
    if rows := report.get("samples", []):
        stages = report["stages"]
        shown = [[quoted(row["prompt"]), *(quoted(row["replies"][stage]) for stage in stages)] for row in rows]
        parts += [
            section("Samples", "示例"),
            paragraph("The recipe's own prompts, answered by each stage's model with its likeliest words."),
            table(["prompt", *map(stage_name, report["stages"])], shown, "says"),
        ]
    return parts


def exchange_table(report: Report, rows: Iterable[dict[str, Any]]) -> str:
    """Questions with every stage's reply, marked right or wrong."""
    shown = []
    for row in rows:
        replies = [
            f'<td class="{"right" if row["right"][stage] else "wrong"}">{clipped(row["replies"][stage])}</td>'
            for stage in report["stages"]
        ]
        shown.append([f"<td>{conversation(row['messages'])}</td>", *replies])
    return table(["question", *map(stage_name, report["stages"])], shown, "says")


def conversation(messages: list[dict[str, str]]) -> str:
    """What was said up to the question."""
    if len(messages) == 1:
        return clipped(messages[0]["content"])
    return "<br>".join(
        f'<span class="who">{escape(message["role"])}:</span> {clipped(message["content"])}' for message in messages
    )


def mistakes(report: Report) -> list[str]:
    """A few wrong answers of each skill."""
    if "exchanges" not in report:
        return []
    parts = [section("What it gets wrong", "答错的题")]
    if not report["mistakes"]:
        return [*parts, paragraph("Nothing: every question of the exam was answered right.")]
    rows = [
        [
            f"{language_name(row['language'])}, {row['skill']}",
            f"<td>{conversation(row['messages'])}</td>",
            quoted(row["answer"]),
            quoted(row["reply"]),
        ]
        for row in report["mistakes"]
    ]
    parts.append(paragraph("The first wrong answers of each skill and language after the last stage."))
    head, shown = ["skill", "question", "expected", "answered"], [rows[:MISTAKES_SHOWN], rows[MISTAKES_SHOWN:]]
    parts.append(table(head, shown[0], "says"))
    if shown[1]:
        parts.append(f"<details><summary>{len(shown[1])} more</summary>{table(head, shown[1], 'says')}</details>")
    return parts


def curves(plots: Mapping[str, str]) -> list[str]:
    """Every plot."""
    if not plots:
        return []
    figures = "\n".join(f"<figure style='margin:0'>{svg}</figure>" for svg in plots.values())
    return [
        section("Curves", "训练曲线"),
        paragraph("Over the tokens trained on. Loss is what training lowers; what is held out, it never sees."),
        f'<div class="plots">{figures}</div>',
    ]


def training(report: Report) -> list[str]:
    """Time, memory and rate of every stage."""
    rows = [
        [
            stage,
            duration(seconds),
            gigabytes(report["peak_memory_bytes"].get(stage)),
            count(report["tokens"][stage]) if stage in report["tokens"] else "",
            f"{report['tokens_per_second'][stage]:,.0f}" if stage in report["tokens_per_second"] else "",
            percent(report["share_of_limit"][stage]) if stage in report["share_of_limit"] else "",
            f"{report['limit_flops'][stage] / 1e9:,.0f} GFLOP/s" if stage in report["limit_flops"] else "",
        ]
        for stage, seconds in report["seconds"].items()
    ]
    machine = report["machine"]
    return [
        section("Time, memory, speed", "时间、内存与速度"),
        paragraph(
            f"The limit is the rate at which this machine was measured to multiply matrices in {machine['precision']} "
            "when the stage ran. A training step that did nothing but its matrix products would reach 100%."
        ),
        table(["stage", "time", "peak memory", "tokens", "tokens/s", "share of limit", "limit"], rows),
    ]


def accounts(report: Report) -> list[str]:
    """Where documents, dialogues and pairs went."""
    if not report["accounts"]:
        return []
    rows = []
    for what, account in report["accounts"].items():
        reasons = [f"{number:,} {reason}" for reason, number in account["dropped"].items()]
        changes = [f"{number:,} {change}" for change, number in account["repaired"].items()]
        splits = [
            f"{name} {split['documents']:,} ({count(split['tokens'])} tokens)"
            for name, split in account["splits"].items()
        ]
        set_aside = sum(account["dropped"].values())
        rows.append(
            [
                what,
                f"{account['read']:,}",
                f"{account['written']:,}",
                f"{set_aside:,}",
                "; ".join(reasons) or "–",
                "; ".join(changes) or "–",
                "; ".join(splits),
            ]
        )
    return [
        section("Where the data went", "数据去向"),
        paragraph(
            "Everything read is accounted for: read = kept + set aside. The valid parts are held out from training."
        ),
        table(["", "read", "kept", "set aside", "why", "changed", "written as"], rows, "accounts"),
    ]


def chatting(report: Report, directory: Path) -> list[str]:
    """How to talk to it."""
    return [
        section("Talk to it", "对话"),
        f"<pre>mini-chat chat {escape(str(directory))}</pre>",
        paragraph(
            f"The directory {directory / last_stage(report)} is a complete Hugging Face model; its README.md says "
            "how to load it with transformers."
        ),
    ]


def details(report: Report) -> list[str]:
    """Recipe, machine and versions."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    stages = report["recipe"]["stages"]
    unused = {"world", "fetch", "extract", "simplify", "clean"}.difference(stages)
    taken = {key: value for key, value in report["recipe"].items() if key not in unused}
    recipe = yaml.safe_dump(taken, allow_unicode=True, sort_keys=False)
    return [
        section("What it was made with", "环境"),
        paragraph(
            f"{machine['processor']}, {machine['cores']} cores, {gigabytes(machine['memory_bytes'])} of memory, "
            f"device {machine['device']} in {machine['precision']}, {machine['threads']} threads, {machine['system']}. "
            f"{versions}."
        ),
        f"<details><summary>The recipe with every value of its stages</summary><pre>{escape(recipe)}</pre></details>",
    ]


def section(title: str, chinese_title: str) -> str:
    """A heading in both languages."""
    return f'<h2>{escape(title)}<span lang="zh">{escape(chinese_title)}</span></h2>'


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def chinese(text: str) -> str:
    """The same in short, in Chinese."""
    return f'<p lang="zh" class="soft">{escape(text)}</p>'


def clipped(text: str, length: int = 300) -> str:
    """Text of a model or a user, safe in HTML."""
    text = printable(text).strip()
    return escape(text if len(text) <= length else text[:length] + " …") or '<i class="who">(nothing)</i>'


def quoted(text: str) -> str:
    """A cell with such a text."""
    return f"<td>{clipped(text)}</td>"


def table(head: list[str], rows: Iterable[list[str]], kind: str = "numbers") -> str:
    """A table that scrolls by itself on a narrow screen; a cell is text, or a `<td>` of its own."""
    body = ""
    for row in rows:
        cells = [cell if cell.startswith("<td") else f"<td>{escape(cell)}</td>" for cell in row]
        if kind == "says":  # on a narrow screen the cells stand below each other, each under its label
            cells = [
                cell.replace("<td", f'<td data-label="{escape(label)}"', 1)
                for cell, label in zip(cells, head, strict=True)
            ]
        body += f"<tr>{''.join(cells)}</tr>"
    top = "".join(f"<th>{escape(label)}</th>" for label in head)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
