"""The model card: a README.md for a stage's directory, in the form that the Hugging Face hub reads."""

from __future__ import annotations

import yaml

from mini_chat.report.words import Report, count, language_name, languages, percent, stage_name

WHAT = {
    "pretrain": "A base model: it continues text. For answers take the stages after it.",
    "sft": "A chat model, fine-tuned on dialogues; the loss was on the assistant's words only.",
    "dpo": "A chat model, fine-tuned on dialogues and then aligned to preference pairs by DPO (arXiv:2305.18290).",
}
WEAK = 0.85
"""Skills below this share of right answers are named among the limits."""


def render_model_card(report: Report, stage: str) -> str:
    """The card of one stage."""
    recipe, tongues = report["recipe"], languages(report, "bpb")
    world = recipe["world"]["pretrain_documents"] > 0 and not recipe["data"]["documents"]
    front = {
        "language": tongues,
        **({"license": "mit"} if world else {"license": "other", "license_name": "that-of-the-training-text"}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mini-chat", "qwen3"],
    }
    trained = [name for name in report["stages"][1:] if name in report["tokens"]]
    trained = trained[: trained.index(stage) + 1]
    steps = "\n".join(f"- {name}: {report['tokens'][name]:,} tokens" for name in trained)
    return f"""\
---
{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---

# {recipe["name"]}, {stage_name(stage)}

{WHAT.get(stage, "A chat model.")} {count(report["parameters"])} parameters in the architecture of \
Qwen3{"-MoE" if recipe["model"]["num_experts"] else ""}, trained from nothing by Mini-Chat \
in {" and ".join(map(language_name, tongues))}.

## How it was trained

{source(report, world)}

{steps}

Seed {recipe["seed"]}; context {recipe["model"]["max_position_embeddings"]} tokens; the run's
`report/report.json` holds every setting.

## Scores

{scores(report, stage)}

## Limits

{limits(report, stage, world)}

## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/{stage}")
tokenizer = AutoTokenizer.from_pretrained("path/to/{stage}")
{usage(report, stage)}
```

No custom code is needed, and none is loaded.
"""


def source(report: Report, world: bool) -> str:
    """What it learnt from."""
    train = report["accounts"].get("documents", {}).get("train", {}).get("tokens", {})
    shares = ", ".join(f"{language_name(code)} {count(number)} tokens" for code, number in sorted(train.items()))
    text = "Text of a small closed world that Mini-Chat generates" if world else "Text that the user supplied"
    return f"{text}{f' ({shares})' if shares else ''}; then:"


def scores(report: Report, stage: str) -> str:
    """A table of what was measured on held-out data, beside the untrained model."""
    rows = [("measure on held-out data", "untrained", stage_name(stage)), ("---", "---:", "---:")]
    before, after = report.get("exam", {}).get("untrained", {}), report.get("exam", {}).get(stage, {})
    for language in sorted(after):
        shares = [percent(found[language]["all"]) for found in (before, after)]
        rows.append((f"exam, {language_name(language)}", *shares))  # type: ignore[arg-type]
    for language in languages(report, "bpb"):
        bits = [report["bpb"][name].get(language) for name in ("untrained", stage)]
        rows.append((f"bits per byte, {language_name(language)}", *("–" if x is None else f"{x:.3f}" for x in bits)))  # type: ignore[arg-type]
    if stage in (accuracy := report.get("preference_accuracy", {})):
        rows.append(("preference accuracy", percent(accuracy.get("untrained")), percent(accuracy[stage])))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def limits(report: Report, stage: str, world: bool) -> str:
    """What not to expect."""
    size = f"With {count(report['parameters'])} parameters it is a model to learn from, not to rely on."
    about = (
        "It knows the people, animals, places and objects of its own small world and nothing else; asked about "
        "anything beyond, it may say that it does not know, or answer wrongly."
        if world
        else "Its answers are often wrong, repetitive or off the point. What its text said wrongly, it says too."
    )
    exam = report.get("exam", {}).get(stage, {}).values()
    weak = sorted({skill for found in exam for skill, score in found.items() if score < WEAK} - {"all"})
    named = f" Below {percent(WEAK)} of the exam in: {', '.join(weak)}." if weak else ""
    return f"{size} {about}{named} It was not tested for safety and has no filter."


def usage(report: Report, stage: str) -> str:
    """The lines of Python after loading."""
    samples = report["recipe"]["samples"]
    prompt = samples[0] if samples else "Who are you?"
    if stage == "pretrain":
        ask = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
    else:
        ask = f"""messages = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
    return f"""{ask}
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
