"""Compiles the C++ of this folder for the processor at hand, once, and keeps the result in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from mini_chat.console import say
from mini_chat.errors import UserError
from mini_chat.files import fsync_path

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-mprefer-vector-width=512",  # where there are any; compilers prefer 256 bits of themselves, at half the rate
)
LIBRARY = ("-shared", "-fPIC", "-fopenmp")
TIMEOUT_S = 300


def built() -> Path:
    """The shared library of all source files, from the cache or compiled now.

    Processes that start together wait for the first one to compile it.

    Raises:
        UserError: there is no compiler, it cannot compile them, or there is nowhere to put the result.
    """
    name = f"kernels-{_fingerprint()}.so"
    try:
        directory = own_directory(cache_directory())
        path = directory / name
        with open(directory / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _compile(path)
    except OSError as error:
        raise UserError(f"they cannot be kept ({error}); set XDG_CACHE_HOME to a directory of yours") from None
    return path


def cache_directory() -> Path:
    """Where compiled code is kept: XDG_CACHE_HOME, or ~/.cache; where neither can be written, a temporary directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    try:
        there = next(parent for parent in (base, *base.parents) if parent.exists())
        if os.access(there, os.W_OK):
            return base / "mini-chat"
    except OSError:  # a home of somebody else's
        pass
    return Path(tempfile.gettempdir()) / f"mini-chat-{os.getuid()}"


def own_directory(path: Path) -> Path:
    """The directory, made if need be, in which nobody else can have left code for us to run.

    Raises:
        UserError: it is not ours alone; anybody may make one in a temporary directory.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path} is not a directory that only you can write; remove it, or set XDG_CACHE_HOME")
    return path


def _compile(path: Path) -> None:
    """Compile into a directory beside the path, and move the result there when it is whole."""
    compiler = _compiler()
    say("compiling kernels for this processor, once")
    words = [*compiler, *FLAGS, *LIBRARY, *map(str, sorted(SOURCES.glob("*.cpp")))]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        try:
            done = subprocess.run(
                [*words, "-o", str(made)], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{compiler[0]} did not compile them within {TIMEOUT_S} s") from None
        except OSError as error:
            raise UserError(f"{compiler[0]} does not run ({error})") from None
        if done.returncode:
            raise UserError(f"{compiler[0]} cannot compile them ({_first_error(done.stderr)})")
        fsync_path(made)
        made.replace(path)


def _compiler() -> list[str]:
    """The command of $CXX, or of the first compiler that is there."""
    try:
        given = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise UserError(f"CXX is no command ({error})") from None
    if given:
        return given
    if found := next(filter(None, map(shutil.which, COMPILERS)), None):
        return [found]
    raise UserError(f"there is no C++ compiler; install one ({', '.join(COMPILERS)})")


def _fingerprint() -> str:
    """Of what the library is made from and for; whichever compiler made it, it stays, and so do the bits of a run."""
    whole = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            whole.update(path.read_bytes())
    whole.update(" ".join([os.environ.get("CXX", ""), *FLAGS, _processor()]).encode())
    return whole.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do, as the kernel tells it; a home directory may be shared by several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    about = [line for line in lines if line.startswith(("model name", "flags"))]
    return "".join(about[:2]) or platform.processor() + platform.platform()


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it says nothing"]
    return next((line for line in lines if "error" in line), lines[0]).strip()[:160]
