"""The loss of pretraining and SFT: next-token prediction on the labelled positions of packed documents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_chat.data.packing import Batch, PackedDocuments
from mini_chat.distributed import shared_out, summed
from mini_chat.model import SLMForCausalLM
from mini_chat.model.model_slm import load_balancing_loss
from mini_chat.trainer.loop import labelled, run_packed
from mini_chat.trainer.losses import total_nll


@dataclass
class LanguageModelling:
    """A stage that predicts next tokens.

    Args:
        validation: held-out documents per language.
        token_bytes: int64 (V,), UTF-8 bytes that each token stands for, 0 for special tokens.
        eval_rows: most rows of a validation, per language.
    """

    name: str
    data: PackedDocuments
    validation: dict[str, PackedDocuments]
    token_bytes: np.ndarray
    eval_rows: int
    micro_rows: int

    def weight(self, batch: Batch) -> float:
        """Labelled tokens."""
        return len(batch.labelled_N)

    def loss(self, model: SLMForCausalLM, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood [nats], plus the load-balancing loss of a MoE model, once per token."""
        out = run_packed(model, batch)
        hidden_NH, labels_N = labelled(out.hidden_BLH, batch)
        nll = total_nll(hidden_NH, model.lm_head.weight, labels_N)
        if out.router_logits is None:
            return nll, {}
        real_T = (batch.document_ids_BL >= 0).flatten()
        balance = load_balancing_loss(list(out.router_logits), model.config.num_experts_per_tok, real_T)
        balance = balance * len(labels_N)
        return nll + model.config.router_aux_loss_coef * balance, {"balance": balance.detach()}

    def validate(self, model: SLMForCausalLM) -> dict[str, float]:
        """Bits per byte of each language's held-out documents."""
        return {
            f"bpb_{language}": bits_per_byte(model, packed, self.token_bytes, self.eval_rows, self.micro_rows)
            for language, packed in self.validation.items()
        }


@torch.no_grad()
def bits_per_byte(
    model: SLMForCausalLM, packed: PackedDocuments, token_bytes: np.ndarray, rows: int, micro_rows: int
) -> float:
    """Bits per byte of UTF-8 text: the summed loss of all labelled tokens, special ones too, over the text's bytes.

    It is comparable between tokenizers, which a loss per token is not. The first `rows` rows are measured.
    """
    bytes_of = torch.from_numpy(token_bytes)
    nats = total_bytes = 0.0
    rows = min(rows, len(packed))
    for first, counts in shared_out(range(0, rows, micro_rows)):
        batch = packed.rows(list(range(first, min(first + micro_rows, rows)))).to(model.device)
        hidden_NH, labels_N = labelled(run_packed(model, batch).hidden_BLH, batch)
        nats += counts * float(total_nll(hidden_NH, model.lm_head.weight, labels_N))
        total_bytes += counts * float(bytes_of[labels_N.cpu()].sum())
    nats, total_bytes = summed([nats, total_bytes])
    return nats / math.log(2) / max(total_bytes, 1)
