"""Documents of all languages → mixed, shuffled token shards and a manifest.

Two passes. First every document is encoded, once, into sorted runs, or held out by the hash of its text
(`document_runs`). Then the runs are mixed and merged into shards (`write_shards`). Memory is a setting and not the
corpus; the bytes depend on neither memory nor processes; a kill costs a run or a shard.

    python -m mini_chat.data.prepare_shards en.jsonl zh.jsonl --tokenizer out --output dataset/shards
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from mini_chat.config import Recipe, Shards, Source, load_recipe
from mini_chat.console import say
from mini_chat.data.document_runs import encode_runs
from mini_chat.data.parts import REQUEST, differences
from mini_chat.data.token_shards import MANIFEST, METADATA, SUFFIXES, TokenDocuments, adopt, read_manifest
from mini_chat.data.write_shards import SCRATCH, TRAIN_JOURNAL, Request, vocabulary, write_shards
from mini_chat.errors import UserError
from mini_chat.files import exclusive, read_json, sha256_file, write_json


def prepare_shards(sources: list[Source], tokenizer: Path, directory: Path, recipe: Recipe) -> dict[str, Any]:
    """Write `train` and one `valid-<language>` split per language; returns the manifest. Finished shards are kept.

    Args:
        tokenizer: a directory with a `tokenizer.json`.

    Raises:
        UserError: no documents, bad sources, or a disk that is full.
    """
    vocabulary(tokenizer)
    request = Request(sources, tokenizer, recipe.shards, recipe.seed, recipe.data.max_line_bytes)
    scratch = directory / SCRATCH
    if take_over(directory, request.identity):
        say(f"shards: {directory} is finished")
        return read_manifest(directory)
    if recipe.machine.engine != "none":
        from mini_chat.data.engines.shards import encode_by_engine, merge_by_engine

        runs, account, reader = encode_by_engine(request, scratch / "dealt", recipe.machine)
        merge = partial(merge_by_engine, recipe.machine)
        manifest = write_shards(request, runs, account, reader, directory, merge)
    else:
        run_bytes, processes = recipe.shards.memory_bytes // 4, recipe.machine.processes
        account, reader = encode_runs(
            request.plan, sources, scratch / "runs", run_bytes, processes, request.max_line_bytes
        )
        manifest = write_shards(request, [scratch / "runs"], account, reader, directory)
    shutil.rmtree(scratch)
    return manifest


def take_over(directory: Path, identity: dict[str, Any]) -> bool:
    """Whether the shards are there as asked for; else whatever an earlier request left is removed, and only that."""
    step = directory / REQUEST
    scratch = directory / SCRATCH
    earlier = None
    if step.is_file():
        try:
            earlier = read_json(step)
        except UserError:
            earlier = None
    if earlier == identity and (directory / MANIFEST).is_file():
        try:
            for split in read_manifest(directory)["splits"]:
                TokenDocuments(directory, split)
        except UserError as error:
            say(f"  {error}")
            (directory / MANIFEST).unlink()
        else:
            shutil.rmtree(scratch, ignore_errors=True)
            return True
    if earlier != identity:
        if isinstance(earlier, dict):
            changed = [differences(earlier.get(part, {}), identity[part]) for part in ("encode", "write")]
            say(f"  {directory}: {', '.join(filter(None, changed))} changed since the last run; made again")
        (directory / MANIFEST).unlink(missing_ok=True)  # first: never beside shards that are not its own
        endings = (*SUFFIXES.values(), METADATA, ".tokens", ".ends")  # the last two are of an older layout
        for path in sorted(directory.glob("*-*")):
            if path.name.endswith(endings):
                path.unlink()
        if isinstance(earlier, dict) and earlier.get("encode") == identity["encode"]:
            shutil.rmtree(scratch / "copies", ignore_errors=True)
            (scratch / TRAIN_JOURNAL).unlink(missing_ok=True)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        write_json(step, identity)
    for path in directory.glob("*.partial"):
        path.unlink()
    return False


def parser() -> argparse.ArgumentParser:
    """The options of the command that stands alone."""
    defaults, options = Shards(), argparse.ArgumentParser("prepare_shards", description=__doc__.split("\n")[0])
    options.add_argument("documents", nargs="+", help="files, folders or patterns of .txt, .jsonl or .parquet")
    options.add_argument("--tokenizer", required=True, type=Path, help="directory with a tokenizer.json")
    options.add_argument("--output", required=True, type=Path, help="directory of the shards")
    options.add_argument("--seed", type=int, default=1, help="seed of the order (default %(default)s)")
    options.add_argument("--processes", type=int, default=0, help="processes; 0: one per core (default)")
    options.add_argument(
        "--memory", type=int, default=defaults.memory_bytes, help="of the shuffle [bytes] (%(default)s)"
    )
    options.add_argument("--shard-bytes", type=int, default=defaults.shard_bytes, help="of a shard (%(default)s)")
    options.add_argument("--validation-share", type=float, default=defaults.validation_share, help="(%(default)s)")
    options.add_argument("--adopt", action="store_true", help="the documents are a folder of datatrove's .ds files")
    return options


def main(arguments: list[str] | None = None) -> int:
    """`python -m mini_chat.data.prepare_shards`; the exit status."""
    given = parser().parse_args(arguments)
    try:
        if given.adopt:
            for folder in given.documents:
                manifest = adopt(Path(folder), sha256_file(given.tokenizer / "tokenizer.json"))
                say(f"{folder}: {manifest['splits']['train']['documents']:,} documents")
            return 0
        recipe = load_recipe(
            None,
            {
                "seed": str(given.seed),
                "machine.processes": str(given.processes),
                "shards.memory_bytes": str(given.memory),
                "shards.shard_bytes": str(given.shard_bytes),
                "shards.validation_share": str(given.validation_share),
            },
        )
        with exclusive(given.output):
            prepare_shards([Source(path=path) for path in given.documents], given.tokenizer, given.output, recipe)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"prepare_shards: error: {line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
