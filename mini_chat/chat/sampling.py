"""How the next token is chosen from the model's scores.

Shapes: B rows of a batch, V entries of the vocabulary, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mini_chat.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """The knobs of random choice.

    The defaults are for models of up to a few hundred million parameters: cool enough that facts stay
    facts, with a light penalty against the loops that small models fall into.

    Raises:
        UserError: a value is outside its range.
    """

    temperature: float = 0.7
    """Scores are divided by this; 0 always takes the likeliest token."""
    top_p: float = 0.9
    """Only the likeliest tokens that together hold this share of the probability stay; 1 keeps all."""
    top_k: int = 50
    """Only this many of the likeliest tokens stay; 0 keeps all."""
    repetition_penalty: float = 1.1
    """Divides the positive scores of tokens the answer already has, multiplies the negative ones; 1 is none.

    The prompt's tokens are free: an answer about a story has to repeat the story's names.
    """
    seed: int | None = None
    """The same seed gives the same answer to the same conversation; None draws afresh each time."""

    def __post_init__(self) -> None:
        checks = [
            (0.0 <= self.temperature <= 100.0, "temperature", "a number from 0 (always the likeliest token) to 100"),
            (0.0 < self.top_p <= 1.0, "top_p", "a number above 0 and up to 1 (keep all)"),
            (self.top_k >= 0, "top_k", "a whole number, 0 (keep all) or more"),
            (0.1 <= self.repetition_penalty <= 10.0, "repetition_penalty", "a number from 0.1 to 10; 1 is none"),
            (self.seed is None or 0 <= self.seed < 2**63, "seed", "a whole number from 0 to 2^63 - 1"),
        ]
        for holds, name, wanted in checks:
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {wanted}")


GREEDY = Sampling(temperature=0.0, repetition_penalty=1.0)
"""Always the likeliest token, nothing penalised."""


def make_chooser(sampling: Sampling, device: torch.device) -> Callable[[torch.Tensor, list[int]], int]:
    """Build the function (scores_V, ids of the answer so far) -> id of the next token.

    The order is transformers' own: penalty, temperature, top-k, top-p.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    penalty = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
    warpers = LogitsProcessorList()
    if sampling.temperature > 0:
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    generator = torch.Generator(device="cpu")  # on the CPU, so that a seed gives one answer on every device
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)

    def choose(scores_V: torch.Tensor, answer_ids: list[int]) -> int:
        scores_BV = scores_V.float()[None]
        # Any, since transformers asks for the type LongTensor, which no constructor is declared to return
        answer_BL: Any = torch.tensor([answer_ids], dtype=torch.long, device=device)
        if answer_ids and sampling.repetition_penalty != 1:
            scores_BV = penalty(answer_BL, scores_BV)
        if sampling.temperature == 0:
            return int(scores_BV[0].argmax())
        scores_BV = warpers(answer_BL, scores_BV)
        probabilities_BV = scores_BV.softmax(dim=-1).cpu()
        return int(torch.multinomial(probabilities_BV, num_samples=1, generator=generator))

    return choose
