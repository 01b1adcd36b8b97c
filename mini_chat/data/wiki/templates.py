"""Templates: `{{…}}`, nested, in one pass. What a template shows is in `template_table`; all others show nothing."""

from __future__ import annotations

import re
from functools import lru_cache

from mini_chat.data.wiki.language_conversion import Converter, note_rules
from mini_chat.data.wiki.template_table import DISAMBIGUATION, Arguments, Shown, shown_by

MAX_NAME = 80
MAX_DEPTH = 20  # of templates in templates; what is deeper counts as text of the one around it

_PIPE = re.compile(r"\[\[|\]\]|\|")


class Templates:
    """Expands the templates of one page."""

    def __init__(self, converter: Converter | None) -> None:
        self.is_disambiguation = False
        """Whether the page said so."""
        self._converter = converter

    def expand(self, text: str) -> str:
        """The text with each template replaced by what it shows; linear in its length.

        Braces without a partner go, and what stands between them stays.
        """
        if "{{" not in text:
            return text.replace("}}", "")
        top: list[str] = []
        stack = [top]
        too_deep = 0
        for opened, piece in enumerate(text.split("{{")):
            inside, closed, rest = piece.partition("}}")
            if opened:
                inside = inside.removeprefix("{")
                if closed and not too_deep and "}}" not in rest:  # nothing nested, as nearly all are
                    top.append(self._shown([inside]))
                    top.append(rest.removeprefix("}"))
                    continue
                if len(stack) > MAX_DEPTH:
                    too_deep += 1
                else:
                    top = []
                    stack.append(top)
            top.append(inside)
            if not closed:
                continue
            for part in rest.split("}}"):
                if too_deep:
                    too_deep -= 1
                elif len(stack) > 1:
                    pieces = stack.pop()
                    top = stack[-1]
                    top.append(self._shown(pieces))
                top.append(part.removeprefix("}"))
        return "".join([piece for frame in stack for piece in frame])

    def _shown(self, pieces: list[str]) -> str:
        """What the template with this inside shows."""
        head = pieces[0]
        end = head.find("|", 0, MAX_NAME)
        if end < 0 and (end := head.find(":", 0, MAX_NAME)) >= 0:
            name, shown = look_up(head[: end + 1])
        else:
            name, shown = look_up(head[:end] if end >= 0 else head[:MAX_NAME])
        if shown is None:
            if name in DISAMBIGUATION:
                self.is_disambiguation = True
            elif name == "noteta" and self._converter is not None:
                note_rules(_arguments("".join(pieces)[end + 1 :]).items(), self._converter)
            return ""
        if isinstance(shown, str):
            return shown
        arguments = _arguments("".join(pieces)[end + 1 :]) if end >= 0 else {}
        if isinstance(shown, tuple):
            return next((value for key in shown if (value := arguments.get(key))), "")
        return shown(arguments)


@lru_cache(4096)
def look_up(written: str) -> tuple[str, Shown | None]:
    """A template's name as the table has it, of the text before its first pipe; and what it shows."""
    name = written.strip().lower().replace("_", " ")
    return name, shown_by(name)


def _arguments(text: str) -> Arguments:
    """The arguments of a template: those without a name by their number from 1, all without space around them."""
    arguments: Arguments = {}
    count = 0
    for argument in _split(text):
        name, equals, value = argument.partition("=")
        name = name.strip()
        if equals and name and "<" not in name and "[" not in name and "/" not in name:
            arguments[name] = value.strip()
        else:
            count += 1
            arguments[str(count)] = argument.strip()
    return arguments


def _split(text: str) -> list[str]:
    """The text split at pipes, but not at those in links."""
    if "[[" not in text:
        return text.split("|")
    parts, begin, depth = [], 0, 0
    for sign in _PIPE.finditer(text):
        if sign[0] == "[[":
            depth += 1
        elif sign[0] == "]]":
            depth = max(depth - 1, 0)
        elif depth == 0:
            parts.append(text[begin : sign.start()])
            begin = sign.end()
    parts.append(text[begin:])
    return parts
