"""What the terminal promises, seen from the keyboard: a real pseudo-terminal, 80 columns wide, a real process."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from mini_chat.chat.chat_terminal import Terminal, TerminalOptions, answer_once, main_chat, read_prompt, run_terminal
from mini_chat.chat.engine import ChatEngine
from mini_chat.chat.sampling import GREEDY, Sampling
from mini_chat.errors import UserError

CHAT = "import sys; from mini_chat.chat.chat_terminal import main_chat; sys.exit(main_chat({directory!r}, {options}))"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Keyboard:
    """A process in a pseudo-terminal of 80 columns and 24 lines."""

    def __init__(self, directory: Path, options: str) -> None:
        self.screen = ""
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHAT.format(directory=str(directory), options=options)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode("utf-8", "surrogateescape"))

    def press_ctrl_c(self) -> None:
        """Press it as late as a person would: in the instant between prompt and wait, readline does not hear it."""
        time.sleep(0.2)
        self.type("\x03")

    def read_until(self, pattern: str, seconds: float = 60) -> str:
        """What appeared since the last call, up to the first match of `pattern`."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.screen)):
            if not select.select([self._controller], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.screen!r}")
            try:
                self.screen += os.read(self._controller, 65536).decode("utf-8", "replace")
            except OSError as error:  # the other side is closed
                raise AssertionError(f"ended without {pattern!r}: {self.screen!r}") from error
        seen, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return ESCAPE.sub("", seen).replace("\r", "")

    def read_to_the_end(self) -> str:
        """Everything up to the end of the process."""
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._controller, 65536):
                self.screen += data.decode("utf-8", "replace")
        return self.screen

    def close(self) -> int:
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()
            os.close(self._controller)


@pytest.fixture
def keyboard(directory: Path) -> Iterator[Keyboard]:
    keyboard = Keyboard(directory, "seed=1, max_new_tokens=150, temperature=1.0, top_k=10")
    yield keyboard
    if keyboard.process.poll() is None:
        keyboard.process.kill()
        keyboard.process.wait()


def test_a_session_at_the_keyboard(keyboard: Keyboard) -> None:
    greeting = keyboard.read_until("you> ")
    assert "context 4096 tokens" in greeting and "/help" in greeting and "输入消息" in greeting

    keyboard.type("你好！\n")
    answer = keyboard.read_until("you> ")
    lines = answer.splitlines()
    assert len(lines) > 4 and all(cell_len(line) <= 80 for line in lines)
    assert max(cell_len(line) for line in lines) > 70  # wrapped at the terminal's width, not at another
    figures = re.search(r"(\d+) tokens/s · context (\d+)/4096 tokens · cut at max_new_tokens", answer)
    assert figures and int(figures[1]) > 0 and int(figures[2]) > 150

    keyboard.type("/set max_new_tokens 100000\n")
    keyboard.read_until("max_new_tokens 100000(?s:.*)you> ")
    keyboard.type("again\n")
    keyboard.read_until("bot> (?s:.{80})")
    keyboard.press_ctrl_c()  # it stops the answer, not the program
    assert "stopped" in keyboard.read_until("tokens · stopped(?s:.*)you> ", seconds=15)

    keyboard.type("half a line")
    keyboard.read_until("half a line")
    keyboard.press_ctrl_c()  # at the prompt it hints
    assert "Ctrl-C again" in keyboard.read_until("Ctrl-C again(?s:.*)you> ")
    keyboard.type("\udcff\n")
    assert "not valid UTF-8" in keyboard.read_until("not valid UTF-8(?s:.*)you> ")
    keyboard.type("/clar\n")
    assert "did you mean /clear?)" in keyboard.read_until("/help lists(?s:.*)you> ")
    keyboard.press_ctrl_c()
    assert "Ctrl-C again" in keyboard.read_until("Ctrl-C again(?s:.*)you> ")
    keyboard.press_ctrl_c()  # at an empty prompt the second leaves, and one too many does no harm
    keyboard.type("\x03\x03")
    assert "Traceback" not in keyboard.read_to_the_end()
    assert keyboard.close() == 0


def run_piped(directory: Path, options: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", CHAT.format(directory=str(directory), options=options)]
    return subprocess.run(command, input=data, capture_output=True, timeout=60)


def test_piped_lines_get_plain_answers_and_a_bad_line_is_named(directory: Path) -> None:
    result = run_piped(directory, "temperature=0, max_new_tokens=8", "你好\n\n/set\n".encode() + b"\xff\nhello\n")
    answers = result.stdout.decode().splitlines()
    assert len(answers) == 2 and "\x1b" not in result.stdout.decode()
    assert "standard input, line 4: not valid UTF-8 at byte 1" in result.stderr.decode()
    assert "loading" not in result.stderr.decode() and "Traceback" not in result.stderr.decode()
    assert result.returncode == 1


def test_one_shot_ends_with_130_on_ctrl_c_and_quietly_when_the_reader_leaves(directory: Path) -> None:
    options = "prompt='hi', temperature=0, max_new_tokens=100000"
    command = [sys.executable, "-c", CHAT.format(directory=str(directory), options=options)]
    stopped, left = (subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2))
    with stopped, left:
        assert stopped.stdout and stopped.stderr and left.stdout and left.stderr
        stopped.stdout.read(1)
        stopped.send_signal(signal.SIGINT)
        left.stdout.read(1)
        left.stdout.close()
        assert (stopped.wait(30), stopped.stderr.read()) == (130, b"")
        assert (left.wait(30), left.stderr.read()) == (141, b"")


# Within this process: what is said and what is remembered


def give_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_one_shot_prints_the_answer_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    give_input(monkeypatch, "你好\n".encode())
    knobs: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 12}
    assert main_chat(str(directory), prompt="-", device="cpu", **knobs) == 0
    engine = ChatEngine.load(directory, "cpu")
    expected = "".join(engine.stream([{"role": "user", "content": "你好"}], GREEDY, 12))
    assert capfd.readouterr() == (expected.lstrip() + "\n", "")


def test_ctrl_d_leaves(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def press(prompt: str) -> str:
        raise EOFError

    terminal.tty = True
    monkeypatch.setattr("builtins.input", press)
    assert terminal.run() == 0
    assert "Ctrl-D leaves" in capsys.readouterr().out


@pytest.fixture
def terminal(engine: ChatEngine) -> Terminal:
    return Terminal(engine, TerminalOptions(Sampling(seed=1), max_new_tokens=10))


def test_turns_are_remembered_and_clear_forgets_them(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.handle("hello")
    terminal.handle("again")
    assert [message["role"] for message in terminal.history] == ["user", "assistant"] * 2
    assert terminal.history[1]["content"].strip() in capsys.readouterr().out
    terminal.handle("/clear")
    assert terminal.history == []


def test_dropped_turns_are_announced(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.handle("/system You are a cat.")
    for number in range(6):
        terminal.handle(f"question number {number}")
    said = capsys.readouterr().err
    assert re.search(r"oldest turn dropped: the context is 128 tokens .*1 轮", said)
    assert terminal.history[0]["role"] == "user" and len(terminal.history) < 12


def test_a_message_that_does_not_fit_is_refused_and_the_talk_goes_on(terminal: Terminal) -> None:
    terminal.handle("hello")
    before = list(terminal.history)
    with pytest.raises(UserError, match="the context is 128"):
        terminal.handle("tea " * 500)
    assert terminal.history == before


def test_a_stopped_answer_is_kept_as_said_so_far(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.options = TerminalOptions(Sampling(temperature=2.0, top_p=1, top_k=0, seed=1), max_new_tokens=100)
    choose = terminal.engine.next_scores
    steps = iter(range(100))

    def press(*args: Any) -> object:
        if next(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return choose(*args)

    monkeypatch.setattr(terminal.engine, "next_scores", press)
    with pytest.raises(KeyboardInterrupt):  # not at a terminal: Ctrl-C also ends the program
        terminal.handle("hello")
    assert [message["role"] for message in terminal.history] == ["user", "assistant"]
    assert terminal.history[1]["content"]


def test_set_changes_what_it_names(terminal: Terminal) -> None:
    for line in (
        "/set temperature 0.5",
        "/set top_k=7",
        "/set seed none",
        "/set max_new_tokens 33",
        "/system 你是猫。",
    ):
        assert terminal.handle(line)
    assert terminal.options == TerminalOptions(Sampling(temperature=0.5, top_k=7), "你是猫。", 33)
    assert terminal.handle("/exit") is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temprature 1", "did you mean temperature"),
        ("/set temperature hot", "'hot' is not a number"),
        ("/set top_k 1.5", "not a whole number"),
        ("/set top_p 2", "top_p is 2.0; it must be"),
        ("/set max_new_tokens 0", "max_new_tokens is 0"),
        ("/hepl", "did you mean /help"),
    ],
)
def test_a_bad_command_is_answered_with_the_remedy(terminal: Terminal, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        terminal.handle(line)


@pytest.mark.parametrize("prompt", ["", "  \n", "broken \udcff"])
def test_a_bad_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="prompt"):
        read_prompt(prompt)


def test_invalid_utf8_on_standard_input_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_input(monkeypatch, b"caf\xe9")
    with pytest.raises(UserError, match="standard input: not valid UTF-8 at byte 4"):
        main_chat(str(tmp_path), prompt="-")


def test_a_prompt_beyond_the_context_is_refused(engine: ChatEngine) -> None:
    with pytest.raises(UserError, match=r"prompt has \d+ tokens, the context is 128"):
        answer_once(engine, "cat " * 120, TerminalOptions())


def test_no_input_at_all_is_a_quiet_end(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    give_input(monkeypatch, b"")
    assert run_terminal(engine, TerminalOptions()) == 0
