"""What a corpus step writes: documents in parts, each whole, with an account beside it, so that a kill costs one part.

A step's directory holds `part-00000.jsonl.zst`, `part-00001.jsonl.zst`, … (one JSON object with `text` a line) and
beside each a `part-00000.json`: how many of the step's items it and the parts before it hold, and the account so far.
`step.json` says what was asked for, and `manifest.json`, written last, what there is. On the next start the parts
whose account is there are kept, the items that they hold are passed over, and the step goes on behind them.

Items (batches of documents, blocks of a dump) and where a part ends are functions of the input and the settings, never
of processes or restarts: so are the bytes.

A step may write more than documents: what `Output.sides` holds under a name lies beside the part, as `part-00000.NAME`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import zstandard

from mini_chat.console import say
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError
from mini_chat.files import atomic_open, read_json, sha256_json, write_json
from mini_chat.parallel import ordered_map

MANIFEST, REQUEST = "manifest.json", "step.json"
STRETCHES, STRETCH = "stretches", "stretch.json"
"""Where machines that share the work leave theirs, and what they write last."""
PATTERN = "part-*.jsonl.zst"
ZSTD_LEVEL = 3

Item = TypeVar("Item")


class Output(NamedTuple):
    """What the work makes of one item: JSON lines, and its account (units, and what became of them)."""

    lines: bytes
    tally: Tally
    sides: Mapping[str, bytes] = {}
    """Bytes to write beside the part, by the ending of their file."""
    closes: bool = False
    """Whether the part ends behind it, whatever its size."""


class Parts:
    """The parts of one step in `directory`, going on behind those that are whole.

    Args:
        identity: what the bytes depend on: the step's settings and its input. Parts of another one are removed, and
            the difference is said.
        part_bytes: size from which on a part is closed, uncompressed [bytes].
    """

    def __init__(self, directory: Path, identity: dict[str, Any], part_bytes: int) -> None:
        self.directory, self.part_bytes = directory, part_bytes
        self.identity = json.loads(json.dumps(identity))  # as it will be read again: JSON has no tuples
        self.items = 0
        """Items whose output is in whole parts."""
        self.tally = Tally()
        """The account of those items."""
        self.parts: list[dict[str, Any]] = []
        self._pending: list[bytes] = []
        self._pending_sides: dict[str, list[bytes]] = {}
        self._pending_bytes = 0
        self._pending_items = 0
        self._recover()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest, if the step is finished."""
        path = self.directory / MANIFEST
        return read_json(path) if path.is_file() else None

    def add(self, output: Output) -> None:
        """Append the output of the next item."""
        self._pending.append(output.lines)
        for name, data in output.sides.items():
            self._pending_sides.setdefault(name, []).append(data)
        self._pending_bytes += len(output.lines) + sum(map(len, output.sides.values()))
        self._pending_items += 1
        self.tally.merge(output.tally)
        if self._pending_bytes >= (1 if output.closes else self.part_bytes):
            self._flush()

    def close(self, reader: Tally | None = None) -> dict[str, Any]:
        """Write what is left and the manifest, which is returned; `reader` is the account of whoever read the items."""
        if self._pending_bytes:
            self._flush()
        total = merged(*filter(None, (reader, self.tally)))
        total.check()
        manifest = {
            "fingerprint": sha256_json([part["sha256"] for part in self.parts]),
            "parts": self.parts,
            "accounting": total.to_json(),
        }
        write_json(self.directory / MANIFEST, manifest)
        shutil.rmtree(self.directory / STRETCHES, ignore_errors=True)
        return manifest

    def leave(self, reader: Tally) -> None:
        """Say that these are all parts of a stretch, behind which the work has put None, for `join` to take."""
        assert not self._pending_bytes, "a stretch ends with its last part"
        items = self.items + self._pending_items
        accounts = {"reader": reader.to_json(), "tally": self.tally.to_json()}
        write_json(self.directory / STRETCH, {"parts": len(self.parts), "items": items, **accounts})

    def join(self, stretches: Iterable[Path]) -> Tally:
        """Make what was left in these directories the parts of this one; returns the readers' account.

        Parts get further names here and keep their own, so that a kill on the way costs nothing.
        """
        there, self.parts, self.items, self.tally = self.parts, [], 0, Tally()
        reader = Tally()
        for directory in stretches:
            left = read_json(directory / STRETCH)
            items_before, tally_before = self.items + self._pending_items, self.tally
            for number in range(left["parts"]):
                account = read_json(directory / f"part-{number:05d}.json")
                part = {**account["part"], "name": f"part-{len(self.parts):05d}.jsonl.zst"}
                self.items = items_before + account["items"]
                self.parts.append(part)
                if len(there) >= len(self.parts) and there[len(self.parts) - 1] == part:
                    continue
                for side in part.get("sides", {}):
                    _name_too(directory / side_name(account["part"], side), self.directory / side_name(part, side))
                _name_too(directory / account["part"]["name"], self.directory / part["name"])
                tally = merged(tally_before, Tally.from_json(account["tally"])).to_json()
                text = json.dumps({"part": part, "items": self.items, "tally": tally}, ensure_ascii=False, indent=2)
                (self.directory / side_name(part, "json")).write_text(text + "\n", encoding="utf-8")
            self.tally = merged(tally_before, Tally.from_json(left["tally"]))
            self._pending_items = items_before + left["items"] - self.items
            reader.merge(Tally.from_json(left["reader"]))
        os.sync()  # once for all of them: a flush for each part would take longer than all else here
        return reader

    def _flush(self) -> None:
        data = b"".join(self._pending)
        compressed = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(data)
        name = f"part-{len(self.parts):05d}"
        with atomic_open(self.directory / f"{name}.jsonl.zst") as file:
            file.write(compressed)
        for side, pieces in sorted(self._pending_sides.items()):
            with atomic_open(self.directory / f"{name}.{side}") as file:
                file.writelines(pieces)
        self.items += self._pending_items
        part: dict[str, Any] = {
            "name": f"{name}.jsonl.zst",
            "documents": data.count(b"\n"),
            "bytes": len(data),
            "compressed_bytes": len(compressed),
            "sha256": hashlib.sha256(compressed).hexdigest(),
        }
        if self._pending_sides:
            part["sides"] = {side: sum(map(len, pieces)) for side, pieces in sorted(self._pending_sides.items())}
        self.parts.append(part)
        account = {"part": part, "items": self.items, "tally": self.tally.to_json()}
        write_json(self.directory / f"{name}.json", account)
        self._pending, self._pending_sides, self._pending_bytes, self._pending_items = [], {}, 0, 0

    def _recover(self) -> None:
        """Take over what an earlier run left whole; remove everything else."""
        request = self.directory / REQUEST
        earlier = None
        with contextlib.suppress(UserError):
            earlier = read_json(request) if request.is_file() else None
        if earlier != self.identity:
            if isinstance(earlier, dict):
                say(f"  {self.directory}: {differences(earlier, self.identity)} changed since the last run; made again")
            (self.directory / MANIFEST).unlink(missing_ok=True)  # first: never beside parts that are not its own
            for path in sorted(self.directory.glob("part-*"), reverse=True):
                path.unlink()
            (self.directory / STRETCH).unlink(missing_ok=True)
            shutil.rmtree(self.directory / STRETCHES, ignore_errors=True)
            write_json(request, self.identity)
            return
        while (account := self._account(len(self.parts))) is not None:
            self.parts.append(account["part"])
            self.items, self.tally = account["items"], Tally.from_json(account["tally"])
        manifest = self.manifest
        if manifest is not None and manifest["parts"] != self.parts:
            say(f"  {self.directory}: parts are missing or damaged; they are made again")
            (self.directory / MANIFEST).unlink()
        known: set[str] = set()
        for part in self.parts:
            known |= {part["name"], side_name(part, "json"), *(side_name(part, side) for side in part.get("sides", {}))}
        for path in self.directory.glob("part-*"):
            if path.name not in known:
                path.unlink()

    def _account(self, number: int) -> dict[str, Any] | None:
        """The account of a part, if both are whole."""
        path = self.directory / f"part-{number:05d}.json"
        try:
            account = read_json(path)
            part = account["part"]
            sizes = {part["name"]: part["compressed_bytes"]}
            sizes |= {side_name(part, side): size for side, size in part.get("sides", {}).items()}
            whole = all((self.directory / name).stat().st_size == size for name, size in sizes.items())
            return account if whole else None
        except (UserError, OSError, KeyError, TypeError):
            return None


def merged(*tallies: Tally) -> Tally:
    """The account of what came one after the other."""
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    return total


def _name_too(path: Path, name: Path) -> None:
    """Give a file a further name; a copy where the file system has no such names."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        with atomic_open(name) as copy, open(path, "rb") as file:
            shutil.copyfileobj(file, copy)


def side_name(part: Mapping[str, Any], side: str) -> str:
    """The name of the file `side` beside a part."""
    return f"{part['name'].removesuffix('.jsonl.zst')}.{side}"


def differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """The names of what two identities disagree on."""
    return ", ".join(sorted(key for key in earlier.keys() | now.keys() if earlier.get(key) != now.get(key)))


def work_through(
    parts: Parts,
    items: Iterable[Item | None],
    make_work: Callable[[], Callable[[Item], Output]],
    processes: int,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Add the output of every item behind those that `parts` holds; `advance` is called after each one.

    Args:
        items: all items from the first on, the same ones at each start; those that are done are read and passed over.
            None ends the part. It stands where a stretch of the input ends, so that machines that each have some of
            the stretches write the same parts as one that has them all.
        make_work: see `parallel.ordered_map`.
    """

    def remaining() -> Iterator[Item | None]:
        for number, item in enumerate(items):
            if number >= done:
                yield item

    done = parts.items
    for output in ordered_map(partial(_UpToEnds, make_work), remaining(), processes):
        parts.add(output)
        advance()


class _UpToEnds:
    """In a worker: the work, and what None is answered by."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Output]]) -> None:
        self.work = make_work()

    def __call__(self, item: Any) -> Output:
        return Output(b"", Tally(), closes=True) if item is None else self.work(item)
