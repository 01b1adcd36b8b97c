"""What a training run counts: how far it is, what a step added up to, its rate, and what it reports at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mini_chat.model import SLMForCausalLM


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimiser.

    Args:
        batches_left_out: the step n takes batch n + this; it grows when training goes back.
        good_step: the checkpoint to go back to, the last scheduled one before which no step was skipped; or None.
        norms: see `Guard`.
    """

    metrics_bytes: int = 0
    bad_steps: int = 0
    skipped_steps: int = 0
    rollbacks: int = 0
    batches_left_out: int = 0
    good_step: int | None = None
    norms: list[float] = field(default_factory=list)
    tokens: int = 0
    train_seconds: float = 0.0


@dataclass
class Outcome:
    """What a training run reports of itself."""

    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    share_of_limit: float
    validation: dict[str, float]
    skipped_steps: int


class Totals(NamedTuple):
    """A step's numbers over all processes: sums of the loss and of whatever else is logged, weight, tokens."""

    sums: dict[str, float]
    weight: float
    tokens: int


def training_flops_per_token(model: SLMForCausalLM) -> float:
    """6 per weight that multiplies (Kaplan et al., arXiv:2001.08361): no embedding look-up, and of experts the top k.

    Attention's own products are left out: at this project's row lengths they are a few per cent, and leaving them out
    understates the share of the limit.
    """
    config = model.config
    active = 0.0
    for name, parameter in model.named_parameters():
        if name == "model.embed_tokens.weight" and not config.tie_word_embeddings:
            continue
        share = config.num_experts_per_tok / config.num_experts if ".experts." in name else 1.0
        active += share * parameter.numel() * (parameter.ndim >= 2)
    return 6 * active


class Window:
    """Tokens per second over the last steps."""

    def __init__(self, size: int = 20) -> None:
        self.size, self.steps = size, list[tuple[int, float]]()

    def add(self, tokens: int, seconds: float) -> None:
        """One more step."""
        self.steps = [*self.steps[-self.size + 1 :], (tokens, seconds)]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return sum(tokens for tokens, _ in self.steps) / max(sum(seconds for _, seconds in self.steps), 1e-9)
