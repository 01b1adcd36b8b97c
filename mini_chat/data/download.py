"""One file, brought whole: resumed where it broke off, tried again, checked, and under its name only when it is right.

While it comes it is `NAME.partial`; what is known of it (address, the server's version mark, length, bytes that are
surely on the disk) stands in the hidden folder beside it, in `.fetch/NAME.json`, and stays there when it is finished,
with its digest, so that the next run knows it. A process holds a lock on the partial file as long as it works on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_chat.console import say
from mini_chat.data.remote import Lost, Opened, PastEnd, Patience, Version, lost, open_at
from mini_chat.data.streams import MAGIC
from mini_chat.errors import UserError
from mini_chat.files import CHUNK_BYTES, fsync_path, read_json, write_json

ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}
"""Hash functions by the length of their hexadecimal digests."""
PIECE_BYTES = 1 << 16
MARK_BYTES, MARK_SECONDS = 1 << 24, 5.0  # what a power cut may cost: bytes are counted when they are on the disk
PROGRESS_BYTES = 1 << 20  # after so many new bytes a failure counts as the first again
SLACK_BYTES = 1 << 20  # disk that is left free


class Stopped(Exception):  # noqa: N818 - another part of the program wants to leave
    """The download was asked to stop; what came is kept."""


@dataclass
class Record:
    """What is known of a file that is being fetched, or was."""

    asked: str
    """What the recipe asked for."""
    address: str
    """Where the bytes come from."""
    checksum: str = ""
    """The digest that the file shall have, if one is known."""
    etag: str = ""
    modified: str = ""
    total: int | None = None
    """Length of the file [bytes]."""
    flushed: int = 0
    """Bytes that are on the disk whatever happens."""
    digest: str = ""
    """The digest that the finished file has."""
    mtime_ns: int = 0
    """The finished file's time."""

    @property
    def version(self) -> Version:
        """The server's version marks."""
        return Version(self.etag, self.modified)


def record_path(path: Path) -> Path:
    """Where the record of a file is."""
    return path.parent / ".fetch" / f"{path.name}.json"


def read_record(path: Path) -> Record | None:
    """The record of a file, if there is a usable one."""
    try:
        record = Record(**read_json(record_path(path)))
    except (UserError, TypeError):
        return None
    texts = (record.asked, record.address, record.checksum, record.etag, record.modified, record.digest)
    numbers = (record.total or 0, record.flushed, record.mtime_ns)
    sound = all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)
    return record if sound and len(record.digest) in {0, *ALGORITHMS} else None


class Download:
    """Brings one file.

    Args:
        path: where it goes.
        record: what to fetch, from where, and with which checksum (see `Record`).
        pause: waits so many seconds.
        report: called with the bytes that are there and the length, as they change.
        stopped: asked between pieces whether to leave.
    """

    def __init__(
        self,
        path: Path,
        record: Record,
        retries: int,
        timeout_seconds: float,
        pause: Callable[[float], Any] = time.sleep,
        report: Callable[[int, int | None], None] = lambda done, total: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.path, self.record = path, record
        self.patience, self.timeout_seconds = Patience(retries, pause), timeout_seconds
        self.report, self.stopped = report, stopped
        self.partial = path.with_name(path.name + ".partial")
        self.descriptor = -1
        self.done = self.furthest = 0
        self.hash = self._new_hash()
        self.wrong_digest = ""
        self.marked_at = 0.0

    def run(self) -> None:
        """Bring the file.

        Raises:
            UserError: it cannot be had, is not the right one, or does not fit on the disk; another process is at it.
            Stopped: `stopped` said so.
        """
        with self._locked():
            self._take_over()
            try:
                while not self._attempt():
                    pass
                self._publish()
            except BaseException:
                self._leave()
                raise

    def _attempt(self) -> bool:
        """Try for what is missing; whether the file is whole and right."""
        try:
            if self.record.total is None or self.done < self.record.total:
                self._receive()
            self._check()
        except Lost as lost:
            if self.done > self.furthest + PROGRESS_BYTES:
                self.patience.calm()
            self.furthest = max(self.furthest, self.done)
            self.patience.bear(self.record.address, lost)
            if self.stopped():
                raise Stopped from None
            return False
        return True

    def _receive(self) -> None:
        """Bring the bytes from `done` on."""
        # Nothing would tell that a file has changed between two of its halves: such a one is not resumed.
        if self.done and not (self.record.version.validator or self.record.checksum):
            self._begin(Version(), None)
        try:
            with open_at(self.record.address, self.done, self.record.version, self.timeout_seconds) as opened:
                self._line_up(opened)
                self._check_space()
                self._copy(opened)
        except PastEnd as end:
            if end.size != self.done:
                self._begin(Version(), None)
                raise Lost("the file became shorter on the server") from end
            self.record.total = self.done  # whatever length was told before

    def _line_up(self, opened: Opened) -> None:
        """See that what is opened goes on where we are, in the same version of the file; else begin anew."""
        known = self.record.version
        same = all(not now or not before or now == before for now, before in zip(opened.version, known, strict=True))
        if None not in (opened.total, self.record.total):
            same = same and opened.total == self.record.total
        if self.done and same and opened.start == self.done:
            self.record.total = opened.total if opened.total is not None else self.record.total
            return
        if self.done:
            say(f"  {self.path.name}: {'cannot be resumed' if same else 'changed on the server'}; from the beginning")
        self._begin(opened.version, opened.total)
        if opened.start:
            raise Lost("the file changed on the server")

    def _copy(self, opened: Opened) -> None:
        """Write the body behind what is there."""
        total = self.record.total
        while total is None or self.done < total:
            try:
                piece = opened.body.read(PIECE_BYTES if total is None else min(PIECE_BYTES, total - self.done))
            except (OSError, http.client.HTTPException) as error:
                raise lost(self.record.address, error) from error
            if not piece:
                break
            self._write(piece)
            self.report(self.done, total)
            if self.stopped():
                raise Stopped
        if total is not None and self.done < total:
            raise Lost(f"the connection ended at byte {self.done:,} of {total:,}")
        if total is None:
            self.record.total = self.done
            if not (self.record.checksum or getattr(opened.body, "chunked", False)):
                say(f"  {self.path.name}: the server does not say how long it is; only a checksum would show a loss")

    def _check(self) -> None:
        """Hold the bytes to the checksum, and a compressed file to its first bytes.

        Raises:
            Lost: they are not right; the next try begins anew.
            UserError: they are not right a second time, in the same way.
        """
        digest, name = self.hash.hexdigest(), self.record.address
        if self.record.checksum and digest != self.record.checksum:
            algorithm = ALGORITHMS[len(digest)]
            if digest == self.wrong_digest:
                raise self._give_up(
                    f"{name}: its {algorithm} is {digest} and not {self.record.checksum}, twice; mend the checksum in "
                    "the recipe, or the address"
                )
            self.wrong_digest = digest
            self._begin(Version(), None)
            raise Lost(f"the {algorithm} of what came is not {self.record.checksum}")
        magic = MAGIC.get(self.path.suffix.lower())
        start = os.pread(self.descriptor, 4, 0)
        if magic and not any(start.startswith(begin) or start[1:] == begin for begin in magic):
            raise self._give_up(f"{name}: what came is not {self.path.suffix} data (an error page?); check the address")

    def _give_up(self, line: str) -> UserError:
        """Nothing of what came is of use."""
        self._begin(Version(), None)
        return UserError(line)

    def _leave(self) -> None:
        """Keep what came for the next run; of what did not come at all, keep nothing."""
        with contextlib.suppress(OSError, UserError):
            if self.done > self.record.flushed:
                self._mark()
            if not self.done:
                self.partial.unlink()

    def _publish(self) -> None:
        """Give the file its name. The record goes first: without the file it says nothing."""
        with self._disk():
            os.fsync(self.descriptor)
            self.record.flushed = self.done
            self.record.digest, self.record.mtime_ns = self.hash.hexdigest(), os.fstat(self.descriptor).st_mtime_ns
            write_json(record_path(self.path), dataclasses.asdict(self.record))
            self.partial.replace(self.path)
            fsync_path(self.path.parent)

    def _take_over(self) -> None:
        """Go on with what an earlier run left, if it is of the same file."""
        earlier = read_record(self.path)
        size = os.fstat(self.descriptor).st_size
        if earlier and 0 < earlier.flushed <= size:
            wanted = self.record
            if earlier.address == wanted.address:
                wanted.etag, wanted.modified, wanted.total = earlier.etag, earlier.modified, earlier.total
                self.done = wanted.flushed = earlier.flushed
            elif wanted.checksum and earlier.checksum == wanted.checksum:  # the same file, from another mirror
                self.done = wanted.flushed = earlier.flushed
        with self._disk():
            os.ftruncate(self.descriptor, self.done)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            for offset in range(0, self.done, CHUNK_BYTES):  # the hash of what is there: 1 GB takes about a second
                self.hash.update(os.pread(self.descriptor, min(CHUNK_BYTES, self.done - offset), offset))
        self.furthest, self.marked_at = self.done, time.monotonic()
        self.report(self.done, self.record.total)

    def _begin(self, version: Version, total: int | None) -> None:
        """Begin the file anew, in this version."""
        self.done, self.hash = 0, self._new_hash()
        self.record.etag, self.record.modified, self.record.total, self.record.flushed = *version, total, 0
        with self._disk():
            write_json(record_path(self.path), dataclasses.asdict(self.record))
            os.ftruncate(self.descriptor, 0)
        self.report(0, total)

    def _new_hash(self) -> Any:
        return hashlib.new(ALGORITHMS[len(self.record.checksum) or 64], usedforsecurity=False)

    def _write(self, piece: bytes) -> None:
        with self._disk():
            rest = memoryview(piece)
            while rest:
                written = os.pwrite(self.descriptor, rest, self.done)
                self.hash.update(rest[:written])
                self.done, rest = self.done + written, rest[written:]
        if self.done - self.record.flushed >= MARK_BYTES or time.monotonic() - self.marked_at >= MARK_SECONDS:
            self._mark()

    def _mark(self) -> None:
        """See that what came is on the disk, and note how much it is."""
        self.marked_at = time.monotonic()
        with self._disk():
            os.fsync(self.descriptor)
            self.record.flushed = self.done
            write_json(record_path(self.path), dataclasses.asdict(self.record))

    def _check_space(self) -> None:
        if self.record.total is None:
            return
        missing, free = self.record.total - self.done, shutil.disk_usage(self.path.parent).free
        if missing + SLACK_BYTES > free:
            raise UserError(
                f"{self.path}: {missing / 1e6:,.0f} MB are to come and {free / 1e6:,.0f} MB are free; free space, or "
                "set fetch.directory to another disk, and run the same command again"
            )

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """What goes wrong with the disk is one line."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.partial}: cannot write ({error.strerror or error}); free space and run the same command again, "
                "it goes on where it broke off"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the partial file; the lock goes with the process, however it ends.

        Raises:
            UserError: another process holds it.
        """
        with self._disk():
            record_path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its holder may have given it its name between our two calls: it is not the partial file any more.
                held = os.path.samestat(os.fstat(self.descriptor), self.partial.stat())
            except OSError:
                held = False
            if not held:
                raise UserError(
                    f"{self.path}: another mini-chat process is fetching it; wait for it or set fetch.directory"
                )
            yield
        finally:
            os.close(self.descriptor)
