"""Lines of a page's frame and lines that come again go; prose that mentions them, code and tables stay."""

from __future__ import annotations

import pytest

from mini_chat.data.cleaning.lines import line_key, line_keys, remove_frame_lines, remove_repeated_lines

PROSE = "This paragraph is long enough to be one, and it says what it says without any noise."


@pytest.mark.parametrize(
    "line",
    [
        "Please enable JavaScript to view this page.", "We use cookies to improve your visit.",
        "Privacy Policy | Terms of Use", "© 2020 Example. All rights reserved.", "Read more...", "[Share this]",
        "版权所有 未经许可不得转载", "京ICP备12345678号", "责任编辑：张三", "上一篇：标题", "展开全文", "【返回顶部】",
    ],
)  # fmt: skip
def test_frame_lines_go(line: str) -> None:
    assert remove_frame_lines(f"{PROSE}\n{line}\n{PROSE}") == f"{PROSE}\n{PROSE}"
    assert remove_frame_lines(line) == ""


@pytest.mark.parametrize(
    "text",
    [
        "JavaScript is a language that runs in browsers.",
        "The browser stores cookies, and a cookie has a name.",
        "Many sites have a privacy policy that nobody reads; lawyers write it, users accept it, and that is all that "
        "there is to say about it in a paragraph of this length.",
        "点击下载按钮开始安装。",
        "更多的例子见下文。",
    ],
)
def test_prose_about_the_same_things_stays(text: str) -> None:
    assert remove_frame_lines(text) == text
    assert remove_frame_lines(f"{text}\n{PROSE}") == f"{text}\n{PROSE}"


def test_a_line_that_comes_three_times_is_kept_once() -> None:
    assert remove_repeated_lines(f"{PROSE}\nA banner line\nB\nA banner line\nC\nA banner line") == (
        f"{PROSE}\nA banner line\nB\nC"
    )
    twice = "A banner line\nB\nA banner line"
    assert remove_repeated_lines(twice) == twice


@pytest.mark.parametrize(
    "text",
    [
        "```\nprint(something)\nprint(something)\nprint(something)\n```",
        "| ------- | ------- |\nrow\n| ------- | ------- |\nrow\n| ------- | ------- |",
        "    indented code\n    indented code\n    indented code",
        "}\n}\n}\n}",
    ],
)
def test_code_and_tables_may_repeat(text: str) -> None:
    assert remove_repeated_lines(text) == text


def test_lines_that_are_everywhere_go_altogether() -> None:
    everywhere = {line_key("Welcome to our site")}
    text = f"Welcome to our site\n{PROSE}\nWelcome to our site\n    Welcome to our site"
    assert remove_repeated_lines(text, everywhere) == f"{PROSE}\n    Welcome to our site"


def test_a_document_of_one_line_has_no_boilerplate() -> None:
    assert line_keys("Welcome to our site") == set()
    assert line_keys("Welcome to our site\nshort") == {line_key("Welcome to our site")}
