"""Mending: what is dirt goes, what only looks like it stays, and no input takes long."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_chat.config import Clean
from mini_chat.data.cleaning.cleaner import Cleaner
from mini_chat.data.cleaning.normalise import (
    collapse_white_space,
    remove_empty_brackets,
    remove_html,
    remove_invisible,
    unify_characters,
)
from mini_chat.data.hanzi import FULL_WIDTH_MARKS, SHARED_MARKS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e\u0301te\u0301", "été"),
        ("Å", "Å"),
        ("，。！？：；（）“”……——", "，。！？：；（）“”……——"),
    ],
)
def test_nfc_composes_and_leaves_chinese_punctuation(before: str, after: str) -> None:
    assert unify_characters(before, "nfc") == after


@pytest.mark.parametrize(
    ("before", "after"), [("ﬁve ㎏ ＡＢＣ１２", "five kg ABC12"), ("x² ½ …", "x² ½ …"), ("カ\uff9e", "ガ")]
)
def test_nfkc_makes_compatibility_characters_plain(before: str, after: str) -> None:
    assert unify_characters(before, "nfkc") == unicodedata.normalize("NFC", after)


def test_nfkc_leaves_full_width_marks() -> None:
    marks = FULL_WIDTH_MARKS + SHARED_MARKS
    assert unify_characters(marks, "nfkc") == marks


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\ufeffa\u200bb\u00adc\u2060", "abc"),
        ("a\r\nb\rc\u2028d\u2029e\x85f\x0bg\x0ch", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("a\ue000b\U000f1234c\x01\x9f", "abc"),
        ("a\u202eb\u2066c\u200f", "abc"),
        ("中\u200c文\u200d", "中文"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
        ("tab\tstays\n", "tab\tstays\n"),
        ("\ufffe\uffff\ufdd0x", "x"),
    ],
)
def test_invisible_characters_go_and_joiners_that_join_stay(before: str, after: str) -> None:
    assert remove_invisible(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  a  b \t c  \n\n\n\n d ", "a b c\n\n d"),
        ("\u3000\u3000第一段\n\u3000\u3000第二段", "第一段\n第二段"),
        ("a\xa0b\u2003c\u3000d", "a b c d"),
        ("def f():\n    return  1", "def f():\n    return  1"),
        ("x:\n...     indented\n| a   | b |", "x:\n...     indented\n| a   | b |"),
    ],
)
def test_white_space_is_single_but_for_code_and_tables(before: str, after: str) -> None:
    assert collapse_white_space(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<p class='x'>One<br/>two</p>", "\nOne\ntwo\n"),
        ('a <b>bold</b> <SPAN style="c">word</SPAN>', "a bold word"),
        ("a<script>var x = '<p>';</script>b<!-- c -->d<STYLE>e</style >f", "abdf"),
        ("fish &amp; chips&nbsp;&#8212; &amp;lt; &unknown; AT&T;", "fish & chips\xa0— < &unknown; AT&T;"),
        ("Vec<u8> and Box<T> and if a <b and c> d", "Vec<u8> and Box<T> and if a <b and c> d"),
        ("the tag `<p>` and `&gt;`, `<!-- c -->`", "the tag `<p>` and `&gt;`, `<!-- c -->`"),
        (":term:`x <strong reference>`", ":term:`x <strong reference>`"),
        ("<script> without an end <p>x", "<script> without an end \nx"),
    ],
)
def test_html_goes_and_code_stays(before: str, after: str) -> None:
    assert remove_html(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("中国（；）位于东亚", "中国位于东亚"),
        ("老子（，）、（，1949年）和（1950年，）", "老子、（1949年）和（1950年）"),
        ("嵌套（（））完", "嵌套完"),
        ("《》「」【 】", ""),
        ("Laozi ( , ) was, and Foo () is (, born 1950) here.", "Laozi was, and Foo is (born 1950) here."),
        ("{{}} template", " template"),
        ("main() x = () for (;;) for (; i < n; i++) f( ) (,)", "main() x = () for (;;) for (; i < n; i++) f( ) (,)"),
        ("逗号（，）和分号（；）", "逗号（，）和分号（；）"),
        ("(:mod:`x`) （注：一）", "(:mod:`x`) （注：一）"),
    ],
)
def test_empty_brackets_go_and_those_that_mean_something_stay(before: str, after: str) -> None:
    assert remove_empty_brackets(before) == after


@given(
    st.text(
        st.sampled_from("a9 \t\n\r\u3000\xa0中。（）(),，；;[]{}<>&amp;p/b#'\"@.-+\u200b\u200d\ue000\ufeff…é"),
        max_size=80,
    )
)
@settings(max_examples=300, deadline=None)
def test_mending_what_is_mended_changes_nothing(text: str) -> None:
    mend = Cleaner(Clean(html=False, personal_data="mask")).mend
    once, _ = mend(text)
    for _ in range(2):  # brackets in brackets in brackets are looked for three deep
        once, _ = mend(once)
    assert mend(once) == (once, {})


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_is_an_error(text: str) -> None:
    for form in ("nfc", "nfkc", "off"):
        mended, changes = Cleaner(Clean(unicode=form, personal_data="mask")).mend(text)
        assert (mended != text) <= bool(changes)
        mended.encode()


ADVERSARIAL = [
    "<", "<a ", "<a =", "<script>", "<script ", "<!--", "</", "&", "&amp;", "&#", "（", "（，", "(", "( ", "(,", "(, ",
    "；", "{{", "【", " ", "a  ", "\t", " \n", "\n", "\u3000", "\u3000\n", "a\u200d", "1", "1 ", "1-", "1.", "+1 ",
    "a@", "@a.", "a.", "86-", "(0", "62", "4111 ", "a", "哈", "哈\n", "a b ", "line of text\n", "```\n", "|", "#",
    "…\n", "\ufffd", "\ue000", "e\u0301",
]  # fmt: skip


@pytest.mark.parametrize("unit", ADVERSARIAL)
def test_time_is_linear_whatever_is_repeated(unit: str) -> None:
    cleaner = Cleaner(Clean(personal_data="mask", min_words=0))

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        started = time.process_time()
        cleaner([text], ["zh"])
        return time.process_time() - started

    seconds(1_000)
    if (short := seconds(50_000)) > 0.25 or seconds(400_000) > 2.0:  # 5 s/MB; what is quadratic takes minutes
        assert seconds(400_000) < 16 * short + 1.0
