"""A plan for a person (a table of at most 80 columns) and for a program (JSON)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mini_chat.console import duration
from mini_chat.plan.memory import Memory
from mini_chat.plan.plan import Plan, amount_of, gigabytes, verdicts
from mini_chat.plan.stages import StagePlan

WIDTH = 80
LABEL = 24
PARTS = {
    "process": "process, libraries",
    "weights": "weights (float32)",
    "gradients": "gradients",
    "optimizer": "optimiser's state",
    "copies": "weights as multiplied",
    "activations": "activations",
    "backward": "a layer's backward pass",
    "loss": "logits of the loss",
    "orthogonalisation": "Muon's products",
    "prepared": "experts' products",
    "allocator": "unused in between",
}
"""Part of the memory → what it is called."""


def shown(plan: Plan) -> str:
    """The plan as text."""
    parts = [
        heading(plan),
        model_rows(plan),
        table("training", plan.stages, STAGE_ROWS),
        table("memory" + (" of each device" if plan.gpus > 1 else ""), plan.stages, memory_rows(plan.stages)),
        disk_rows(plan),
        "\n".join(line for verdict in verdicts(plan) for line in wrapped(f"- {verdict}")),
    ]
    return "\n\n".join(part for part in parts if part)


def heading(plan: Plan) -> str:
    """Recipe and machine."""
    machine = plan.machine
    devices = f"{plan.gpus} × " if plan.gpus > 1 else ""
    rate = f"{machine.matmul_flops / 1e12:,.3g} TFLOP/s in {machine.precision}, {machine.memory_rate / 1e9:,.0f} GB/s"
    lines = [
        f"{plan.recipe.name} on {devices}{machine.name}: {rate}, {gigabytes(machine.memory_bytes)}",
        f"rates {machine.source}; share of them: {plan.rates.time_from}",
    ]
    return "\n".join(line for text in lines for line in wrapped(text))


def model_rows(plan: Plan) -> str:
    """Parameters and work per token."""
    parameters = plan.parameters
    head = "shared with embedding" if parameters.is_tied else amount_of(parameters.head)
    active = f", {amount_of(parameters.active)} active" if parameters.idle else ""
    experts = f", router {amount_of(parameters.router)}" if parameters.router else ""
    model = plan.recipe.model
    heads = f"{model.num_attention_heads} heads, {model.num_key_value_heads} of keys and values"
    rows = [
        ("layers × width", f"{model.num_hidden_layers} × {model.hidden_size}, {heads}"),
        ("parameters", f"{amount_of(parameters.total)}{active}: {parameters.total:,}"),
        ("  embedding, head", f"{amount_of(parameters.embedding)}, {head}"),
        (
            "  layers",
            f"attention {amount_of(parameters.attention)}, feed-forward {amount_of(parameters.feed_forward)}{experts}",
        ),
        ("FLOPs a token", f"{amount_of(parameters.training_flops_per_token)} forward and backward"),
    ]
    return "model\n" + "\n".join(f"  {name:<{LABEL}}{text}" for name, text in rows)


def if_known(cell: Callable[[StagePlan], str]) -> Callable[[StagePlan], str]:
    """The cell, or a question mark where the stage's steps are not known."""
    return lambda stage: cell(stage) if stage.steps else "?"


STAGE_ROWS: list[tuple[str, Callable[[StagePlan], str]]] = [
    ("steps", if_known(lambda stage: f"{stage.steps:,}")),
    ("tokens", if_known(lambda stage: amount_of(stage.tokens))),
    ("epochs of the data", lambda stage: "?" if stage.epochs is None else f"{stage.epochs:.3g}"),
    ("FLOPs", if_known(lambda stage: f"{stage.flops:.2e}")),
    ("  attention's besides", if_known(lambda stage: f"{stage.attention_flops:.1e}")),
    ("tokens a step", lambda stage: f"{stage.settings.batch_tokens:,}"),
    ("AdamW's learning rate", lambda stage: f"{stage.settings.lr_max:g}"),
    ("Muon's", lambda stage: f"{stage.settings.muon_lr_max:g}" if stage.settings.optimizer == "muon" else "-"),
    ("tokens a second", lambda stage: f"{stage.tokens_per_second:,.0f}"),
    ("  share of the limit", lambda stage: f"{stage.share_of_limit:.0%}"),
    ("training", if_known(lambda stage: duration(stage.train_seconds))),
    ("validation", if_known(lambda stage: duration(stage.validation_seconds))),
    ("compiling, saving", if_known(lambda stage: duration(stage.compile_seconds + stage.waiting_seconds))),
    ("in all", if_known(lambda stage: duration(stage.seconds))),
]
"""Rows of the table of stages: name → what stands in a stage's column."""


def memory_rows(stages: list[StagePlan]) -> list[tuple[str, Callable[[StagePlan], str]]]:
    """Rows of the table of memory: parts that some stage has, and their sum."""

    def part(key: str) -> Callable[[StagePlan], str]:
        return lambda stage: gigabytes(getattr(stage.memory, key))

    rows: list[tuple[str, Callable[[StagePlan], str]]] = [
        (name, part(key)) for key, name in PARTS.items() if any(getattr(stage.memory, key) for stage in stages)
    ]
    return [*rows, ("peak", lambda stage: gigabytes(stage.memory.total))]


def table(title: str, stages: list[StagePlan], rows: list[tuple[str, Callable[[StagePlan], str]]]) -> str:
    """Rows by stages; "" without stages."""
    if not stages:
        return ""
    columns = "".join(f"{stage.name:>17}" for stage in stages)
    lines = [f"{title:<{LABEL + 2}}{columns}"]
    lines += [f"  {name:<{LABEL}}" + "".join(f"{cell(stage):>17}" for stage in stages) for name, cell in rows]
    return "\n".join(lines)


def disk_rows(plan: Plan) -> str:
    """Disk and money."""
    stages = plan.stages
    saved = sum(stage.settings.keep_checkpoints * stage.checkpoint_bytes for stage in stages)
    data = sum(stage.data_bytes for stage in stages)
    weights = 4.0 * plan.parameters.total
    rows = [
        ("sources, corpus steps", gigabytes(plan.corpus_bytes)),
        ("token shards", gigabytes(data)),
        ("checkpoints kept", gigabytes(saved)),
        ("finished models", f"{gigabytes(len(stages) * weights)} ({gigabytes(weights)} each)"),
        ("at most, while saving", gigabytes(plan.disk_bytes)),
    ]
    money = "" if plan.money is None else f", money {plan.money:,.2f}"
    total = f"total: {plan.seconds / 3600:,.2f} hours of training{money}, {gigabytes(plan.disk_bytes)} of disk"
    return "disk\n" + "\n".join(f"  {name:<{LABEL}}{text}" for name, text in rows) + f"\n\n{total}"


def wrapped(text: str) -> list[str]:
    """A line in lines of at most 80 columns."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def of_plan(plan: Plan) -> dict[str, Any]:
    """All figures, in bytes, seconds, FLOP and tokens."""
    parameters = plan.parameters
    derived = {key: getattr(parameters, key) for key in ("total", "layers", "active", "multiplied")}
    return {
        "recipe": plan.recipe.name,
        "machine": asdict(plan.machine),
        "gpus": plan.gpus,
        "rates": asdict(plan.rates),
        "vocab_size": plan.vocabulary.size,
        "parameters": asdict(parameters) | derived,
        "training_flops_per_token": parameters.training_flops_per_token,
        "stages": {stage.name: of_stage(stage) for stage in plan.stages},
        "unknown": plan.unknown,
        "seconds": plan.seconds,
        "money": plan.money,
        "disk_bytes": plan.disk_bytes,
        "memory_bytes": plan.memory_bytes,
        "fits": plan.fits,
        "verdicts": verdicts(plan),
    }


def of_stage(stage: StagePlan) -> dict[str, Any]:
    """A stage's figures."""
    memory: Memory = stage.memory
    left_out = {"settings", "amount", "name"}
    values = {key: value for key, value in asdict(stage).items() if key not in left_out}
    return values | {
        "seconds": stage.seconds,
        "memory": asdict(memory) | {"total": memory.total},
        "data": asdict(stage.amount),
    }
