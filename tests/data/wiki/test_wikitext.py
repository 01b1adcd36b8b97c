"""Wikitext becomes the text that a reader of the page sees, in linear time whatever it is."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mini_chat.data.wiki.wikitext import clean

# Seconds for a million characters; plain prose takes 0.04, quadratic time would take hours.
SECONDS_PER_MILLION = 10.0


def text_of(wikitext: str, variant: str | None = None) -> str:
    return clean(wikitext, variant).text


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        # links
        ("[[dog]]s and [[cat|cats]]", "dogs and cats"),
        ("[[Star Trek: Voyager|Voyager]], [[Re:Zero]]", "Voyager, Re:Zero"),
        ("[[Mercury (planet)|]] [[a|b: c]]", "Mercury b: c"),
        ("[[File:A.jpg|thumb|a [[b|c]] [[d]] e]]Text", "Text"),
        ("甲[[文件:A.jpg|缩略图|[[乙]]]][[分类:丙]][[Category:D]]丁", "甲丁"),
        ("see [[:Category:Music|music]] [[fr:Musique]]", "see music"),
        ("[https://a.org the site] [https://a.org] [//a.org x]", "the site x"),
        ("a [sic] b [1]", "a [sic] b [1]"),
        # templates
        ("a {{unknown|{{deeper|x}}|y}} b", "a b"),
        ("the word {{lang|de|[[Wort|''Wort'']]}} here", "the word Wort here"),
        ("{{lang-el|λόγος}}, {{transl|el|lógos}}", "λόγος, lógos"),
        ("{{convert|5|to|10|km|mi}}, {{convert|5|ft|8|in|m}}, {{cvt|20|C}}", "5 to 10 km, 5 feet 8 inches, 20 °C"),
        ("{{nihongo|Tokyo|東京|Tōkyō}} {{nihongo|X}}", "Tokyo (東京, Tōkyō) X"),
        ("{{le|中文|English}}、{{le|甲|Eng|显示}}、{{link-en|乙|B}}、{{tsl|en|B|丙|丁}}", "中文、显示、乙、丁"),
        ("魯迅{{bd|1881年|9月25日|1936年|10月19日}}", "魯迅（1881年9月25日—1936年10月19日）"),
        ("{{as of|2010|3}} and {{as of|2011|lc=y}}", "As of March 2010 and as of 2011"),
        ("{{frac|1|2}}, {{frac|3|1|2}}, {{chem|H|2|O}}, {{val|1.2|0.1|u=km}}", "1/2, 3 1/2, H2O, 1.2 ± 0.1 km"),
        ("a{{ndash}}b{{'}}s {{USS|Enterprise|CV-6}}", "a–b's USS Enterprise (CV-6)"),
        ("Before {{quote|1=He said {{nowrap|1=a = b}}.|2=Him}}", "Before\n\nHe said a = b."),
        ("{{formatnum:1234}} {{{1|x}}} {{DEFAULTSORT:Foo}}", "1234"),
        ("{{nowrap|[[a|b]] c}}", "b c"),
        # tables
        ("a\n{| class=x\n|-\n| b\n{|\n| c\n|}\n|}\nd", "a\n\nd"),
        ("a\n{|\n| b\nprose", "a prose"),
        ("a <table><tr><td>b<table></table></td></tr></table> c", "a c"),
        # references and tags
        ("a<ref>x</ref>b<ref name=y/>c<ref name='z'>{{cite|[[x]]}}</ref>d", "abcd"),
        ("a<ref name=x>prose<ref>note</ref> more", "aprose more"),
        ("a<!-- b <ref> -->c<!-- d", "ac"),
        ("<gallery>\nA.jpg|b\n</gallery>a<references/>", "a"),
        ("a<small>b</small><span style='x'>c</span> d < e > f <unknown>", "abc d < e > f <unknown>"),
        ("a<br>b<br/> <br />c", "a\nb\nc"),
        ("H<sub>2</sub>O, 10<sup>6</sup>, 19<sup>th</sup>, m<sup>−2</sup>", "H2O, 10⁶, 19th, m⁻²"),
        ("a<span style='display:none'>key</span>b", "ab"),
        ("where <math>\\frac{{a}}{b}</math> is", "where $\\frac{ {a} }{b}$ is"),
        ("<pre>\n  a {{b}}\n  ''c''\n</pre>", "a { {b} }\n  ''c''"),
        ("<nowiki>''a''</nowiki> ''b''", "''a'' b"),
        ("<poem>a\nb</poem>", "a\nb"),
        # signs
        ("'''bold''' and ''italic'', ''Titanic'''s, it's", "bold and italic, Titanic's, it's"),
        ("__NOTOC__a__目录__", "a"),
        ("a&nbsp;b &ndash; &#65; &amp;lt; &nosuch; &#xD800;", "a b – A &lt; &nosuch; \ufffd"),
        ("a\u200bb\u00a0c", "ab c"),
        # lines
        ("a\nb\n\nc", "a b\n\nc"),
        ("甲\n乙\n\n丙", "甲乙\n\n丙"),
        ("* a\n** b\n# c\n# d\n; e\n: f", "- a\n  - b\n1. c\n2. d\ne\nf"),
        ("a\n----\nb", "a\n\nb"),
        # headings
        ("a\n== B ==\nc\n=== D ===\n== E ==\nf", "a\n\nB\n\nc\n\nE\n\nf"),
        ("== B ==\n=== C ===\nd", "B\n\nC\n\nd"),
        ("a\n==References==\nb\n=== C ===\nd\n== E ==\nf", "a\n\nE\n\nf"),
        ("甲\n== 参考文献 ==\n* 乙", "甲"),
        # broken markup keeps its text
        ("{{a [[b]] c\n| d = e\nf", "a b c f"),
        ("a}} b]] c [[d", "a b c d"),
        ("[[a|[[b]]", "a|b"),
    ],
)
def test_text_is_what_a_reader_sees(wikitext: str, text: str) -> None:
    assert text_of(wikitext) == text


def test_apparatus_stays_where_it_is_asked_for() -> None:
    assert clean("a\n==References==\nb", keep_apparatus=True).text == "a\n\nReferences\n\nb"


@pytest.mark.parametrize("template", ["disambiguation", "Disambig", "hndis|Smith", "消歧义", "消歧義"])
def test_disambiguation_pages_are_told(template: str) -> None:
    assert clean(f"A may be:\n* B\n{{{{{template}}}}}").is_disambiguation
    assert not clean("A is B. {{cite}}").is_disambiguation


def test_conversion_marks_are_read_in_chinese_pages_only() -> None:
    assert text_of("-{zh-hans:甲;zh-hant:乙}-", "zh-cn") == "甲"
    assert "-{" not in text_of("x-{y}-z")


PIECES = [
    *[
        "{{",
        "}}",
        "[[",
        "]]",
        "-{",
        "}-",
        "{|",
        "|}",
        "|-",
        "|",
        "\n",
        "=",
        "==",
        "'''",
        "''",
        "<ref>",
        "</ref>",
        "<ref",
        "/>",
    ],
    *[
        "<!--",
        "-->",
        "<math>",
        "</math>",
        "<nowiki>",
        "</nowiki>",
        "<pre>",
        "<br>",
        "<table>",
        "</table>",
        "<",
        ">",
        "&",
        ";",
    ],
    *[
        "&amp;",
        "&#x0;",
        "&#999999999;",
        "__TOC__",
        "__",
        "[http://a ",
        "]",
        "File:",
        "Category:",
        "lang|en|",
        "convert|5|km",
        "²",
    ],
    *[
        "NoteTA|1=",
        "zh-hans:",
        "zh-cn:",
        "H|",
        "=>",
        "(",
        ")",
        "（",
        "）",
        "《",
        "》",
        ",",
        "，",
        "；",
        "：",
        "*",
        "#",
        ":",
        " ",
        "a",
        "b",
    ],
    *[
        "甲",
        "乙",
        "\x7f",
        "\x7f0\x7f",
        "\v",
        "\ufeff",
        "\U0001f600",
        "as of|",
        "frac|",
        "quote|",
        "{{{",
        "}}}",
        "<sup>2</sup>",
    ],
]
MARKUP = re.compile(r"\[\[|\]\]|\{\{|\}\}|-\{|\}-|</?ref\b|\x7f|\v")


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.sampled_from([None, "zh-cn", "zh-tw"]))
@example("{{as of|²}}{{as of|1|" + "9" * 5_000 + "}}{{²|²=³}}", "zh-cn")
@example("&#" + "9" * 5_000 + ";", None)
def test_broken_markup_never_raises_and_never_stays(wikitext: str, variant: str | None) -> None:
    assert not MARKUP.search(text_of(wikitext, variant))


@given(st.text(max_size=300), st.sampled_from([None, "zh-cn"]))
def test_any_text_is_cleaned(text: str, variant: str | None) -> None:
    assert not MARKUP.search(text_of(text, variant))


SENTENCES = st.lists(st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,8}){3,9}\.", fullmatch=True), min_size=1, max_size=5)


@given(SENTENCES)
def test_prose_without_markup_is_unchanged(sentences: list[str]) -> None:
    prose = "\n\n".join(sentences)
    assert text_of(prose) == prose


@given(
    SENTENCES,
    st.sampled_from(["{{cite|x}}", "<ref>y</ref>", "<!-- z -->", "[[Category:C]]", "__NOTOC__", "[[File:F|g]]"]),
)
def test_what_is_taken_out_takes_nothing_along(sentences: list[str], markup: str) -> None:
    assert text_of(f" {markup} ".join(sentences)).split() == " ".join(sentences).split()


ADVERSARIAL = {
    **{sign: sign for sign in PIECES if sign not in {"\x7f", "a", "b"}},
    **{
        sign: sign
        for sign in ["()", "（，）", "((，", "(a:", "<span ", "{{lang|en|", "[[a|", "[[File:", "-{zh-hans:a;", "\n* a"]
    },
    **{
        sign: sign
        for sign in [
            "{{a}}-",
            "{{ubl|a|",
            "<gallery><score>",
            "<ref / ",
            "a\n",
            "中\n",
            "\n==a==",
            "'''s",
            "[[a]]",
            ", ",
        ]
    },
}


def seconds(wikitext: str, variant: str | None = "zh-cn") -> float:
    began = time.process_time()
    clean(wikitext, variant)
    return time.process_time() - began


@pytest.mark.parametrize("sign", ADVERSARIAL, ids=repr)
def test_a_sign_repeated_takes_linear_time(sign: str) -> None:
    size = 50_000
    assert seconds((ADVERSARIAL[sign] * size)[:size]) < SECONDS_PER_MILLION * size / 1e6


DEEP = 10_000
NESTED = {
    "templates": "{{a|" * DEEP + "x" * 100_000 + "}}" * DEEP,
    "templates that show their text": "{{lang|en|" * DEEP + "x" * 100_000 + "}}" * DEEP,
    "unclosed templates": "{{" * 100_000 + "x",
    "links": "[[a|" * DEEP + "x" * 100_000 + "]]" * DEEP,
    "marks": "-{zh-cn:" * DEEP + "x" * 100_000 + "}-" * DEEP,
    "tables": "\n{|\n" * DEEP + "x" + "\n|}" * DEEP,
    "HTML tables": "<table>" * DEEP + "x" + "</table>" * DEEP,
    "brackets": "(（" * DEEP + "，" + "）)" * DEEP,
    "arguments": "{{convert|" + "1|to|" * 100_000 + "}}",
    "rules": "".join(f"-{{H|zh-cn:{number}甲;zh-tw:{number}乙}}-" for number in range(DEEP)),
}


@pytest.mark.parametrize("nested", NESTED)
def test_nesting_takes_linear_time(nested: str) -> None:
    assert seconds(NESTED[nested]) < SECONDS_PER_MILLION * len(NESTED[nested]) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("sign", ADVERSARIAL, ids=repr)
def test_a_million_characters_of_a_sign_take_linear_time(sign: str) -> None:
    size = 1_000_000
    assert seconds((ADVERSARIAL[sign] * size)[:size]) < SECONDS_PER_MILLION
