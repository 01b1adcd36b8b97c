"""A few documents for each reason why something was dropped or changed, so that a person sees what the rules do."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mini_chat.data.tally import Tally
from mini_chat.files import atomic_open

SAMPLES = 20
"""Kept of each reason and source."""

EXCERPT_CHARACTERS = 320
_BEFORE_CHANGE = 20  # characters of context shown before the first difference


@dataclass(frozen=True)
class Sample:
    """A document that was dropped or changed."""

    kind: str
    """`dropped` or `changed`."""
    reason: str
    where: str
    """`file:line`."""
    text: str
    """An excerpt, on one line."""
    other: str = ""
    """What it was changed to, or the earlier document that it repeats."""

    def line(self) -> bytes:
        """As a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def dropped(reason: str, where: str, text: str, other: str = "") -> Sample:
    """The sample of a dropped document."""
    return Sample("dropped", reason, where, excerpt(text), excerpt(other))


def changed(reason: str, where: str, before: str, after: str) -> Sample:
    """The sample of a changed document: both, from a little before the first difference."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((place for place, (old, new) in pairs if old != new), min(len(before), len(after)))
    start = max(start - _BEFORE_CHANGE, 0)
    return Sample("changed", reason, where, excerpt(before[start:]), excerpt(after[start:]))


def excerpt(text: str) -> str:
    """The beginning of a text, line ends and other controls spelt out, on one line."""
    text = text[:EXCERPT_CHARACTERS]
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else {"\n": "⏎", "\t": "⇥"}.get(character, f"<U+{ord(character):04X}>")
        for character in text
    )


class Collector:
    """Lets through the first few samples of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def wants(self, kind: str, reason: str) -> bool:
        """Whether another sample of the reason is wanted; asking is taking."""
        self.counts[kind, reason] += 1
        return self.counts[kind, reason] <= SAMPLES


def first_of_each(lines: Iterable[bytes], collector: Collector | None = None) -> Iterator[bytes]:
    """The lines of samples that a collector (by default a new one) lets through."""
    collector = collector or Collector()
    for line in lines:
        sample = json.loads(line)
        if collector.wants(sample["kind"], sample["reason"]):
            yield line


def read_samples(files: Iterable[Path]) -> dict[tuple[str, str], list[Sample]]:
    """Samples by kind and reason, in turn from each file."""
    queues: dict[tuple[str, str], list[list[Sample]]] = defaultdict(list)
    for file in files:
        own: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = Sample(**json.loads(line))
            own[sample.kind, sample.reason].append(sample)
        for key, samples in own.items():
            queues[key].append(samples)
    return {
        key: [queue[place] for place in range(SAMPLES) for queue in own_queues if place < len(queue)]
        for key, own_queues in queues.items()
    }


def write_samples(path: Path, lines: Iterable[bytes]) -> None:
    """Write samples, whole or not at all."""
    with atomic_open(path) as file:
        file.writelines(lines)


def show_samples(files: list[Path], account: Tally, most: int) -> str:
    """The samples for a terminal: by reason, with how many there were, each in at most two lines of 78 columns."""
    from rich.cells import set_cell_size

    def cut(text: str) -> str:
        return set_cell_size(text, 74).rstrip()

    lines = []
    found = read_samples(files)
    totals = {"dropped": account.dropped, "changed": account.repaired}
    for (kind, reason), samples in sorted(found.items(), key=lambda item: (item[0][0] != "dropped", item[0][1])):
        lines += ["", f"{kind}, {reason}: {totals[kind][reason]:,}" + (" (first ones)" if len(samples) > most else "")]
        for sample in samples[:most]:
            other = sample.other or (sample.text[len(cut(sample.text)) :] if kind == "dropped" else "")
            lines.append(f"  - {cut(sample.text)}")
            if other:
                mark = "→" if kind == "changed" else "=" if sample.other else " "
                lines.append(f"  {mark} {cut(other)}")
    return "\n".join(lines[1:])
