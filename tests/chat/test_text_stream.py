"""What the line wrapper promises: nothing wider than the terminal, nothing lost, nothing late."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mini_chat.chat.text_stream import NO_LINE_END, NO_LINE_START, LineWrapper, printable


def wrap(text: str, width: int, column: int = 0) -> str:
    wrapper = LineWrapper(lambda: width, column)
    return "".join([*map(wrapper.push, text), wrapper.finish()])


def test_english_breaks_at_spaces() -> None:
    assert wrap("the quick brown fox", 10) == "the quick\nbrown fox"


def test_the_first_line_is_shorter_by_what_stands_on_it() -> None:
    assert wrap("the quick brown fox", 10, column=5) == "the\nquick\nbrown fox"


def test_chinese_breaks_between_characters_counted_two_cells_wide() -> None:
    assert wrap("我们住在河边的房子里", 9) == "我们住在\n河边的房\n子里"


def test_no_line_begins_with_a_closing_mark_or_ends_with_an_opening_one() -> None:
    assert wrap("我们住在，河边", 8) == "我们住\n在，河边"
    assert wrap("我们住《河边》", 8) == "我们住\n《河边》"


def test_a_word_longer_than_a_line_is_cut() -> None:
    assert wrap("x" * 25, 10).replace("\n", "") == "x" * 25
    assert max(map(len, wrap("x" * 25, 10).split("\n"))) <= 10


def test_words_come_out_as_soon_as_they_are_whole() -> None:
    wrapper = LineWrapper(lambda: 80)
    assert [wrapper.push(piece) for piece in ("Hel", "lo", " wo", "你", "好", "。")] == [
        "",
        "",
        "Hello",
        " wo",
        "你",
        "",
    ]


def test_the_models_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\r\x9b2J\u202e\tc\n") == "a[31mb2J    c\n"


TEXT = st.text(st.sampled_from("ab ,.(我们。《》“”…é\n🦊👩\u200d\u0301"), max_size=120)


@given(TEXT, st.integers(20, 40), st.integers(0, 19))
def test_every_line_fits_and_no_character_is_lost(text: str, width: int, column: int) -> None:
    wrapped = wrap(text, width, column)
    lines = wrapped.split("\n")
    assert cell_len(lines[0]) + column <= width
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(wrapped.split()) == "".join(text.split())


@given(st.text(st.sampled_from("我们住在。，《》"), max_size=80).filter(lambda t: not t.strip("我们住在") or "我" in t))
def test_marks_stay_with_their_neighbours(text: str) -> None:
    lines = wrap(text, 60).split("\n")
    for before, after in pairwise(lines):
        assert after[0] not in NO_LINE_START or cell_len(before) >= 58  # a run of marks longer than a line is cut
        assert before[-1] not in NO_LINE_END or cell_len(before) >= 58
