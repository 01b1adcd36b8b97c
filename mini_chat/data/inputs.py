"""Finding the files that a source names, and reading sources one after another."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from mini_chat.data.streams import MAGIC
from mini_chat.data.tally import INVALID_UTF8, Tally, reasons
from mini_chat.errors import UserError
from mini_chat.files import read_json

COMPRESSED_FORMATS = ("text", "jsonl", "json", "yaml")

Unit = TypeVar("Unit")


class Source(Protocol):
    """Where units come from: a file, a folder or a glob pattern."""

    @property
    def path(self) -> str: ...


class InputFile(NamedTuple):
    """A file to read and how to read it (`text`, `jsonl`, `json`, `yaml` or `parquet`)."""

    path: Path
    format: str


def find_files(path: str, formats: Mapping[str, str], stated: str | None, tally: Tally) -> list[InputFile]:
    """The files that `path` names, in sorted order.

    Args:
        path: a file, a folder (searched recursively; hidden files and folders are passed over) or a glob pattern.
        formats: suffix → format, without a compression suffix.
        stated: the format that the user stated; None: by suffix. A file or a pattern with a stated format may have
            any suffix; in a folder, files of other formats are skipped.
        tally: counts the files that are skipped.

    Raises:
        UserError: nothing there, nothing readable there, an empty file, an unknown suffix.
    """
    known = ", ".join(formats)
    candidates = expand(path)
    root = _rooted(path)
    if candidates == [root]:
        return [_single_file(root, path, stated or format_of(root, formats), known)]
    if not candidates:
        wrong = "no file in this folder" if root.is_dir() else "no file matches this pattern"
        if not root.is_dir() and not glob.has_magic(str(root)):
            wrong = "no such file or folder"
        raise UserError(f"{path}: {wrong}; check the path in the recipe")
    by_suffix = root.is_dir()

    files = []
    for candidate in candidates:
        kind = format_of(candidate, formats)
        if stated and not by_suffix:
            kind = stated
        if kind is None or (stated and kind != stated):
            tally.skip_file(candidate, f"suffix '{candidate.suffix}' not among those read here")
        elif not candidate.is_file():
            tally.skip_file(candidate, "not a regular file")
        elif candidate.stat().st_size == 0:
            tally.skip_file(candidate, "empty file")
        else:
            files.append(InputFile(candidate, kind))
    if not files:
        why = reasons(tally.skipped_files)
        raise UserError(f"{path}: no readable file in it ({why}); put files of {known} there, or state the format")
    return files


def _single_file(root: Path, path: str, kind: str | None, known: str) -> InputFile:
    if kind is None:
        raise UserError(f"{path}: its name tells no format; rename it to one of {known}, or state the format")
    if not root.is_file():
        raise UserError(f"{path}: not a regular file; give a file, a folder or a pattern")
    if root.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; fill it or take it out of the sources")
    return InputFile(root, kind)


def format_of(path: Path, formats: Mapping[str, str]) -> str | None:
    """The format that a file's name tells, its compression suffix aside; None if it tells none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in MAGIC
    if compressed:
        suffixes.pop()
    kind = formats.get(suffixes[-1]) if suffixes else None
    return None if compressed and kind not in COMPRESSED_FORMATS else kind


def expand(path: str) -> list[Path]:
    """Every file that a path names: itself, those in the folder, or those that match the pattern; sorted."""
    root = _rooted(path)
    if root.is_dir():
        return list(_walk(root))
    if root.exists():
        return [root]
    matches = glob.glob(str(root), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [Path(match) for match in sorted(matches) if not Path(match).is_dir()]


def input_size(paths: Iterable[str]) -> int:
    """Bytes on disk of everything under `paths` (files, folders, patterns): what progress is measured against."""
    return sum(file.stat().st_size for path in paths for file in expand(path) if file.is_file())


def about(source: Source) -> dict[str, Any]:
    """What tells whether a source changed: its settings, and its files' names, sizes and times.

    Of parts that a corpus step wrote it is their content, so that what depends on them is the same after a kill.
    """
    settings = {name: getattr(source, name) for name in ("path", "language", "format", "field", "weight")}
    manifest = Path(source.path).parent / "manifest.json"
    if Path(source.path).name == "part-*.jsonl.zst" and manifest.is_file():
        return {**settings, "content": read_json(manifest)["fingerprint"]}
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in expand(source.path)]
    return {**settings, "files": files}


def _rooted(path: str) -> Path:
    """The path with `~` and `$NAME` replaced.

    Raises:
        UserError: a name is not in the environment.
    """
    expanded = os.path.expandvars(path)
    if (unset := re.search(r"\$\{?(\w+)", expanded)) and not Path(expanded).exists():
        name = unset.group(1)
        raise UserError(f"{path}: {name} is not set in the environment; export {name}=… or write the path out")
    return Path(expanded).expanduser()


def _walk(root: Path) -> Iterator[Path]:
    """Files under `root`, sorted, links to folders followed once, hidden names passed over."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot list ({error.strerror}); check its permissions") from error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read_sources(
    sources: Iterable[Any],
    files_of: Callable[[Any], list[InputFile]],
    read_file: Callable[[Any, InputFile], Iterator[Unit]],
    tally: Tally,
) -> Iterator[Unit]:
    """Read every file of every source in order, and refuse a source that gives nothing at all.

    Raises:
        UserError: a file cannot be read; no unit of a source is usable.
    """
    found = [(source, files_of(source)) for source in sources]
    for source, files in found:
        written, dropped, examples = tally.written, Counter(tally.dropped), len(tally.examples)
        yield from read_files(files, partial(read_file, source), tally)
        if tally.written == written:
            raise nothing_usable(source.path, tally, dropped, examples)


def read_files(
    files: Iterable[InputFile], read_file: Callable[[InputFile], Iterator[Unit]], tally: Tally
) -> Iterator[Unit]:
    """Read some files of a source in order.

    Raises:
        UserError: a file cannot be read.
    """
    for file in files:
        consumed, invalid, kept = tally.input_bytes, tally.dropped[INVALID_UTF8], tally.written
        tally.files += 1
        try:
            yield from read_file(file)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{file.path}: cannot read ({reason}); check the file and its permissions") from error
        if tally.dropped[INVALID_UTF8] > invalid and tally.written == kept:
            tally.note(f"{file.path}: nothing in it is UTF-8; if it is GBK, convert it: iconv -f GB18030 -t UTF-8")
        tally.input_bytes = consumed + file.path.stat().st_size


def nothing_usable(path: str, tally: Tally, dropped: Counter[str] | None = None, examples: int = 0) -> UserError:
    """What to say of a source that gave nothing; what was dropped before it, and how many examples there were."""
    lost = Counter(tally.dropped)
    lost.subtract(dropped or {})
    example = f"; for example {tally.examples[examples]}" if len(tally.examples) > examples else ""
    return UserError(f"{path}: nothing usable in it ({reasons(+lost)}){example}; mend it or leave it out")


STRETCH_BYTES = 64_000_000


def stretches(files: Iterable[InputFile], stretch_bytes: int | None = None) -> list[list[InputFile]]:
    """Consecutive files that make up about `stretch_bytes` (64 MB) on disk together: what one of many machines does.

    Corpus steps begin a part where a stretch begins, on one machine too, so that parts are the same on many.
    """
    stretch_bytes = stretch_bytes or STRETCH_BYTES
    found: list[list[InputFile]] = [[]]
    size = 0
    for file in files:
        bytes_here = file.path.stat().st_size
        if found[-1] and size + bytes_here > stretch_bytes:
            found.append([])
            size = 0
        found[-1].append(file)
        size += bytes_here
    return found if found[0] else []
