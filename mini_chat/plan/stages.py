"""One training stage on one machine: how many tokens, how much work, how long, how much memory and disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mini_chat.config import TRAINING_STAGES, Pretrain, Recipe, Training
from mini_chat.data.token_shards import token_dtype
from mini_chat.plan.corpus import Amount
from mini_chat.plan.machines import Machine
from mini_chat.plan.memory import FLOAT32, Compute, Memory, checkpoint_bytes, peak
from mini_chat.plan.parameters import Parameters, attention_flops_per_token, keys_seen
from mini_chat.plan.rates import Rates
from mini_chat.plan.throughput import FORWARD_SHARE, Work, exchange_seconds, micro_batches_of, step_work
from mini_chat.trainer.losses import chunk_logits

PACKED_SHARE = 0.98  # of the rows' positions that documents fill
COMPILE_SECONDS = 40.0
DISK_RATE = 3e8
"""A checkpoint's bytes per second, written, brought to the disk and hashed: an ordinary SSD, one core."""
HELD_BY_MODEL = 0.6
"""Part of a device's memory over which weights, gradients and optimiser are sharded (`trainer.parallelism`)."""


@dataclass(frozen=True)
class StagePlan:
    """What a training stage will take.

    Args:
        steps: 0 where they follow from data that are not there.
        epochs: passes over the data; None where these are not there to be counted.
        flops, attention_flops: in all; attention's own products apart.
        work: of a step, at the machine's rates.
        share_of_limit: of the matrix-product rate, without attention's products, as the training loop shows it.
        save_seconds: of one checkpoint; on a GPU training goes on meanwhile, unless the model is in shards.
        saves: checkpoints written, the last one with them.
        lost_seconds: training that a kill costs at most.
        checkpoint_bytes: of one checkpoint.
        disk_bytes: that the stage's directory takes at most, without data.
    """

    name: str
    settings: Training
    steps: int
    tokens: float
    epochs: float | None
    amount: Amount
    flops: float
    attention_flops: float
    work: Work
    step_seconds: float
    tokens_per_second: float
    share_of_limit: float
    train_seconds: float
    validation_seconds: float
    save_seconds: float
    saves: int
    lost_seconds: float
    compile_seconds: float
    checkpoint_bytes: float
    disk_bytes: float
    data_bytes: float
    compute: Compute
    memory: Memory
    parallelism: str

    @property
    def waiting_seconds(self) -> float:
        """What saving takes from training; on a GPU it goes on beside it."""
        return self.saves * self.save_seconds

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.train_seconds + self.validation_seconds + self.compile_seconds + self.waiting_seconds


def plan_stage(
    recipe: Recipe,
    name: str,
    amount: Amount,
    parameters: Parameters,
    vocab_size: int,
    machine: Machine,
    rates: Rates,
    gpus: int,
) -> StagePlan:
    """The plan of a training stage; of one whose steps cannot be known, what does not depend on them."""
    assert name in TRAINING_STAGES
    settings: Training = getattr(recipe, name)
    model = recipe.model
    per_epoch = amount.tokens / PACKED_SHARE
    steps = settings.steps or math.ceil(settings.epochs * per_epoch / settings.batch_tokens)
    tokens = float(steps * settings.batch_tokens)
    flops = tokens * parameters.training_flops_per_token
    compute = Compute(
        machine.compute_bytes,
        is_compiled(recipe, flops if steps else math.inf, machine.kind),
        chunk_logits(machine.kind),
        kernels=machine.kind == "cpu" and recipe.machine.compile != "off",
        one_heap=machine.kind == "cpu",
    )
    keys = keys_seen(settings.row_tokens, amount.document_tokens)
    kind = parallelism(parameters, machine, recipe.machine.parallel, gpus)
    shards = gpus if kind == "fsdp" else 1
    work = step_work(model, parameters, settings, vocab_size, compute, machine, keys, gpus, shards)
    sharded_micro_batches = micro_batches_of(settings, gpus) if shards > 1 else 0
    step_seconds = work.seconds(rates.time) + exchange_seconds(parameters, machine, gpus, sharded_micro_batches)
    size = checkpoint_bytes(parameters, settings.optimizer)
    every = save_steps(recipe, settings, amount, vocab_size)
    between = min(every * step_seconds, settings.checkpoint_minutes * 60)
    saves = math.ceil(steps * step_seconds / between)
    in_background = machine.kind != "cpu" and shards == 1
    return StagePlan(
        name=name,
        settings=settings,
        steps=steps,
        tokens=tokens,
        epochs=tokens / per_epoch if per_epoch else None,
        amount=amount,
        flops=flops,
        attention_flops=tokens * attention_flops_per_token(model, keys),
        work=work,
        step_seconds=step_seconds,
        tokens_per_second=settings.batch_tokens / step_seconds,
        share_of_limit=settings.batch_tokens
        * parameters.training_flops_per_token
        / step_seconds
        / (machine.matmul_flops * gpus),
        train_seconds=steps * step_seconds,
        validation_seconds=validation_seconds(settings, steps, step_seconds, recipe),
        save_seconds=0.0 if in_background else size / DISK_RATE,
        saves=saves,
        lost_seconds=between,
        compile_seconds=COMPILE_SECONDS if compute.compiled and steps else 0.0,
        checkpoint_bytes=size,
        disk_bytes=(settings.keep_checkpoints + 1) * size + FLOAT32 * parameters.total,
        data_bytes=amount.disk_bytes if amount.source.startswith("counted") else data_bytes(name, amount),
        compute=compute,
        memory=peak(model, parameters, settings, vocab_size, compute, rates.memory, shards),
        parallelism=kind,
    )


def is_compiled(recipe: Recipe, flops: float, kind: str) -> bool:
    """Whether the stage's layers run compiled, as `trainer.compilation.worth_compiling` decides it.

    Args:
        kind: of the device.
    """
    from mini_chat.trainer.compilation import WORTHWHILE_FLOPS

    setting, least = recipe.machine.compile, WORTHWHILE_FLOPS.get(kind, math.inf)
    return setting != "off" and not recipe.model.num_experts and (setting == "on" or flops >= least)


def parallelism(parameters: Parameters, machine: Machine, setting: str, gpus: int) -> str:
    """single, ddp or fsdp, as `trainer.parallelism.kind_of_parallelism` decides it."""
    from mini_chat.trainer.parallelism import BYTES_PER_PARAMETER

    if gpus == 1:
        return "single"
    if setting != "auto":
        return setting
    held = BYTES_PER_PARAMETER * parameters.total
    return "fsdp" if machine.kind == "cuda" and held > HELD_BY_MODEL * machine.memory_bytes else "ddp"


def validation_seconds(settings: Training, steps: int, step_seconds: float, recipe: Recipe) -> float:
    """Validations: the forward pass over at most `eval_tokens` of each of two languages, every `eval_every` steps."""
    times = math.ceil(steps / settings.eval_every)
    return times * 2 * settings.eval_tokens * FORWARD_SHARE * step_seconds / settings.batch_tokens


def save_steps(recipe: Recipe, settings: Training, amount: Amount, vocab_size: int) -> int:
    """Steps from checkpoint to checkpoint; those that take a shard's tokens where the stage saves by shards."""
    if not (isinstance(settings, Pretrain) and settings.checkpoint_shards):
        return settings.checkpoint_every
    tokens = amount.largest_file_tokens or min(
        recipe.shards.shard_bytes // token_dtype(vocab_size).itemsize, amount.tokens or math.inf
    )
    return max(1, math.floor(tokens) // settings.batch_tokens)


def data_bytes(name: str, amount: Amount) -> float:
    """Token shards: two bytes a token, a third for the mask of SFT and DPO, and eight for each document."""
    per_token = 2 if name == "pretrain" else 3
    return per_token * amount.tokens + 8 * amount.documents
