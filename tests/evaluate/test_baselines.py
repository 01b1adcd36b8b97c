"""What can be had without understanding: under 40% everywhere, and the baselines do find what they look for."""

import json
from pathlib import Path

import pytest

from mini_chat.errors import UserError
from mini_chat.evaluate.baselines import Turn, baseline_scores, frequent_answers, main, nearest_answers, read_turns
from mini_chat.evaluate.exam_items import read_items
from mini_chat.world.generate import WorldSizes, write_world

BAR = 0.40


def asked(content: str) -> dict[str, object]:
    return {"skill": "s", "language": "en", "messages": [{"role": "user", "content": content}]}


def test_the_most_frequent_answer_of_the_skill_and_language_is_given() -> None:
    turns = [Turn("s", "en", "", "b"), Turn("s", "en", "", "a"), Turn("s", "en", "", "a"), Turn("s", "zh", "", "c")]
    assert frequent_answers(turns, [asked("?"), {**asked("?"), "skill": "t"}]) == ["a", ""]


def test_the_nearest_prompt_shares_the_rare_words_and_their_order() -> None:
    turns = [
        Turn("s", "en", "Where does Tom live?", "here"),
        Turn("s", "en", "Where does Anna live?", "there"),
        Turn("s", "en", "What does Anna eat?", "rice"),
        Turn("s", "zh", "汤姆住在哪里？", "这里"),
    ]
    questions = ["where does anna live", "Eat what, Anna?", "请问汤姆住在哪里"]
    assert nearest_answers(turns, [asked(question) for question in questions]) == ["there", "rice", "这里"]
    assert nearest_answers([], [asked("?")]) == [""]


@pytest.mark.parametrize("seed", [0, 1])
def test_both_baselines_stay_under_the_bar_in_every_skill(tmp_path: Path, seed: int) -> None:
    write_world(tmp_path, seed, WorldSizes(pretrain_documents=2, sft_dialogues=25_000, preferences=1))
    scores = baseline_scores(read_items(tmp_path / "exam.jsonl"), read_turns(tmp_path / "sft.jsonl"))
    for name, languages in scores.items():
        for language, skills in languages.items():
            assert skills["all"] < BAR / 2, (name, language)
            assert all(share < BAR for share in skills.values()), (name, language, skills)


def test_the_command_prints_a_row_for_each_skill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(tmp_path, 0, WorldSizes(2, 200, 1, 1, 2))
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 12 + 1
    assert main([str(tmp_path / "missing")]) == 1


def test_a_line_that_is_no_dialogue_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"messages": [], "skill": "s", "language": "en"}) + "\n{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read_turns(path)
