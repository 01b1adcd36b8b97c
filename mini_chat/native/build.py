"""Compiles the C++ of this folder for the processor at hand, once, and keeps the result in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from mini_chat.errors import UserError

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
ON_X86 = ("-mprefer-vector-width=512",)
"""Where vectors of 512 bits are there at all; compilers prefer 256 of themselves, at half the rate."""
LIBRARY = ("-shared", "-fPIC", "-fopenmp")
TIMEOUT_S = 300


def built() -> Path:
    """The shared library of all source files, from the cache or compiled now.

    Raises:
        UserError: there is no compiler, or it cannot compile it.
    """
    compiler = _compiler()
    command = [*compiler, *FLAGS, *(ON_X86 if platform.machine() in {"x86_64", "AMD64"} else ()), *LIBRARY]
    path = cache_directory() / f"kernels-{_fingerprint(command)}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            words = [*command, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(made)]
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode:
                raise UserError(f"{compiler[0]} cannot compile them ({_first_error(done.stderr)})")
            made.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"they cannot be compiled into {path.parent} ({error})") from None
    return path


def cache_directory() -> Path:
    """Where compiled code is kept: XDG_CACHE_HOME, or ~/.cache; where neither can be written, a temporary directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    there = next(parent for parent in (base, *base.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "mini-chat"


def _compiler() -> list[str]:
    """The command of $CXX, or of the first compiler that is there."""
    if given := shlex.split(os.environ.get("CXX", "")):
        return given
    if found := next(filter(None, map(shutil.which, COMPILERS)), None):
        return [found]
    raise UserError(f"there is no C++ compiler ({', '.join(COMPILERS)})")


def _fingerprint(command: list[str]) -> str:
    """Of all that the library depends on: sources, compiler and its version, flags, processor."""
    whole = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            whole.update(path.read_bytes())
    try:
        version = subprocess.run([*command[:1], "--version"], capture_output=True, timeout=TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not run ({error})") from None
    whole.update(version + " ".join(command).encode() + _processor().encode())
    return whole.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do, as the kernel tells it; a home directory may be shared by several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    about = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "".join(about[:2]) or platform.processor() + platform.platform()


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it says nothing"]
    return next((line for line in lines if "error" in line), lines[0]).strip()[:160]
