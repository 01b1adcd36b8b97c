"""What the tests are made of: a corpus of a few lines, and a recipe and a model small enough for seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mini_chat.config import Recipe
from mini_chat.data.token_shards import ShardWriter, TokenDocuments, write_manifest
from mini_chat.model import SLMConfig, SLMForCausalLM

VOCAB_SIZE = 384

NAMES = ("Tom", "Anna", "Ben", "Mia", "Lily")
PLACES = ("river", "house", "garden", "school", "shop")
ANIMALS = ("cat", "dog", "bird", "fish", "horse")
NAMES_ZH, PLACES_ZH, ANIMALS_ZH = "王李张刘陈", "河家园校店", "猫狗鸟鱼马"


def english(number: int) -> str:
    """Document `number` of the English corpus."""
    a, b, c = number % 5, number // 5 % 5, number // 25 % 5
    return f"{NAMES[a]} has a {ANIMALS[b]} and lives near the {PLACES[c]}. Story {number} ends here."


def chinese(number: int) -> str:
    """Document `number` of the Chinese corpus."""
    a, b, c = number % 5, number // 5 % 5, number // 25 % 5
    return f"小{NAMES_ZH[a]}有一只{ANIMALS_ZH[b]}，住在{PLACES_ZH[c]}边。故事{number}到此为止。"


def dialogue(number: int) -> dict[str, Any]:
    """Dialogue `number`: two turns, in English if the number is even."""
    a, b = number % 5, number // 5 % 5
    if number % 2:
        turns = (f"小{NAMES_ZH[a]}{number}有什么？", f"一只{ANIMALS_ZH[b]}。", "住在哪里？", f"{PLACES_ZH[b]}边。")
    else:
        turns = (f"What does {NAMES[a]} {number} have?", f"A {ANIMALS[b]}.", "Where?", f"Near the {PLACES[b]}.")
    roles = ("user", "assistant", "user", "assistant")
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}


def preference(number: int) -> dict[str, str]:
    """Preference pair `number`: the right animal and a wrong one."""
    a, b = number % 5, number // 5 % 5
    return {
        "prompt": f"What does {NAMES[a]} {number} have?",
        "chosen": f"A {ANIMALS[b]}.",
        "rejected": f"A {ANIMALS[(b + 1) % 5]}, or not.",
    }


def write_jsonl(path: Path, records: list[Any]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def training(steps: int = 6, **changes: Any) -> dict[str, Any]:
    """A section of training settings for rows of 64 tokens."""
    return {
        "steps": steps,
        "row_tokens": 64,
        "batch_tokens": 256,
        "micro_tokens": 128,
        "warmup_steps": 2,
        "eval_every": 3,
        "eval_tokens": 128,
        "log_every": 1,
        "checkpoint_every": 2,
        **changes,
    }


def tiny_recipe(corpus: Path, out: Path, ready_tokenizer: Path, **sections: Any) -> Recipe:
    """A recipe over the corpus for a model of 2 layers of 32, every training stage a few steps long."""
    values: dict[str, Any] = {
        "out": str(out),
        "stages": ["tokenizer", "shards", "pretrain", "sft", "dpo"],
        "machine": {"device": "cpu", "precision": "fp32", "threads": 1},
        "data": {
            "documents": [{"path": str(corpus / "en.jsonl")}, {"path": str(corpus / "zh.jsonl")}],
            "dialogues": [{"path": str(corpus / "dialogues.jsonl")}],
            "preferences": [{"path": str(corpus / "pairs.jsonl")}],
        },
        "tokenizer": {"path": str(ready_tokenizer)},
        "shards": {"validation_share": 0.1},
        "model": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,  # of 16, which our kernels take
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
        },
        "pretrain": training(),
        "sft": training(row_tokens=128, validation_share=0.2),
        "dpo": training(4, row_tokens=128, lr_max=1e-3, validation_share=0.2),
    }
    for section, changes in sections.items():
        values[section] = values[section] | changes if isinstance(values.get(section), dict) else changes
    return Recipe.model_validate(values)


def tiny_model(seed: int = 0, std: float = 0.2, **changes: Any) -> SLMForCausalLM:
    """A model of 2 layers of 32 in evaluation mode, its weights large enough that every part shows in the logits."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "moe_intermediate_size": 24,
        "initializer_range": std,
        "eos_token_id": VOCAB_SIZE - 1,
        "pad_token_id": VOCAB_SIZE - 2,
    }
    torch.manual_seed(seed)
    model = SLMForCausalLM(SLMConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a normalisation that is left out
                parameter.uniform_(0.5, 1.5)
    return model


def write_split(
    directory: Path, documents: list[list[int]], masks: list[list[int]] | None = None, shard_bytes: int = 1 << 20
) -> TokenDocuments:
    """Documents as a split `train` on disk."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(directory, "train", shard_bytes, with_mask=masks is not None)
    for number, document in enumerate(documents):
        mask = None if masks is None else np.array(masks[number], np.uint8)
        writer.add(np.array(document, np.uint16), mask)
    write_manifest(directory, {"train": writer.close()}, tokenizer="none")
    return TokenDocuments(directory, "train")


def recorded(log: list[Any], note: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which notes each call in `log` before it does its work."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        log.append(note(*arguments))
        return function(*arguments, **keywords)

    return call
