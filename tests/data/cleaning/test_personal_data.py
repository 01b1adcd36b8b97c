"""What has the form and the checksum of personal data is masked; what merely has digits is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat.data.cleaning.personal_data import is_identity_number, mask_personal_data, passes_luhn


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("写信给 li.ming+a@mail.example.com。", "写信给 [email]。"),
        ("联系邮箱:a@b.cn，谢谢", "联系邮箱:[email]，谢谢"),
        ("电话13812345678，或+86 138-1234-5678", "电话[phone]，或[phone]"),
        ("座机 010-62345678、(021) 5234567", "座机 [phone]、[phone]"),
        ("call +44 20 7946 0958 or (212) 555-0187 or 415-555-2671.", "call [phone] or [phone] or [phone]."),
        ("身份证11010519491231002X。", "身份证[id number]。"),
        ("card 4111 1111 1111 1111 or 378282246310005", "card [card] or [card]"),
        ("from 8.8.8.8 to 192.168.0.1", "from [ip] to 192.168.0.1"),
    ],
)
def test_personal_data_is_masked(before: str, after: str) -> None:
    assert mask_personal_data(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "user@localhost and @decorator and a @ b",
        "11010519491231002 and 110105194912310021",  # one digit short; wrong check digit
        "4111 1111 1111 1112",
        "In 1984 there were 13800 of them, 3.14159265358979, 2026-11-25 10:00:00",
        "order 20261125138123456780001 and sha 13812345678abc",
        "version 1.2.3 and 10.0.0.1 and 999.1.1.1",
        "ISBN 978-7-111-40772-0",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert mask_personal_data(text) == text


@given(st.integers(0, 10**6))
def test_the_check_digit_is_that_of_iso_7064(seed: int) -> None:
    body = "".join(random.Random(seed).choice("0123456789") for _ in range(17))
    valid = [digit for digit in "0123456789X" if is_identity_number(body + digit)]
    assert len(valid) == 1
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999, table 1
    total = sum(weight * int(digit) for weight, digit in zip(weights, body, strict=True))
    assert valid == ["10X98765432"[total % 11]]


@given(st.integers(0, 10**15), st.integers(0, 14))
def test_luhn_finds_every_wrong_digit(number: int, place: int) -> None:
    body = f"{number:015d}"
    whole = next(body + digit for digit in "0123456789" if passes_luhn(body + digit))
    wrong = whole[:place] + str((int(whole[place]) + 1) % 10) + whole[place + 1 :]
    assert not passes_luhn(wrong)
