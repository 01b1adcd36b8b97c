"""Chinese conversion marks, `-{zh-hans:计算机;zh-hant:電腦}-`, evaluated for one variant.

Flags, rules and the order in which a variant falls back to others are MediaWiki's (`LanguageZh`, `ConverterRule`). A
page's own conversion rules, `-{H|…}-`, `-{A|…}-` and those in `{{NoteTA|…}}`, hold for all of its text, as there; the
tables behind `{{NoteTA|G1=…}}` live in the wiki and not in the dump of its articles, so they are not applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FALLBACKS = {
    "zh-hans": ("zh-cn", "zh-sg", "zh-my"),
    "zh-hant": ("zh-tw", "zh-hk", "zh-mo"),
    "zh-cn": ("zh-hans", "zh-sg", "zh-my"),
    "zh-sg": ("zh-my", "zh-hans", "zh-cn"),
    "zh-my": ("zh-sg", "zh-hans", "zh-cn"),
    "zh-tw": ("zh-hant", "zh-hk", "zh-mo"),
    "zh-hk": ("zh-mo", "zh-hant", "zh-tw"),
    "zh-mo": ("zh-hk", "zh-hant", "zh-tw"),
}
VARIANTS = ("zh", *FALLBACKS)
MAX_DEPTH = 10  # of marks in marks, as in MediaWiki; below it the signs go and the text stays
MAX_RULES = 500  # of one page; a page with more is no article

_VARIANT = "|".join(sorted(VARIANTS, key=len, reverse=True))
# `-{{` opens a template behind a hyphen; `-{{{` opens a mark that begins with one.
_SIGN = re.compile(r"-\{(?:(?=\{\{(?!\{))|(?!\{))|\}-")
_BETWEEN_RULES = re.compile(rf";\s*(?=(?:[^;]*?=>\s*)?(?:{_VARIANT})\s*:|\s*$)", re.IGNORECASE)
_RULE = re.compile(rf"\s*(?:(?P<source>[^:;]*?)\s*=>\s*)?(?P<variant>{_VARIANT})\s*:(?P<text>.*)", re.I | re.S)
_FLAGS = frozenset({"A", "T", "R", "D", "-", "H", "N", "S", "+", "", *(name.upper() for name in VARIANTS)})
_SILENT = frozenset({"H", "T", "-"})


class Converter:
    """Evaluates the marks of one page for `variant`, and gathers the rules that hold for all of it."""

    def __init__(self, variant: str) -> None:
        self.order = (variant, *FALLBACKS[variant], "zh")
        self.title = ""
        """What `-{T|…}-` says the page is called; empty without it."""
        self._rules: dict[str, str] = {}

    def evaluate(self, text: str) -> str:
        """The text with every mark replaced by what a reader of the variant sees; linear in its length."""
        if "-{" not in text:
            return text
        frames: list[list[str]] = [[]]
        too_deep = position = 0
        for sign in _SIGN.finditer(text):
            frames[-1].append(text[position : sign.start()])
            position = sign.end()
            if sign[0] == "-{":
                if len(frames) > MAX_DEPTH:
                    too_deep += 1
                else:
                    frames.append([])
            elif too_deep:
                too_deep -= 1
            elif len(frames) > 1:
                inner = "".join(frames.pop())
                frames[-1].append(self._mark(inner))
            else:
                frames[-1].append(sign[0])  # the end of a template before a hyphen
        pieces = [piece for frame in frames for piece in frame]
        pieces.append(text[position:])
        return "".join(pieces)

    def add_rules(self, text: str) -> None:
        """Take the rules of a text such as `zh-hans:…;zh-hant:…` for the whole page."""
        both, one_way = parse_rules(text)
        chosen = self.choose(both, {})
        if chosen:
            for form in both.values():
                self._add(form, chosen)
        for variant in reversed(self.order):
            for source, target in one_way.get(variant, {}).items():
                self._add(source, target)

    def apply_rules(self, text: str) -> str:
        """The text with the page's own rules applied, the longest form first."""
        if not self._rules or all(source == target for source, target in self._rules.items()):
            return text
        forms = sorted(self._rules, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, forms)), lambda found: self._rules[found[0]], text)

    def _add(self, form: str, target: str) -> None:
        if form and len(self._rules) < MAX_RULES:
            self._rules[form] = target

    def _mark(self, body: str) -> str:
        """What is seen of the mark `-{body}-`."""
        before, bar, after = body.partition("|")
        flags = {flag.strip().upper() for flag in before.split(";")} if bar else set()
        if not bar or not flags <= _FLAGS:
            flags, after = set(), body
        if "R" in flags:
            return after
        if "N" in flags:
            return after.strip()
        both, one_way = parse_rules(after)
        if not both and not one_way:
            shown = after
        else:
            shown = self.choose(both, one_way)
            if flags & {"A", "H", "+"}:
                self.add_rules(after)
        if "T" in flags:
            self.title = shown.strip()
        return "" if flags & _SILENT else shown

    def choose(self, both: dict[str, str], one_way: dict[str, dict[str, str]]) -> str:
        """Which text of these rules is shown."""
        for variant in self.order:
            if variant in both:
                return both[variant]
        for variant in self.order:
            if variant in one_way:
                return next(iter(one_way[variant].values()))
        return next(iter(both.values()), "")


def parse_rules(text: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The rules of a mark: variant → text, and of one-way rules variant → {source: text}.

    Both are empty where the text is no rules at all: it is then shown as it is.
    """
    both: dict[str, str] = {}
    one_way: dict[str, dict[str, str]] = {}
    for part in _BETWEEN_RULES.split(text):
        if not part.strip():
            continue
        rule = _RULE.fullmatch(part)
        if rule is None:
            return {}, {}
        variant, shown = rule["variant"].lower(), rule["text"].strip()
        if rule["source"]:
            one_way.setdefault(variant, {})[rule["source"].strip()] = shown
        else:
            both[variant] = shown
    return both, one_way


def note_rules(values: Iterable[tuple[str, str]], converter: Converter) -> None:
    """Take the rules of a `{{NoteTA|T=…|1=…|2=…}}`."""
    for name, value in values:
        if name == "T":
            both, one_way = parse_rules(value)
            converter.title = (converter.choose(both, one_way) if both or one_way else value).strip()
        elif name.isdecimal():
            converter.add_rules(value)
