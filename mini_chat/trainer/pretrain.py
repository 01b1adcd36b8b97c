"""Pretraining: next-token prediction on the shards, from weights drawn by the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mini_chat.config import Recipe
from mini_chat.console import say
from mini_chat.data.packing import PackedDocuments
from mini_chat.data.token_shards import TokenDocuments, read_manifest
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.language_modelling import LanguageModelling
from mini_chat.trainer.loop import train
from mini_chat.trainer.stage import (
    end_of_document,
    finish_stage,
    identity,
    is_finished,
    load_tokenizer,
    new_model,
    token_bytes,
    tokenizer_fingerprint,
)

Sampler = Callable[[SLMForCausalLM], str]


def pretrain(recipe: Recipe, directory: Path, device: Device, sampler: Sampler | None = None) -> None:
    """Train on `directory/shards` and leave a model in `directory/pretrain`; nothing happens if it is finished.

    Raises:
        UserError: shards of another tokenizer, or whatever `train` raises.
    """
    settings, out = recipe.pretrain, directory / "pretrain"
    tokenizer = load_tokenizer(directory / "tokenizer")
    refuse_foreign_shards(directory)
    documents = TokenDocuments(directory / "shards", "train", verify=True)
    bits = identity(settings, device, seed=recipe.seed, shards=documents.fingerprint, model=recipe.model.model_dump())
    if is_finished(out, bits):
        say(f"pretrain: {out} is finished")
        return
    if settings.checkpoint_shards:
        settings = settings.model_copy(update={"checkpoint_every": steps_of_a_shard(documents, settings.batch_tokens)})
    prefix = end_of_document(tokenizer)
    task = LanguageModelling(
        name="pretrain",
        data=PackedDocuments(documents, settings.row_tokens, recipe.seed, prefix),
        validation=validation_splits(documents, settings.row_tokens, prefix),
        token_bytes=token_bytes(tokenizer),
        eval_rows=max(1, settings.eval_tokens // settings.row_tokens),
        micro_rows=settings.micro_tokens // settings.row_tokens,
    )
    model = new_model(recipe, tokenizer).to(device.torch_device)  # type: ignore[arg-type]
    sample = (lambda: sampler(model)) if sampler else None
    outcome = train(model, task, settings, out, device, bits, sample)
    finish_stage(out, model, tokenizer, bits, outcome, limit_flops=device.matmul_flops)


def refuse_foreign_shards(directory: Path) -> None:
    """Hold the shards of a run to its tokenizer.

    Raises:
        UserError: they were made with another one, or either is missing.
    """
    fingerprint = tokenizer_fingerprint(directory / "tokenizer")
    if read_manifest(directory / "shards")["tokenizer"] != fingerprint:
        raise UserError(f"{directory / 'shards'}: made with another tokenizer; run `mini-chat shards` again")


def steps_of_a_shard(documents: TokenDocuments, batch_tokens: int) -> int:
    """Steps that take as many tokens as a full shard holds, at least one."""
    return max(1, documents.largest_file_tokens // batch_tokens)


def validation_splits(
    documents: TokenDocuments, row_tokens: int, prefix: int | None, names: str = "valid-"
) -> dict[str, PackedDocuments]:
    """The held-out splits beside `documents`, packed, under their languages."""
    return {
        split.removeprefix(names): PackedDocuments(TokenDocuments(documents.directory, split), row_tokens, 0, prefix)
        for split in documents.manifest["splits"]
        if split.startswith(names)
    }
