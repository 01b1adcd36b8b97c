"""The recipe's files into `dataset/`: from the network several at once, from this machine by copying.

A local file is copied and not linked: what a recipe was made from must not change or go when its source (a memory
stick, a network share) does. A file that can stay where it is needs no fetching; name it under `data.documents`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from mini_chat.config import Address, Fetch
from mini_chat.console import Bar, progress, say
from mini_chat.data.download import ALGORITHMS, Download, Record, Stopped, read_record, record_path
from mini_chat.data.remote import Lost, Missing, PastEnd, Patience, Version, is_http, local_path, open_at
from mini_chat.errors import UserError
from mini_chat.files import CHUNK_BYTES, write_json

DUMP = "pages-articles-multistream.xml.bz2"
LONGEST_LIST_BYTES = 10_000_000


class Job(NamedTuple):
    """A file to fetch."""

    address: Address
    path: Path

    @property
    def asked(self) -> str:
        """What the recipe asks for, in one word."""
        address = self.address
        return address.url or f"wikipedia {address.wikipedia} {address.date} {address.checksum}".rstrip()


def fetch(settings: Fetch, pause: Callable[[float], Any] | None = None) -> list[Path]:
    """Bring every file of the recipe; what is there and right is left. Returns their paths, in the recipe's order.

    All are tried, also when one fails.

    Args:
        pause: waits so many seconds before another try.

    Raises:
        UserError: a line for each file that could not be had.
    """
    jobs = planned(settings)
    stop = threading.Event()
    results: list[Future[None]] = [Future() for _ in jobs]
    queue: SimpleQueue[int] = SimpleQueue()
    for place in range(len(jobs)):
        queue.put(place)
    with progress("fetch", None, "bytes") as bar:
        meter = Meter(bar)

        def work() -> None:
            while not stop.is_set():
                try:
                    place = queue.get_nowait()
                except Empty:
                    return
                try:
                    bring(jobs[place], settings, pause or stop.wait, meter, stop.is_set)
                    results[place].set_result(None)
                except BaseException as error:  # handed on below
                    results[place].set_exception(error)

        # Daemons: an interrupted program need not wait for a silent server.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(settings.parallel, len(jobs)))]
        try:
            for thread in threads:
                thread.start()
            for result in results:
                result.exception()
        except BaseException:
            stop.set()
            for thread in threads:
                thread.join(timeout=1.0)  # time to note how far they are
            raise
    lines = []
    for error in filter(None, (result.exception() for result in results)):
        if not isinstance(error, UserError):
            raise error
        lines.append(str(error))
    if lines:
        raise UserError("\n".join(lines))
    return [job.path for job in jobs]


def planned(settings: Fetch) -> list[Job]:
    """The files and where they go.

    Raises:
        UserError: an address without a name, two files of one name, a directory that cannot be.
    """
    directory = Path(os.path.expandvars(settings.directory)).expanduser()
    jobs: list[Job] = []
    for number, address in enumerate(settings.files):
        name = address.name or name_of(address)
        if not name:
            raise UserError(f"fetch.files.{number}: {address.url} ends in no file name; give one as name")
        jobs.append(Job(address, directory / name))
        if [job.path.name for job in jobs].count(name) > 1:
            raise UserError(f"fetch.files.{number}: another file is called {name} too; give one of them another name")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"fetch.directory {directory}: cannot make it ({error.strerror}); choose another") from error
    return jobs


def name_of(address: Address) -> str:
    """The file name in an address; empty if there is no usable one."""
    if address.wikipedia:
        return f"{wiki(address.wikipedia)}-{address.date}-{DUMP}"
    path = urllib.parse.unquote(urllib.parse.urlsplit(address.url).path) if is_http(address.url) else address.url
    name = path.rpartition("/")[2]
    return name if Address.is_file_name(name) else ""


def wiki(language: str) -> str:
    """Wikimedia's name of a Wikipedia: zh → zhwiki, zh-yue → zh_yuewiki."""
    return f"{language.replace('-', '_')}wiki"


def bring(
    job: Job,
    settings: Fetch,
    pause: Callable[[float], Any],
    meter: Meter,
    stopped: Callable[[], bool],
) -> None:
    """Bring one file, unless it is there.

    Raises:
        UserError: it cannot be had.
    """
    name, began = job.path.name, time.monotonic()
    record = known(job, settings.mirror) or resolved(job, settings, Patience(settings.retries, pause))
    if is_there(job, record):
        return
    download = Download(
        job.path,
        record,
        settings.retries,
        settings.timeout_seconds,
        pause,
        lambda done, total: meter.reach(name, done, total),
        stopped,
    )
    try:
        download.run()
    except Stopped:
        return
    checked = f"{ALGORITHMS[len(record.checksum)]} as it should be" if record.checksum else "no checksum to hold it to"
    seconds = max(time.monotonic() - began, 1e-3)
    say(f"  {job.path}: {size_text(download.done)} in {seconds:,.0f} s, {checked}")


def known(job: Job, mirror: str) -> Record | None:
    """What an earlier run found out about the same dump: so `latest` stays the dump that it was when it began."""
    record = read_record(job.path)
    if not job.address.wikipedia or record is None or record.asked != job.asked:
        return None
    folders = record.address.rsplit("/", 3)[1:]  # zhwiki/20261101/zhwiki-…
    return Record(job.asked, "/".join([mirror.rstrip("/"), *folders]), record.checksum)


def is_there(job: Job, record: Record) -> bool:
    """Whether the finished file is there and right; if not, and there is one, why it is fetched again is said.

    The time and size that the record has of it stand for its content; where they differ its digest is computed.
    """
    path, earlier = job.path, read_record(job.path)
    if not path.is_file():
        return False
    with contextlib.suppress(UserError):  # a finished copy does not need its source any more
        if not is_http(record.address) and path.samefile(local_path(record.address)):
            say(f"  {path}: is where it should be")
            return True
    if earlier is None and not record.checksum:
        say(f"  {path}: taken as it is; there is no checksum to hold it to")
        return True
    digest = earlier.digest if earlier and earlier.asked == job.asked else ""
    wanted = record.checksum or digest
    if not wanted:
        if earlier and earlier.asked != job.asked:
            say(f"  {path}: another address than before; fetched again")
        return False
    found = path.stat()
    if earlier and digest == wanted and (found.st_size, found.st_mtime_ns) == (earlier.total, earlier.mtime_ns):
        say(f"  {path}: is finished")
        return True
    if digest_of(path, ALGORITHMS[len(wanted)]) != wanted:
        say(f"  {path}: is not the file asked for, or was changed; fetched again")
        return False
    record = dataclasses.replace(record, total=found.st_size, flushed=found.st_size, digest=wanted)
    record_path(path).parent.mkdir(exist_ok=True)
    write_json(record_path(path), dataclasses.asdict(dataclasses.replace(record, mtime_ns=found.st_mtime_ns)))
    say(f"  {path}: is finished")
    return True


def digest_of(path: Path, algorithm: str) -> str:
    """The digest of a file, in hexadecimal, read in chunks of 1 MiB."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def resolved(job: Job, settings: Fetch, patience: Patience) -> Record:
    """Where the bytes are and which checksum they have: of a dump, the server's list tells.

    `latest` is resolved to the dump of a date, so that a file begun today is finished tomorrow as the same one.

    Raises:
        UserError: the server has no such dump.
    """
    address = job.address
    if not address.wikipedia:
        return Record(job.asked, address.url, address.checksum)
    name, date = wiki(address.wikipedia), address.date
    folder = f"{settings.mirror.rstrip('/')}/{name}"
    record = Record(job.asked, f"{folder}/{date}/{name}-{date}-{DUMP}", address.checksum)
    if address.checksum:
        return record
    for kind in ("sha1", "md5"):
        sums = f"{folder}/{date}/{name}-{date}-{kind}sums.txt"
        try:
            text = small_text(sums, settings.timeout_seconds, patience)
        except Missing:
            continue
        dated = r"\d{8}" if date == "latest" else date
        if found := re.search(rf"^([0-9a-f]+)\s+\*?{name}-({dated})-{re.escape(DUMP)}\s*$", text, re.MULTILINE):
            checksum, date = found.groups()
            return Record(job.asked, f"{folder}/{date}/{name}-{date}-{DUMP}", checksum)
        if date != "latest":
            raise UserError(
                f"{sums}: it lists no {DUMP}; the dump of {date} is not finished or failed, choose another date"
            )
    if date != "latest":
        raise UserError(f"{folder}/{date}/: no such dump; open {folder}/ for the dates, or take latest")
    say(f"  {job.path.name}: {folder} lists no checksum of the latest dump; fetched without")
    return record


def small_text(address: str, timeout_seconds: float, patience: Patience) -> str:
    """A short text file from the network.

    Raises:
        Missing: it is not there.
        UserError: it cannot be had.
    """
    while True:
        try:
            with open_at(address, 0, Version(), timeout_seconds) as opened:
                try:
                    text = opened.body.read(LONGEST_LIST_BYTES)
                except Exception as error:
                    raise Lost("the connection broke off") from error
                if opened.total is not None and len(text) < min(opened.total, LONGEST_LIST_BYTES):
                    raise Lost("the connection broke off")
                return text.decode("utf-8", "replace")
        except PastEnd:
            return ""
        except Lost as lost:
            patience.bear(address, lost)


def size_text(size_bytes: float) -> str:
    """Bytes in words: 3.1 GB, 12 MB, 4 kB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.{1 if size_bytes < 10 * scale else 0}f} {unit}"
    return f"{size_bytes:.0f} bytes"


class Meter:
    """One bar for all files, whose lengths become known as they are opened; their threads report here."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.lock = bar, threading.Lock()
        self.files: dict[str, tuple[int, int | None]] = {}
        self.earlier = 0
        self.began = time.monotonic()

    def reach(self, name: str, done: int, total: int | None) -> None:
        """So much of a file is there; what is there at its first report came in an earlier run."""
        with self.lock:
            if name not in self.files:
                self.earlier += done
                self.bar.begun_at = self.earlier
            self.files[name] = (done, total)
            there = sum(done for done, _ in self.files.values())
            self.bar.expect(sum(max(done, total or 0) for done, total in self.files.values()))
            rate = max(0, there - self.earlier) / max(time.monotonic() - self.began, 1e-3)
            self.bar.reach(there, f"{size_text(there)} of {size_text(self.bar.total or 0)}, {size_text(rate)}/s")
