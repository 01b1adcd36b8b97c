"""Bits per byte, the weight of a batch, and the load-balancing loss of a mixture in training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VOCAB_SIZE, english, tiny_model, write_split
from transformers import PreTrainedTokenizerFast

from mini_chat.data.encoding import encode_text
from mini_chat.data.packing import PackedDocuments
from mini_chat.model.model_slm import load_balancing_loss
from mini_chat.trainer.language_modelling import LanguageModelling, bits_per_byte
from mini_chat.trainer.loop import run_packed
from mini_chat.trainer.stage import end_of_document, token_bytes


def test_a_tokens_bytes_add_up_to_the_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = token_bytes(tokenizer)
    assert len(sizes) == len(tokenizer)
    for text in ("A cat's house, near the river.", "小王有一只猫，😀 é\n\tend", "\x00\u3000龘"):
        assert sizes[encode_text(tokenizer, text)].sum() == len(text.encode())
    assert sizes[tokenizer.all_special_ids].sum() == 0


@pytest.mark.parametrize("micro_rows", [1, 3])
def test_bits_per_byte_are_the_summed_loss_over_the_texts_bytes(
    micro_rows: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model()
    end = end_of_document(tokenizer)
    texts = [english(number) for number in range(6)]
    ids = [[*encode_text(tokenizer, text), end] for text in texts]
    packed = PackedDocuments(write_split(tmp_path, ids), 64, 0, prefix=end)
    nats = 0.0
    for document in ids:
        with torch.no_grad():
            logits = model(torch.tensor([[end, *document[:-1]]])).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(document), reduction="sum"))
    expected = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    given = bits_per_byte(model, packed, token_bytes(tokenizer), len(packed), micro_rows)
    assert given == pytest.approx(expected, rel=1e-4)
    first = bits_per_byte(model, packed, token_bytes(tokenizer), 1, micro_rows)
    assert first != pytest.approx(expected, rel=1e-6), "only so many rows as asked"


def test_a_model_that_knows_nothing_needs_the_vocabularys_bits(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    ids = [encode_text(tokenizer, english(1))]
    packed = PackedDocuments(write_split(tmp_path, ids), 64, 0, prefix=end_of_document(tokenizer))
    expected = len(ids[0]) * math.log2(VOCAB_SIZE) / len(english(1).encode())
    assert bits_per_byte(model, packed, token_bytes(tokenizer), 9, 1) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_mixture_has_the_load_balancing_loss_once_a_token_and_padding_not_at_all(tmp_path: Path) -> None:
    model = tiny_model(num_experts=4, router_aux_loss_coef=0.5)
    packed = PackedDocuments(write_split(tmp_path, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 3, 2]]), 16, 0, prefix=0)
    task = LanguageModelling("t", packed, {}, np.ones(VOCAB_SIZE, np.int64), 1, 1)
    batch = packed.batch(0, 1)
    loss, extra = task.loss(model, batch)
    model.config.router_aux_loss_coef = 0.0
    without, _ = task.loss(model, batch)
    routers = run_packed(model, batch).router_logits
    assert routers is not None
    balance = load_balancing_loss([layer[:11] for layer in routers], 2)
    assert loss.item() - without.item() == pytest.approx(0.5 * 11 * balance.item(), rel=1e-3)
    assert extra["balance"] == pytest.approx(11 * balance.item(), rel=1e-5)
    assert task.weight(batch) == 11


def test_a_batch_without_labels_has_loss_0_and_gradients_0(tmp_path: Path) -> None:
    packed = PackedDocuments(write_split(tmp_path, [[1, 2, 3]], [[0, 0, 0]]), 8, 0)
    task = LanguageModelling("t", packed, {}, np.ones(VOCAB_SIZE, np.int64), 1, 1)
    model = tiny_model()
    batch = packed.batch(0, 1)
    loss, _ = task.loss(model, batch)
    (loss / task.weight(batch)).backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
