"""Supervised fine-tuning: dialogues in the chat format, the loss on what the assistant says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.console import say
from mini_chat.data.dialogues import read_dialogues
from mini_chat.data.encoding import encode_chat
from mini_chat.data.holdout import holdout_share
from mini_chat.data.inputs import about
from mini_chat.data.packing import PackedDocuments
from mini_chat.data.shuffle import shuffled
from mini_chat.data.tally import SetAside, Tally
from mini_chat.data.token_shards import LAYOUT, ShardWriter, TokenDocuments, read_manifest, token_dtype, write_manifest
from mini_chat.data.write_shards import LEFT_OUT
from mini_chat.device import Device
from mini_chat.distributed import first_one_first
from mini_chat.errors import UserError
from mini_chat.files import atomic_directory, sha256_json
from mini_chat.trainer.language_modelling import LanguageModelling
from mini_chat.trainer.loop import train
from mini_chat.trainer.pretrain import Sampler, validation_splits
from mini_chat.trainer.stage import (
    finish_stage,
    identity,
    is_finished,
    load_model,
    load_tokenizer,
    refuse_misfit,
    token_bytes,
    tokenizer_fingerprint,
    weights_fingerprint,
)

TOO_LONG = "longer than sft.row_tokens"
CUT = "last turns cut to fit sft.row_tokens"


def sft(recipe: Recipe, sources: list[Source], directory: Path, device: Device, sampler: Sampler | None = None) -> None:
    """Fine-tune `directory/pretrain` on dialogues into `directory/sft`; nothing happens if it is finished."""
    settings, out = recipe.sft, directory / "sft"
    tokenizer = load_tokenizer(directory / "tokenizer")
    refuse_misfit("sft", settings, directory / "pretrain", tokenizer)
    with first_one_first():
        prepare_dialogues(recipe, sources, tokenizer, tokenizer_fingerprint(directory / "tokenizer"), out / "data")
    documents = TokenDocuments(out / "data", "train", verify=True)
    start = directory / "pretrain"
    bits = identity(
        settings, device, seed=recipe.seed, data=documents.fingerprint, first_weights=weights_fingerprint(start)
    )
    if is_finished(out, bits):
        say(f"sft: {out} is finished")
        return
    task = LanguageModelling(
        name="sft",
        data=PackedDocuments(documents, settings.row_tokens, recipe.seed),
        validation=validation_splits(documents, settings.row_tokens, None),
        token_bytes=token_bytes(tokenizer),
        eval_rows=max(1, settings.eval_tokens // settings.row_tokens),
        micro_rows=settings.micro_tokens // settings.row_tokens,
    )
    model = load_model(start).to(device.torch_device)  # type: ignore[arg-type]
    sample = (lambda: sampler(model)) if sampler else None
    outcome = train(model, task, settings, out, device, bits, sample)
    finish_stage(out, model, tokenizer, bits, outcome, limit_flops=device.matmul_flops)


def prepare_dialogues(
    recipe: Recipe, sources: list[Source], tokenizer: PreTrainedTokenizerFast, fingerprint: str, directory: Path
) -> None:
    """Encode the dialogues into masked shards: `train`, and `valid-<language>` by the hash of the first question.

    A dialogue that does not fit a row loses its last turns; one whose first exchange does not fit is set aside.

    Raises:
        UserError: no dialogues, or sources that cannot be read.
    """
    settings = recipe.sft
    parts = [about(source) for source in sources]
    limits = [settings.row_tokens, settings.validation_share, recipe.data.max_line_bytes]
    asked = sha256_json([LAYOUT, parts, limits, recipe.seed, fingerprint])
    if (directory / "manifest.json").is_file() and read_manifest(directory).get("asked") == asked:
        return
    if not sources:
        raise UserError("sft: no dialogues; name some under data.dialogues in the recipe")
    tally, dtype = Tally(), token_dtype(len(tokenizer))
    held_out: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    languages: Counter[str] = Counter()
    left_out = 0

    def train_dialogues() -> Iterator[bytes]:
        nonlocal left_out
        for source in sources:
            for dialogue in read_dialogues([source], tally, recipe.data.max_line_bytes):
                try:
                    tokens, mask = encode_dialogue(tokenizer, dialogue.messages, settings.row_tokens, tally)
                except SetAside as why:
                    tally.take_back(why.reason, f"{dialogue.source}:{dialogue.number}")
                    continue
                first = next(m["content"] for m in dialogue.messages if m["role"] == "user")
                if holdout_share(first, settings.validation_share):
                    held_out.setdefault(dialogue.language, []).append((tokens, mask))
                    continue
                times = int(source.weight) + holdout_share(first + "\n#weight", source.weight % 1)
                left_out += times == 0
                languages[dialogue.language] += times
                for _ in range(times):
                    yield tokens.tobytes() + mask.tobytes()

    with atomic_directory(directory) as partial:
        writer = ShardWriter(partial, "train", recipe.shards.shard_bytes, True, dtype)
        for data in shuffled(train_dialogues(), partial, recipe.shards.memory_bytes, recipe.seed):
            length = len(data) // (dtype.itemsize + 1)
            mask_at = length * dtype.itemsize
            writer.add(np.frombuffer(data, dtype, length), np.frombuffer(data, np.uint8, length, mask_at))
        if left_out:
            tally.take_back(LEFT_OUT, str(directory), count=left_out)
        tally.check()
        splits = {"train": writer.close()}
        if not splits["train"]["documents"]:
            raise UserError(f"sft: no dialogue left to train on; {tally.lines()[0]}")
        for language, dialogues in sorted(held_out.items()):
            valid = ShardWriter(partial, f"valid-{language}", recipe.shards.shard_bytes, True, dtype)
            for tokens, mask in dialogues:
                valid.add(tokens, mask)
            splits[f"valid-{language}"] = valid.close()
        write_manifest(
            partial, splits, dtype, asked=asked, tokenizer=fingerprint, seed=recipe.seed, accounting=tally.to_json()
        )
    counts = ", ".join(f"{language} {count:,}" for language, count in sorted(languages.items()))
    train_split = splits["train"]
    say(
        f"sft: {train_split['documents']:,} dialogues ({counts}), {train_split['tokens']:,} tokens, "
        f"{train_split['trained_tokens']:,} of them the assistant's"
    )
    for line in tally.lines():
        say(f"  {line}")


def encode_dialogue(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], row_tokens: int, tally: Tally
) -> tuple[np.ndarray, np.ndarray]:
    """Ids, (n,) of `token_dtype`, and which of them the assistant wrote, uint8 (n,), of as many turns as fit a row.

    Raises:
        SetAside: not even the first exchange fits.
    """
    ids, mask = encode_chat(tokenizer, messages)
    if len(ids) > row_tokens + 1:
        ends = [index + 1 for index, message in enumerate(messages) if message["role"] == "assistant"]
        for end in reversed(ends[:-1]):
            ids, mask = encode_chat(tokenizer, list(islice(messages, end)))
            if len(ids) <= row_tokens + 1:
                tally.repaired[CUT] += 1
                break
        else:
            raise SetAside(TOO_LONG)
    return np.array(ids, token_dtype(len(tokenizer))), np.array(mask, np.uint8)
