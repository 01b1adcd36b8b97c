"""Write the whole world into a directory: `python -m mini_chat.world.generate DIRECTORY --seed 0`."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mini_chat.errors import UserError
from mini_chat.files import atomic_open, write_json
from mini_chat.world import dialogues, prose
from mini_chat.world.dialogues import Record, conversation_text
from mini_chat.world.facts import Facts
from mini_chat.world.holdout import HELD, TRAIN, Guard
from mini_chat.world.lexicon import LANGUAGES


@dataclass(frozen=True)
class WorldSizes:
    """How much of everything is written."""

    pretrain_documents: int = 60_000  # both languages together
    sft_dialogues: int = 40_000
    preferences: int = 6_000
    held_out_preferences: int = 400
    exam_items: int = 40  # for each skill and language


def write_world(directory: Path | str, seed: int, sizes: WorldSizes | None = None) -> dict[str, dict[str, int]]:
    """Write every file of the world; memory does not grow with the sizes (the exam alone is held).

    Returns:
        for each file, the records `written` and those `dropped` because they repeated a stretch of the exam;
        the same stands in `world.json`, which is written last.
    """
    directory, sizes = Path(directory), sizes or WorldSizes()
    world = Facts(seed)
    exam = list(dialogues.exam(world, seed, sizes.exam_items))
    crossing = list(dialogues.crossing(world, seed))
    guard = guard_of([*exam, *crossing])
    counts = {
        "exam.jsonl": _write(directory / "exam.jsonl", exam, len(exam)),
        "crossing.jsonl": _write(directory / "crossing.jsonl", crossing, len(crossing)),
    }
    for index, language in enumerate(LANGUAGES):
        texts = prose.documents(world, seed, language, guard)
        share = (sizes.pretrain_documents + 1 - index) // 2
        name = f"pretrain.{language}.jsonl"
        counts[name] = _write(directory / name, ({"text": text} if text else None for text in texts), share)
    pairs = (
        ("preferences.jsonl", TRAIN, sizes.preferences),
        ("preferences.heldout.jsonl", HELD, sizes.held_out_preferences),
    )
    counts["sft.jsonl"] = _write(directory / "sft.jsonl", dialogues.dialogues(world, seed, guard), sizes.sft_dialogues)
    for name, split, size in pairs:
        counts[name] = _write(directory / name, dialogues.preferences(world, seed, split, guard), size)
    write_json(directory / "world.json", {"seed": seed, "sizes": asdict(sizes), "files": counts})
    return counts


def guard_of(items: Iterable[Record]) -> Guard:
    """The guard against everything that these items ask."""
    return Guard.of((item["language"], conversation_text(item["messages"])) for item in items)


def _write(path: Path, records: Iterable[Record | None], size: int) -> dict[str, int]:
    dropped = 0

    def kept() -> Iterator[Record]:
        nonlocal dropped
        for record in records:
            if record is None:
                dropped += 1
            else:
                yield record

    with atomic_open(path, "w") as file:
        for record in itertools.islice(kept(), size):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return {"written": size, "dropped": dropped}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the embedded world: texts, dialogues, pairs and exam.")
    parser.add_argument("directory", type=Path, help="where the files go")
    parser.add_argument("--seed", type=int, default=0, help="the facts, and every draw, follow from it (default 0)")
    defaults = WorldSizes()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"records (default {value})")
    options = vars(parser.parse_args(arguments))
    directory, seed = options.pop("directory"), options.pop("seed")
    try:
        for name, count in write_world(directory, seed, WorldSizes(**options)).items():
            print(f"{name:28} {count['written']:7,} written {count['dropped']:6,} dropped (they repeated the exam)")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
