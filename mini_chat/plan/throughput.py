"""How long a step takes: the work of each kind, over the machine's rate for it, times a measured constant.

A roofline (Williams et al. 2009) summed over the parts of a step: products run at a share of the matrix-product rate,
what is between them at a share of the memory's rate, and each layer has a cost of its own that no size makes smaller.
Small models spend their time on the latter two, large ones on the first; one fixed share of the limit fits neither.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mini_chat.config import Model, Training
from mini_chat.plan.machines import Machine
from mini_chat.plan.memory import FLOAT32, Compute, layer_bytes_per_token
from mini_chat.plan.parameters import (
    Parameters,
    attention_flops_per_token,
    muon_shapes,
)
from mini_chat.plan.rates import TimeRates

ADAMW_BYTES = 8 * FLOAT32
"""Per parameter and step: weight, gradient and two moments read, three of them written; the gradient's norm."""
MUON_BYTES = 10 * FLOAT32
"""Per parameter and step, without the products: momentum, update, stack, norm, copy, weight."""
NEWTON_SCHULZ_STEPS = 5
RECOMPUTED_SCORES = 7 / 6
"""Attention makes its scores again in the backward pass: seven products where six count (arXiv:2205.14135)."""
PASSES_AS_IT_IS = 2
"""How often activations go through memory in layers that are not compiled, where compiled code passes them once."""
MACHINE_GPUS = 8
ADAPTER_RATE = 5e10
"""Between machines each GPU has an adapter of 400 Gb/s [bytes/s]; a ring through a machine takes all of them."""
FORWARD_SHARE = 1 / 3
"""Of a step's work: 2 of 6 FLOPs a weight."""


@dataclass(frozen=True)
class Work:
    """What a step would take at the machine's own rates [seconds]; the last two are counts.

    Args:
        products: those with weights, at the matrix-product rate.
        attention: attention's own products, at the same.
        traffic: activations and logits that go through memory once, at the memory's rate.
        optimizer: the optimiser's traffic and products.
        layer_seconds: layers times micro-batches.
        expert_seconds: experts of all layers times micro-batches: a product of its own for each, of ever new sizes.
    """

    products: float
    attention: float
    traffic: float
    optimizer: float
    layer_seconds: float
    expert_seconds: float

    def seconds(self, rates: TimeRates) -> float:
        """What the step takes."""
        factors = asdict(rates)
        return float(sum(factors[kind] * amount for kind, amount in asdict(self).items()))


def step_work(
    model: Model,
    parameters: Parameters,
    settings: Training,
    vocab_size: int,
    compute: Compute,
    machine: Machine,
    keys: float,
    gpus: int = 1,
    shards: int = 1,
) -> Work:
    """The work of an optimiser step on each of so many devices, which share out its rows.

    Args:
        keys: that a token sees on average.
        shards: that weights and the optimiser's state are shared out among (FSDP2), or 1.
    """
    tokens = settings.batch_tokens / gpus
    micro_batches = micro_batches_of(settings, gpus)
    layers = model.num_hidden_layers
    again = FORWARD_SHARE if settings.gradient_checkpointing else 0.0
    in_layers = 6 * (parameters.layer_matrices - parameters.idle)
    flops = parameters.training_flops_per_token + again * in_layers
    attention = attention_flops_per_token(model, keys) * (RECOMPUTED_SCORES + again)
    logits = vocab_size * (2 * FLOAT32 + compute.compute_bytes)
    passes = 1 if compute.compiled else PASSES_AS_IT_IS
    traffic = layers * layer_bytes_per_token(model, compute) * passes * (1 + again) + logits
    return Work(
        products=tokens * flops / machine.matmul_flops,
        attention=tokens * attention / machine.matmul_flops,
        traffic=tokens * traffic / machine.memory_rate,
        optimizer=optimizer_seconds(model, parameters, settings.optimizer, machine, gpus, shards),
        layer_seconds=layers * micro_batches * (1 + again),
        expert_seconds=layers * model.num_experts * micro_batches * (1 + again),
    )


def micro_batches_of(settings: Training, gpus: int) -> float:
    """Micro-batches of a step on each of so many devices."""
    return max(1.0, settings.batch_tokens / gpus / settings.micro_tokens)


def optimizer_seconds(
    model: Model, parameters: Parameters, optimizer: str, machine: Machine, gpus: int = 1, shards: int = 1
) -> float:
    """Traffic and products of an update at the machine's rates; several devices share Muon's products out [seconds]."""
    muon = parameters.hidden_matrices if optimizer == "muon" else 0
    traffic = (ADAMW_BYTES * (parameters.total - muon) + MUON_BYTES * muon) / shards
    return traffic / machine.memory_rate + (orthogonalisation_flops(model) / machine.matmul_flops / gpus if muon else 0)


def orthogonalisation_flops(model: Model) -> float:
    """Muon's Newton-Schulz products for all matrices of the layers [FLOP]: r²c, r³ and r²c, twice each, r ≤ c."""
    flops = 0.0
    for shape in muon_shapes(model):
        r, c = sorted(shape)
        flops += NEWTON_SCHULZ_STEPS * 2 * (2 * r * r * c + r**3)
    return model.num_hidden_layers * flops


def exchange_seconds(parameters: Parameters, machine: Machine, gpus: int, sharded_micro_batches: float = 0) -> float:
    """What the devices send each other in a step, by rings; nothing is assumed to hide it.

    Of N devices each sends (N - 1)/N of all gradients twice. Where the model is in shards it gathers the weights for
    the forward and again for the backward pass of each micro-batch, and scatters the gradients: three times that a
    micro-batch.

    Args:
        sharded_micro_batches: of a step, where the model is in shards (FSDP2), or 0.
    """
    rate = machine.link_rate if gpus <= MACHINE_GPUS else min(machine.link_rate, MACHINE_GPUS * ADAPTER_RATE)
    return (3 * sharded_micro_batches or 2) * (gpus - 1) / gpus * FLOAT32 * parameters.total / rate
