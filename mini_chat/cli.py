"""The command line: `mini-chat STAGE ...`.

Nothing heavy is imported before a stage runs, so that help answers at once. Options are the recipe's own keys
(`--pretrain.lr_max 3e-4`); a stage's help lists them from the recipe's types.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mini_chat import __version__
from mini_chat.errors import UserError

if TYPE_CHECKING:
    from mini_chat.config import Recipe

EXIT_ERROR, EXIT_USAGE, EXIT_RESUMABLE, EXIT_INTERRUPTED = 1, 2, 75, 130

DEMO_RECIPE = "demo"
SHORT = {"engine": "machine.engine"}
"""Options that have a short name, too."""
OUT_OF_MEMORY = "out of memory; lower micro_tokens or the model's size"


@dataclass(frozen=True)
class Command:
    """One entry of the command line."""

    does: str
    usage: str
    run: Callable[[list[str]], int]
    sections: tuple[str, ...] = ()
    more: str = ""


def stage_command(stage: str) -> Callable[[list[str]], int]:
    """A command that runs one stage of a recipe."""

    def command(arguments: list[str]) -> int:
        return run_recipe(arguments, [stage])

    return command


def run_recipe(arguments: list[str], stages: list[str] | None = None, default: str | None = None) -> int:
    """Load the recipe that the arguments name, and run its stages (or the given ones)."""
    from mini_chat.config import find_recipe, load_recipe

    options = Arguments(arguments)
    path = options.one_positional("recipe") or default

    def named(recipe: Recipe) -> list[str]:
        return list(recipe.stages) if stages is None else stages

    def misfits(recipe: Recipe) -> list[str]:
        from mini_chat import pipeline

        return pipeline.misfits(pipeline.Run(recipe), named(recipe))

    recipe = load_recipe(find_recipe(path) if path else None, options.overrides(), misfits)
    options.finish()
    from mini_chat.pipeline import run_stages

    run_stages(recipe, named(recipe))
    return 0


def demo(arguments: list[str]) -> int:
    """Run the embedded default."""
    return run_recipe(arguments, default=DEMO_RECIPE)


def clean(arguments: list[str]) -> int:
    """Clean the documents; list some of what was dropped and changed if asked to."""
    from mini_chat.config import find_recipe, load_recipe

    options = Arguments(arguments)
    most = options.number("--show")
    path = options.one_positional("recipe")
    recipe = load_recipe(find_recipe(path) if path else None, options.overrides())
    options.finish()
    if most is not None and (not isinstance(most, int) or most < 1):
        raise Usage(f"--show {most}: a number of documents, such as 20")
    from mini_chat.pipeline import clean_samples, run_stages

    run_stages(recipe, ["clean"])
    if most is not None:
        show(clean_samples(recipe, most))
    return 0


def evaluate(arguments: list[str]) -> int:
    """Score the stages of a run that are finished."""
    from mini_chat.config import find_recipe, load_recipe

    options = Arguments(arguments)
    path = options.one_positional("recipe")
    recipe = load_recipe(find_recipe(path) if path else None, options.overrides())
    options.finish()
    from mini_chat.device import choose
    from mini_chat.report.report import print_scores

    print_scores(recipe, recipe.directory, choose(recipe.machine))
    return 0


def plan(arguments: list[str]) -> int:
    """Compute what a recipe will take on a machine, and print it."""
    from mini_chat.config import find_recipe, load_recipe

    options = Arguments(arguments)
    as_json = options.flag("--json")
    machine = options.value("--machine") or "this"
    gpus, price = options.number("--gpus"), options.number("--hours-price")
    path = options.one_positional("recipe")
    recipe = load_recipe(find_recipe(path) if path else None, options.overrides())
    options.finish()
    if gpus is not None and (not isinstance(gpus, int) or not 1 <= gpus <= 100_000):
        raise Usage(f"--gpus {gpus}: a number of devices, such as 8")
    if price is not None and not 0 <= price < float("inf"):
        raise Usage(f"--hours-price {price}: a price of one device's hour, such as 1.2")
    import json

    from mini_chat.plan.plan import make_plan
    from mini_chat.plan.table import of_plan, shown

    made = make_plan(recipe, machine, gpus or 1, price)
    show(json.dumps(of_plan(made), ensure_ascii=False, indent=2) if as_json else shown(made))
    return 0


def chat(arguments: list[str]) -> int:
    """Talk to a checkpoint."""
    options = Arguments(arguments)
    prompt = options.value("--prompt", "-p")
    system = options.value("--system")
    numbers = {
        name: options.number(f"--{name}")
        for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_new_tokens")
    }
    device = options.value("--device")
    directory = options.one_positional("checkpoint") or "out/demo"
    options.finish()
    from mini_chat.chat.chat_terminal import main_chat

    given = {name: value for name, value in numbers.items() if value is not None}
    return main_chat(directory, prompt=prompt, system=system, device=device, **given)  # type: ignore[arg-type]


COMMANDS = {
    "demo": Command(
        "the whole pipeline on an embedded world, in about 10 minutes",
        "demo [--KEY VALUE ...]",
        demo,
        ("", "world", "pretrain", "sft", "dpo"),
    ),
    "run": Command(
        "a recipe, every stage it names, skipping what is finished",
        "run RECIPE [--KEY VALUE ...]",
        run_recipe,
        ("", "machine", "world", "data", "tokenizer", "shards", "model", "pretrain", "sft", "dpo", "evaluate"),
    ),
    "plan": Command(
        "recipe + machine -> parameters, FLOPs, memory, disk, hours, cost",
        "plan RECIPE [--machine NAME] [--gpus N] [--hours-price NUMBER] [--json] [--KEY VALUE ...]",
        plan,
        ("", "machine", "model", "pretrain", "sft", "dpo"),
        more="""\
  --machine NAME            this: measured now (default); or rtx-3060, rtx-3090, rtx-4090, l4, a100-40gb, a100,
                            h100, h200, m1, m1-max, m2: by published figures
  --gpus N                  devices that train together (default 1)
  --hours-price NUMBER      price of one device's hour, in any currency
  --json                    every figure, for a program""",
    ),
    "world": Command(
        "write the embedded world: text, dialogues, preference pairs, exam",
        "world RECIPE [--KEY VALUE ...]",
        stage_command("world"),
        ("", "world"),
    ),
    "fetch": Command(
        "addresses -> files under dataset/, resumed and checksummed",
        "fetch RECIPE [--KEY VALUE ...]",
        stage_command("fetch"),
        ("fetch",),
    ),
    "extract": Command(
        "Wikipedia dumps -> text documents",
        "extract RECIPE [--KEY VALUE ...]",
        stage_command("extract"),
        ("", "machine", "data", "extract"),
    ),
    "simplify": Command(
        "Traditional -> Simplified Chinese",
        "simplify RECIPE [--KEY VALUE ...]",
        stage_command("simplify"),
        ("", "machine", "data", "simplify"),
    ),
    "clean": Command(
        "documents -> mended, filtered, deduplicated; every drop is counted",
        "clean RECIPE [--show N] [--KEY VALUE ...]",
        clean,
        ("", "machine", "data", "clean"),
        more="""\
  --show N                  list up to N dropped and changed documents of each reason, as they were""",
    ),
    "tokenizer": Command(
        "documents -> a tokenizer for AutoTokenizer.from_pretrained",
        "tokenizer RECIPE [--KEY VALUE ...]",
        stage_command("tokenizer"),
        ("", "data", "tokenizer"),
    ),
    "shards": Command(
        "documents + tokenizer -> mixed, shuffled shards of tokens (uint16; uint32 over 65,536 entries)",
        "shards RECIPE [--KEY VALUE ...]",
        stage_command("shards"),
        ("", "machine", "data", "shards"),
    ),
    "pretrain": Command(
        "shards -> a base model",
        "pretrain RECIPE [--KEY VALUE ...]",
        stage_command("pretrain"),
        ("", "machine", "model", "pretrain"),
    ),
    "sft": Command(
        "base model + dialogues -> a chat model",
        "sft RECIPE [--KEY VALUE ...]",
        stage_command("sft"),
        ("", "machine", "data", "sft"),
    ),
    "dpo": Command(
        "chat model + preference pairs -> an aligned chat model",
        "dpo RECIPE [--KEY VALUE ...]",
        stage_command("dpo"),
        ("", "machine", "data", "dpo"),
    ),
    "eval": Command(
        "a run's checkpoints -> exam, bits per byte, preference accuracy",
        "eval RECIPE [--KEY VALUE ...]",
        evaluate,
        ("", "machine", "evaluate"),
    ),
    "report": Command(
        "a run -> report card, report.json and one HTML page with plots",
        "report RECIPE [--KEY VALUE ...]",
        stage_command("report"),
        ("", "evaluate"),
    ),
    "chat": Command(
        "talk to a checkpoint in the terminal",
        "chat [DIRECTORY] [-p PROMPT] [options]",
        chat,
        more="""\
  DIRECTORY                 a run (its last stage is taken) or a stage's directory; default out/demo
  -p, --prompt TEXT         answer this and leave; - reads the prompt from standard input
  --system TEXT             system message
  --temperature NUMBER      randomness; 0 always takes the likeliest token
  --top_p NUMBER            draw from the likeliest tokens that make up this probability
  --top_k NUMBER            draw from so many likeliest tokens
  --repetition_penalty NUMBER  above 1 makes repeated tokens less likely
  --seed NUMBER             the same seed gives the same answers
  --max_new_tokens NUMBER   longest answer [tokens]
  --device NAME             cpu, cuda or mps""",
    ),
}


class Arguments:
    """The words after the stage's name, taken one by one; what is left over is an error."""

    def __init__(self, words: list[str]) -> None:
        self.words = list(words)

    def value(self, *names: str) -> str | None:
        """Take `--name value` or `--name=value`."""
        for place, word in enumerate(self.words):
            name, equals, text = word.partition("=")
            if name not in names:
                continue
            if equals:
                self.words.pop(place)
                return text
            if place + 1 >= len(self.words) or self.words[place + 1].startswith("--"):
                raise Usage(f"{word} needs a value")
            self.words.pop(place)
            return self.words.pop(place)
        return None

    def flag(self, name: str) -> bool:
        """Take `--name`, which has no value."""
        if name not in self.words:
            return False
        self.words.remove(name)
        return True

    def number(self, name: str) -> float | int | None:
        """Take `--name value`, a number."""
        text = self.value(name)
        if text is None:
            return None
        try:
            return int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            raise Usage(f"{name} {text}: not a number") from None

    def overrides(self) -> dict[str, str]:
        """Take every `--key value` that is left, for the recipe."""
        taken = {}
        while keys := [word for word in self.words if word.startswith("--")]:
            key = keys[0].partition("=")[0]
            name = key.removeprefix("--")
            taken[SHORT.get(name, name)] = self.value(key) or ""
        return taken

    def one_positional(self, what: str) -> str | None:
        """Take the one word that is no option, nor an option's value."""
        place = 0
        while place < len(self.words):
            word = self.words[place]
            if word.startswith("-") and word != "-":
                place += 1 if "=" in word else 2
                continue
            self.words.pop(place)
            return word
        return None

    def finish(self) -> None:
        """Complain of what is left."""
        if self.words:
            raise Usage(f"{self.words[0]}: not expected here")


class Usage(Exception):  # noqa: N818 - a message for the user, like UserError, with another exit status
    """The command line's words are off."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong words, 75 for "saved, run again"."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        show(overview())
        return 0 if words else EXIT_USAGE
    if words[0] == "--version":
        print(f"mini-chat {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(COMMANDS)}"
        print(f"mini-chat: error: {name}: no such stage; {hint}", file=sys.stderr)
        return EXIT_USAGE
    if "-h" in rest or "--help" in rest:
        show(stage_help(name))
        return 0
    prepare_environment()
    from mini_chat.console import set_quiet
    from mini_chat.distributed import is_first

    set_quiet("--quiet" in rest or not is_first())
    return guarded(name, [word for word in rest if word != "--quiet"])


def show(text: str) -> None:
    """Print a help text; a reader that leaves before its end (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        from mini_chat.console import abandon_output

        abandon_output()


def prepare_environment() -> None:
    """Settings that libraries read when they are loaded; what the user has set stays.

    OpenMP's threads spin for a moment while they wait and then sleep. Spinning for long makes a training step up to
    ten times slower beside another busy process; sleeping at once costs up to a quarter of the rate (docs/log.md).
    Models come from the disk only. cuBLAS multiplies in one order only with a workspace of its own.
    """
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    for name, value in {**settings, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)


def guarded(name: str, arguments: list[str]) -> int:
    """Run a command; its errors become lines on standard error and an exit status."""
    try:
        return COMMANDS[name].run(arguments)
    except Usage as error:
        print(f"mini-chat {name}: error: {error}; see mini-chat {name} --help", file=sys.stderr)
        return EXIT_USAGE
    except UserError as error:
        from mini_chat.distributed import voice

        before = voice(error)
        lines = str(error).splitlines() if before is not None else []
        # In one piece: `print` writes the end of a line by itself, and another process's line may come between.
        sys.stderr.write("".join(f"mini-chat {name}: error: {before}{line}\n" for line in lines))
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"mini-chat {name}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_ERROR
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(
            f"mini-chat {name}: error: {place}{error.strerror or error}; check the path and the disk", file=sys.stderr
        )
        return EXIT_ERROR
    except MemoryError:
        print(f"mini-chat {name}: error: {OUT_OF_MEMORY}", file=sys.stderr)
        return EXIT_ERROR
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):  # torch's, of its kinds
            print(f"mini-chat {name}: error: {OUT_OF_MEMORY}", file=sys.stderr)
            return EXIT_ERROR
        if type(error).__name__ != "Interrupted":
            raise
        from mini_chat.distributed import is_first

        if is_first():
            print(f"mini-chat {error}", file=sys.stderr)
        return EXIT_RESUMABLE


def overview() -> str:
    """The help of `mini-chat` itself."""
    width = max(map(len, COMMANDS))
    stages = "\n".join(f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items())
    return f"""\
mini-chat {__version__}: train a small bilingual chat model from nothing. 从零训练一个中英双语小模型。

usage: mini-chat STAGE [RECIPE] [--KEY VALUE ...] [--quiet]

{stages}

RECIPE is a file of yours, or the name of one in config/ (demo, real-small,
wikipedia, slm-124m). Any of its values can be given on the command line:
--pretrain.lr_max 3e-4. `mini-chat STAGE --help` lists them all.
Begin with: mini-chat demo     从这里开始：mini-chat demo"""


def stage_help(name: str) -> str:
    """The help of one stage."""
    command = COMMANDS[name]
    parts = [f"usage: mini-chat {command.usage} [--quiet]", "", f"{command.does}"]
    if command.more:
        parts += ["", command.more]
    if command.sections:
        from mini_chat.config import describe_section

        for section in command.sections:
            parts += ["", *describe_section(section)]
    parts += ["", "  --quiet  print errors only"]
    return "\n".join(parts)
