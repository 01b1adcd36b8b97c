"""Direct preference optimisation: the better answer more likely than the worse, measured from the frozen SFT model.

A pair is two documents, prompt and answer, packed into one row that neither sees the other. The reference's
log-probabilities are computed once, before the first step, and kept beside the data; no second model is in memory
while training.

Shape suffixes: D documents of a batch, P pairs, B rows, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.console import progress, say
from mini_chat.data.encoding import encode_chat
from mini_chat.data.holdout import holdout_share
from mini_chat.data.inputs import about
from mini_chat.data.packing import Batch, PackedDocuments
from mini_chat.data.preferences import PreferencePair, read_preferences
from mini_chat.data.tally import Tally
from mini_chat.data.token_shards import LAYOUT, ShardWriter, TokenDocuments, read_manifest, token_dtype, write_manifest
from mini_chat.device import Device
from mini_chat.distributed import first_one_first, is_first, shared_out, summed_tensor
from mini_chat.errors import UserError
from mini_chat.files import atomic_directory, atomic_open, sha256_json
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.attention import packed_attention
from mini_chat.trainer.loop import labelled, run_packed, train
from mini_chat.trainer.losses import dpo_loss, token_nll
from mini_chat.trainer.pretrain import Sampler
from mini_chat.trainer.stage import (
    finish_stage,
    identity,
    is_finished,
    load_model,
    load_tokenizer,
    refuse_misfit,
    tokenizer_fingerprint,
    weights_fingerprint,
)

TOO_LONG = "prompt longer than half of dpo.row_tokens"
CUT = "ends of answers cut to half of dpo.row_tokens"
SHORTEST_ANSWER = 16  # tokens of an answer that must fit behind the prompt
REFERENCE = "reference.safetensors"


Document = tuple[np.ndarray, np.ndarray]
"""Ids, (n,) of `token_dtype`, and the mask of those that are weighed, uint8 (n,)."""


@dataclass
class PreferenceTask:
    """The loop's task for DPO.

    Args:
        reference_D: float32, the reference's log-probability of each document's answer [nats].
        validation: the held-out pairs.
    """

    name: str
    data: PackedDocuments
    validation: PackedDocuments
    reference_D: Tensor
    beta: float
    sft_weight: float
    device: Device
    micro_rows: int

    def weight(self, batch: Batch) -> float:
        """Pairs."""
        return max(1, len(batch.documents) // 2)

    def loss(self, model: SLMForCausalLM, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed DPO loss of the pairs, plus `sft_weight` times the chosen answers' mean token loss of each pair."""
        log_p_D, tokens_D = answer_log_probabilities(model, batch)
        present_D = tokens_D > 0
        reference_D = self.reference_D[batch.documents].to(log_p_D.device)
        present_P = present_D[0::2]
        chosen, rejected = log_p_D[0::2][present_P], log_p_D[1::2][present_P]
        loss_P, margin_P = dpo_loss(
            chosen, rejected, reference_D[0::2][present_P], reference_D[1::2][present_P], self.beta
        )
        loss = loss_P.sum() - self.sft_weight * (chosen / tokens_D[0::2][present_P]).sum()
        return loss, {
            "dpo_loss": loss_P.detach().sum(),
            "reward_margin": margin_P.detach().sum(),
            "reward_accuracy": (margin_P.detach() > 0).sum(),
        }

    def validate(self, model: SLMForCausalLM) -> dict[str, float]:
        """Share of held-out pairs whose better answer is the more likely one."""
        return {"preference_accuracy": preference_accuracy(model, self.validation, self.micro_rows, self.device)}


def answer_log_probabilities(model: SLMForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each document's labelled tokens, summed [nats], and their number; float32 and int64 (D,).

    D counts all documents of the batch that the micro-batch is of; those not in it get 0 and 0.
    """
    hidden_NH, labels_N = labelled(run_packed(model, batch).hidden_BLH, batch)
    nll_N = token_nll(hidden_NH, model.lm_head.weight, labels_N)
    document_N = batch.document_ids_BL.flatten().index_select(0, batch.labelled_N)
    log_p_D = torch.zeros(len(batch.documents), device=nll_N.device).index_add(0, document_N, -nll_N)
    return log_p_D, torch.bincount(document_N, minlength=len(batch.documents))


@torch.no_grad()
def all_log_probabilities(model: SLMForCausalLM, packed: PackedDocuments, micro_rows: int, device: Device) -> Tensor:
    """Log-probability of every document's answer, float32 (documents of the split,) [nats]."""
    result = torch.zeros(len(packed.documents))
    model.eval()
    with device.autocast(), packed_attention(model, device):
        for first, counts in shared_out(range(0, len(packed), micro_rows)):
            batch = packed.rows(list(range(first, min(first + micro_rows, len(packed)))))
            log_p_D, _ = answer_log_probabilities(model, batch.to(device.torch_device))
            if counts:
                result[batch.documents] = log_p_D.cpu()
    return summed_tensor(result)


def preference_accuracy(model: SLMForCausalLM, packed: PackedDocuments, micro_rows: int, device: Device) -> float:
    """Share of pairs whose chosen answer has the higher log-probability, summed over its tokens."""
    log_p_D = all_log_probabilities(model, packed, micro_rows, device)
    return float((log_p_D[0::2] > log_p_D[1::2]).float().mean())


def dpo(
    recipe: Recipe,
    sources: list[Source],
    held_out: list[Source],
    directory: Path,
    device: Device,
    sampler: Sampler | None = None,
) -> None:
    """Align `directory/sft` to preferences into `directory/dpo`; nothing happens if it is finished.

    Args:
        held_out: sources of pairs for validation; where empty, a part of `sources` chosen by the prompt's hash.
    """
    settings, out = recipe.dpo, directory / "dpo"
    tokenizer = load_tokenizer(directory / "tokenizer")
    fingerprint = tokenizer_fingerprint(directory / "tokenizer")
    refuse_misfit("dpo", settings, directory / "sft", tokenizer)
    with first_one_first():
        prepare_pairs(recipe, sources, held_out, tokenizer, fingerprint, out / "data")
    documents = TokenDocuments(out / "data", "train", verify=True)
    first_weights = weights_fingerprint(directory / "sft")
    bits = identity(settings, device, seed=recipe.seed, data=documents.fingerprint, first_weights=first_weights)
    if is_finished(out, bits):
        say(f"dpo: {out} is finished")
        return
    model = load_model(directory / "sft").to(device.torch_device)  # type: ignore[arg-type]
    micro_rows = settings.micro_tokens // settings.row_tokens
    data = PackedDocuments(documents, settings.row_tokens, recipe.seed, group=2)
    task = PreferenceTask(
        name="dpo",
        data=data,
        validation=held_out_pairs(out / "data", settings.row_tokens),
        reference_D=reference_log_probabilities(model, data, micro_rows, device, out / "data", bits),
        beta=settings.beta,
        sft_weight=settings.sft_weight,
        device=device,
        micro_rows=micro_rows,
    )
    sample = (lambda: sampler(model)) if sampler else None
    outcome = train(model, task, settings, out, device, bits, sample)
    finish_stage(out, model, tokenizer, bits, outcome, limit_flops=device.matmul_flops)


def held_out_pairs(directory: Path, row_tokens: int) -> PackedDocuments:
    """The held-out pairs of a prepared directory."""
    return PackedDocuments(TokenDocuments(directory, "valid"), row_tokens, 0, group=2)


def reference_log_probabilities(
    model: SLMForCausalLM, data: PackedDocuments, micro_rows: int, device: Device, directory: Path, bits: dict
) -> Tensor:
    """The frozen reference's log-probabilities of all training answers: computed once, kept beside the data."""
    key = sha256_json([bits["data"], bits["first_weights"], device.identity, data.row_tokens, micro_rows])
    path = directory / f"{key[:16]}.{REFERENCE}"
    try:
        return load_file(path)["log_probabilities"]
    except (OSError, SafetensorError, KeyError):  # not there yet, or damaged
        with progress("reference", None, "rows"), device.in_order():
            log_p_D = all_log_probabilities(model, data, micro_rows, device)
    if is_first():
        with atomic_open(path) as file:
            file.write(save({"log_probabilities": log_p_D}))
    return log_p_D


def prepare_pairs(
    recipe: Recipe,
    sources: list[Source],
    held_out: list[Source],
    tokenizer: PreTrainedTokenizerFast,
    fingerprint: str,
    directory: Path,
) -> None:
    """Encode the pairs into masked shards `train` and `valid`: documents 2i and 2i + 1 are a pair's two answers.

    Raises:
        UserError: no pairs, or sources that cannot be read.
    """
    settings = recipe.dpo
    parts = [[about(source) for source in group] for group in (sources, held_out)]
    limits = [settings.row_tokens, settings.validation_share, recipe.data.max_line_bytes]
    asked = sha256_json([LAYOUT, parts, limits, recipe.seed, fingerprint])
    if (directory / "manifest.json").is_file() and read_manifest(directory).get("asked") == asked:
        return
    if not sources:
        raise UserError("dpo: no preference pairs; name some under data.preferences in the recipe")
    tally = Tally()
    training: list[list[Document]] = []
    validation: list[list[Document]] = []
    for pair in fitting_pairs(sources, tokenizer, recipe, tally):
        key, encoded = pair
        apart = not held_out and holdout_share(key, settings.validation_share)
        (validation if apart else training).append(encoded)
    if held_out:
        validation = [encoded for _, encoded in fitting_pairs(held_out, tokenizer, recipe, tally)]
    if not training or not validation:
        raise UserError(f"dpo: no pairs left to train on or to validate with; {tally.lines()[0]}")
    order, dtype = np.random.default_rng([recipe.seed, 0xD90]).permutation(len(training)), token_dtype(len(tokenizer))
    with atomic_directory(directory) as partial:
        splits = {}
        for split, pairs in (("train", [training[number] for number in order]), ("valid", validation)):
            # One file per split: a pair's documents must not be torn apart.
            writer = ShardWriter(partial, split, 1 << 62, True, dtype)
            for documents in pairs:
                for tokens, mask in documents:
                    writer.add(tokens, mask)
            splits[split] = writer.close()
        write_manifest(
            partial, splits, dtype, asked=asked, tokenizer=fingerprint, seed=recipe.seed, accounting=tally.to_json()
        )
    say(f"dpo: {len(training):,} pairs to train on, {len(validation):,} held out")
    for line in tally.lines():
        say(f"  {line}")


def fitting_pairs(
    sources: list[Source], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, tally: Tally
) -> Iterator[tuple[str, list[Document]]]:
    """The last question of each pair, and the pair's two encoded documents, brought to half a row each."""
    for pair in read_preferences(sources, tally, recipe.data.max_line_bytes):
        room = recipe.dpo.row_tokens // 2 + 1  # n tokens take n - 1 positions
        prompt, *documents = encode_pair(tokenizer, pair)
        if prompt + SHORTEST_ANSWER > room:
            tally.take_back(TOO_LONG, f"{pair.source}:{pair.number}")
            continue
        if any(len(tokens) > room for tokens, _ in documents):
            tally.repaired[CUT] += 1
        yield pair.prompt[-1]["content"], [(tokens[:room], mask[:room]) for tokens, mask in documents]


def encode_pair(tokenizer: PreTrainedTokenizerFast, pair: PreferencePair) -> tuple[int, Document, Document]:
    """Tokens of the prompt; then ids, (n,) of `token_dtype`, and mask, uint8 (n,), of prompt and either answer.

    Only the answer is weighed, not what the assistant said in the prompt.
    """
    prompt_ids, _ = encode_chat(tokenizer, pair.prompt)
    chosen, rejected = (
        encode_chat(tokenizer, [*pair.prompt, {"role": "assistant", "content": answer}])
        for answer in (pair.chosen, pair.rejected)
    )
    documents = []
    for ids, mask in (chosen, rejected):
        weighed = np.array(mask, np.uint8)
        weighed[: len(prompt_ids)] = 0
        documents.append((np.array(ids, token_dtype(len(tokenizer))), weighed))
    return len(prompt_ids), documents[0], documents[1]
