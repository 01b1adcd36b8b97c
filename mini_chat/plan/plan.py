"""The plan of a recipe on a machine, and what to make of it: what does not fit, what is out of proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mini_chat.config import TRAINING_STAGES, Recipe, Training
from mini_chat.console import duration
from mini_chat.errors import UserError
from mini_chat.plan import machines, rates
from mini_chat.plan.corpus import PROCESSED_SHARE, Amount, Vocabulary, stage_amount
from mini_chat.plan.machines import Machine
from mini_chat.plan.memory import peak
from mini_chat.plan.parameters import Parameters, count
from mini_chat.plan.stages import StagePlan, plan_stage

TOKENS_PER_PARAMETER = 20.0
"""Of the compute-optimal model (Chinchilla, arXiv:2203.15556, table 3)."""
FAR_BELOW, FAR_ABOVE = 5.0, 200.0
"""Tokens per parameter outside of which a hint is given; small models are trained far beyond 20 for good reasons."""
WORTHWHILE_EPOCHS = 4.0
"""Repeating data up to so often is nearly as good as new data (arXiv:2305.16264)."""
USABLE_MEMORY = 0.95  # of a device's memory


@dataclass(frozen=True)
class Plan:
    """What a recipe will take on a machine.

    Args:
        unknown: stages whose steps follow from data that are not there → why.
        money: for all hours on all devices, in the currency of the price; None without a price.
    """

    recipe: Recipe
    machine: Machine
    gpus: int
    vocabulary: Vocabulary
    parameters: Parameters
    stages: list[StagePlan]
    unknown: dict[str, str]
    corpus_bytes: float
    rates: rates.Rates
    money: float | None

    @property
    def seconds(self) -> float:
        """All training stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """The run's directory at most, and the sources."""
        return self.corpus_bytes + sum(stage.disk_bytes + stage.data_bytes for stage in self.stages)

    @property
    def memory_bytes(self) -> float:
        """The most that a stage needs of a device's memory."""
        return max((stage.memory.total for stage in self.stages), default=0.0)

    @property
    def limit_bytes(self) -> float:
        """Of a device's memory, what may be used."""
        return USABLE_MEMORY * self.machine.memory_bytes

    @property
    def fits(self) -> bool:
        """Whether every stage fits into memory."""
        return self.memory_bytes <= self.limit_bytes


def make_plan(recipe: Recipe, machine_name: str = machines.THIS, gpus: int = 1, price: float | None = None) -> Plan:
    """Plan a recipe.

    Args:
        machine_name: `this`, or one of `machines.TABLE`.
        gpus: devices that train together.
        price: of one device's hour.

    Raises:
        UserError: no such machine, several devices where only one can train, or a tokenizer that does not load.
    """
    vocabulary = Vocabulary(recipe)
    parameters = count(recipe.model, vocabulary.size)
    machine = machines.find(machine_name, recipe.machine)
    if gpus > 1 and machine.kind != "cuda":
        raise UserError(f"--gpus {gpus}: {machine.name} has no CUDA devices that train together; leave it out")
    constants = rates.of(machine.kind, machine.precision)
    stages: list[StagePlan] = []
    unknown: dict[str, str] = {}
    corpus_bytes = 0.0
    for name in (stage for stage in TRAINING_STAGES if stage in recipe.stages):
        amount = stage_amount(recipe, name, vocabulary)
        corpus_bytes += documents_bytes(recipe, name, amount)
        stages.append(plan_stage(recipe, name, amount, parameters, vocabulary.size, machine, constants, gpus))
        if not stages[-1].steps:
            unknown[name] = amount.source
    hours = sum(stage.seconds for stage in stages) / 3600
    money = None if price is None else hours * price * gpus
    return Plan(recipe, machine, gpus, vocabulary, parameters, stages, unknown, corpus_bytes, constants, money)


def documents_bytes(recipe: Recipe, stage: str, amount: Amount) -> float:
    """The sources on disk, and of documents what each corpus step that the recipe names leaves of them, compressed."""
    steps = {"extract", "simplify", "clean"} & set(recipe.stages) if stage == "pretrain" else set()
    of_sources = 0.0 if amount.source.startswith("counted") else amount.disk_bytes
    return of_sources + len(steps) * PROCESSED_SHARE * amount.text_bytes


def verdicts(plan: Plan) -> list[str]:
    """What the figures mean, a line each; what must be changed first."""
    lines = [line for stage in plan.stages for line in (memory_verdict(plan, stage), rows_verdict(plan, stage)) if line]
    if plan.stages and plan.fits:
        most = max(plan.stages, key=lambda stage: stage.memory.total)
        lines.append(
            f"memory: fits; {most.name} needs most, {gigabytes(most.memory.total)} of {gigabytes(plan.limit_bytes)}"
        )
    longest = max(plan.stages, key=lambda stage: stage.seconds, default=None)
    if longest is not None and longest.steps:
        share = longest.seconds / max(plan.seconds, 1e-9)
        lines.append(f"time: {longest.name} is longest, {duration(longest.seconds)}, {share:.0%} of all")
        lines.append(checkpoint_verdict(longest))
    lines += [line for line in (tokens_verdict(plan), repetition_verdict(plan)) if line]
    lines += [f"{name}: time and disk not counted: {why}; or give --{name}.steps" for name, why in plan.unknown.items()]
    return lines


def memory_verdict(plan: Plan, stage: StagePlan) -> str:
    """That a stage does not fit, and what to lower; "" where it does."""
    if stage.memory.total <= plan.limit_bytes:
        return ""
    needs = f"{stage.name}: does not fit: {gigabytes(stage.memory.total)} of {gigabytes(plan.limit_bytes)}"
    for settings, words in smaller_settings(stage.settings):
        total = memory_with(plan, stage, settings)
        if total <= plan.limit_bytes:
            options = " ".join(f"--{stage.name}.{key} {value}" for key, value in words.items())
            return f"{needs}; {options} fits ({gigabytes(total)})"
    return f"{needs}, with the smallest micro-batch too; take a smaller model or a machine with more memory"


def smaller_settings(settings: Training) -> list[tuple[Training, dict[str, Any]]]:
    """Settings that need less memory, those that cost least time first, with the options that make them."""
    found: list[tuple[Training, dict[str, Any]]] = []
    for checkpointing in (settings.gradient_checkpointing, True):
        rows = min(settings.micro_tokens, settings.batch_tokens) // settings.row_tokens
        while rows:
            words: dict[str, Any] = {"micro_tokens": rows * settings.row_tokens}
            if checkpointing and not settings.gradient_checkpointing:
                words["gradient_checkpointing"] = "true"
            found.append((settings.model_copy(update={**words, "gradient_checkpointing": checkpointing}), words))
            rows //= 2
    return found


def memory_with(plan: Plan, stage: StagePlan, settings: Training) -> float:
    """What the stage would need with other settings."""
    shards = plan.gpus if stage.parallelism == "fsdp" else 1
    size = plan.vocabulary.size
    return peak(plan.recipe.model, plan.parameters, settings, size, stage.compute, plan.rates.memory, shards).total


def rows_verdict(plan: Plan, stage: StagePlan) -> str:
    """That a step's rows do not divide among the devices."""
    rows = stage.settings.batch_tokens // stage.settings.row_tokens
    if rows % plan.gpus == 0:
        return ""
    near = plan.gpus * max(1, round(rows / plan.gpus)) * stage.settings.row_tokens
    return (
        f"{stage.name}: {rows} rows a step cannot be shared out among {plan.gpus} devices; "
        f"--{stage.name}.batch_tokens {near}"
    )


def checkpoint_verdict(stage: StagePlan) -> str:
    """What saving costs, and what a kill costs."""
    beside = "beside the training" if not stage.save_seconds else f"{stage.save_seconds:.1f} s each"
    share = stage.waiting_seconds / max(stage.seconds, 1e-9)
    return (
        f"checkpoints: {stage.saves} of {gigabytes(stage.checkpoint_bytes)} in {stage.name}, {beside}, "
        f"{share:.1%} of its time; a kill costs at most {duration(stage.lost_seconds)}"
    )


def tokens_verdict(plan: Plan) -> str:
    """Tokens per parameter, and a hint where they are far from what the same work would best be spent on."""
    stage = next((stage for stage in plan.stages if stage.name == "pretrain"), None)
    if stage is None or not stage.steps:
        return ""
    ratio = stage.tokens / plan.parameters.active
    line = f"tokens: {ratio:.1f} per active parameter (compute-optimal: about {TOKENS_PER_PARAMETER:.0f})"
    if plan.recipe.world.pretrain_documents:
        return line  # the rule is of natural text, which holds more than a world of a few hundred words
    best = (stage.flops / 6 / TOKENS_PER_PARAMETER) ** 0.5
    if ratio < FAR_BELOW:
        return (
            f"{line}; the model is large for so few: {amount_of(best)} parameters on {amount_of(20 * best)} tokens "
            "would be better for the same work"
        )
    if ratio > FAR_ABOVE:
        return (
            f"{line}; the model is small for so many: {amount_of(best)} parameters would learn more from the same work"
        )
    return line


def repetition_verdict(plan: Plan) -> str:
    """That pretraining reads its data more often than is worth while."""
    stage = next((stage for stage in plan.stages if stage.name == "pretrain"), None)
    if stage is None or stage.epochs is None or stage.epochs <= WORTHWHILE_EPOCHS:
        return ""
    return (
        f"data: pretraining reads its {amount_of(stage.amount.tokens)} tokens {stage.epochs:.1f} times; "
        f"beyond {WORTHWHILE_EPOCHS:.0f} times more text is worth more"
    )


def gigabytes(size: float) -> str:
    """Bytes in GB, or in MB where they are few."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def amount_of(number: float) -> str:
    """A count with its thousands as letters: 124M, 2.5B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            scaled = number / unit
            return f"{scaled:.0f}{name}" if scaled >= 100 else f"{scaled:.3g}{name}"
    return f"{number:.0f}"
