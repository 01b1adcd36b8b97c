"""What well-known templates show, so that sentences are not left with holes.

A dump of articles has no template definitions, and expanding them would cost more than the rest of the cleaning. Most
templates are boxes, notes and links that no sentence needs. These are the ones that stand inside sentences, of the
English and the Chinese Wikipedia; redirects to a template are listed with it. An entry is the text itself, the names
of the arguments of which the first that is given is shown, or a function of the arguments.
"""

from __future__ import annotations

from collections.abc import Callable

Arguments = dict[str, str]
Shown = str | tuple[str, ...] | Callable[[Arguments], str]

DISAMBIGUATION = frozenset(
    {
        "disambig", "disambiguation", "disambiguation page", "disambig-cleanup", "disambiguation cleanup", "dab",
        "hndis", "human name disambiguation", "geodis", "place name disambiguation", "schooldis", "roaddis",
        "mathdab", "airport disambiguation", "numberdis", "surname", "given name", "set index article", "sia",
        "shipindex", "消歧义", "消歧義", "消歧义页", "消歧義頁", "人名消歧义", "人名消歧義", "地名消歧义",
        "地名消歧義", "多义", "多義",
    }
)  # fmt: skip
"""Templates that say that a page is no article but a list of what a word may mean."""


MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
UNITS = {
    "mi": "miles", "ft": "feet", "in": "inches", "yd": "yards", "lb": "pounds", "oz": "ounces",
    "nmi": "nautical miles", "sqmi": "square miles", "mi2": "square miles", "sqkm": "km²", "km2": "km²", "m2": "m²",
    "cm2": "cm²", "sqft": "square feet", "ft2": "square feet", "m3": "m³", "km3": "km³", "cm3": "cm³",
    "cuft": "cubic feet", "cumi": "cubic miles", "acre": "acres", "C": "°C", "F": "°F", "C-change": "°C",
    "F-change": "°F", "K": "K", "LT": "long tons", "ST": "short tons", "MT": "metric tons",
    "impgal": "imperial gallons", "USgal": "US gallons", "kph": "km/h", "kn": "knots",
}  # fmt: skip
BETWEEN = {
    "to": " to ", "-": "–", "–": "–", "and": " and ", "and(-)": " and ", "or": " or ", "x": " × ", "×": " × ",
    "by": " by ", "to(-)": " to ", "+/-": " ± ", "±": " ± ", "*": " × ",
}  # fmt: skip


def _month(text: str) -> str:
    """The name of a month given by its number; anything else as it is."""
    return MONTHS[int(text) - 1] if len(text) <= 2 and text.isdecimal() and 1 <= int(text) <= 12 else text


def _convert(arguments: Arguments) -> str:
    """`{{convert|5|to|10|km|mi}}` → 5 to 10 km: the measure as its author gave it."""
    shown: list[str] = []
    for number in range(1, 9, 2):
        value, unit = arguments.get(str(number), ""), arguments.get(str(number + 1), "")
        shown.append(value)
        if unit in BETWEEN:
            shown.append(BETWEEN[unit])
            continue
        shown.append(" " + UNITS.get(unit, unit))
        inches, small_unit = arguments.get(str(number + 2), ""), arguments.get(str(number + 3), "")
        if unit in {"ft", "lb", "st"} and small_unit in {"in", "oz", "lb"}:
            shown.append(f" {inches} {UNITS[small_unit]}")
        break
    return "".join(shown).strip()


def _nihongo(arguments: Arguments) -> str:
    """`{{nihongo|Tokyo|東京|Tōkyō}}` → Tokyo (東京, Tōkyō)."""
    first, *others = [arguments.get(key, "") for key in ("1", "2", "3")]
    behind = ", ".join(other for other in others if other)
    return f"{first} ({behind})" if first and behind else first or behind


def _chinese(arguments: Arguments) -> str:
    """`{{zh|s=汉语|t=漢語|p=hànyǔ}}` → 汉语; 漢語; hànyǔ."""
    shown = [arguments.get(key, "") for key in ("c", "s", "t", "p")]
    return "; ".join(dict.fromkeys(value for value in shown if value))


def _as_of(arguments: Arguments) -> str:
    """`{{as of|2010|3}}` → As of March 2010."""
    if alternative := arguments.get("alt"):
        return alternative
    name = _month(arguments.get("2", ""))
    begin = "as of" if arguments.get("lc") else "As of"
    return " ".join(part for part in (begin, arguments.get("3", ""), name, arguments.get("1", "")) if part)


def _fraction(arguments: Arguments) -> str:
    """`{{frac|3|1|2}}` → 3 1/2."""
    parts = [arguments[key] for key in ("1", "2", "3") if arguments.get(key)]
    if len(parts) == 1:
        return f"1/{parts[0]}"
    return f"{parts[0]} {parts[1]}/{parts[2]}" if len(parts) == 3 else "/".join(parts)


def _joined(separator: str = "") -> Callable[[Arguments], str]:
    """All arguments without a name, one behind another."""
    return lambda arguments: separator.join(value for key, value in arguments.items() if key.isdecimal() and value)


def _list(arguments: Arguments) -> str:
    """The arguments without a name as the items of a list."""
    items = [value.lstrip("* ") for key, value in arguments.items() if key.isdecimal() and value]
    return "".join(f"\n* {item}" for item in items) + "\n"


def _block(*keys: str) -> Callable[[Arguments], str]:
    """The first of these arguments on lines of its own, as a quotation."""

    def shown(arguments: Arguments) -> str:
        text = next((value for key in keys if (value := arguments.get(key))), "")
        return f"\n\n{text}\n\n"

    return shown


def _ship(prefix: str) -> Callable[[Arguments], str]:
    """`{{USS|Enterprise|CV-6}}` → USS Enterprise (CV-6); the last argument says how much of it is shown."""

    def shown(arguments: Arguments) -> str:
        words = [prefix] if prefix else [arguments.get("1", "")]
        name, number = ("1", "2") if prefix else ("2", "3")
        how = arguments.get("3" if prefix else "4") or arguments.get("up", "")
        words.append(arguments.get(name, ""))
        if arguments.get(number) and how not in {"2", "3", "6"}:
            words.append(f"({arguments[number]})")
        return " ".join(word for word in (words[1:] if how in {"1", "3", "6"} else words) if word)

    return shown


def _value(arguments: Arguments) -> str:
    """`{{val|1.2|0.1|e=6|u=km}}` → 1.2±0.1 × 10^6 km."""
    shown = arguments.get("1", "")
    if arguments.get("2"):
        shown += f" ± {arguments['2'].lstrip('±')}"
    if arguments.get("e"):
        shown += f" × 10^{arguments['e']}"
    unit = arguments.get("u") or arguments.get("ul") or ""
    return f"{shown} {unit}".strip()


def _date(arguments: Arguments) -> str:
    """`{{start date|1990|1|31}}` → 31 January 1990."""
    day = arguments.get("3", "") if arguments.get("2") else ""
    return " ".join(part for part in (day.lstrip("0"), _month(arguments.get("2", "")), arguments.get("1", "")) if part)


def _lifetime(arguments: Arguments) -> str:
    """`{{bd|1881年|9月25日|1936年|10月19日}}` → （1881年9月25日—1936年10月19日）."""
    born = arguments.get("1", "") + arguments.get("2", "")
    died = arguments.get("3", "") + arguments.get("4", "")
    if not died:
        return f"（{born}—）" if born else ""
    return f"（{born or '？'}—{died}）"


def _between(before: str, after: str, key: str = "1") -> Callable[[Arguments], str]:
    """An argument between two signs; nothing where it is missing."""
    return lambda arguments: f"{before}{arguments[key]}{after}" if arguments.get(key) else ""


_LINKS = "en ja de fr ko ru es it pt vi ar la nl pl sv he fi uk cs hu tr ca no da el th id ms fa hi ro bg sr hr"
_NAMES: tuple[tuple[Shown, str], ...] = (
    # the argument is the text
    (
        ("1",),
        "nowrap, nobr, nobreak, nwr, j, small, smaller, smalldiv, big, bigger, larger, large, resize, center, "
        "centre, abbr, abbrv, tooltip, sub, smallcaps, sc, sc1, aut, underline, u, strikethrough, s, del, "
        "nobold, noitalic, normal, strong, em, bold, mvar, math, vanchor, visible anchor, sic, unicode, script, "
        "polytonic, grc, nastaliq, keypress, key, kbd, code, mono, tt, samp, var, ruby, ruby-zh-p, ruby-zh-b, "
        "zy, plainlist, flatlist, columns-list, div col, columns, flag, flagcountry, flagu, railgauge, "
        "track gauge, nts, formatnum:, lc:, uc:, lcfirst:, ucfirst:, interlanguage link, "
        "interlanguage link multi, ill, vr, as written, not a typo, proper name, jpn, kor, 小字, 大字, 简, 繁, "
        "僻字, zh-cn, zh-tw, zh-hk, zh-hans, zh-hant, cjk-new-char, 缺字, uc, lc, poem",
    ),
    (
        ("2",),
        "lang, rtl-lang, wikt-lang, langx, font color, color, colour, fontsize, font-family, align, 顏色, 颜色, "
        "script/han",
    ),
    # an article of another language's Wikipedia: what is given to be shown, or the name in this one
    (("3", "1"), "le, liw, link-wd, " + ", ".join(f"link-{code}" for code in _LINKS.split())),
    (("4", "3"), "tsl, translink"),
    (("3", "1"), ", ".join(f"internal link helper/{code}" for code in _LINKS.split())),
    (("lt", "1"), "illm, ill2, illm2"),
    # transliteration: a language, perhaps a standard, the text
    (("3", "2", "1"), "transl, transliteration, translit"),
    # signs
    ("–", "ndash, en dash"),
    (" – ", "snd, spnd, snds, spaced ndash, spaced en dash, dash"),
    ("—", "mdash, em dash, emdash"),
    (" — ", "mdashb, spaced mdash"),
    ("'", "', apostrophe"),
    ("'s", "'s"),
    ("'\"", "' \""),
    ("\"'", "\" '"),
    ("|", "!"),
    ("=", "=, equals"),
    (" ", "nbsp, spaces, space, thinsp, thin space, hair space, nnbsp, sp, pad"),
    (" · ", "·, middot, dot, •, bull, bullet"),
    ("ʻ", "okina"),
    ("°", "deg"),
    ("×", "times"),
    ("...", "ellipsis, ..."),
    ("*", "asterisk"),
    ("\n", "break, br, crlf"),
    ("♭", "flat, music/flat"),
    ("♯", "sharp, music/sharp"),
    # units, numbers, dates
    (_convert, "convert, cvt, conv, 转换, 轉換"),
    (_value, "val"),
    (_fraction, "frac, fraction, sfrac, 分数, 分數"),
    (_as_of, "as of"),
    (_date, "start date, start-date, end date, end-date, film date, date, dts, start date and age"),
    (_joined(), "chem, chem2, linktext, gaps"),
    (_joined(", "), "comma separated entries"),
    (_between("^", ""), "sup, pow"),
    (_between(" × 10^", ""), "e, esp"),
    (_between("c. ", ""), "circa, c., ca."),
    (_between("√", ""), "sqrt, radic"),
    (_between("|", "|"), "abs"),
    (_between("⟨", "⟩"), "angbr, angle bracket"),
    (_between("{ ", " }"), "mset"),
    (_between("r. ", ""), "reign"),
    # names and languages
    (_nihongo, "nihongo"),
    (_chinese, "zh, lang-zh"),
    (_lifetime, "bd, 生卒"),
    *((_ship(name), name.lower()) for name in ("USS", "HMS", "HMAS", "HMCS", "SS", "RMS", "SMS", "MV", "USCGC")),
    (_ship(""), "ship"),
    # quotations, verse, lists
    (
        _block("text", "quote", "1"),
        "quote, blockquote, quotation, cquote, bquote, 引文, 引用, poemquote, verse, 诗, 詩",
    ),
    (_list, "bulleted list, unbulleted list, ubl, ordered list, blist, 列表"),
)

SHOWN: dict[str, Shown] = {name: shown for shown, names in _NAMES for name in names.split(", ")}
"""What a template shows by its name, in lower case; of `{{lang-…|text}}` and the like, see `shown_by`."""


def shown_by(name: str) -> Shown | None:
    """What the template of this name, in lower case, shows; None for nothing."""
    if name.startswith("lang-") and name not in SHOWN:
        return ("1",)
    return SHOWN.get(name)
