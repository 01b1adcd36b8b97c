"""Everything that is measured of one checkpoint: exam, bits per byte, preference accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mini_chat.chat.engine import ChatEngine
from mini_chat.config import UNTRAINED, Recipe
from mini_chat.data.token_shards import TokenDocuments
from mini_chat.device import Device
from mini_chat.evaluate.exam import take_exam
from mini_chat.evaluate.exam_items import read_items, score
from mini_chat.files import read_json, sha256_file, sha256_json, write_json
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.attention import packed_attention
from mini_chat.trainer.dpo import held_out_pairs, preference_accuracy
from mini_chat.trainer.language_modelling import bits_per_byte
from mini_chat.trainer.pretrain import validation_splits
from mini_chat.trainer.stage import (
    end_of_document,
    load_model,
    load_tokenizer,
    new_model,
    token_bytes,
    tokenizer_fingerprint,
    weights_fingerprint,
)


def score_stage(recipe: Recipe, directory: Path, stage: str, device: Device) -> dict[str, Any]:
    """Measure a stage's model (or the untrained one) on the run's held-out data; kept in `report/scores/<stage>.json`.

    Returns:
        `exam[language][skill]` and `crossing[language][skill]` where the run has them, `bpb[language]`,
        `preference_accuracy`, and `replies` of the exam.
    """
    weights = UNTRAINED if stage == UNTRAINED else weights_fingerprint(directory / stage)
    exam, crossing = directory / "world" / "exam.jsonl", directory / "world" / "crossing.jsonl"
    manifests = [directory / part / "manifest.json" for part in ("shards", "dpo/data")]
    asked = sha256_json(
        [
            weights,
            recipe.seed,
            recipe.model.model_dump(),
            recipe.evaluate.model_dump(),
            tokenizer_fingerprint(directory / "tokenizer"),
            [sha256_file(path) for path in (exam, crossing, *manifests) if path.is_file()],
        ]
    )
    path = directory / "report" / "scores" / f"{stage}.json"
    if path.is_file() and (kept := read_json(path))["asked"] == asked:
        return kept
    tokenizer = load_tokenizer(directory / "tokenizer")
    model = new_model(recipe, tokenizer) if stage == UNTRAINED else load_model(directory / stage)
    model = model.to(device.torch_device).eval()  # type: ignore[arg-type]
    scores: dict[str, Any] = {"asked": asked, "bpb": held_out_bits_per_byte(recipe, directory, model, device)}
    engine = ChatEngine(model, tokenizer)
    for name, items_path in (("exam", exam), ("crossing", crossing)):
        if items_path.is_file():
            items = read_items(items_path)
            scores[f"{name}_replies"] = take_exam(engine, items, recipe.evaluate)
            scores[name] = score(items, scores[f"{name}_replies"])
    if (directory / "dpo" / "data" / "manifest.json").is_file():
        pairs = held_out_pairs(directory / "dpo" / "data", recipe.dpo.row_tokens)
        micro_rows = recipe.dpo.micro_tokens // recipe.dpo.row_tokens
        scores["preference_accuracy"] = preference_accuracy(model, pairs, micro_rows, device)
    write_json(path, scores)
    return scores


def held_out_bits_per_byte(recipe: Recipe, directory: Path, model: SLMForCausalLM, device: Device) -> dict[str, float]:
    """Bits per byte of the held-out documents of each language in the run's shards."""
    settings = recipe.pretrain
    tokenizer = load_tokenizer(directory / "tokenizer")
    documents = TokenDocuments(directory / "shards", "train")
    splits = validation_splits(documents, settings.row_tokens, end_of_document(tokenizer))
    rows, micro_rows = settings.eval_tokens // settings.row_tokens, settings.micro_tokens // settings.row_tokens
    sizes = token_bytes(tokenizer)
    with device.autocast(), packed_attention(model, device):
        return {
            language: bits_per_byte(model, packed, sizes, max(1, rows), micro_rows)
            for language, packed in splits.items()
        }
