"""Peak memory of a training stage, part by part.

The formulas count what autograd keeps for the backward pass of `model/model_slm.py` under autocast, tensor by tensor
(a test holds them to what it does keep), and what the loss, the optimiser and the process itself need besides.
docs/plan.md has them as a table.

c is the bytes of a number in the compute dtype: 2 in bf16, 4 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from mini_chat.config import Dpo, Model, Training
from mini_chat.plan.parameters import Parameters, head_dim, key_width, muon_shapes, query_width
from mini_chat.plan.rates import MemoryRates
from mini_chat.trainer.losses import CHUNK_LOGITS

FLOAT32 = 4
NEWTON_SCHULZ_BYTES = 14
"""Per number of the largest stack of matrices that Muon orthogonalises at once: the updates, their stack and its
normalised copy in float32, and that in bf16."""


@dataclass(frozen=True)
class Compute:
    """How a stage computes.

    Args:
        compute_bytes: of a number in matrix products: 2 for bf16, 4 for float32.
        compiled: whether the layers run compiled, which keeps fewer activations.
        chunk_logits: that the loss makes at once.
        kernels: whether our kernels for CPUs are used.
        one_heap: whether tensors lie in the process's heap, as a CPU's do, where gradients lie among the room that
            activations leave.
    """

    compute_bytes: int
    compiled: bool
    chunk_logits: int = CHUNK_LOGITS
    kernels: bool = False
    one_heap: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a stage.

    Args:
        process: libraries, the interpreter, compiled code; on a GPU its context.
        copies: of the weights in the compute dtype.
        activations: what the backward pass needs of a micro-batch.
        backward: what it makes within a layer, of which only what is over the loss counts.
        loss: the logits of a chunk of positions, their softmax, the gradients that are made with them.
        orthogonalisation: Muon's; where the allocator can use what activations and loss leave, what is over them.
        prepared: products of the experts' sizes that the processor's library keeps ready.
        allocator: what lies unused between what is used.
    """

    process: float
    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    backward: float
    loss: float
    orthogonalisation: float
    prepared: float
    allocator: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(vars(self).values())


def peak(
    model: Model,
    parameters: Parameters,
    settings: Training,
    vocab_size: int,
    compute: Compute,
    rates: MemoryRates,
    shards: int = 1,
) -> Memory:
    """Peak memory of one process of a training stage.

    Args:
        shards: processes that the weights, gradients and optimiser state are shared out among (FSDP2), or 1.
    """
    micro_tokens = min(settings.micro_tokens, settings.batch_tokens)
    whole = FLOAT32 * gathered(model, parameters) if shards > 1 else 0
    weights = FLOAT32 * parameters.total / shards
    optimizer = optimizer_bytes(parameters, settings.optimizer) / shards
    copies = compute.compute_bytes * copied_weights(parameters) if compute.compute_bytes < FLOAT32 else 0.0
    activations = activation_bytes(model, micro_tokens, compute, settings.gradient_checkpointing)
    if isinstance(settings, Dpo):
        loss = token_loss_bytes(micro_tokens, model.hidden_size, vocab_size, compute)
    else:
        loss = loss_bytes(micro_tokens, model.hidden_size, vocab_size, compute, settings.batch_tokens > micro_tokens)
    # A layer's backward pass makes gradients of about the size of what was kept, and what was not kept once more; the
    # loss is through by then, but for the logits' room where that stays from step to step.
    room = logits_bytes(micro_tokens, vocab_size, compute) if compute.kernels and not isinstance(settings, Dpo) else 0.0
    backward = max(0.0, 2 * micro_tokens * layer_bytes_per_token(model, compute) - (loss - room))
    working = activations + copies + loss + backward
    orthogonalised = NEWTON_SCHULZ_BYTES * largest_stack(model) if settings.optimizer == "muon" else 0
    over = orthogonalised if compute.one_heap else max(0.0, orthogonalised - working)
    used = 2 * (weights + whole) + optimizer + working + over
    return Memory(
        process=rates.process(compute.compiled),
        weights=weights + whole,
        gradients=weights + whole,
        optimizer=optimizer,
        copies=copies,
        activations=activations,
        backward=backward,
        loss=loss,
        orthogonalisation=over,
        prepared=rates.expert_products * expert_product_bytes(model, micro_tokens, compute.compute_bytes),
        allocator=rates.unused_share * used,
    )


def gathered(model: Model, parameters: Parameters) -> float:
    """Of a model in shards the parameters that are whole at once, as are their gradients.

    The layer at work, the next one on its way, and what is outside of the layers, which stays until the backward pass
    is through.
    """
    in_layers = parameters.layer_matrices
    return parameters.total - in_layers + 2 * in_layers / model.num_hidden_layers


def optimizer_bytes(parameters: Parameters, optimizer: str) -> float:
    """State of the optimisers: Muon keeps a mean of the gradients, AdamW that of their squares too."""
    muon = parameters.hidden_matrices if optimizer == "muon" else 0
    return FLOAT32 * (muon + 2.0 * (parameters.total - muon))


def checkpoint_bytes(parameters: Parameters, optimizer: str) -> float:
    """A checkpoint on disk: the weights and the state of the optimisers, in float32."""
    return FLOAT32 * parameters.total + optimizer_bytes(parameters, optimizer)


def copied_weights(parameters: Parameters) -> int:
    """Weights of which autocast makes a copy in the compute dtype, kept until the backward pass is through with it.

    That of the head is the loss's.
    """
    return parameters.layer_matrices


def activation_bytes(model: Model, tokens: int, compute: Compute, checkpointing: bool) -> float:
    """What is kept of a micro-batch for the backward pass.

    With gradient checkpointing it is each layer's input, and all of one layer while that is gone through again.
    """
    layer = layer_bytes_per_token(model, compute)
    layers = model.num_hidden_layers
    hidden = FLOAT32 * model.hidden_size
    kept = layers * hidden + layer if checkpointing else layers * layer
    # The last normalisation's input and output, cosines and sines, the batch of four tables of int64.
    ends = 2 * hidden + 2 * FLOAT32 * head_dim(model) + 4 * 8
    return tokens * float(kept + ends)


def layer_bytes_per_token(model: Model, compute: Compute) -> float:
    """What one layer keeps of a token for the backward pass.

    In terms of the hidden width H, the width Q of all query heads, K of all key heads, I of the feed-forward, in the
    compute dtype of c bytes and the residual stream's 4:

    - compiled: 4H + c(3H + 3I + 3Q + 3K). What is cheap to make again is not kept.
    - as it is: 4(4H + Q + K) + c(5H + 4I + 3Q + 3K), with 2H for 5H where nothing is cast.
    - of an expert's kind, k experts a token: 4(4H + Q + K) + c(4H + k(2H + 4I) + 3Q + 3K).

    And the norms' inverse deviations, 4 bytes for each head and norm.
    """
    c, hidden = compute.compute_bytes, model.hidden_size
    queries, keys = query_width(model), key_width(model)
    heads = 4 * (2 + model.num_attention_heads + model.num_key_value_heads)
    chosen = model.num_experts_per_tok
    if model.num_experts:
        inside = hidden * (4 if c < FLOAT32 else 2) + chosen * (2 * hidden + 4 * model.moe_intermediate_size)
        routing = 16 * chosen + 4 * model.num_experts + 16 * chosen
        return 4 * (4 * hidden + queries + keys) + c * (inside + 3 * queries + 3 * keys) + heads + routing
    inner = model.intermediate_size
    if compute.compiled:
        return 4 * hidden + c * (3 * hidden + 3 * inner + 3 * queries + 3 * keys) + heads
    cast = 5 if c < FLOAT32 else 2
    return 4 * (4 * hidden + queries + keys) + c * (cast * hidden + 4 * inner + 3 * queries + 3 * keys) + heads


def loss_bytes(tokens: int, hidden_size: int, vocab_size: int, compute: Compute, adds_up: bool = False) -> float:
    """Most that `losses.total_nll` holds at once.

    Of a chunk of positions the logits; of all positions the hidden states with a label, those filled up to a round
    number, and their gradient; in bf16 a copy of the head's weights, and a chunk's part of their gradient.

    Args:
        adds_up: the head's gradient is made beside that of the micro-batches before, instead of in its place.
    """
    c = compute.compute_bytes
    head = (FLOAT32 if adds_up else 0) + (2 * c if c < FLOAT32 else 0)
    rest = tokens * hidden_size * (FLOAT32 + 2 * c) + head * vocab_size * hidden_size
    return logits_bytes(tokens, vocab_size, compute) + float(rest)


def logits_bytes(tokens: int, vocab_size: int, compute: Compute) -> float:
    """The logits of a chunk of positions, and their log-softmax where our kernels do not work in the logits' memory."""
    numbers = min(tokens * vocab_size, max(compute.chunk_logits, vocab_size))
    return float(numbers * (compute.compute_bytes if compute.kernels else 2 * FLOAT32))


def token_loss_bytes(tokens: int, hidden_size: int, vocab_size: int, compute: Compute) -> float:
    """The same of `losses.token_nll`, which DPO takes.

    Of a chunk of positions the log-softmax of the logits and both gradients; of all positions the hidden states: those
    with a label, filled up to a round number, and cast; a copy of the head.
    """
    cast = compute.compute_bytes if compute.compute_bytes < FLOAT32 else 0
    logits = min(tokens * vocab_size, max(compute.chunk_logits, vocab_size))
    rest = tokens * hidden_size * (2 * FLOAT32 + cast) + cast * vocab_size * hidden_size
    return float(logits * 3 * FLOAT32 + rest)


def expert_product_bytes(model: Model, tokens: int, compute_bytes: int) -> float:
    """What one expert's product reads and writes, the mean of its two, of the tokens that are its even share; or 0."""
    if not model.num_experts:
        return 0.0
    rows = tokens * model.num_experts_per_tok / model.num_experts
    hidden, inner = model.hidden_size, model.moe_intermediate_size
    into = rows * (hidden + 2 * inner) + 2 * inner * hidden
    out_of = rows * (inner + hidden) + inner * hidden
    return compute_bytes * (into + out_of) / 2


def largest_stack(model: Model) -> int:
    """Numbers in the largest stack of matrices of one shape, transposed or not, that Muon takes."""
    sizes: dict[tuple[int, ...], int] = {}
    for one, other in muon_shapes(model):
        shape = (min(one, other), max(one, other))
        sizes[shape] = sizes.get(shape, 0) + one * other * model.num_hidden_layers
    return max(sizes.values())
