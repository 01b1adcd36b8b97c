"""Personal data that has a form: mail addresses, telephone and identity numbers, payment cards, addresses on the net.

Each is replaced by what it was, in brackets, so that the sentence stays one. Numbers with a checksum are only masked if
it is right, so order numbers and hashes stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

_MAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.ASCII
)
# Region, date of birth, serial number, check digit: GB 11643-1999.
_IDENTITY = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)
# Issuers' prefixes and lengths: Visa, Mastercard, American Express, Discover, JCB, UnionPay (ISO/IEC 7812).
_CARD = re.compile(
    r"(?<![\d.-])(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d|35\d\d|62\d\d)(?:[ -]?\d{4}){3}(?:[ -]?\d{1,3})?(?![\d-])"
    r"|(?<![\d.-])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![\d-])"
)
# Mobile numbers of China (GSMA prefixes 13 to 19), its land lines, numbers with a country code, North American ones.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\w|[.-]\d)"
    r"|(?<![\w.-])(?:\(0\d{2,3}\) ?|（0\d{2,3}）|0\d{2,3}-)[2-9]\d{6,7}(?![\w-])"
    r"|(?<![\w.+-])\+[1-9]\d{0,2}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){2,3}(?![\w-])"
    r"|(?<![\w.-])(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}(?![\w-])",
    re.ASCII,
)
_ADDRESS = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)", re.ASCII)
_DIGITS = re.compile(r"\d[\d .()（）-]{5}")


def mask_personal_data(text: str) -> str:
    """The text with `[email]`, `[id number]`, `[card]`, `[phone]` and `[ip]` for what is one."""
    if "@" in text:
        text = _MAIL.sub("[email]", text)
    if _DIGITS.search(text) is None:
        return text
    text = _IDENTITY.sub(_masked("[id number]", is_identity_number), text)
    text = _CARD.sub(_masked("[card]", passes_luhn), text)
    text = _PHONE.sub("[phone]", text)
    return _ADDRESS.sub(_masked("[ip]", is_public_address), text)


def is_identity_number(number: str) -> bool:
    """Whether the check digit of an 18-character identity number is right (GB 11643-1999, ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return number[17].upper() == "10X98765432"[total % 11]


def passes_luhn(number: str) -> bool:
    """Whether the digits of a card's number satisfy Luhn's formula (ISO/IEC 7812-1, annex B)."""
    digits = [int(digit) for digit in reversed(number) if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_public_address(address: str) -> bool:
    """Whether an IPv4 address may belong to someone: not private, loopback, documentation, or four small numbers."""
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False


def _masked(mask: str, is_one: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
    return lambda found: mask if is_one(found[0]) else found[0]
