"""Files that appear whole or not at all.

Every output of every stage goes through here: it is written under a temporary name, flushed to the disk
(fsync) and renamed, so that a kill at any instant leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mini_chat.errors import UserError

CHUNK_BYTES = 1 << 20


def fsync_path(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_open(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing; rename it over `path` when the block ends well.

    Raises:
        UserError: the directory cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    encoding = None if "b" in mode else "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write ({error.strerror or error}); free space or choose another directory"
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary directory; when the block ends well, flush all of it and rename it to `path`.

    An existing `path` is replaced. What a killed process left behind is swept away first.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    replaced = path.with_name(path.name + ".replaced")
    try:
        recover_directory(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(partial.rglob("*")):
            fsync_path(file)
        fsync_path(partial)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        fsync_path(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{path}: cannot write ({error.strerror or error}); free space or choose another directory"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def recover_directory(path: Path) -> None:
    """Finish a directory swap that a kill cut between its two renames: the old directory comes back."""
    replaced = path.with_name(path.name + ".replaced")
    if replaced.exists():
        if path.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(path)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as UTF-8 JSON, atomically."""
    with atomic_open(path, "w") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); it was damaged or is no JSON file, make it again"
        ) from error


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """A fingerprint of a JSON value that does not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@contextlib.contextmanager
def exclusive(directory: Path | str) -> Iterator[None]:
    """Hold `directory` for this process; the lock goes with the process, however it ends.

    Raises:
        UserError: another process is at work in the directory.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = open(directory / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{directory}: cannot write ({error.strerror}); choose another directory") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UserError(
            f"{directory}: another mini-chat process is working here; wait for it or choose another directory"
        ) from error
    try:
        yield
    finally:
        handle.close()
