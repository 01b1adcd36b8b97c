"""What one gets in the exam without understanding anything: `python -m mini_chat.evaluate.baselines DIRECTORY`.

`frequent` gives the most frequent training answer of the skill and language. `nearest` gives the answer of the training
dialogue whose prompt is most similar: cosine of TF-IDF over hashed n-grams (1 to 3 words, or Chinese characters) of the
whole prompt, system message and context included. An exam that measures recall would let them pass.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mini_chat.errors import UserError
from mini_chat.evaluate.exam_items import read_items, score

LONGEST_NGRAM = 3
BUCKETS = 1 << 20  # of the hashed n-grams
MOST_TURNS = 300_000  # training turns that are compared, more than the demo has; of more, every k-th
_UNIT = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+|[\u4e00-\u9fff]")


class Turn(NamedTuple):
    """One assistant turn of the training dialogues with everything said before it."""

    skill: str
    language: str
    prompt: str
    answer: str


def read_turns(path: Path | str) -> list[Turn]:
    """Every assistant turn of an SFT file that names its dialogues' skill and language.

    Raises:
        UserError: the file is missing, or a line is no dialogue; the message names the line.
    """
    turns = []
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                number += 1
                record = json.loads(line)
                said: list[str] = []
                for message in record["messages"]:
                    if message["role"] == "assistant":
                        turns.append(Turn(record["skill"], record["language"], "\n".join(said), message["content"]))
                    said.append(message["content"])
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, line {number}: no dialogue with `messages`, `skill`, `language` ({error!r}); make the file again"
        ) from error
    return turns


def frequent_answers(turns: Iterable[Turn], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each item the most frequent training answer of its skill and language ('' where there is none)."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for turn in turns:
        counts[turn.skill, turn.language][turn.answer] += 1
    best = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    return [best.get((item["skill"], item["language"]), "") for item in items]


def nearest_answers(turns: Sequence[Turn], items: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each item the answer of the most similar training turn. The memory is a few times that of the prompts."""
    if not turns:
        return [""] * len(items)
    turns = turns[:: -(-len(turns) // MOST_TURNS)]
    index = _Index([turn.prompt for turn in turns])
    prompts = ("\n".join(message["content"] for message in item["messages"]) for item in items)
    return [turns[index.nearest(prompt)].answer for prompt in prompts]


class _Index:
    """Texts by n-gram: `documents` and `weights` are sorted by bucket, whose share begins at `starts[bucket]`."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.size = len(texts)
        counted = [_ngrams(text) for text in texts]
        lengths = [len(count) for count in counted]
        total = sum(lengths)
        buckets = np.fromiter((bucket for count in counted for bucket in count), np.int64, total)
        weights = np.fromiter((times for count in counted for times in count.values()), np.float32, total)
        documents = np.repeat(np.arange(self.size, dtype=np.int32), lengths)
        occurs = np.bincount(buckets, minlength=BUCKETS)
        self.idf = np.log((1 + self.size) / (1 + occurs)).astype(np.float32)
        weights *= self.idf[buckets]
        norms = np.sqrt(np.bincount(documents, weights * weights, self.size))
        weights /= np.maximum(norms, 1e-9)[documents]
        by_bucket = np.argsort(buckets, kind="stable")
        self.documents, self.weights = documents[by_bucket], weights[by_bucket]
        self.starts = np.concatenate([[0], np.cumsum(occurs)])

    def nearest(self, text: str) -> int:
        """The number of the most similar text; the first of equals."""
        scores = np.zeros(self.size, np.float32)
        for bucket, times in _ngrams(text).items():
            found = slice(self.starts[bucket], self.starts[bucket + 1])
            scores[self.documents[found]] += self.weights[found] * (times * self.idf[bucket])
        return int(scores.argmax())


def _ngrams(text: str) -> Counter[int]:
    """Buckets of the text's n-grams with their counts; crc32, unlike hash(), is the same in every process."""
    words = _UNIT.findall(text.lower())
    counts: Counter[int] = Counter()
    for n in range(1, LONGEST_NGRAM + 1):
        counts.update(zlib.crc32(" ".join(words[i : i + n]).encode()) % BUCKETS for i in range(len(words) - n + 1))
    return counts


def baseline_scores(
    items: Sequence[Mapping[str, Any]], turns: Sequence[Turn]
) -> dict[str, dict[str, dict[str, float]]]:
    """`scores[baseline][language][skill]` for both baselines."""
    return {
        "frequent": score(items, frequent_answers(turns, items)),
        "nearest": score(items, nearest_answers(turns, items)),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Score the two baselines on the exam of a world.")
    parser.add_argument("directory", type=Path, help="holds exam.jsonl and sft.jsonl")
    directory = parser.parse_args(arguments).directory
    try:
        scores = baseline_scores(read_items(directory / "exam.jsonl"), read_turns(directory / "sft.jsonl"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    columns = [(name, language) for name in scores for language in scores[name]]
    print(f"{'':12}" + "".join(f"{f'{name} {language}':>14}" for name, language in columns))
    skills = {skill: None for name, language in columns for skill in scores[name][language] if skill != "all"}
    for skill in [*skills, "all"]:
        print(f"{skill:12}" + "".join(f"{scores[name][language].get(skill, 0):>14.1%}" for name, language in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
