"""How many parameters a model has, and how much work a token is, from its shape alone. Formulas: docs/plan.md."""

from __future__ import annotations

from dataclasses import dataclass

from mini_chat.config import Model

FLOPS_PER_WEIGHT = 6
"""Multiplications and additions per weight and token of training: 2 forward, 4 backward (arXiv:2001.08361, 2.1)."""
FLOPS_PER_PAIR = 12
"""Per layer, query width and key that a query sees: the products of queries and keys and of weights and values, each
2 forward and 4 backward (arXiv:2204.02311, appendix B)."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of a model by part; the layers' are those of all layers and all experts together.

    Args:
        head: 0 where the embedding matrix serves as the head too.
        router: of a mixture of experts, what chooses them.
        idle: of the experts, those that do not see a token.
        hidden_matrices: what Muon takes (`trainer.optimizer.is_hidden_matrix`).
    """

    embedding: int
    attention: int
    feed_forward: int
    router: int
    norms: int
    head: int
    idle: int
    hidden_matrices: int
    is_tied: bool

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.layers + self.head

    @property
    def layers(self) -> int:
        """Those of the decoder, its last normalisation with them."""
        return self.attention + self.feed_forward + self.router + self.norms

    @property
    def active(self) -> int:
        """Those that work on a token: all but the experts that do not see it."""
        return self.total - self.idle

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied with; looking up an embedding multiplies nothing."""
        return self.layer_matrices - self.idle + (self.embedding if self.is_tied else self.head)

    @property
    def layer_matrices(self) -> int:
        """Matrices of the layers, all experts with them; the projections have no bias."""
        return self.attention + self.feed_forward + self.router

    @property
    def training_flops_per_token(self) -> float:
        """What the training loop counts, and measures its share of the machine's limit by [FLOP]."""
        return FLOPS_PER_WEIGHT * float(self.multiplied)


def query_width(model: Model) -> int:
    """Width of all query heads together."""
    return model.num_attention_heads * head_dim(model)


def key_width(model: Model) -> int:
    """Width of all key heads together, or of all value heads."""
    return model.num_key_value_heads * head_dim(model)


def head_dim(model: Model) -> int:
    """Width of a head."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def muon_shapes(model: Model) -> list[tuple[int, int]]:
    """Shapes of a layer's matrices that Muon takes, some transposed; an expert's gate and up projections are one."""
    hidden, width = model.hidden_size, model.moe_intermediate_size
    attention = [(query_width(model), hidden)] * 2 + [(key_width(model), hidden)] * 2
    if model.num_experts:
        return attention + [(2 * width, hidden), (width, hidden)] * model.num_experts
    return attention + [(model.intermediate_size, hidden)] * 3


def count(model: Model, vocab_size: int) -> Parameters:
    """The parameters of a model with so many entries in its vocabulary."""
    hidden, layers = model.hidden_size, model.num_hidden_layers
    attention = layers * 2 * hidden * (query_width(model) + key_width(model))
    norms = layers * 2 * (hidden + head_dim(model)) + hidden
    expert = 3 * hidden * model.moe_intermediate_size
    experts = model.num_experts
    feed_forward = layers * (experts * expert if experts else 3 * hidden * model.intermediate_size)
    return Parameters(
        embedding=vocab_size * hidden,
        attention=attention,
        feed_forward=feed_forward,
        router=layers * experts * hidden,
        norms=norms,
        head=0 if model.tie_word_embeddings else vocab_size * hidden,
        idle=layers * (experts - model.num_experts_per_tok) * expert if experts else 0,
        hidden_matrices=attention + feed_forward,
        is_tied=model.tie_word_embeddings,
    )


def attention_flops_per_token(model: Model, keys: float) -> float:
    """Work of attention's own products for a token that sees so many keys on average, itself with them [FLOP]."""
    return FLOPS_PER_PAIR * model.num_hidden_layers * query_width(model) * keys


def keys_seen(row_tokens: int, document_tokens: float | None = None) -> float:
    """Keys that a token sees on average: half of its document, or of the row where documents are longer.

    Args:
        document_tokens: length of the document that a token is in, on average over tokens; None: as long as the row.
    """
    return (min(row_tokens, document_tokens or row_tokens) + 1) / 2
