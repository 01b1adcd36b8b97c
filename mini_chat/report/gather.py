"""Everything the report says, as one dictionary: scores of every finished stage, time, memory, machine, accounts."""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mini_chat import __version__
from mini_chat.config import STAGE_RECORD, TRAINING_STAGES, UNTRAINED, Recipe
from mini_chat.console import say
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.files import read_json, sha256_file, sha256_json, write_json
from mini_chat.parallel import available_cores
from mini_chat.report.exchanges import exam_exchanges, exam_mistakes
from mini_chat.report.words import Report

ACCOUNTS = {"documents": "shards", "dialogues": "sft/data", "preference pairs": "dpo/data"}
"""What was read → the directory whose manifest accounts for it."""


def finished_stages(directory: Path) -> list[str]:
    """The stages that left a model, in order.

    Raises:
        UserError: there is none.
    """
    stages = [stage for stage in TRAINING_STAGES if (directory / stage / STAGE_RECORD).is_file()]
    if not stages:
        raise UserError(f"{directory}: no finished stage to report on; run `mini-chat pretrain` first")
    return stages


def gather_scores(recipe: Recipe, directory: Path, device: Device) -> tuple[Report, dict[str, dict[str, Any]]]:
    """What was measured of every stage's model, under the names that report.json has.

    Returns:
        `stages`, `bpb`, `preference_accuracy`, and where the run has an exam `exam`, `crossing`, `baselines`,
        `baselines_by_skill`; and each stage's own scores with the replies.
    """
    from mini_chat.evaluate.checkpoint_scores import score_stage

    stages = [UNTRAINED, *finished_stages(directory)]
    scores: dict[str, dict[str, Any]] = {}
    for stage in stages:
        discard_damaged(directory / "report" / "scores" / f"{stage}.json")
        scores[stage] = score_stage(recipe, directory, stage, device)
    report: Report = {"stages": stages, "exam_items": 0}
    for name in ("exam", "crossing", "bpb", "preference_accuracy"):
        found = {stage: scores[stage][name] for stage in stages if name in scores[stage]}
        if found:
            report[name] = found
    if "exam" in report:
        report["exam_items"] = len(scores[UNTRAINED]["exam_replies"])
        by_skill = baselines(directory)
        report["baselines_by_skill"] = by_skill
        report["baselines"] = {
            name: {language: skills["all"] for language, skills in by_language.items()}
            for name, by_language in by_skill.items()
        }
    return report, scores


def gather_report(recipe: Recipe, directory: Path, device: Device) -> Report:
    """The whole report, but for the seconds of this stage and in all."""
    report, scores = gather_scores(recipe, directory, device)
    stages = report["stages"]
    about = {stage: read_json(directory / stage / STAGE_RECORD) for stage in stages[1:]}
    clock = read_json(directory / "stages.json") if (directory / "stages.json").is_file() else {}
    seconds = {stage: times["seconds"] for stage, times in clock.items()}
    for stage, facts in about.items():  # the trainer's own count survives a kill, the pipeline's does not
        seconds[stage] = max(seconds.get(stage, 0.0), round(facts["seconds"], 2))
    report |= {
        "tokens": {stage: facts["tokens"] for stage, facts in about.items()},
        "tokens_per_second": {stage: facts["tokens_per_second"] for stage, facts in about.items()},
        "share_of_limit": {stage: facts["share_of_limit"] for stage, facts in about.items()},
        "limit_flops": {stage: facts["limit_flops"] for stage, facts in about.items() if "limit_flops" in facts},
        "skipped_steps": {stage: facts.get("skipped_steps", 0) for stage, facts in about.items()},
        "seconds": seconds,
        "peak_memory_bytes": {stage: times["peak_memory_bytes"] for stage, times in clock.items()},
        "parameters": parameters(directory / stages[-1]),
        "recipe": recipe.model_dump(mode="json"),
        "accounts": accounts(directory),
        "machine": machine(device, max(facts.get("limit_flops", 0.0) for facts in about.values())),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if "exam" in report:
        from mini_chat.evaluate.exam_items import read_items

        items = read_items(directory / "world" / "exam.jsonl")
        replies = {stage: scores[stage]["exam_replies"] for stage in stages}
        report["exchanges"] = exam_exchanges(items, replies)
        report["mistakes"] = exam_mistakes(items, replies[stages[-1]])
    if recipe.samples:
        report["samples"] = samples(recipe, directory, stages, device)
    return report


def discard_damaged(path: Path) -> None:
    """Remove a file of scores that is no such thing, so that they are measured again."""
    if not path.is_file():
        return
    try:
        kept = read_json(path)
    except UserError:
        kept = None
    if not isinstance(kept, dict) or not isinstance(kept.get("asked"), str) or not isinstance(kept.get("bpb"), dict):
        say(f"{path}: damaged, measuring again")
        path.unlink()


def keep(path: Path, asked: Any, make: Callable[[], Any]) -> Any:
    """The value kept in `path` if it answers `asked`, otherwise a new one, which is kept."""
    mark = sha256_json(asked)
    if path.is_file():
        try:
            kept = read_json(path)
            if kept["asked"] == mark:
                return kept["value"]
        except (UserError, KeyError, TypeError):
            say(f"{path}: damaged, making it again")
    value = make()
    write_json(path, {"asked": mark, "value": value})
    return value


def baselines(directory: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What two ways to answer without understanding get: [name][language][skill], `all` among the skills."""
    from mini_chat.evaluate.baselines import baseline_scores, read_turns
    from mini_chat.evaluate.exam_items import read_items

    world = directory / "world"
    asked = [sha256_file(world / name) for name in ("exam.jsonl", "sft.jsonl")]

    def measure() -> dict[str, dict[str, dict[str, float]]]:
        return baseline_scores(read_items(world / "exam.jsonl"), read_turns(world / "sft.jsonl"))

    return keep(directory / "report" / "scores" / "baselines.json", asked, measure)


def samples(recipe: Recipe, directory: Path, stages: list[str], device: Device) -> list[dict[str, Any]]:
    """The recipe's sample prompts with every stage's likeliest answer: `prompt`, `replies[stage]`."""
    weights = [read_json(directory / stage / STAGE_RECORD)["sha256"] for stage in stages[1:]]
    asked = [recipe.samples, recipe.evaluate.max_new_tokens, recipe.seed, recipe.model.model_dump(), weights]

    def answer() -> list[dict[str, Any]]:
        from mini_chat.chat.engine import ChatEngine
        from mini_chat.trainer.stage import load_model, load_tokenizer, new_model

        tokenizer = load_tokenizer(directory / "tokenizer")
        rows: list[dict[str, Any]] = [{"prompt": prompt, "replies": {}} for prompt in recipe.samples]
        prompts = [[{"role": "user", "content": prompt}] for prompt in recipe.samples]
        for stage in stages:
            model = new_model(recipe, tokenizer) if stage == UNTRAINED else load_model(directory / stage)
            model.to(device.torch_device)  # type: ignore[arg-type]  # as transformers' stubs have it
            engine = ChatEngine(model.eval(), tokenizer)
            replies = engine.generate_batch(prompts, max_new_tokens=recipe.evaluate.max_new_tokens)
            for row, reply in zip(rows, replies, strict=True):
                row["replies"][stage] = reply
        return rows

    return keep(directory / "report" / "scores" / "samples.json", asked, answer)


def accounts(directory: Path) -> dict[str, dict[str, Any]]:
    """Where documents, dialogues and pairs went: read = written + dropped, and how many of a split there are."""
    found = {}
    for what, folder in ACCOUNTS.items():
        path = directory / folder / "manifest.json"
        if path.is_file():
            manifest = read_json(path)
            splits = {
                name: {key: split[key] for key in ("documents", "tokens") if key in split}
                for name, split in manifest["splits"].items()
            }
            found[what] = {**manifest["accounting"], "splits": splits, "train": manifest.get("train", {})}
    return found


def parameters(stage: Path) -> int:
    """Numbers in a stage's weights."""
    from safetensors import safe_open

    total = 0
    for file in sorted(stage.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def machine(device: Device, limit_flops: float) -> dict[str, Any]:
    """What the figures were measured on; `limit_flops` is the rate of matrix products that the stages measured."""
    import psutil
    import torch

    return {
        "processor": processor(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name() if device.torch_device.type == "cuda" else device.torch_device.type,
        "precision": device.precision,
        "threads": device.threads,
        "matmul_gflops": round((limit_flops or device.matmul_flops) / 1e9, 1),
        "system": platform.platform(),
    }


def processor() -> str:
    """The processor's name, as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of us and of what the bits depend on."""
    import tokenizers
    import torch
    import transformers

    return {
        "mini-chat": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
