"""Fetched files are whole and right whatever a server does; a real one on the loopback does it."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer, Trouble, serving

from mini_chat.config import Fetch, load_recipe
from mini_chat.data import download
from mini_chat.data.fetch import fetch, size_text
from mini_chat.errors import UserError

REPOSITORY = Path(__file__).parents[2]
DATA = random.Random(1).randbytes(400_000)
OTHER = random.Random(2).randbytes(400_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


class Fetcher:
    """`fetch` into a folder, with the waits noted instead of waited."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.waits: list[float] = []

    def __call__(self, *files: dict[str, Any], **settings: Any) -> list[bytes]:
        """The contents of what was fetched."""
        given = {"retries": 4, "timeout_seconds": 5.0, "directory": str(self.directory), **settings}
        return [path.read_bytes() for path in fetch(Fetch.model_validate({"files": files, **given}), self.waits.append)]

    def names(self) -> list[str]:
        """What is in the folder."""
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "dataset")


def sha(data: bytes, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, data).hexdigest()


def test_a_file_comes_and_the_next_run_asks_nothing(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA)
    assert fetcher({"url": url}) == [DATA]
    assert fetcher({"url": url}) == [DATA]
    assert server.ranges("/a.bin") == [""]
    assert fetcher.names() == [".fetch", "a.bin"]
    headers = server.asked("/a.bin")[0]
    assert headers["user-agent"].startswith("mini-chat/") and headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("drops", [[1], [399_999], [100_000, 0, 100_000], [70_000] * 4])
def test_a_dropped_connection_is_resumed_where_it_broke(drops: list[int], server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, *(Trouble(drop_after=count) for count in drops))
    assert fetcher({"url": url, "checksum": sha(DATA)}) == [DATA]
    reached = [sum(drops[: number + 1]) for number in range(len(drops))]
    assert server.ranges("/a.bin") == ["", *(f"bytes={place}-" for place in reached)]
    assert all(headers["if-range"] == '"1"' for headers in server.asked("/a.bin")[1:])
    assert server.served_bytes == len(DATA), "no byte came twice"


def test_a_file_that_changes_between_two_tries_is_begun_anew(server: FileServer, fetcher: Fetcher) -> None:
    def change() -> None:
        server.add("/a.bin", OTHER, etag='"2"')

    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000), Trouble(first=change))
    assert fetcher({"url": url}) == [OTHER]
    assert server.asked("/a.bin")[1]["if-range"] == '"1"'


@pytest.mark.parametrize(("data", "etag"), [(OTHER, '"2"'), (OTHER[:-1], '"1"')], ids=["mark", "length"])
def test_a_server_that_ignores_if_range_does_not_splice_two_versions(
    data: bytes, etag: str, server: FileServer, fetcher: Fetcher
) -> None:
    def change() -> None:
        server.files["/a.bin"].data, server.files["/a.bin"].etag = data, etag
        server.start = lambda handler, file, trouble: int(  # type: ignore[method-assign]
            handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        )

    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000), Trouble(first=change))
    assert fetcher({"url": url}) == [data]


def test_without_version_marks_a_file_is_not_resumed_unless_a_checksum_watches(
    server: FileServer, fetcher: Fetcher
) -> None:
    for name, checksum, second in (("/a", "", ""), ("/b", sha(DATA, "md5"), "bytes=200000-")):
        url = server.add(name, DATA, Trouble(drop_after=200_000), etag="", modified="")
        assert fetcher({"url": url, "checksum": checksum}) == [DATA]
        assert server.ranges(name) == ["", second]


def test_a_weak_etag_is_not_used_to_resume(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000), etag='W/"1"')
    assert fetcher({"url": url}) == [DATA]
    assert server.asked("/a.bin")[1]["if-range"] == server.files["/a.bin"].modified


def test_a_server_that_ignores_ranges_starts_over(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000), Trouble(ignore_range=True))
    assert fetcher({"url": url}) == [DATA]
    server.always["/b.bin"] = Trouble(ignore_range=True, drop_after=200_000)
    with pytest.raises(
        UserError, match=r"^http.*/b.bin: the connection ended at byte 200,000 of 400,000, after 5 tries"
    ):
        fetcher({"url": server.add("/b.bin", DATA)})


def test_a_busy_server_is_tried_again_with_doubling_waits(
    server: FileServer, fetcher: Fetcher, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = [Trouble(status=status) for status in (500, 502, 503, 408)]
    assert fetcher({"url": server.add("/a.bin", DATA, *busy)}) == [DATA]
    assert len(fetcher.waits) == 4
    assert all(0.75 * 2**number <= wait <= 1.25 * 2**number for number, wait in enumerate(fetcher.waits))
    assert "/a.bin: the server answers 500 Internal Server Error; again in 1 s" in capsys.readouterr().err


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server: FileServer, fetcher: Fetcher) -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    busy = [Trouble(status=429, headers={"Retry-After": value}) for value in ("17", date, "soon")]
    assert fetcher({"url": server.add("/a.bin", DATA, *busy)}) == [DATA]
    assert fetcher.waits[0] == 17
    assert 55 < fetcher.waits[1] <= 60
    assert fetcher.waits[2] < 6, "what is neither is not heard"


def test_too_long_a_wait_is_left_to_the_user(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(status=503, headers={"Retry-After": "7200"}))
    with pytest.raises(
        UserError, match=r"the server answers 503 .*asks to wait 2 h 00 min; run the command again then$"
    ):
        fetcher({"url": url})
    assert fetcher.waits == []


def test_progress_makes_a_failure_the_first_again(server: FileServer, fetcher: Fetcher) -> None:
    data = random.Random(3).randbytes(12_000_000)
    url = server.add("/a.bin", data, *(Trouble(drop_after=1_500_000) for _ in range(7)))
    assert fetcher({"url": url}, retries=1) == [data]
    assert max(fetcher.waits) < 1.3


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "check the address"),
        (401, "it asks for a login; fetch it by hand and give its path"),
        (403, "access is refused; look at it in a browser, or fetch it by hand and give its path"),
        (404, "no such file; check the address"),
        (410, "the file is gone; look for another address"),
    ],
)
def test_a_refusal_fails_at_once_with_a_hint(status: int, hint: str, server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(status=status))
    with pytest.raises(UserError) as caught:
        fetcher({"url": url})
    assert str(caught.value).startswith(f"{url}: the server answers {status} ")
    assert str(caught.value).endswith(f"; {hint}")
    assert len(server.requests) == 1 and fetcher.waits == []
    assert fetcher.names() == [".fetch"], "nothing is left of what never came"


def test_a_wrong_length_is_noticed(server: FileServer, fetcher: Fetcher) -> None:
    """Announced longer than it is: what is asked for behind the end is answered with the true length."""
    url = server.add("/long", DATA, Trouble(length_off=1000))
    assert fetcher({"url": url}) == [DATA]
    assert server.ranges("/long") == ["", "bytes=400000-"]
    url = server.add("/short", DATA)
    server.always["/short"] = Trouble(length_off=-1000)
    with pytest.raises(UserError, match=r"its sha1 is [0-9a-f]{40} and not [0-9a-f]{40}, twice; mend the checksum in"):
        fetcher({"url": url, "checksum": sha(DATA, "sha1")})
    assert "short" not in fetcher.names()


def test_without_a_length_the_end_is_taken_and_said(
    server: FileServer, fetcher: Fetcher, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.add("/a.bin", DATA, Trouble(no_length=True))
    assert fetcher({"url": url}) == [DATA]
    assert "a.bin: the server does not say how long it is; only a checksum would show a loss" in capsys.readouterr().err
    assert fetcher({"url": server.add("/b.bin", b"", Trouble(no_length=True)), "checksum": sha(b"")}) == [b""]


def test_without_a_length_a_checksum_shows_the_loss(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(no_length=True, drop_after=300_000))
    assert fetcher({"url": url, "checksum": sha(DATA)}) == [DATA]


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_corrupt_bytes_are_fetched_again(algorithm: str, server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(flip=1234), Trouble(flip=399_999), Trouble(drop_after=100_000))
    assert fetcher({"url": url, "checksum": sha(DATA, algorithm).upper()}) == [DATA]
    assert server.ranges("/a.bin") == ["", "", "", "bytes=100000-"]


def test_an_error_page_under_a_compressed_name_is_refused(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.xml.bz2", b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"what came is not .bz2 data \(an error page\?\); check the address$"):
        fetcher({"url": url})
    assert fetcher.names() == [".fetch"]


def test_a_silent_server_is_given_up(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(silent_seconds=1.0))
    assert fetcher({"url": url}, timeout_seconds=0.2) == [DATA]
    assert len(fetcher.waits) == 1


def test_a_server_that_is_not_there_is_one_line(fetcher: Fetcher, server: FileServer) -> None:
    url = server.add("/a.bin", DATA)
    server.http.server_close()
    with pytest.raises(
        UserError, match=r"a.bin: Connection refused, after 3 tries; run the same command again later, it"
    ):
        fetcher({"url": url}, retries=2)


def test_redirects_are_followed_in_http_only(server: FileServer, fetcher: Fetcher) -> None:
    server.add("/real.bin", DATA, Trouble(drop_after=100_000))
    url = server.add("/moved.bin", b"")
    server.always["/moved.bin"] = Trouble(status=302, headers={"Location": "/real.bin"})
    assert fetcher({"url": url}) == [DATA]
    assert server.ranges("/real.bin") == ["", "bytes=100000-"]
    for target in ("ftp://127.0.0.1/x", "file:///etc/passwd"):
        server.always["/moved.bin"] = Trouble(status=302, headers={"Location": target})
        with pytest.raises(UserError, match="redirected"):
            fetcher({"url": url, "name": "x"})
    server.always["/moved.bin"] = Trouble(status=302, headers={"Location": "/moved.bin"})
    with pytest.raises(UserError, match="redirected in a circle or to nowhere; check the address"):
        fetcher({"url": url, "name": "x"})


def test_all_files_are_tried_and_every_failure_is_a_line(server: FileServer, fetcher: Fetcher) -> None:
    urls = [server.add(f"/{number}", DATA) for number in range(6)]
    for path in ("/1", "/4"):
        server.always[path] = Trouble(status=404)
    with pytest.raises(UserError) as caught:
        fetcher(*({"url": url} for url in urls), parallel=3)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [urls[1], urls[4]]
    assert fetcher.names() == [".fetch", "0", "2", "3", "5"]


def test_several_come_at_once(server: FileServer, fetcher: Fetcher) -> None:
    together = threading.Barrier(3, timeout=10)  # each answer waits for the two others
    urls = [server.add(f"/{number}", DATA, Trouble(first=lambda: void(together.wait()))) for number in range(3)]
    assert fetcher(*({"url": url} for url in urls), parallel=3) == [DATA] * 3


def void(_: Any) -> None:
    """Nothing, whatever comes."""


def test_a_changed_or_damaged_file_is_fetched_again(
    server: FileServer, fetcher: Fetcher, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.add("/a.bin", DATA)
    fetcher({"url": url})
    path = fetcher.directory / "a.bin"
    os.utime(path, (1, 1))
    assert fetcher({"url": url}) == [DATA]
    assert len(server.requests) == 1, "another time alone does not matter: the digest is the same"
    path.write_bytes(DATA[:-1])
    assert fetcher({"url": url}) == [DATA]
    assert "is not the file asked for, or was changed; fetched again" in capsys.readouterr().err
    assert fetcher({"url": server.add("/b.bin", OTHER), "name": "a.bin"}) == [OTHER]
    assert "another address than before; fetched again" in capsys.readouterr().err


def test_a_file_that_was_brought_by_hand_is_taken(server: FileServer, fetcher: Fetcher) -> None:
    fetcher.directory.mkdir()
    for name in ("a.bin", "b.bin"):
        (fetcher.directory / name).write_bytes(DATA)
    files = ({"url": server.url + "/a.bin"}, {"url": server.url + "/b.bin", "checksum": sha(DATA, "sha1")})
    assert fetcher(*files) == [DATA, DATA]
    assert fetcher(*files) == [DATA, DATA]
    assert server.requests == []


def test_a_wrong_file_stays_until_the_right_one_is_whole(server: FileServer, fetcher: Fetcher) -> None:
    fetcher.directory.mkdir()
    (fetcher.directory / "a.bin").write_bytes(OTHER)
    url = server.add("/a.bin", DATA, *(Trouble(drop_after=1000) for _ in range(5)))
    with pytest.raises(UserError, match="after 5 tries"):
        fetcher({"url": url, "checksum": sha(DATA)})
    assert (fetcher.directory / "a.bin").read_bytes() == OTHER
    assert fetcher({"url": url, "checksum": sha(DATA)}) == [DATA]
    assert server.ranges("/a.bin")[-1] == "bytes=5000-"


DUMP = "pages-articles-multistream.xml.bz2"


def add_dump(server: FileServer, name: str, date: str, data: bytes, *folders: str, kind: str = "sha1") -> None:
    """A dump as the Wikimedia servers have it, in the folder of its date and perhaps in latest."""
    for folder in folders or (date,):
        server.add(f"/{name}/{folder}/{name}-{folder}-{DUMP}", data)
        sums = f"{sha(b'x', kind)}  {name}-{date}-pages-articles1.xml.bz2\n{sha(data, kind)}  {name}-{date}-{DUMP}\n"
        server.add(f"/{name}/{folder}/{name}-{folder}-{kind}sums.txt", sums.encode())


BZ2 = b"BZh9" + DATA


def test_a_dump_is_found_by_language_and_date_and_held_to_the_servers_checksum(
    server: FileServer, fetcher: Fetcher
) -> None:
    add_dump(server, "zhwiki", "20261101", BZ2)
    add_dump(server, "zh_yuewiki", "20261020", BZ2, kind="md5")
    server.troubles[f"/zhwiki/20261101/zhwiki-20261101-{DUMP}"] = [Trouble(flip=100_000)]
    files = ({"wikipedia": "zh", "date": 20261101}, {"wikipedia": "zh-yue", "date": "20261020"})
    assert fetcher(*files, mirror=server.url) == [BZ2, BZ2]
    assert fetcher.names() == [".fetch", f"zh_yuewiki-20261020-{DUMP}", f"zhwiki-20261101-{DUMP}"]
    asked = len(server.requests)
    assert fetcher(*files, mirror=server.url) == [BZ2, BZ2]
    assert len(server.requests) == asked


def test_latest_stays_the_dump_that_it_was_when_it_was_begun(server: FileServer, fetcher: Fetcher) -> None:
    add_dump(server, "zhwiki", "20261101", BZ2, "20261101", "latest")
    path = f"/zhwiki/20261101/zhwiki-20261101-{DUMP}"
    server.troubles[path] = [Trouble(drop_after=200_000)]
    latest = {"wikipedia": "zh"}
    with pytest.raises(UserError, match="after 1 tries"):
        fetcher(latest, mirror=server.url, retries=0)
    add_dump(server, "zhwiki", "20261120", BZ2[:-1], "20261120", "latest")
    assert fetcher(latest, mirror=server.url + "/") == [BZ2]
    assert server.ranges(path) == ["", "bytes=200000-"]
    assert fetcher.names() == [".fetch", f"zhwiki-latest-{DUMP}"]
    (fetcher.directory / f"zhwiki-latest-{DUMP}").unlink()
    (fetcher.directory / f".fetch/zhwiki-latest-{DUMP}.json").unlink()
    assert fetcher(latest, mirror=server.url) == [BZ2[:-1]]


def test_a_dump_is_resumed_from_another_mirror(server: FileServer, fetcher: Fetcher) -> None:
    add_dump(server, "zhwiki", "20261101", BZ2)
    path = f"/zhwiki/20261101/zhwiki-20261101-{DUMP}"
    server.always[path] = Trouble(drop_after=100_000)
    dump = {"wikipedia": "zh", "date": "20261101"}
    with pytest.raises(UserError, match="after 2 tries"):
        fetcher(dump, mirror=server.url, retries=1)
    with serving() as mirror:
        mirror.add(path, BZ2, etag='"of the mirror"')
        assert fetcher(dump, mirror=mirror.url) == [BZ2]
        assert mirror.ranges(path) == ["bytes=200000-"]


def test_a_mirror_may_be_a_folder(fetcher: Fetcher, tmp_path: Path) -> None:
    folder = tmp_path / "mirror/zhwiki/latest"
    folder.mkdir(parents=True)
    (folder / f"zhwiki-latest-{DUMP}").write_bytes(BZ2)
    assert fetcher({"wikipedia": "zh"}, mirror=str(tmp_path / "mirror")) == [BZ2]


def test_a_dump_that_is_not_there_or_not_finished_is_one_line(server: FileServer, fetcher: Fetcher) -> None:
    with pytest.raises(
        UserError, match=r"zhwiki/20261102/: no such dump; open .*/zhwiki/ for the dates, or take latest$"
    ):
        fetcher({"wikipedia": "zh", "date": "20261102"}, mirror=server.url)
    server.add("/zhwiki/20261102/zhwiki-20261102-sha1sums.txt", b"")
    with pytest.raises(UserError, match=r"the dump of 20261102 is not finished or failed, choose another date$"):
        fetcher({"wikipedia": "zh", "date": "20261102"}, mirror=server.url)
    with pytest.raises(UserError, match=r"zhwiki-latest-pages.*: the server answers 404 Not Found; no such file"):
        fetcher({"wikipedia": "zh"}, mirror=server.url)


def test_a_list_of_checksums_is_tried_again_too(server: FileServer, fetcher: Fetcher) -> None:
    add_dump(server, "zhwiki", "20261101", BZ2)
    server.troubles["/zhwiki/20261101/zhwiki-20261101-sha1sums.txt"] = [Trouble(status=503), Trouble(drop_after=10)]
    assert fetcher({"wikipedia": "zh", "date": "20261101"}, mirror=server.url) == [BZ2]
    assert len(fetcher.waits) == 2


def test_a_local_file_is_copied_and_checked(
    fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stick").mkdir()
    source = tmp_path / "stick/a.txt"
    source.write_bytes(DATA)
    monkeypatch.setenv("STICK", str(tmp_path / "stick"))
    assert fetcher({"url": "$STICK/a.txt", "checksum": sha(DATA)}) == [DATA]
    source.write_bytes(OTHER)
    assert (fetcher.directory / "a.txt").read_bytes() == DATA, "a copy does not change with its source"
    assert fetcher({"url": "$STICK/a.txt", "checksum": sha(OTHER)}) == [OTHER]
    source.unlink()
    assert fetcher({"url": "$STICK/a.txt"}) == [OTHER], "a finished copy does not need its source"
    assert fetcher({"url": str(fetcher.directory / "a.txt")}) == [OTHER], "it is its own source"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("no/such.txt", "no/such.txt: no such file; check the path"),
        (".", "fetch.files.0: . ends in no file name; give one as name"),
        ("../tests", "../tests: a folder; name its files, or read it in place under data.documents"),
        ("$NO_SUCH_NAME/a.txt", "$NO_SUCH_NAME/a.txt: NO_SUCH_NAME is not set; set it, or write the path out"),
        ("http://127.0.0.1:1/", "fetch.files.0: http://127.0.0.1:1/ ends in no file name; give one as name"),
        (
            "http://127.0.0.1:1/..%2F..%2Fx",
            "{url}: Connection refused, after 1 tries; run the same command again later",
        ),
        ("http://127.0.0.1:1/%2E%2E", "fetch.files.0: {url} ends in no file name; give one as name"),
        ("http://127.0.0.1:port/a", "{url}: not an address (nonnumeric port: 'port'); mend it"),
    ],
)
def test_a_bad_address_is_one_line_and_leads_nowhere_else(
    url: str, line: str, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY / "tests")
    with pytest.raises(UserError) as caught:
        fetcher({"url": url}, retries=0)
    assert str(caught.value).startswith(line.format(url=url))
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"dataset"}


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("{}", "give url or wikipedia, one of both"),
        ("{url: a, wikipedia: zh}", "give url or wikipedia, one of both"),
        ("{url: 'ftp://x/y'}", "url ftp://x/y: give http://, https:// or a path on this machine"),
        ("{url: 'https:///y'}", "url https:///y: give http://, https:// or a path on this machine"),
        ("{wikipedia: ../zh}", "wikipedia ../zh: give a language code as in its address: en, zh, simple"),
        ("{wikipedia: zh, date: 1101}", "date 1101: give the eight digits of a dump's date (20261101), or latest"),
        ("{url: a, name: ../b}", "name ../b: give a bare file name, without / or \\ and no dot before it"),
        ("{url: a, name: .hidden}", "name .hidden: give a bare file name, without / or \\ and no dot before it"),
        ("{url: a, checksum: abc}", "checksum abc: give 32 (md5), 40 (sha1) or 64 (sha256) hexadecimal digits"),
    ],
)
def test_a_bad_recipe_is_told_before_anything_is_fetched(address: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"fetch: {{files: [{address}]}}")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: fetch.files.0: {line}"


def test_two_files_of_one_name_are_refused(fetcher: Fetcher) -> None:
    with pytest.raises(
        UserError, match=r"^fetch.files.1: another file is called x too; give one of them another name$"
    ):
        fetcher({"url": "a/x"}, {"url": "b/x"})


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^fetch.directory .*/file/d: cannot make it \(Not a directory\); choose another"
    ):
        Fetcher(tmp_path / "file/d")({"url": "a"})


def test_too_small_a_disk_is_told_before_the_first_byte(
    server: FileServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_200_000

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage)
    url = server.add("/a.bin", DATA)
    with pytest.raises(
        UserError, match=r"/a.bin: 0 MB are to come and 1 MB are free; free space, or set fetch.directory"
    ):
        fetcher({"url": url})
    assert fetcher.names() == [".fetch"]


def test_a_full_disk_is_one_line_and_the_download_goes_on_afterwards(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, limits[1]))
    try:
        with pytest.raises(UserError) as caught:
            fetcher({"url": url})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    partial = fetcher.directory / "a.bin.partial"
    assert str(caught.value) == (
        f"{partial}: cannot write (File too large); free space and run the same command again, it goes on where it "
        "broke off"
    )
    assert fetcher.names() == [".fetch", "a.bin.partial"]
    assert fetcher({"url": url}) == [DATA]
    assert server.ranges("/a.bin") == ["", "bytes=250000-"]


def test_a_damaged_record_is_no_record(server: FileServer, fetcher: Fetcher) -> None:
    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000))
    with pytest.raises(UserError):
        fetcher({"url": url}, retries=0)
    strange = json.dumps({"asked": url, "address": url, "flushed": "many"})
    for content in (strange, "{", "[]", '{"asked": 1}', '{"asked": "x", "address": "y", "colour": 3}'):
        (fetcher.directory / ".fetch/a.bin.json").write_text(content)
        server.troubles["/a.bin"] = [Trouble(drop_after=200_000)]
        with pytest.raises(UserError):
            fetcher({"url": url}, retries=0)
    assert fetcher({"url": url}) == [DATA]


def test_bytes_that_are_not_surely_on_the_disk_are_not_trusted(server: FileServer, fetcher: Fetcher) -> None:
    """A power cut can leave a file long and its end empty; what the record vouches for counts."""
    url = server.add("/a.bin", DATA, Trouble(drop_after=200_000))
    with pytest.raises(UserError):
        fetcher({"url": url}, retries=0)
    with open(fetcher.directory / "a.bin.partial", "ab") as file:
        file.write(bytes(300_000))  # longer than the file will be
    assert fetcher({"url": url}) == [DATA]
    assert server.ranges("/a.bin") == ["", "bytes=200000-"]


def recipe(server: FileServer, tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "recipe.yaml"
    files = [{"url": f"{server.url}/{name}"} for name in names]
    given = {"out": str(tmp_path / "run"), "fetch": {"files": files, "directory": str(tmp_path / "dataset")}}
    path.write_text(json.dumps(given))
    return path


# Marks every 64 KiB, so that a kill finds something to go on with.
CHILD = "import sys; from mini_chat.data import download; download.MARK_BYTES = 1 << 16; "
CHILD += "from mini_chat.cli import main; sys.exit(main(['fetch', sys.argv[1]]))"


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again, ten seconds at most."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_instants_change_no_byte(kills: int, server: FileServer, tmp_path: Path) -> None:
    server.add("/a.bin", DATA * 3)
    server.add("/b.bin", OTHER * 3)
    server.chunk_seconds = 0.06
    path, instants, resumed = recipe(server, tmp_path, "a.bin", "b.bin"), random.Random(kills), 0
    for _ in range(kills):
        before = len(server.requests)
        child = start(path)
        wait_for(lambda: len(server.requests) > before or child.poll() is not None)  # noqa: B023 - called at once
        time.sleep(instants.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        resumed += any(headers.get("range") for _, headers in server.requests[before:])
        for name, data in (("a.bin", DATA), ("b.bin", OTHER)):
            if (tmp_path / "dataset" / name).exists():
                assert (tmp_path / "dataset" / name).read_bytes() == data * 3, "never half a file under its name"
    server.chunk_seconds = 0.0
    child = start(path)
    assert child.wait(60) == 0
    assert (tmp_path / "dataset/a.bin").read_bytes() == DATA * 3
    assert (tmp_path / "dataset/b.bin").read_bytes() == OTHER * 3
    assert sorted(file.name for file in (tmp_path / "dataset").iterdir()) == [".fetch", "a.bin", "b.bin"]
    assert resumed >= 1


def test_a_second_process_on_the_same_file_is_refused_and_ctrl_c_keeps_what_came(
    server: FileServer, tmp_path: Path
) -> None:
    server.add("/a.bin", DATA * 3)
    server.chunk_seconds = 0.4
    first = start(recipe(server, tmp_path, "a.bin"))
    wait_for(lambda: server.served_bytes > 200_000)
    with pytest.raises(UserError, match=r"/a.bin: another mini-chat process is fetching it; wait for it or set fetch"):
        Fetcher(tmp_path / "dataset")({"url": f"{server.url}/a.bin"})
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=20)
    assert first.returncode == 130
    assert said.splitlines()[-1].startswith("mini-chat fetch: interrupted;") and "Traceback" not in said
    server.chunk_seconds = 0.0
    assert Fetcher(tmp_path / "dataset")({"url": f"{server.url}/a.bin"}) == [DATA * 3]
    assert int(server.ranges("/a.bin")[-1].removeprefix("bytes=").removesuffix("-")) > 100_000


def test_the_bar_shows_all_files_together(
    server: FileServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mini_chat.console.LINE_SECONDS", -1.0)
    fetcher({"url": server.add("/a.bin", DATA)}, {"url": server.add("/b.bin", OTHER)})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  fetch ")]
    assert "800,000/800,000 bytes  800 kB of 800 kB, " in lines[-1]
    assert lines[-1].endswith("/s  0 s left")


@pytest.mark.parametrize(
    ("size", "text"), [(7, "7 bytes"), (4_200, "4.2 kB"), (12e6, "12 MB"), (3.14e9, "3.1 GB"), (45e9, "45 GB")]
)
def test_sizes_are_said_in_words(size: float, text: str) -> None:
    assert size_text(size) == text
