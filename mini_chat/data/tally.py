"""The account of what a reader was given: read = written + dropped, by reason, with places.

A *unit* is one document, dialogue or preference pair. Readers count it as read when they meet it, and then either
keep or drop it, so `Tally.check` can hold them to the balance at any moment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Why a unit is set aside. Readers use these and no others, so that manifests can be compared.
EMPTY = "empty"
INVALID_UTF8 = "invalid UTF-8"
NUL_BYTE = "NUL byte"
CONTROL_CHARACTER = "control character"
LONE_SURROGATE = "lone surrogate"
TOO_LONG = "over max_line_bytes"
DAMAGED = "damaged stream"
NOT_JSON = "not valid JSON"
NOT_OBJECT = "not a JSON object"
FIELD_MISSING = "field missing"
FIELD_NOT_STRING = "field is not a string"

MAX_EXAMPLES = 20
MAX_EXAMPLES_OF_A_REASON = 5
MAX_NOTES = 20


class SetAside(Exception):  # noqa: N818 - not an error: one unit is counted and the reader goes on
    """This unit cannot be used: `reason` is counted, `detail` goes into the example. Never leaves a reader."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(slots=True)
class Tally:
    """What came in, what was handed on, and why the rest was not. Its size does not grow with the input."""

    read: int = 0
    """Units met."""
    written: int = 0
    """Units handed on."""
    bytes: int = 0
    """UTF-8 bytes of the text handed on."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Units set aside, by reason."""
    repaired: Counter[str] = field(default_factory=Counter)
    """Units handed on after a change, by what was changed (they count as written)."""
    files: int = 0
    """Files opened."""
    input_bytes: int = 0
    """Bytes consumed on disk (compressed, where the file is), for progress against `inputs.input_size`."""
    skipped_files: Counter[str] = field(default_factory=Counter)
    """Files of a folder or pattern that were not opened, by reason."""
    examples: list[str] = field(default_factory=list)
    """At most 20 `file:line: reason (detail)`, at most 5 of one reason."""
    notes: list[str] = field(default_factory=list)
    """At most 20 one-line remarks that a person should see: damaged files, suspicious encodings."""

    def keep(self, size_bytes: int) -> None:
        """Count one unit of `size_bytes` UTF-8 bytes as handed on."""
        self.written += 1
        self.bytes += size_bytes

    def drop(self, reason: str, where: str, detail: str = "", count: int = 1) -> None:
        """Count `count` units as set aside for `reason`; remember `where` (`file:line`) while there is room."""
        self.dropped[reason] += count
        self._remember(reason, f"{where}: {reason}" + (f" ({detail})" if detail else ""))

    def _remember(self, reason: str, example: str) -> None:
        """Keep an example while there is room."""
        if len(self.examples) < MAX_EXAMPLES:
            shown = sum(f": {reason}" in earlier for earlier in self.examples)
            if shown < MAX_EXAMPLES_OF_A_REASON:
                self.examples.append(example)

    def take_back(self, reason: str, where: str, size_bytes: int = 0, count: int = 1) -> None:
        """Count units (of `size_bytes` in all) that a reader kept as set aside after all, by whom it handed them to.

        What is taken back while a source is still being read counts as not usable, should nothing else be left of it.
        """
        self.written -= count
        self.bytes -= size_bytes
        self.drop(reason, where, count=count)

    def merge(self, other: Tally) -> None:
        """Add another's account, of what came after."""
        self.read += other.read
        self.written += other.written
        self.bytes += other.bytes
        self.dropped.update(other.dropped)
        self.repaired.update(other.repaired)
        self.files += other.files
        self.input_bytes += other.input_bytes
        self.skipped_files.update(other.skipped_files)
        for example in other.examples:
            reason = example.split(": ", 1)[-1].split(" (")[0]
            self._remember(reason, example)
        for note in other.notes:
            self.note(note)

    def note(self, line: str) -> None:
        """Remember a remark for the person, while there is room."""
        if len(self.notes) < MAX_NOTES:
            self.notes.append(line)

    def skip_file(self, path: Path, reason: str) -> None:
        """Count a file that is not opened; the first of each reason is noted with its name."""
        if not self.skipped_files[reason]:
            self.note(f"{path}: file skipped, {reason}")
        self.skipped_files[reason] += 1

    def check(self) -> None:
        """Hold the account to its balance: a difference is a bug of ours, so it is an assertion."""
        balance = self.written + sum(self.dropped.values())
        assert self.read == balance, f"read {self.read} != written {self.written} + dropped {dict(self.dropped)}"

    def lines(self) -> list[str]:
        """The account for a terminal: one line in all, one a reason, the notes."""
        dropped = sum(self.dropped.values())
        lines = [f"{self.read:,} read = {self.written:,} kept ({self.bytes / 1e6:,.1f} MB) + {dropped:,} set aside"]
        lines += [f"  set aside: {count:,} {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"  changed: {count:,} {what}" for what, count in self.repaired.most_common()]
        lines += [f"  files skipped: {count:,} {reason}" for reason, count in self.skipped_files.most_common()]
        return lines + [f"  {note}" for note in self.notes]

    def to_json(self) -> dict[str, Any]:
        """The account as a manifest stores it."""
        return {
            "read": self.read,
            "written": self.written,
            "bytes": self.bytes,
            "dropped": dict(sorted(self.dropped.items())),
            "repaired": dict(sorted(self.repaired.items())),
            "files": self.files,
            "skipped_files": dict(sorted(self.skipped_files.items())),
            "examples": self.examples,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """The account that `to_json` gave; `input_bytes` is no part of it."""
        tally = cls(**value)
        for name in ("dropped", "repaired", "skipped_files"):
            setattr(tally, name, Counter(value[name]))
        return tally


def reasons(counts: Counter[str]) -> str:
    """`invalid UTF-8: 3, empty: 1`, most frequent first."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
