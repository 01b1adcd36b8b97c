"""What the training stages share: loading a model directory, and finishing one of their own."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from mini_chat.config import STAGE_RECORD, Recipe, Training
from mini_chat.device import Device
from mini_chat.distributed import is_first, wait_for_all
from mini_chat.errors import UserError
from mini_chat.files import fsync_path, read_json, sha256_file, write_json
from mini_chat.model import SLMConfig, SLMForCausalLM
from mini_chat.trainer.identity import refuse_other_process, same_run
from mini_chat.trainer.loop import Outcome
from mini_chat.trainer.parallelism import state_to_write

# transformers' own bars for a file or two would tear ours apart.
disable_progress_bar()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer directory.

    Raises:
        UserError: there is none.
    """
    tokenizer_file(directory)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def tokenizer_fingerprint(directory: Path) -> str:
    """The checksum of what decides a tokenizer's ids.

    Raises:
        UserError: there is none.
    """
    return sha256_file(tokenizer_file(directory))


def tokenizer_file(directory: Path) -> Path:
    """What decides a tokenizer's ids.

    Raises:
        UserError: there is none.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory}: no tokenizer.json; run `mini-chat tokenizer` first or give tokenizer.path")
    return path


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> SLMForCausalLM:
    """The untrained model of a recipe: a function of its seed."""
    shape = recipe.model.model_dump(exclude={"rope_theta"})
    config = SLMConfig(
        **shape,
        vocab_size=len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": recipe.model.rope_theta},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return SLMForCausalLM(config)


def refuse_misfit(stage: str, settings: Training, start: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Hold a stage's settings and tokenizer to the model that it begins with, before anything is computed.

    Raises:
        UserError: a line for each misfit; or the stage before is not finished.
    """
    weights_fingerprint(start)
    limit = read_json(start / "config.json")["max_position_embeddings"]
    problems = []
    if settings.row_tokens > limit:
        problems.append(
            f"{stage}.row_tokens {settings.row_tokens} is over the {limit} that {start} was made for; lower it"
        )
    if load_tokenizer(start).get_vocab() != tokenizer.get_vocab():
        problems.append(
            f"{start}: trained with another tokenizer than {start.parent / 'tokenizer'}; run `mini-chat {start.name}` "
            "again"
        )
    if problems:
        raise UserError("\n".join(problems))


def load_model(directory: Path) -> SLMForCausalLM:
    """Load the model that a finished stage left.

    Raises:
        UserError: the stage is not finished, or its weights are not the bytes that it wrote.
    """
    verify_stage(directory)
    return SLMForCausalLM.from_pretrained(directory, dtype=torch.float32)


def identity(settings: Training, device: Device, **parts: Any) -> dict[str, Any]:
    """What a stage's final bits depend on: its settings, the machine's part, and `parts` (data, first weights, seed).

    How often to log, validate or save is no part of it (where a run goes back to after broken steps depends on the
    checkpoints that there are); all processes do that alike too.

    Raises:
        UserError: in one of several processes it is another (all call).
    """
    passing = {"eval_every", "eval_tokens", "sample_every", "log_every"}
    passing |= {"checkpoint_every", "checkpoint_minutes", "checkpoint_shards", "keep_checkpoints"}
    lasting = {**parts, **device.identity}
    refuse_other_process(lasting | settings.model_dump())
    return lasting | settings.model_dump(exclude=passing)


def weights_fingerprint(directory: Path) -> str:
    """The checksum of a finished stage's weights.

    Raises:
        UserError: the stage is not finished, or its record is damaged.
    """
    if not (directory / STAGE_RECORD).is_file():
        raise UserError(f"{directory}: no finished model here; run `mini-chat {directory.name}` first")
    try:
        return read_json(directory / STAGE_RECORD)["sha256"]["model.safetensors"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory / STAGE_RECORD}: damaged; remove it and run `mini-chat {directory.name}` again"
        ) from error


def verify_stage(directory: Path) -> None:
    """Hold the weights to the checksum that was written with them."""
    expected = weights_fingerprint(directory)
    weights = directory / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != expected:
        raise UserError(
            f"{weights}: missing or not the bytes that were written; remove {directory / STAGE_RECORD} and run again"
        )


def is_finished(directory: Path, identity: dict[str, Any]) -> bool:
    """Whether the stage ended, with this very identity (settings, data, first weights)."""
    path = directory / STAGE_RECORD
    if not path.is_file():
        return False
    done = read_json(path)
    return isinstance(done, dict) and isinstance(done.get("identity"), dict) and same_run(done["identity"], identity)


def finish_stage(
    directory: Path,
    model: SLMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    identity: dict[str, Any],
    outcome: Outcome,
    **about: Any,
) -> None:
    """Write the complete Hugging Face model directory, file by file atomically, `stage.json` last; all processes call.

    The `stage.json` of an earlier model goes first: at no instant does it stand beside files that are not its own.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    weights = state_to_write(model)
    if not is_first():
        wait_for_all()  # the next stage reads what the first process writes
        return
    partial = directory / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(
        eos_token_id=stop_tokens(tokenizer), pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    try:
        model.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        for file in sorted(partial.iterdir()):
            fsync_path(file)
        (directory / STAGE_RECORD).unlink(missing_ok=True)
        for file in sorted(partial.iterdir()):
            file.replace(directory / file.name)
        partial.rmdir()
        fsync_path(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{directory}: cannot write the model ({error}); free space and run again") from error
    checksums = {file.name: sha256_file(file) for file in sorted(directory.glob("*.safetensors"))}
    write_json(directory / STAGE_RECORD, {"identity": identity, "sha256": checksums, **asdict(outcome), **about})
    wait_for_all()


def stop_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids that end an answer: the end of a turn and the end of a document."""
    return [special_id(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>")]


def end_of_document(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends every document."""
    return special_id(tokenizer, "<|endoftext|>")


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a special token, which the tokenizer has."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int), token
    return found


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """int64 (V,): UTF-8 bytes of each token, 0 for special ones; in byte-level BPE a token's letters are its bytes."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([0 if number in special else len(token) for number, token in enumerate(tokens)], np.int64)
