"""A virtual environment for what benchmarks compare with and nothing else uses; licences there do not matter."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from mini_chat.console import say
from mini_chat.errors import UserError
from mini_chat.files import read_json, write_json

VENV = Path(__file__).parent.parent / "build" / "bench-venv"


def bench_python(packages: list[str]) -> Path:
    """The Python of `build/bench-venv`, with these packages (as pip takes them: `zhconv==1.4.3`) installed.

    What is installed already is not asked for again; two benchmarks at once wait for each other.

    Raises:
        UserError: the environment cannot be made, or a package cannot be installed.
    """
    python, note = VENV / "bin" / "python", VENV / "installed.json"
    VENV.parent.mkdir(exist_ok=True)
    with open(VENV.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not python.is_file():
            say(f"benchmarks: making {VENV}, for packages that are only compared with")
            run([sys.executable, "-m", "venv", str(VENV)])
        installed = read_json(note) if note.is_file() else []
        if missing := [package for package in packages if package not in installed]:
            say(f"benchmarks: installing {', '.join(missing)} into {VENV}")
            run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing])
            write_json(note, sorted({*installed, *missing}))
    return python


def run(command: list[str]) -> str:
    """Run a command to its end; returns its standard output.

    Raises:
        UserError: it failed; its last line is told.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise UserError(f"{' '.join(command[:4])} …: {last}; mend it and run the benchmark again")
    return done.stdout
