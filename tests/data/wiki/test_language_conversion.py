"""Conversion marks show what a reader of one variant sees, as MediaWiki has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_chat.data.wiki.language_conversion import FALLBACKS, MAX_DEPTH, Converter, parse_rules
from mini_chat.data.wiki.wikitext import clean


@pytest.mark.parametrize(
    ("variant", "mark", "shown"),
    [
        ("zh-cn", "-{zh-hans:计算机;zh-hant:電腦}-", "计算机"),
        ("zh-tw", "-{zh-hans:计算机;zh-hant:電腦}-", "電腦"),
        ("zh-cn", "-{zh-cn: 增长; zh-tw: 成长}-", "增长"),  # space around a text is not of it
        ("zh-hk", "-{zh-hans:西;zh-hk:香港的;zh-tw:臺灣的;}-", "香港的"),
        ("zh-cn", "-{ZH-CN:甲;zh-tw:乙}-", "甲"),
        # fall-backs, in MediaWiki's order
        ("zh-cn", "-{zh-sg:星;zh-hans:简;zh-tw:臺}-", "简"),
        ("zh-cn", "-{zh-my:马;zh-sg:星;zh-tw:臺}-", "星"),
        ("zh-tw", "-{zh-hk:港;zh-hans:简}-", "港"),
        ("zh-hk", "-{zh-tw:臺;zh-mo:澳}-", "澳"),
        ("zh-cn", "-{zh-hk:单车;zh-tw:脚踏车}-", "单车"),  # none fits: the first one
        ("zh-cn", "-{zh:都一样;zh-tw:臺}-", "都一样"),
        # no rules: the text is shown as it is
        ("zh-cn", "-{庄}-", "庄"),
        ("zh-cn", "-{Ari Lemmke}-", "Ari Lemmke"),
        ("zh-cn", "-{}-", ""),
        ("zh-cn", "-{zh-hans:; zh-hant:;}-", ""),
        ("zh-cn", "-{时间：12:30；甲}-", "时间：12:30；甲"),
        # flags
        ("zh-cn", "-{R|zh-hans:x;zh-hant:y}-", "zh-hans:x;zh-hant:y"),
        ("zh-cn", "-{A|zh-cn:蓝屏死机; zh-tw:藍白當機}-", "蓝屏死机"),
        ("zh-cn", "-{H|zh-cn:甲;zh-tw:乙}-", ""),
        ("zh-cn", "-{T|zh-hans:甲;zh-hant:乙}-", ""),
        ("zh-cn", "-{-|zh-hans:甲;zh-hant:乙}-", ""),
        ("zh-cn", "-{zh-hans;zh-hant|文件}-", "文件"),
        ("zh-cn", "-{zh-tw=>zh-cn:甲}-", "甲"),
        # nested, and text that looks like rules or flags and is none
        ("zh-cn", "-{zh-hans:甲-{zh-cn:乙;zh-tw:丙}-丁;zh-hant:戊}-", "甲乙丁"),
        ("zh-tw", "-{zh-hans:甲&nbsp;乙;zh-hant:丙&amp;丁}-", "丙&amp;丁"),
        ("zh-cn", "-{甲|乙}-", "甲|乙"),
        # what is no mark
        ("zh-cn", "甲-{{乙}}-丙", "甲-{{乙}}-丙"),
        ("zh-cn", "甲-{乙", "甲乙"),
        ("zh-cn", "甲}-乙", "甲}-乙"),
    ],
)
def test_a_mark_shows_what_a_reader_of_the_variant_sees(variant: str, mark: str, shown: str) -> None:
    assert Converter(variant).evaluate(mark) == shown


def test_rules_of_a_page_hold_for_all_of_it() -> None:
    page = "資訊與-{H|zh-cn:信息;zh-tw:資訊}-資訊，-{A|zh-hans:扬招点; zh-hant:招呼站}-和招呼站"
    assert clean(page, "zh-cn").text == "信息與信息，扬招点和扬招点"
    assert clean(page, "zh-tw").text == "資訊與資訊，招呼站和招呼站"


def test_a_rule_whose_target_holds_its_source_is_applied_once() -> None:
    page = "增长与增-{H|zh-cn:增长;zh-tw:增}-"
    assert clean(page, "zh-cn").text == "增长与增长"


def test_note_ta_gives_title_and_rules() -> None:
    article = clean("{{NoteTA|G1=IT|T=zh-hans:网络;zh-hant:網路|1=zh-cn:软件;zh-tw:軟體}}軟體在此", "zh-cn")
    assert (article.title, article.text) == ("网络", "软件在此")
    assert clean("-{T|zh-cn:甲;zh-tw:乙}-丙丁", "zh-tw").title == "乙"


def test_every_variant_falls_back_to_known_ones_and_never_to_itself() -> None:
    for variant, order in FALLBACKS.items():
        assert variant not in order
        assert set(order) <= FALLBACKS.keys()


def test_rules_read_back_as_written() -> None:
    assert parse_rules("zh-cn:甲;zh-tw:乙;") == ({"zh-cn": "甲", "zh-tw": "乙"}, {})
    assert parse_rules("丙=>zh-cn:甲") == ({}, {"zh-cn": {"丙": "甲"}})
    assert parse_rules("甲；乙") == ({}, {})


PIECES = ["-{", "}-", "zh-hans:", "zh-hant:", ";", "|", "A", "H", "=>", "甲", "{", "}", "\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_mark_is_left_whatever_the_text(text: str) -> None:
    shown = clean(text, "zh-cn").text
    assert "-{" not in shown and "}-" not in shown


def test_deep_nesting_keeps_its_text() -> None:
    depth = 3 * MAX_DEPTH
    assert Converter("zh-cn").evaluate("-{" * depth + "甲" + "}-" * depth) == "甲"
