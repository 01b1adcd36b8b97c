"""A file behind an address, opened at any of its bytes: over HTTP(S), or on this machine.

What goes wrong is either `Lost`, which another try may mend (a dropped connection, a server that is busy), or a
`UserError`, which it will not (no such file, access refused). HTTP is the standard library's: redirects, proxies from
the environment and certificates are in it, and a resumed download needs no more.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from mini_chat import __version__
from mini_chat.console import duration, say
from mini_chat.errors import UserError

USER_AGENT = f"mini-chat/{__version__} (fetches training text; resumes, and waits when asked to)"
# Statuses that pass: request timeout, too early, too many requests, and whatever the server blames on itself.
PASSING = {408, 425, 429}
LONGEST_WAIT_SECONDS = 600.0
HINTS = {
    401: "it asks for a login; fetch it by hand and give its path",
    403: "access is refused; look at it in a browser, or fetch it by hand and give its path",
    404: "no such file; check the address",
    410: "the file is gone; look for another address",
    451: "withheld for legal reasons; look for another address",
}


class Lost(Exception):  # noqa: N818 - a failure that another try may mend; never leaves the download
    """The file, or the rest of it, did not come; `wait_seconds` is what the server asked for."""

    def __init__(self, what: str, wait_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.wait_seconds = what, wait_seconds


class PastEnd(Exception):  # noqa: N818 - an answer to a question
    """The file ends at or before the byte asked for; `size` is its length, where the server says it."""

    def __init__(self, size: int | None) -> None:
        super().__init__(size)
        self.size = size


class Missing(UserError):  # noqa: N818 - reads as what it says
    """There is no such file at the address."""


class Patience:
    """How often a failure is forgiven, and how long to wait before the next try."""

    def __init__(self, retries: int, pause: Callable[[float], Any]) -> None:
        self.retries, self.pause, self.failures = retries, pause, 0

    def bear(self, address: str, lost: Lost) -> None:
        """Wait before the next try: a second, then twice as long each time, or as long as the server asks for.

        The wait is scattered by a quarter, so that many clients do not come back all at once.

        Raises:
            UserError: the tries are used up, or the server asks for too long a wait.
        """
        self.failures += 1
        if self.failures > self.retries:
            raise UserError(
                f"{address}: {lost.what}, after {self.failures} tries; run the same command again later, it goes on "
                "where it broke off"
            )
        if lost.wait_seconds > LONGEST_WAIT_SECONDS:
            raise UserError(
                f"{address}: {lost.what} and asks to wait {duration(lost.wait_seconds)}; run the command again then"
            )
        backoff = min(2.0 ** (self.failures - 1), LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25)
        wait = max(backoff, lost.wait_seconds)
        say(f"  {address}: {lost.what}; again in {duration(wait)}")
        self.pause(wait)

    def calm(self) -> None:
        """There was progress: the next failure is the first again."""
        self.failures = 0


class Version(NamedTuple):
    """What tells one state of a file from another; empty where the server says nothing."""

    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """For `If-Range`, which takes no weak tag (RFC 9110, 13.1.5)."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Opened(NamedTuple):
    """An open file: `body` gives the bytes from `start` on."""

    body: IO[bytes]
    start: int
    total: int | None
    """Length of the whole file; None where the server does not say."""
    version: Version


def is_http(address: str) -> bool:
    """Whether the address is on the network."""
    return re.match(r"https?://", address, re.IGNORECASE) is not None


def local_path(address: str) -> Path:
    """The path that an address on this machine is, with `$NAME` and `~` replaced.

    Raises:
        UserError: no file there, a folder, or a name that is not in the environment.
    """
    expanded = os.path.expandvars(address)
    if (unset := re.search(r"\$\{?(\w+)", expanded)) and not Path(expanded).exists():
        raise UserError(f"{address}: {unset.group(1)} is not set; set it, or write the path out")
    path = Path(expanded).expanduser()
    if path.is_dir():
        raise UserError(f"{address}: a folder; name its files, or read it in place under data.documents")
    if not path.is_file():
        raise Missing(f"{address}: no such file; check the path")
    return path


@contextlib.contextmanager
def open_at(address: str, start: int, version: Version, timeout_seconds: float) -> Iterator[Opened]:
    """Open the file, from byte `start` on if it still is `version`, else (and from servers that cannot) from its first.

    Raises:
        Lost: another try may mend it.
        PastEnd: `start` is at its end or behind it.
        UserError: another try will not.
    """
    opened = open_http(address, start, version, timeout_seconds) if is_http(address) else open_local(address, start)
    with opened.body:
        yield opened


def open_local(address: str, start: int) -> Opened:
    """Open a file of this machine; its size and time are its version."""
    path = local_path(address)
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by open_at
    except OSError as error:
        raise UserError(f"{address}: cannot read ({error.strerror}); check its permissions") from error
    found = os.fstat(file.fileno())
    if start and start >= found.st_size:
        file.close()
        raise PastEnd(found.st_size)
    file.seek(start)
    return Opened(file, start, found.st_size, Version(etag=f'"{found.st_size}-{found.st_mtime_ns}"'))


def open_http(address: str, start: int, version: Version, timeout_seconds: float) -> Opened:
    """Ask a server for the file, or for its bytes from `start` on."""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.validator:
            headers["If-Range"] = version.validator
    try:
        response = _opener().open(urllib.request.Request(quoted(address), headers=headers), timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise refusal(address, error) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise UserError(f"{address}: not an address ({error}); mend it") from error
    except (OSError, http.client.HTTPException) as error:
        raise lost(address, error) from error
    try:
        return answered(response, start)
    except Lost:
        response.close()
        raise


def answered(response: Any, start: int) -> Opened:
    """Read a successful answer's headers: 206 for a part, 200 for the whole."""
    headers = response.headers
    version = Version(headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip())
    if response.status == 206:
        part = re.match(r"bytes\s+(\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if not part:
            raise Lost(f"a part of the file came, of which the server does not say which (asked for {start}-)")
        return Opened(response, int(part[1]), None if part[2] == "*" else int(part[2]), version)
    if response.status != 200:
        raise Lost(f"the server answers {response.status} {response.reason}".rstrip())
    return Opened(response, 0, response.length, version)


def refusal(address: str, error: urllib.error.HTTPError) -> Exception:
    """What an error status means to the one who asked."""
    said = f"the server answers {error.code} {error.reason}".rstrip()
    if error.code == 416:
        size = re.match(r"bytes\s+\*/(\d+)", error.headers.get("Content-Range", ""))
        return PastEnd(int(size[1]) if size else None)
    if error.code in PASSING or error.code >= 500:
        return Lost(said, retry_after(error.headers.get("Retry-After", "")))
    if 300 <= error.code < 400:
        return UserError(f"{address}: redirected in a circle or to nowhere; check the address")
    kind = Missing if error.code in {404, 410} else UserError
    return kind(f"{address}: {said}; {HINTS.get(error.code, 'check the address')}")


def retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks for, given as seconds or as a date; 0 if it is neither."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def lost(address: str, error: Exception) -> Exception:
    """What an error of the network means: mostly that it is worth another try."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        said = f"its certificate does not hold ({reason.verify_message})"
        return UserError(f"{address}: {said}; check the address and this machine's clock and certificates")
    if str(reason).startswith("unknown url type"):
        return UserError(f"{address}: redirected to what is not http:// or https:// ({reason}); check the address")
    if isinstance(reason, TimeoutError):
        return Lost("the server is silent")
    if isinstance(reason, http.client.IncompleteRead):
        return Lost("the connection broke off")
    return Lost(str(getattr(reason, "strerror", None) or reason) or type(reason).__name__)


def quoted(address: str) -> str:
    """The address with what no URL may hold (spaces, Chinese characters) percent-encoded; what is encoded stays so."""
    return urllib.parse.quote(address.strip(), safe="%/:=&?~#+!$,;'@()*[]")


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS and nothing else: a redirect to file: or ftp: is refused."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
