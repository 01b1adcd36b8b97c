"""The chat in a terminal: type, read the answer as it comes, stop it with Ctrl-C.

On a terminal there are colours, a prompt and a line of figures after each answer. Where standard output goes
elsewhere, it holds the answers and nothing else, and whatever there is to say goes to standard error.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mini_chat.chat.sampling import Sampling
from mini_chat.chat.text_stream import LineWrapper, printable
from mini_chat.console import abandon_output
from mini_chat.errors import UserError

if TYPE_CHECKING:
    from mini_chat.chat.engine import AnswerStream, ChatEngine, Message

INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + signal.SIGPIPE

GREETING = """\
Type a message. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.
输入消息即可对话。/help 查看命令，Ctrl-C 停止回答，Ctrl-D 退出。
"""

HELP = """\
/clear           forget the conversation  清空对话
/system TEXT     set the system message, or remove it  设置或删除系统提示
/set             show the settings  查看参数
/set NAME VALUE  change one, as in /set temperature 0.5  修改参数
/help            this list  显示帮助
/exit            leave, as does Ctrl-D  退出
"""

COMMANDS = ("/clear", "/system", "/set", "/help", "/exit")
SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "max_new_tokens")
WHOLE_NUMBERS = ("top_k", "seed", "max_new_tokens")

BOLD_CYAN, BOLD_GREEN, DIM, RED, RESET = "\x1b[1;36m", "\x1b[1;32m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True)
class TerminalOptions:
    """What the chat begins with; `/set` and `/system` change it."""

    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    """The system message, or none."""
    max_new_tokens: int = 256
    """An answer is cut after so many tokens."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be a whole number, 1 or more")


def main_chat(
    directory: str,
    *,
    prompt: str | None = None,
    system: str | None = None,
    temperature: float = Sampling.temperature,
    top_p: float = Sampling.top_p,
    top_k: int = Sampling.top_k,
    repetition_penalty: float = Sampling.repetition_penalty,
    seed: int | None = None,
    max_new_tokens: int = TerminalOptions.max_new_tokens,
    device: str | None = None,
) -> int:
    """Chat with the model in `directory`; with a `prompt` ("-": standard input) answer that and leave.

    Returns:
        the exit status: 0, or 130 when Ctrl-C ended it, or 1 when a line of piped input could not be answered.

    Raises:
        UserError: a bad option, prompt or directory.
    """
    options = TerminalOptions(Sampling(temperature, top_p, top_k, repetition_penalty, seed), system, max_new_tokens)
    if system is not None:
        check_text(system, "the system message")
    if prompt is not None:
        prompt = read_prompt(prompt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" and goes on
    try:
        if sys.stderr.isatty() and prompt is None:
            print(f"loading {directory} ...", file=sys.stderr)
        from mini_chat.chat.engine import ChatEngine

        engine = ChatEngine.load(directory, device)
        if prompt is not None:
            return answer_once(engine, prompt, options)
        status = run_terminal(engine, options)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one Ctrl-C too many must not disturb the way out
        return status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    except BrokenPipeError:
        abandon_output()
        return PIPE_CLOSED


def check_text(text: str, name: str) -> None:
    """Raise UserError where bytes that are no UTF-8 came in through the command line or the keyboard."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: not valid UTF-8 at character {error.start + 1}; give it in UTF-8") from error


def decode_text(data: bytes, name: str) -> str:
    """`data` as UTF-8, or a UserError that says where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not valid UTF-8 at byte {error.start + 1}; convert it to UTF-8") from error


def read_prompt(prompt: str) -> str:
    """The prompt of a one-shot answer, from the argument or, for "-", from standard input."""
    if prompt == "-":
        prompt = decode_text(sys.stdin.buffer.read(), "standard input").rstrip("\r\n")
    check_text(prompt, "the prompt")
    if not prompt.strip():
        raise UserError("the prompt is empty; give a text, or - to read it from standard input")
    return prompt


def answer_once(engine: ChatEngine, prompt: str, options: TerminalOptions) -> int:
    """Print the answer to one prompt, and nothing else, on standard output."""
    messages: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    messages.append({"role": "user", "content": prompt})
    messages, _ = engine.fit(messages, options.max_new_tokens)
    with interrupt_sets() as stop_event:
        answer = engine.stream(messages, options.sampling, options.max_new_tokens, stop_event)
        show_answer(answer, column=0)
        print(flush=True)
    return INTERRUPTED if stop_event.is_set() else 0


def run_terminal(engine: ChatEngine, options: TerminalOptions) -> int:
    """Converse until the user leaves or the input ends; the exit status is returned."""
    return Terminal(engine, options).run()


def show_answer(answer: AnswerStream, column: int) -> str:
    """Print an answer as it comes, wrapped if this is a terminal; its whole text is returned."""
    wrapper = LineWrapper(terminal_width, column) if sys.stdout.isatty() else None
    text = ""
    for piece in answer:
        shown = piece if text.strip() else piece.lstrip()
        text += piece
        print(wrapper.push(shown) if wrapper else shown, end="", flush=True)
    if wrapper:
        print(wrapper.finish(), end="", flush=True)
    return text


def terminal_width() -> int:
    """Cells in a line of the terminal, at least 20."""
    return max(20, shutil.get_terminal_size((80, 24)).columns)


@contextlib.contextmanager
def interrupt_sets() -> Iterator[threading.Event]:
    """While inside, the first Ctrl-C sets the event that is yielded; the second interrupts as usual."""
    event = threading.Event()

    def on_interrupt(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class Terminal:
    """One conversation at the keyboard, or from a pipe."""

    def __init__(self, engine: ChatEngine, options: TerminalOptions) -> None:
        self.engine = engine
        self.options = options
        self.history: list[Message] = []
        self.status = 0
        self.tty = sys.stdin.isatty() and sys.stdout.isatty()
        self.colours = self.tty and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._lines_read = 0

    def run(self) -> int:
        """Read and answer until the end."""
        if self.tty:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - importing it gives input() its editing and history
            count = sum(weights.numel() for weights in self.engine.model.parameters())
            self.say(f"Mini-Chat · {count / 1e6:.1f}M parameters · context {self.engine.context_limit} tokens")
            self.say(GREETING.rstrip())
        hinted = False
        while True:
            try:
                line = self.read_line()
                hinted = False
                if line is None or not self.handle(line):
                    return self.status
            except UserError as error:
                self.say(str(error), RED)
                self.status = 0 if self.tty else 1
            except KeyboardInterrupt:
                if not self.tty:
                    return INTERRUPTED
                print()
                if hinted and not line_being_typed():
                    return self.status
                hinted = True
                self.say("Ctrl-C again or Ctrl-D leaves, /help lists the commands. 再按一次 Ctrl-C 退出。")

    def say(self, text: str, style: str = DIM) -> None:
        """A remark of the program's: on the terminal, or on standard error where standard output is a pipe's."""
        if not self.tty:
            print(text, file=sys.stderr, flush=True)
            return
        for line in text.splitlines():
            wrapper = LineWrapper(terminal_width)
            print(self.paint(wrapper.push(line) + wrapper.finish(), style), flush=True)

    def paint(self, text: str, style: str) -> str:
        """`text` in a colour, where there are colours."""
        return f"{style}{text}{RESET}" if self.colours else text

    def read_line(self) -> str | None:
        """The next line the user gives, without its end; None at the end of the input.

        Raises:
            UserError: the line is not valid UTF-8.
        """
        self._lines_read += 1
        if not self.tty:
            data = sys.stdin.buffer.readline()
            return decode_text(data, f"standard input, line {self._lines_read}").rstrip("\r\n") if data else None
        # \x01 and \x02 tell readline which bytes take no room on the line
        prompt = f"\x01{BOLD_CYAN}\x02you> \x01{RESET}\x02" if self.colours else "you> "
        try:
            line = input(prompt)
        except EOFError:
            print()
            return None
        except UnicodeDecodeError as error:
            raise UserError("that line is not valid UTF-8; set the terminal's encoding to UTF-8") from error
        check_text(line, "that line")
        return line

    def handle(self, line: str) -> bool:
        """Do what one line asks; False when it asks to leave."""
        if not line.strip():
            return True
        if line.startswith("/"):
            return self.command(line)
        self.answer(line)
        return True

    # Commands

    def command(self, line: str) -> bool:
        """Carry out a /command; False when it asks to leave."""
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name == "/exit":
            return False
        if name == "/clear":
            self.history = []
            self.say("conversation forgotten  对话已清空")
        elif name == "/system":
            self.options = replace(self.options, system=rest or None)
            self.say(f"system message: {rest}" if rest else "system message removed  系统提示已删除")
        elif name == "/set":
            self.set(rest)
        elif name == "/help":
            self.say(HELP.rstrip())
        else:
            raise UserError(f"unknown command {printable(name)}{nearest(name, COMMANDS)}; /help lists the commands")
        return True

    def set(self, assignment: str) -> None:
        """`NAME VALUE` changes a setting; nothing shows them all."""
        name, _, value = assignment.replace("=", " ", 1).partition(" ")
        name, value = name.strip(), value.strip()
        if name:
            if name not in SETTINGS:
                raise UserError(f"unknown setting {printable(name)}{nearest(name, SETTINGS)}; /set lists the settings")
            number = parse_setting(name, value)
            if name == "max_new_tokens":
                self.options = replace(self.options, max_new_tokens=number)
            else:
                self.options = replace(self.options, sampling=replace(self.options.sampling, **{name: number}))
        values = {**vars(self.options.sampling), "max_new_tokens": self.options.max_new_tokens}
        shown = [name] if name else SETTINGS
        self.say("  ".join(f"{one} {'none' if values[one] is None else values[one]}" for one in shown))

    # Answers

    def answer(self, text: str) -> None:
        """Answer one message and remember both.

        Raises:
            UserError: the message does not fit the context; the conversation stays as it was.
        """
        system: list[Message] = [{"role": "system", "content": self.options.system}] if self.options.system else []
        messages, dropped = self.engine.fit(
            [*system, *self.history, {"role": "user", "content": text}], self.options.max_new_tokens
        )
        if dropped:
            turns = "oldest turn" if dropped == 1 else f"{dropped} oldest turns"
            limit = self.engine.context_limit
            self.say(f"({turns} dropped: the context is {limit} tokens  已忘记最早的 {dropped} 轮对话)")
        self.history = messages[len(system) :]
        label = "bot> " if self.tty else ""
        said = ""
        with interrupt_sets() as stop_event:
            answer = self.engine.stream(messages, self.options.sampling, self.options.max_new_tokens, stop_event)
            print(self.paint(label, BOLD_GREEN) if label else "", end="", flush=True)
            try:
                said = show_answer(answer, column=len(label))
            finally:
                said = said or self.engine.decode(answer.ids)
                self.remember(said, stopped=stop_event.is_set())
            print(flush=True)
        if self.tty:
            self.say(figures(answer, self.engine.context_limit))
        elif stop_event.is_set():
            raise KeyboardInterrupt

    def remember(self, said: str, stopped: bool) -> None:
        """Put the answer into the history; a turn stopped before its first word never happened."""
        if stopped and not said:
            self.history.pop()
        else:
            self.history.append({"role": "assistant", "content": said})


def figures(answer: AnswerStream, context_limit: int) -> str:
    """The line after an answer: speed, context used, and why it ended if the model did not end it."""
    rate = len(answer.ids) / answer.seconds if answer.seconds else 0.0
    parts = [f"{rate:.0f} tokens/s", f"context {answer.total_tokens}/{context_limit} tokens"]
    parts += {
        "length": ["cut at max_new_tokens, see /set"],
        "context": ["the context is full"],
        "interrupted": ["stopped"],
    }.get(answer.finish_reason or "", [] if answer.ids else ["empty answer"])
    return " · ".join(parts)


def line_being_typed() -> str:
    """What stood on the line when Ctrl-C was pressed; empty where there is no readline."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def parse_setting(name: str, value: str) -> Any:
    """The number that `value` spells, of the kind that the setting is; a seed may be "none".

    Raises:
        UserError: it spells none.
    """
    try:
        if name == "seed" and value == "none":
            return None
        return int(value) if name in WHOLE_NUMBERS else float(value)
    except ValueError as error:
        kind = "a whole number" if name in WHOLE_NUMBERS else "a number"
        raise UserError(f"/set {name}: {printable(value)!r} is not {kind}; type it as in /set {name} 1") from error


def nearest(name: str, known: tuple[str, ...]) -> str:
    """A "did you mean" where one of `known` is close enough, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
