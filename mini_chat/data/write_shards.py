"""The second pass of making shards: runs of documents → the splits' shards and the manifest.

In order: the held-out documents of the lowest hashes are written, repetitions are laid beside the runs (`mixing`), and
all runs are merged by key into the shards of `train`, near-duplicates of held-out documents left out. After each shard
the account goes to the disk, so that a kill costs one shard. Nothing here asks who made the runs, or how many.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mini_chat.config import Shards, Source
from mini_chat.console import progress, say
from mini_chat.data.document_runs import DOCUMENTS, TOKENS, Account, Plan, count
from mini_chat.data.inputs import about
from mini_chat.data.keys import EPOCH, times_seen
from mini_chat.data.mixing import Mix, language_epochs, write_copies
from mini_chat.data.near_duplicates import NearDuplicates
from mini_chat.data.shuffle import Documents, merged
from mini_chat.data.tally import Tally
from mini_chat.data.token_shards import SUFFIXES, ShardWriter, read_manifest, token_dtype, write_manifest
from mini_chat.errors import UserError
from mini_chat.files import read_json, sha256_file, write_json

DOCUMENT_END = "<|endoftext|>"
SCRATCH = "scratch"
TRAIN_JOURNAL = "train.json"
MAX_HELD_OUT_TOKENS = 20_000_000  # per language: a validation takes a part of a million; their n-grams are in memory

HELD_OUT_UNUSED = "held out beyond shards.validation_max_documents"
LEFT_OUT = "left out by a source's weight"
LANGUAGE_LEFT_OUT = "left out by shards.languages"
NEAR_DUPLICATE = "near-duplicate of a held-out document"


@dataclass(frozen=True)
class Request:
    """What is asked for: all that the shards' bytes depend on.

    Args:
        tokenizer: directory with a `tokenizer.json`.
    """

    sources: list[Source]
    tokenizer: Path
    settings: Shards
    seed: int
    max_line_bytes: int

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return sha256_file(self.tokenizer / "tokenizer.json")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the first pass depends on, and what only the second does."""
        second = ("shard_bytes", "validation_max_documents", "near_duplicates", "languages", "max_epochs")
        settings = self.settings.model_dump(exclude={"memory_bytes"})
        encode = {name: value for name, value in settings.items() if name not in second}
        encode |= {
            "seed": self.seed,
            "max_line_bytes": self.max_line_bytes,
            "tokenizer": self.fingerprint,
            "sources": [about(source) for source in self.sources],
        }
        return json.loads(json.dumps({"encode": encode, "write": {name: settings[name] for name in second}}))

    @cached_property
    def plan(self) -> Plan:
        """The first pass.

        Raises:
            UserError: a tokenizer that is damaged or has no end of document.
        """
        vocab_size, end = vocabulary(self.tokenizer)
        stated = {source.language for source in self.sources}
        languages = stated - {"auto"} | ({"en", "zh"} if "auto" in stated else set())
        return Plan(
            self.tokenizer,
            end,
            token_dtype(vocab_size),
            self.seed,
            self.settings.validation_share,
            tuple(sorted(languages)),
            tuple(source.weight for source in self.sources),
        )


def vocabulary(directory: Path) -> tuple[int, int]:
    """The number of a tokenizer's ids, and the id that ends a document; the library is not loaded for it.

    Raises:
        UserError: no tokenizer there, a damaged one, one without `<|endoftext|>`.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory}: no tokenizer.json; run `mini-chat tokenizer` first or give tokenizer.path")
    try:
        content = read_json(path)
        ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        vocab_size = max(ids.values()) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer of ours; use one that `mini-chat tokenizer` made") from error
    if DOCUMENT_END not in ids:
        raise UserError(f"{path}: it has no token {DOCUMENT_END}; use one that `mini-chat tokenizer` made")
    return vocab_size, ids[DOCUMENT_END]


def write_shards(
    request: Request,
    runs: list[Path],
    account: Account,
    reader: Tally,
    directory: Path,
    merge: Callable[[Request, list[Path], Mix, NearDuplicates, Path, Account], Train] | None = None,
) -> dict[str, Any]:
    """The second pass: runs → shards and the manifest, which is returned.

    Args:
        runs: directories of runs, of one machine or of many.
        account: what all these runs hold.
        reader: the account of whoever read the documents.
        merge: does what `merge_runs` does, elsewhere.

    Raises:
        UserError: no document to train on, shares that cannot be had, a full disk.
    """
    plan, tally = request.plan, Tally()
    tally.merge(reader)
    splits: dict[str, dict[str, Any]] = {}
    held_out = write_held_out(request, runs, directory, splits, tally)
    if account.left_out[0]:
        tally.take_back(LEFT_OUT, "shards", account.left_out[1], account.left_out[0])
    mix = mixing(request, account)
    train_runs = [path for folder in runs for path in sorted(folder.glob("train-*.run"))]
    train = (merge or merge_runs)(request, train_runs, mix, held_out, directory, account)
    for reason, (documents, size) in train.dropped.items():
        if documents:
            tally.take_back(reason, "shards", size, documents)
    tally.check()
    splits = {"train": train.entry} | splits
    if not train.entry["documents"]:
        raise UserError(f"shards: no document left to train on; {tally.lines()[0]}")
    by_language = {
        name: dict(zip(plan.languages, train.counts[row].sum(axis=0).tolist(), strict=True))
        for row, name in enumerate(("documents", "tokens", "bytes"))
    }
    present = [language for language in plan.languages if by_language["documents"][language]]
    write_manifest(
        directory,
        splits,
        plan.dtype,
        tokenizer=request.fingerprint,
        seed=request.seed,
        train={name: {language: table[language] for language in present} for name, table in by_language.items()},
        mixing=mixing_report(request, account, mix, train.counts),
        accounting=tally.to_json(),
    )
    manifest = read_manifest(directory)
    total = train.entry["tokens"]
    shares = ", ".join(f"{language} {by_language['tokens'][language] / total:.0%}" for language in present)
    say(f"shards: {train.entry['documents']:,} documents, {total:,} tokens ({shares})")
    for line in tally.lines():
        say(f"  {line}")
    return manifest


def write_held_out(
    request: Request, runs: list[Path], directory: Path, splits: dict[str, dict[str, Any]], tally: Tally
) -> NearDuplicates:
    """Write the splits `valid-<language>` of the held-out documents with the lowest hashes, in the hashes' order."""
    settings, plan = request.settings, request.plan
    writers: dict[int, ShardWriter] = {}
    sizes = dict.fromkeys(range(len(plan.languages)), 0)
    kept = dict.fromkeys(sizes, 0)
    tokens = dict.fromkeys(sizes, 0)
    unused = [0, 0]
    paths = [path for folder in runs for path in sorted(folder.glob("held-*.run"))]
    for documents in merged(paths, settings.memory_bytes // 4):
        at = 0
        for info in documents.infos:
            language, length = int(info["language"]), int(info["size"]) // plan.dtype.itemsize
            ids = np.frombuffer(documents.payload, plan.dtype, length, at)
            at += int(info["size"])
            if kept[language] == settings.validation_max_documents or (
                kept[language] and tokens[language] + length > MAX_HELD_OUT_TOKENS
            ):
                unused = [unused[0] + 1, unused[1] + int(info["bytes"])]
                continue
            if language not in writers:
                writers[language] = shard_writer(request, directory, f"valid-{plan.languages[language]}")
            writers[language].add(ids)
            kept[language] += 1
            tokens[language] += length
            sizes[language] += int(info["bytes"])
    if unused[0]:
        tally.take_back(HELD_OUT_UNUSED, "shards", unused[1], unused[0])
    for language, writer in sorted(writers.items()):
        splits[f"valid-{plan.languages[language]}"] = writer.close() | {"bytes": sizes[language]}

    names = [file["name"] for entry in splits.values() for file in entry["files"]]
    return held_out_grams(directory, names, plan.dtype, settings.near_duplicates)


def held_out_grams(directory: Path, names: list[str], dtype: np.dtype, overlap: float) -> NearDuplicates:
    """What tells the near-duplicates of the documents in shards of these names."""

    def documents() -> Iterator[np.ndarray]:
        for name in names:
            ends = np.fromfile(directory / f"{name}{SUFFIXES['ends']}", "<u8").astype(np.int64)
            yield from np.split(np.fromfile(directory / f"{name}{SUFFIXES['tokens']}", dtype), ends[:-1])

    return NearDuplicates(documents(), overlap)


def shard_writer(
    request: Request, directory: Path, split: str, files: list[dict[str, Any]] | None = None
) -> ShardWriter:
    """A writer of a split's shards."""
    name = f"mini-chat-{request.fingerprint[:16]}"
    return ShardWriter(directory, split, request.settings.shard_bytes, False, request.plan.dtype, files, name)


def mixing(request: Request, account: Account) -> Mix:
    """How often the documents of each source and language are seen."""
    languages, weights = request.plan.languages, np.maximum(1.0, request.plan.weights)
    tokens = (account.counts[TOKENS] * weights[:, None]).sum(axis=0)
    there = account.counts[DOCUMENTS] > 0
    factors = language_epochs(
        {language: int(tokens[code]) for code, language in enumerate(languages)},
        request.settings.languages,
        request.settings.max_epochs,
        {language: float(weights[there[:, code]].max(initial=1.0)) for code, language in enumerate(languages)},
    )
    return Mix(weights[:, None] * np.array([factors.get(language, 1.0) for language in languages]), factors)


@dataclass
class Train:
    """What became of the training documents; the account goes to the disk with each shard."""

    entry: dict[str, Any]
    counts: np.ndarray
    """int64 (3, sources, languages): documents, tokens, bytes of text as they are seen, with repetitions."""
    dropped: dict[str, list[int]]
    """Documents, each counted once, and bytes of text that are not trained on, by reason."""


def merge_runs(
    request: Request, runs: list[Path], mix: Mix, held_out: NearDuplicates, directory: Path, account: Account
) -> Train:
    """Lay repetitions beside the runs, and merge all of them into the shards of `train`."""
    copies = directory / SCRATCH / "copies"
    copies.mkdir(parents=True, exist_ok=True)
    runs = runs + write_copies(runs, mix.epochs, copies, request.settings.memory_bytes // 4)
    return write_train(request, runs, mix, held_out, directory, account)


def write_train(
    request: Request, runs: list[Path], mix: Mix, held_out: NearDuplicates, directory: Path, account: Account
) -> Train:
    """Merge the runs into the shards of `train`, going on behind those that are whole."""
    dtype, shape, journal = request.plan.dtype, account.counts.shape[1:], directory / SCRATCH / TRAIN_JOURNAL
    place, train = 0, Train({}, np.zeros_like(account.counts), nothing_dropped())
    files: list[dict[str, Any]] = []
    if journal.is_file():
        saved = read_json(journal)
        place, files, train.dropped = saved["place"], saved["files"], saved["dropped"]
        train.counts = np.array(saved["counts"], np.int64)
    writer = shard_writer(request, directory, "train", files)
    with progress("merging", float(account.counts[TOKENS].sum()), "tokens") as bar:
        for documents in merged(runs, request.settings.memory_bytes // 4, place):
            infos = documents.infos
            reasons = judge(documents, mix, held_out, dtype)
            kept = np.flatnonzero(reasons == KEPT)
            tokens = np.frombuffer(documents.payload, dtype)
            lengths = infos["size"] // dtype.itemsize
            edges = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            if len(kept) < len(infos):
                tokens = tokens[np.repeat(reasons == KEPT, lengths)]
                edges = np.concatenate([[0], np.cumsum(lengths[kept], dtype=np.int64)])
            at = seen = 0
            while at < len(kept) or seen < len(infos):
                here = slice(at, at + writer.fitting(lengths[kept[at:]]))
                # All up to the first document that no longer fits are now accounted for, those left out among them.
                to = int(kept[here.stop]) if here.stop < len(kept) else len(infos)
                if here.stop > at:
                    writer.extend(tokens[edges[at] : edges[here.stop]], lengths[kept[here]])
                    train.counts += count(infos[kept[here]], shape, dtype.itemsize)
                count_dropped(train.dropped, infos[seen:to], reasons[seen:to])
                place, at, seen = place + to - seen, here.stop, to
                if at < len(kept):
                    writer.flush()
                    saved = {"place": place, "files": writer.files, "dropped": train.dropped}
                    write_json(journal, saved | {"counts": train.counts.tolist()})
            bar.advance(float(edges[-1]))
    train.entry = writer.close()
    return train


KEPT = 0
REASONS = {1: NEAR_DUPLICATE, 2: LANGUAGE_LEFT_OUT}


def nothing_dropped() -> dict[str, list[int]]:
    """Documents and bytes by reason, none yet."""
    return {reason: [0, 0] for reason in REASONS.values()}


def count_dropped(dropped: dict[str, list[int]], infos: np.ndarray, reasons: np.ndarray) -> None:
    """Count documents that are not trained on, for these reasons, repetitions aside."""
    for code, reason in REASONS.items():
        left = infos[(reasons == code) & (infos["copy"] == 0)]
        dropped[reason][0] += len(left)
        dropped[reason][1] += int(left["bytes"].sum())


def judge(documents: Documents, mix: Mix, held_out: NearDuplicates, dtype: np.dtype) -> np.ndarray:
    """KEPT, or the number of the reason why not, of each document."""
    keys, infos, payload = documents
    epochs = np.minimum(1.0, mix.epochs)[infos["source"], infos["language"]]
    thinned = (infos["copy"] == 0) & (times_seen(keys, epochs, EPOCH) == 0)
    near = held_out.find(np.frombuffer(payload, dtype), (infos["size"] // dtype.itemsize).astype(np.int64))
    return np.where(thinned, 2, np.where(near, 1, KEPT))


def mixing_report(request: Request, account: Account, mix: Mix, counts: np.ndarray) -> dict[str, Any]:
    """What the manifest says of the mix: epochs and counts of each source and language, and the languages' shares."""
    languages, total = request.plan.languages, max(1, int(counts[TOKENS].sum()))
    present = [(code, language) for code, language in enumerate(languages) if account.counts[DOCUMENTS, :, code].any()]
    sources = []
    for number, source in enumerate(request.sources):
        entry: dict[str, Any] = {**source.model_dump(), "mix": {}}
        for code, language in present:
            if account.counts[DOCUMENTS, number, code]:
                documents, tokens, size = counts[:, number, code].tolist()
                epochs = round(float(mix.epochs[number, code]) * min(1.0, source.weight), 6)
                entry["mix"][language] = {"epochs": epochs, "documents": documents, "tokens": tokens, "bytes": size}
        sources.append(entry)
    return {
        "asked": request.settings.languages,
        "shares": {language: round(int(counts[TOKENS, :, code].sum()) / total, 6) for code, language in present},
        "epochs": {language: round(mix.languages.get(language, 1.0), 6) for _, language in present},
        "sources": sources,
    }
