"""A recipe from its first stage to its last, skipping what is finished.

`STAGES` is the table of contents: what each stage is called, and the function that runs it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_chat.config import TRAINING_STAGES, Recipe, Source
from mini_chat.console import duration, say
from mini_chat.distributed import alone, is_first, joined, processes, rows_problem, wait_for_all
from mini_chat.errors import UserError
from mini_chat.files import exclusive, read_json, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from mini_chat.device import Device


@dataclass
class Run:
    """A recipe at work in its directory."""

    recipe: Recipe

    @property
    def directory(self) -> Path:
        """Where the outputs go."""
        return self.recipe.directory

    @cached_property
    def device(self) -> Device:
        """Where the model runs."""
        from mini_chat.device import choose  # torch is not loaded for the corpus stages, whose memory is counted

        return choose(self.recipe.machine)

    @property
    def has_world(self) -> bool:
        """Whether the embedded world takes part."""
        return self.recipe.world.pretrain_documents > 0

    def world_source(self, *names: str) -> list[Source]:
        """The world's files of these names, as sources."""
        if not self.has_world:
            return []
        return [Source(path=str(self.directory / "world" / name), language=language_of(name)) for name in names]

    def documents(self, stage: str) -> list[Source]:
        """Sources of pretraining text as `stage` finds them: what the recipe names, through the steps before it.

        Raises:
            UserError: a step before it is not finished.
        """
        from mini_chat.data.steps import finished_sources

        sources = self.world_source("pretrain.en.jsonl", "pretrain.zh.jsonl") + expanded(self.recipe.data.documents)
        for step in DOCUMENT_STEPS:
            if step == stage:
                break
            if step in self.recipe.stages:
                sources = finished_sources(step, sources, self.directory / step, concerned(step))
        return sources

    @property
    def dialogues(self) -> list[Source]:
        """Sources of dialogues."""
        return self.world_source("sft.jsonl") + expanded(self.recipe.data.dialogues)

    @property
    def preferences(self) -> list[Source]:
        """Sources of preference pairs."""
        return self.world_source("preferences.jsonl") + expanded(self.recipe.data.preferences)

    @property
    def held_out_preferences(self) -> list[Source]:
        """The world's held-out pairs; other sources' are split off by hash."""
        return [] if self.recipe.data.preferences else self.world_source("preferences.heldout.jsonl")


DOCUMENT_STEPS = ("extract", "simplify", "clean")
"""Stages that turn documents into documents, in order; a recipe takes those that it names."""


def concerned(step: str) -> Callable[[Source], bool]:
    """Whether a step changes a source's documents; the others pass it by."""
    return {
        "extract": lambda source: source.is_dump,
        "simplify": lambda source: source.language != "en",
        "clean": lambda source: True,
    }[step]


def language_of(name: str) -> str:
    """The language in a file's name, such as pretrain.en.jsonl."""
    return next((language for language in ("en", "zh") if f".{language}." in name), "auto")


def expanded(sources: list[Source]) -> list[Source]:
    """The sources with `$NAME` in their paths taken from the environment.

    Raises:
        UserError: an environment variable that is not set.
    """
    result = []
    for source in sources:
        path = os.path.expandvars(source.path)
        if "$" in path:
            name = path[path.index("$") :].split("/")[0]
            raise UserError(f"{source.path}: {name} is not set; set it, as in `make real DATA=/my/data`")
        result.append(source.model_copy(update={"path": path}))
    return result


def make_world(run: Run) -> None:
    """Write the embedded world's text, dialogues, preference pairs and exam."""
    from mini_chat.world.generate import WorldSizes, write_world

    out, recipe = run.directory / "world", run.recipe
    sizes = recipe.world.model_dump()
    done = out / "world.json"  # written last
    if done.is_file() and (found := read_json(done))["sizes"] == sizes and found["seed"] == recipe.seed:
        say(f"world: {out} is finished")
        return
    counts = write_world(out, recipe.seed, WorldSizes(**sizes))
    say("world: " + ", ".join(f"{count['written']:,} {name.removesuffix('.jsonl')}" for name, count in counts.items()))


def run_fetch(run: Run) -> None:
    """Fetch the recipe's files."""
    from mini_chat.data.fetch import fetch

    if not run.recipe.fetch.files:
        raise UserError("fetch: nothing to fetch; name files under fetch.files in the recipe")
    fetch(run.recipe.fetch)


def run_extract(run: Run) -> None:
    """Turn Wikipedia dumps into documents."""
    from mini_chat.data.extract import extract

    extract(concerned_sources(run, "extract"), run.directory / "extract", run.recipe)


def run_simplify(run: Run) -> None:
    """Bring Chinese documents to Simplified characters."""
    from mini_chat.data.zh_simplify import simplify

    simplify(concerned_sources(run, "simplify"), run.directory / "simplify", run.recipe)


def run_clean(run: Run) -> None:
    """Filter, mend and deduplicate the documents."""
    from mini_chat.data.clean import clean

    clean(concerned_sources(run, "clean"), run.directory / "clean", run.recipe)


def clean_samples(recipe: Recipe, most: int) -> str:
    """Some of the documents that `clean` dropped and changed, by reason, for a terminal."""
    from mini_chat.data.clean import shown

    run = Run(recipe)
    return shown(concerned_sources(run, "clean"), run.directory / "clean", most)


def concerned_sources(run: Run, step: str) -> list[Source]:
    """The sources that a document step works on.

    Raises:
        UserError: there is none.
    """
    sources = [source for source in run.documents(step) if concerned(step)(source)]
    if not sources:
        wanted = {"extract": "a Wikipedia dump (.xml, .xml.bz2, or format: wiki)", "simplify": "Chinese text"}
        raise UserError(f"{step}: no source of {wanted.get(step, 'text')} under data.documents in the recipe")
    return sources


def make_tokenizer(run: Run) -> None:
    """Train the tokenizer on the pretraining text, or take the one that the recipe names."""
    from mini_chat.data.encoding import load_tokenizer
    from mini_chat.data.inputs import about
    from mini_chat.trainer.train_tokenizer import save_tokenizer, train_on_sources

    out, settings = run.directory / "tokenizer", run.recipe.tokenizer
    sources = [] if settings.path else run.documents("tokenizer")
    given = sha256_file(Path(settings.path, "tokenizer.json")) if settings.path else None
    asked = sha256_json([settings.model_dump(), given, [about(source) for source in sources]])
    mark = run.directory / "tokenizer.json"
    if mark.is_file() and read_json(mark).get("asked") == asked and (out / "tokenizer.json").is_file():
        say(f"tokenizer: {out} is finished")
        return

    if settings.path:
        tokenizer = usable(load_tokenizer(Path(settings.path)), settings.path)
    elif not sources:
        raise UserError("tokenizer: no documents; name some under data.documents in the recipe, or give tokenizer.path")
    else:
        tokenizer = train_on_sources(sources, run.recipe).tokenizer
    mark.unlink(missing_ok=True)  # never beside a tokenizer that is not its own
    save_tokenizer(tokenizer, out)
    write_json(mark, {"asked": asked, "vocab_size": len(tokenizer)})
    say(f"tokenizer: {len(tokenizer):,} entries in {out}")


def usable(tokenizer: Any, path: str) -> Any:
    """A ready tokenizer that the later stages can work with.

    Raises:
        UserError: no tokens for the chat format.
    """
    missing = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} - tokenizer.get_vocab().keys()
    if missing:
        raise UserError(
            f"tokenizer.path {path}: it lacks {', '.join(sorted(missing))}; use one of `mini-chat tokenizer`"
        )
    return tokenizer


def make_shards(run: Run) -> None:
    """Encode, split, mix and shuffle the documents."""
    from mini_chat.data.prepare_shards import prepare_shards

    sources = run.documents("shards")
    if not sources:
        raise UserError("shards: no documents; name some under data.documents in the recipe")
    prepare_shards(sources, run.directory / "tokenizer", run.directory / "shards", run.recipe)


def run_pretrain(run: Run) -> None:
    """Pretrain."""
    from mini_chat.trainer.pretrain import pretrain

    pretrain(run.recipe, run.directory, run.device, sampler(run))


def run_sft(run: Run) -> None:
    """Fine-tune."""
    from mini_chat.trainer.sft import sft

    sft(run.recipe, run.dialogues, run.directory, run.device, sampler(run))


def run_dpo(run: Run) -> None:
    """Align to preferences."""
    from mini_chat.trainer.dpo import dpo

    dpo(run.recipe, run.preferences, run.held_out_preferences, run.directory, run.device, sampler(run))


def run_report(run: Run) -> None:
    """Measure every stage's model on held-out data and write the report."""
    from mini_chat.report.report import write_report

    write_report(run.recipe, run.directory, run.device)


STAGES: dict[str, Callable[[Run], None]] = {
    "world": make_world,
    "fetch": run_fetch,
    "extract": run_extract,
    "simplify": run_simplify,
    "clean": run_clean,
    "tokenizer": make_tokenizer,
    "shards": make_shards,
    "pretrain": run_pretrain,
    "sft": run_sft,
    "dpo": run_dpo,
    "report": run_report,
}


def misfits(run: Run, stages: list[str]) -> list[str]:
    """What of the stages does not fit the processes, the machine, or what earlier stages left; a line each."""
    training = [stage for stage in stages if stage in TRAINING_STAGES]
    settings = {stage: getattr(run.recipe, stage) for stage in training}
    problems = [rows_problem(stage, s.batch_tokens // s.row_tokens) for stage, s in settings.items()]
    checks: list[Callable[[], object]] = [lambda: run.device] if asks_for_device(stages) else []
    if training and training == stages:  # what they begin with is there already
        checks.append(lambda: refuse_beginning(run, training[0]))
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return list(filter(None, problems))


def asks_for_device(stages: list[str]) -> bool:
    """A process that runs corpus stages only, or before it trains, does not ask for the device yet."""
    return processes() > 1 or all(stage in TRAINING_STAGES for stage in stages)


def refuse_beginning(run: Run, stage: str) -> None:
    """Hold a training stage to the shards or to the model that it begins with.

    Raises:
        UserError: a line for each misfit.
    """
    from mini_chat.trainer.pretrain import refuse_foreign_shards
    from mini_chat.trainer.stage import load_tokenizer, refuse_misfit

    if stage == "pretrain":
        refuse_foreign_shards(run.directory)
        return
    before = TRAINING_STAGES[TRAINING_STAGES.index(stage) - 1]
    tokenizer = load_tokenizer(run.directory / "tokenizer")
    refuse_misfit(stage, getattr(run.recipe, stage), run.directory / before, tokenizer)


def run_stages(recipe: Recipe, stages: list[str]) -> None:
    """Run the stages in order; time and peak memory of each are kept in `stages.json`.

    Of several processes that torchrun started the first one runs the stages that do not train.

    Raises:
        UserError: another process works in the run's directory, or a stage's own.
    """
    run = Run(recipe)
    if problems := misfits(run, stages):
        raise UserError("\n".join(problems))
    device_type = run.device.torch_device.type if asks_for_device(stages) else ""
    with joined(device_type), exclusive(run.directory) if is_first() else contextlib.nullcontext():
        for number, stage in enumerate(stages, 1):
            if len(stages) > 1:
                say(f"[{number}/{len(stages)}] {stage}")
            if stage in TRAINING_STAGES:
                with measured(run.directory, stage) if is_first() else contextlib.nullcontext():
                    STAGES[stage](run)
            elif is_first():
                with measured(run.directory, stage), alone():
                    STAGES[stage](run)
            wait_for_all()


@contextlib.contextmanager
def measured(directory: Path, stage: str) -> Iterator[None]:
    """Add the block's seconds to the stage's in `stages.json`, and keep its peak memory."""
    path = directory / "stages.json"
    reset_peak_memory()
    started = time.monotonic()
    try:
        yield
    finally:
        stages: dict[str, Any] = read_json(path) if path.is_file() else {}
        before = stages.get(stage, {"seconds": 0.0, "peak_memory_bytes": 0})
        seconds = time.monotonic() - started
        stages[stage] = {
            "seconds": round(before["seconds"] + seconds, 2),
            "peak_memory_bytes": max(before["peak_memory_bytes"], peak_memory_bytes()),
        }
        write_json(path, stages)
    say(f"  {stage} took {duration(seconds)}, peak memory {stages[stage]['peak_memory_bytes'] / 1e9:.2f} GB")


def reset_peak_memory() -> None:
    """Begin the process's peak anew, where the kernel can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """The most memory that the process held since `reset_peak_memory`, or since its start."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def sampler(run: Run) -> Callable[[Any], str] | None:
    """Answers to the recipe's sample prompts by a model as it is, as lines to print; None without prompts."""
    if not run.recipe.samples:
        return None

    def sample(model: Any) -> str:
        from mini_chat.chat.engine import ChatEngine
        from mini_chat.trainer.stage import load_tokenizer

        engine = ChatEngine(model, load_tokenizer(run.directory / "tokenizer"))
        prompts = run.recipe.samples
        answers = engine.generate_batch(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            max_new_tokens=run.recipe.evaluate.max_new_tokens,
        )
        return "\n".join(f"    {prompt} → {shorten(answer)}" for prompt, answer in zip(prompts, answers, strict=True))

    return sample


def shorten(answer: str, characters: int = 160) -> str:
    """An answer on one line, its end cut."""
    line = " ".join(answer.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"
