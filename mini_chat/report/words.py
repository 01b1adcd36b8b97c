"""How the report says things: names, shares, sizes, and the summary in three sentences."""

from __future__ import annotations

from typing import Any

from mini_chat.console import duration

Report = dict[str, Any]
"""What `report/report.json` holds; `gather.gather_report` makes it, and card, page and model card are views of it."""

LANGUAGES = {"en": "English", "zh": "Chinese"}
STAGES = {
    "untrained": "untrained",
    "pretrain": "after pretraining",
    "sft": "after SFT",
    "dpo": "after DPO",
}
STAGE_TITLES = {"pretrain": "Pretraining", "sft": "Fine-tuning", "dpo": "DPO"}
BASELINES = {"frequent": "most frequent answer", "nearest": "nearest training dialogue"}


def language_name(language: str) -> str:
    """English for en; another code stays as it is."""
    return LANGUAGES.get(language, language)


def stage_name(stage: str) -> str:
    """The stage in words, as a reader meets it."""
    return STAGES.get(stage, f"after {stage}")


def baseline_name(name: str) -> str:
    """The baseline in words."""
    return BASELINES.get(name, name.replace("_", " "))


def percent(share: float | None, sign: str = "%") -> str:
    """A share as whole per cent; only what is complete is called 100, and only nothing 0."""
    if share is None:
        return "–"
    number = round(100 * share)
    number = min(number, 99) if share < 1 else number
    number = max(number, 1) if share > 0 else number
    return f"{number}{sign}"


def count(number: float) -> str:
    """3.1M parameters, 450k tokens."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def gigabytes(size_bytes: float | None) -> str:
    """Bytes in GB."""
    return "–" if size_bytes is None else f"{size_bytes / 1e9:.2f} GB"


def last_stage(report: Report) -> str:
    """The stage that the others lead up to."""
    return str(report["stages"][-1])


def joined(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def skills(report: Report) -> list[str]:
    """The exam's skills, in its order."""
    found: dict[str, None] = {}
    for languages in report.get("exam", {}).values():
        for scores in languages.values():
            found.update(dict.fromkeys(skill for skill in scores if skill != "all"))
    return list(found)


def languages(report: Report, of: str) -> list[str]:
    """The languages that `report[of]` knows, English first."""
    found = {language for by_language in report.get(of, {}).values() for language in by_language}
    return sorted(found)


def summary(report: Report) -> list[str]:
    """What happened, how well the model does, and what that is measured against: three sentences."""
    machine, last = report["machine"], last_stage(report)
    names = joined([language_name(language) for language in languages(report, "bpb")])
    tokens = sum(report["tokens"].values())
    sentences = [
        f"A model of {count(report['parameters'])} parameters learnt {names} from nothing: it was trained on "
        f"{count(tokens)} tokens, and the whole run took {duration(report['seconds']['total'])} on "
        f"{machine['cores']} cores of {machine['processor']}."
    ]
    if "exam" in report:
        after, before = report["exam"][last], report["exam"]["untrained"]
        scores = joined([f"{percent(after[code]['all'])} in {language_name(code)}" for code in sorted(after)])
        start = max(before[language]["all"] for language in before)
        bar = max((score for scores in report.get("baselines", {}).values() for score in scores.values()), default=None)
        than = "" if bar is None else f", and answering without understanding at most {percent(bar)}"
        sentences.append(
            f"Of an exam whose questions never occur in training it answers {scores} right; "
            f"an untrained model gets {percent(start)}{than}."
        )
    first = report["stages"][1]
    parts = [
        f"from {report['bpb']['untrained'][code]:.2f} to {report['bpb'][first][code]:.2f} in {language_name(code)}"
        for code in languages(report, "bpb")
    ]
    sentences.append(f"{STAGE_TITLES[first]} took the bits that a byte of held-out text costs {joined(parts)}")
    accuracy = report.get("preference_accuracy", {})
    if "sft" in accuracy and "dpo" in accuracy:
        sentences[-1] += (
            f"; DPO took the preference accuracy on held-out pairs from {percent(accuracy['sft'])} "
            f"to {percent(accuracy['dpo'])}"
        )
    sentences[-1] += "."
    return sentences
