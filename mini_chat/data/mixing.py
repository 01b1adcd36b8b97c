"""How often each document is seen: by its source's weight, and by the share of the tokens its language is to have.

The first pass writes every document once and counts the tokens. Then the epochs are known exactly, and the repetitions
are written as further runs, under keys of their own, so that they are spread over everything like other documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_chat.data.keys import EPOCH, copy_keys, times_seen
from mini_chat.data.shuffle import Documents, Run, RunWriter, rearranged
from mini_chat.errors import UserError
from mini_chat.files import read_json, write_json


class Mix(NamedTuple):
    """How the documents are mixed."""

    epochs: np.ndarray
    """float64 (sources, languages): how often a document of the first pass is seen, a fraction drawn by its key."""
    languages: dict[str, float]
    """By how much each language's documents are seen more often (or less) to give it its share."""


def language_epochs(
    tokens: dict[str, int], shares: dict[str, float], max_epochs: float, most: dict[str, float]
) -> dict[str, float]:
    """How often to see each language's documents so that the languages have these shares of the tokens.

    The language that has the most text for its share is seen once and the others more often, but none of their
    documents more than `max_epochs` times: where that is not enough, all are seen less often. Up to 4 epochs are worth
    nearly as much as fresh text (arXiv:2305.16264).

    Args:
        tokens: of each language that there is, as often as its sources' weights say.
        shares: of each language, relative to one another; 0 leaves it out. Empty: everything once.
        most: the greatest weight among the sources of each language.

    Raises:
        UserError: a language without a share, or a share without a language.
    """
    present = [language for language, count in tokens.items() if count]
    if not shares:
        return dict.fromkeys(present, 1.0)
    if unknown := sorted(set(shares) - set(present)):
        raise UserError(
            f"shards.languages: no document to train on is in {', '.join(unknown)}; "
            f"there are {', '.join(sorted(present)) or 'none'}"
        )
    if missing := sorted(set(present) - set(shares)):
        raise UserError(
            f"shards.languages: no share for {', '.join(missing)}, in which there are documents; 0 omits it"
        )
    wanted = {language: share for language, share in shares.items() if share}
    if not wanted:
        raise UserError("shards.languages: every share is 0; give a language more")
    # Tokens of the whole mix, were each language seen once, or as often as allowed.
    once = {language: tokens[language] / share for language, share in wanted.items()}
    allowed = {language: once[language] * max(1.0, max_epochs / most[language]) for language in wanted}
    total = min(max(once.values()), min(allowed.values()))
    return {language: total / once[language] if language in wanted else 0.0 for language in present}


def write_copies(runs: list[Path], epochs: np.ndarray, directory: Path, run_bytes: int) -> list[Path]:
    """Write the second and further repetitions of the runs' documents as runs `copies-*.run`; returns these.

    What an earlier call finished is kept.

    Args:
        epochs: see `Mix`.
    """
    paths: list[Path] = []
    if not (epochs > 1).any():
        return paths
    for number, path in enumerate(runs):
        paths += copies_of(number, path, epochs, directory, run_bytes)
    return paths


def copies_of(number: int, path: Path, epochs: np.ndarray, directory: Path, run_bytes: int) -> list[Path]:
    """Write the repetitions of the documents of the run of this number, where that is not done; see `write_copies`."""
    done = directory / f"copies-{number:05d}.json"
    if not done.is_file():
        write_json(done, _copies_of(Run(path), epochs, directory, f"copies-{number:05d}", run_bytes))
    return [directory / name for name in read_json(done)]


def _copies_of(run: Run, epochs: np.ndarray, directory: Path, name: str, run_bytes: int) -> list[str]:
    """Write the repetitions of one run's documents; names of the runs."""
    names: list[str] = []
    writer = RunWriter(run_bytes)

    def write() -> None:
        names.append(f"{name}-{len(names):03d}.run")
        writer.write(directory / names[-1])

    keys, infos, payload = run.whole()
    times = times_seen(keys, epochs[infos["source"], infos["language"]], EPOCH)
    for copy in range(1, int(times.max(initial=0))):
        chosen = np.flatnonzero(times > copy)
        for piece, copied in rearranged([payload], infos["size"], chosen):
            copy_infos = infos[chosen[piece]].copy()
            copy_infos["copy"] = copy
            writer.add(Documents(copy_keys(keys[chosen[piece]], copy), copy_infos, copied))
            if writer.full:
                write()
    if writer.pending:
        write()
    return names
