"""The depth dial: one number, the layers, gives the shape of a model and the settings of training that go with it.

A setting is a power law of the size through its value at size 12, the default shape. `model.size` in a recipe fills
what the recipe leaves open (`mini_chat.config`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE_SIZE = 12
"""The size whose shape is the default, and whose settings are those that were searched."""
MAX_SIZE = 48
"""The largest size: 4.8 billion parameters in the layers."""


@dataclass(frozen=True)
class PowerLaw:
    """`at_reference` · (size / 12)^`exponent`."""

    at_reference: float
    exponent: float

    def factor(self, size: int) -> float:
        """The value at a size as a part of that at size 12."""
        return (size / REFERENCE_SIZE) ** self.exponent

    def at(self, size: int) -> float:
        """The value at a size, to 3 significant digits, so that it can be written down and given again."""
        return significant(self.at_reference * self.factor(size))


HEAD_DIM = 64
"""Width of a head; there are as many heads as layers, so the width is 64 for each layer, as with nanochat's depth."""
FEED_FORWARD_RATIO = 8 / 3
"""Feed-forward width over hidden width: SwiGLU's three matrices are as large as two of ratio 4 (arXiv:2002.05202)."""
FEED_FORWARD_MULTIPLE = 64
"""The feed-forward width is rounded to it: matrix products like whole tiles."""
HEADS_PER_KEY_VALUE_HEAD = 3
"""Query heads that share a key and value head, at least; more where the size divides no better."""

BATCH_TOKENS = PowerLaw(65_536, 1.15)
"""Pretraining's tokens of a step. Not measured here yet. Exponent: the best batch grows with data^0.383
(arXiv:2505.13738), and compute-optimal data with the parameters, about size^3."""
LR_MAX = PowerLaw(8e-3, -0.5)
"""Pretraining's peak rate of AdamW's parameters; SFT's and DPO's own defaults go by the same exponent. Measured with
Muon's at sizes 2, 3 and 4 (docs/images/size-transfer.png): none is over 0.005 bits per byte from its best, and seeds
are 0.02 apart. Exponent: nanochat's for embeddings and head, 1/√width; longer runs at sizes 3 and 6 agree with it
(docs/log.md)."""
MUON_LR_MAX = PowerLaw(0.01, 0.0)
"""Pretraining's peak rate of Muon's matrices; SFT's and DPO's own defaults go by the same exponent. Measured with
LR_MAX. Exponent: an orthogonalised step changes a layer's outputs alike at any width (arXiv:2502.07529)."""
WEIGHT_DECAY = PowerLaw(0.1, 0.0)
"""Pretraining's weight decay. In short runs at size 2 it changes nothing, and 0.5 costs 0.01 bits per byte; it is for
long ones."""


def shape(size: int) -> dict[str, int]:
    """Keys of the recipe's section `model`."""
    hidden_size = HEAD_DIM * size
    return {
        "hidden_size": hidden_size,
        "intermediate_size": FEED_FORWARD_MULTIPLE * round(FEED_FORWARD_RATIO * hidden_size / FEED_FORWARD_MULTIPLE),
        "num_hidden_layers": size,
        "num_attention_heads": size,
        "num_key_value_heads": key_value_heads(size),
    }


def key_value_heads(heads: int) -> int:
    """The most that divide the query heads and are shared by 3 or more of them; 1 for fewer heads."""
    return max(n for n in range(1, max(1, heads // HEADS_PER_KEY_VALUE_HEAD) + 1) if heads % n == 0)


def pretraining(size: int, row_tokens: int) -> dict[str, float]:
    """Keys of the recipe's section `pretrain`, for rows of so many tokens."""
    return {
        "batch_tokens": batch_tokens(size, row_tokens),
        "lr_max": LR_MAX.at(size),
        "muon_lr_max": MUON_LR_MAX.at(size),
        "weight_decay": WEIGHT_DECAY.at(size),
    }


def batch_tokens(size: int, row_tokens: int) -> int:
    """Tokens of a pretraining step: 1, 2, 4, 8 … rows, whatever is nearest to the rule."""
    return row_tokens * 2 ** max(0, round(math.log2(BATCH_TOKENS.at(size) / row_tokens)))


def later_rates(size: int, lr_max: float, muon_lr_max: float) -> dict[str, float]:
    """Learning rates of a stage after pretraining, from those that it has at size 12."""
    return {
        "lr_max": significant(lr_max * LR_MAX.factor(size)),
        "muon_lr_max": significant(muon_lr_max * MUON_LR_MAX.factor(size)),
    }


def significant(value: float) -> float:
    """To 3 significant digits."""
    return float(f"{value:.3g}")
