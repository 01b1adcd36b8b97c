"""Traditional becomes Simplified as OpenCC's own test cases have it, and nothing else changes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_jsonl

from mini_chat.config import Recipe, Source, load_recipe
from mini_chat.data import zh_simplify
from mini_chat.data.parts import MANIFEST
from mini_chat.data.zh_simplify import CONFIGS, is_japanese, main, simplify, simplify_text
from mini_chat.errors import UserError

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("MINI_CHAT_DATA", REPOSITORY / "../shared/data"))
needs_real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}: set MINI_CHAT_DATA")

CHINESE_TEXT = st.text(st.sampled_from("頭髮發現乾燥坤著名看裡面後皇学說國，。「」『』《》“”—…！？ \n\tab1"))


def opencc_cases(config: str) -> list[tuple[str, str]]:
    """OpenCC's own cases of a conversion: text and what it shall become. The file has commas that JSON has not."""
    text = (DATA / "opencc/test/testcases/testcases.json").read_text(encoding="utf-8")
    cases = json.loads(re.sub(r",(?=\s*[}\]])", "", text))["cases"]
    return [(case["input"], case["expected"][config]) for case in cases if config in case["expected"]]


@needs_real_data
@pytest.mark.parametrize("config", CONFIGS)
def test_all_of_openccs_own_cases_agree_but_for_those_that_are_simplified_already(config: str) -> None:
    cases = opencc_cases(config)
    assert len(cases) >= 8
    differing = {text for text, expected in cases if simplify_text(text, config) != expected}
    assert differing == ({"演算法"} if config == "tw2sp" else set())
    assert all(simplify_text(text) == text for text in differing)


@pytest.mark.parametrize(
    ("text", "simplified"),
    [
        ("頭髮在乾燥的空氣裡發亮，乾隆皇后說", "头发在干燥的空气里发亮，乾隆皇后说"),
        ("蒙特婁「劇場」", "蒙特娄「剧场」"),
        ("a\x00漢\r\n字\u3000😀", "a\x00汉\r\n字\u3000😀"),
        ("𡑭", "𡋗"),
    ],
)
def test_phrases_decide_and_what_is_not_chinese_stays(text: str, simplified: str) -> None:
    assert simplify_text(text) == simplified


def test_quotation_marks_are_left_unless_asked() -> None:
    text = "他說：「讀《三國》，『真』好。」"
    assert simplify_text(text) == "他说：「读《三国》，『真』好。」"
    assert simplify_text(text, punctuation=True) == "他说：“读《三国》，‘真’好。”"
    assert simplify_text("「好」", punctuation=True) == "“好”", "Simplified text too"


@pytest.mark.parametrize("config", CONFIGS)
@given(text=CHINESE_TEXT)
def test_only_chinese_characters_change(config: str, text: str) -> None:
    def rest(text: str) -> str:
        return re.sub("[\u3400-\u9fff\U00020000-\U0003ffff]+", "", text)

    assert rest(simplify_text(text, config)) == rest(text)


@pytest.mark.parametrize("config", CONFIGS)
@given(text=st.text(st.characters(max_codepoint=0x2DFF)))
def test_text_without_chinese_characters_is_the_same_object(config: str, text: str) -> None:
    assert simplify_text(text, config, punctuation=True) is text


@pytest.mark.parametrize("config", CONFIGS)
def test_simplified_text_is_left_alone_by_every_conversion(config: str) -> None:
    text = "差异显著。土著语言。是什么框架么？\n进程，程序，演算法"
    assert simplify_text(text, config) == text


def test_a_regional_conversion_reaches_the_traditional_lines_of_a_mixed_text_only() -> None:
    assert simplify_text("差异显著。\n他看著電視。\n是框架么？", "tw2s") == "差异显著。\n他看着电视。\n是框架么？"
    assert simplify_text("用軟體\n程序", "tw2sp") == "用软件\n程序"


def test_japanese_is_left_alone_and_chinese_about_japan_is_not() -> None:
    japanese = "國語の授業で漢字を學びます。"
    chinese = "《となりのトトロ》是日本動畫導演宮崎駿的作品，講述兩姊妹搬到鄉間之後與森林精靈相遇的故事。"
    assert is_japanese(japanese) and simplify_text(japanese) == japanese
    assert not is_japanese(chinese) and "动画导演宫崎骏" in simplify_text(chinese)


@needs_real_data
def test_real_traditional_text_has_hardly_a_traditional_character_left() -> None:
    table = (DATA / "opencc/data/dictionary/TSCharacters.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in table if not line.startswith("#") and "\t" in line]
    always = {one for one, other in pairs if one not in other.split(" ")}  # 乾 may stay 乾
    texts = json.loads((DATA / "drcd/DRCD_dev.json").read_text(encoding="utf-8"))["data"]
    text = "\n".join(paragraph["context"] for article in texts for paragraph in article["paragraphs"])
    before, after = (sum(map(always.__contains__, version)) for version in (text, simplify_text(text)))
    assert before > 100_000
    assert after < before / 10_000


@needs_real_data
def test_real_simplified_prose_keeps_its_characters() -> None:
    lines = (DATA / "d2l-zh/d2l-zh.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines)
    for config in ("t2s", "tw2s"):
        after = simplify_text(text, config)
        assert sum(a != b for a, b in zip(text, after, strict=True)) < len(text) / 50_000


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(out=str(tmp_path / "run"), machine={"processes": 1})  # type: ignore[arg-type]


def outcome(recipe: Recipe, sources: list[Source]) -> tuple[list[str], dict[str, Any]]:
    """The texts that the step leaves, and its account."""
    simplify(sources, recipe.directory / "simplify", recipe)
    (folder,) = (recipe.directory / "simplify").iterdir()
    lines = b"".join(zstandard.decompress(path.read_bytes()) for path in sorted(folder.glob("*.zst"))).splitlines()
    account = json.loads((folder / MANIFEST).read_text())["accounting"]
    return [json.loads(line)["text"] for line in lines], account


def test_the_step_counts_what_it_changed_and_leaves_english_documents(tmp_path: Path, recipe: Recipe) -> None:
    texts = ["頭髮發白", "头发发白", "Hello there, 國 is one character", "Only English", "第二行\n頭髮"]
    path = write_jsonl(tmp_path / "mixed.jsonl", [{"text": text} for text in texts])
    found, account = outcome(recipe, [Source(path=str(path))])
    assert found == ["头发发白", "头发发白", "Hello there, 國 is one character", "Only English", "第二行\n头发"]
    assert (account["read"], account["written"], account["dropped"]) == (5, 5, {})
    assert account["repaired"] == {"to Simplified": 2}
    assert account["bytes"] == sum(len(text.encode()) for text in found)


def test_other_settings_make_the_step_again_and_the_same_do_not(
    tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "zh.jsonl", [{"text": "「看著電視」"}])
    sources = [Source(path=str(path), language="zh")]
    assert outcome(recipe, sources)[0] == ["「看著电视」"]
    outcome(recipe, sources)
    assert "finished" in capsys.readouterr().err
    recipe.simplify.config, recipe.simplify.punctuation = "tw2s", True
    assert outcome(recipe, sources)[0] == ["“看着电视”"]
    assert "settings changed since the last run; made again" in capsys.readouterr().err


def test_an_unknown_conversion_is_one_line_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("simplify: {config: s2t}")
    with pytest.raises(UserError, match=r"simplify.config: input should be 't2s', 'tw2s', .*, not 's2t'$"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"^simplify.config s2t: no such conversion; choose one of t2s, tw2s"):
        simplify_text("漢", "s2t")


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    zh_simplify._converter.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(UserError, match=r"^simplify: OpenCC is not installed; run: pip install opencc$"):
        simplify_text("漢")
    zh_simplify._converter.cache_clear()


# The same folder of documents in parts of 4 kB; a kill falls somewhere between two of its writes.
STEP = """
import functools, pathlib, sys, time
from mini_chat.config import Machine, Source
from mini_chat.data import steps, zh_simplify
steps.batches.__defaults__ = (8, 1_000_000)
def slowly(config):
    transform = zh_simplify.make_transform(config, False)
    return lambda documents: (time.sleep(0.004), transform(documents))[1]
print("ready", flush=True)
steps.run_step("simplify", [Source(path=sys.argv[1])], pathlib.Path(sys.argv[2]), {},
               functools.partial(slowly, "t2s"), Machine(processes=1), 10_000_000, part_bytes=4_000)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_instants_change_no_byte(kills: int, tmp_path: Path) -> None:
    texts = [f"第{number}段：頭髮發現乾燥，後來國語說。" * (1 + number % 7) for number in range(600)]
    path = write_jsonl(tmp_path / "zh.jsonl", [{"text": text} for text in texts])

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", STEP, str(path), str(tmp_path / out)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    assert start("whole").wait(60) == 0
    killed, instants = 0, random.Random(kills)
    while killed < kills:
        process = start("cut")
        time.sleep(instants.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        if process.wait(60) == 0:
            (tmp_path / "cut").rename(tmp_path / f"done-{killed}")  # finished before the kill: begin anew
        else:
            killed += 1
    whole_parts = {part: part.stat().st_mtime_ns for part in (tmp_path / "cut").rglob("part-*.json")}
    assert start("cut").wait(60) == 0
    assert {part: part.stat().st_mtime_ns for part in whole_parts} == whole_parts, "what is done is not done again"

    def content(out: str) -> dict[str, bytes]:
        files = (file for file in (tmp_path / out).rglob("*") if file.is_file())
        return {str(file.relative_to(tmp_path / out)): file.read_bytes() for file in files}

    assert content("cut") == content("whole")
    assert len(content("whole")) > 8


def alone(arguments: list[str], given: bytes) -> tuple[int, bytes, str]:
    """`python -m mini_chat.data.zh_simplify`, in a process of its own."""
    command = [sys.executable, "-m", "mini_chat.data.zh_simplify", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, cwd=REPOSITORY, timeout=60)
    return done.returncode, done.stdout, done.stderr.decode()


def test_it_also_runs_alone() -> None:
    status, out, error = alone(["--config", "tw2s"], "看著「電視」\r\nplain\n無尾".encode())
    assert (status, out.decode(), error) == (0, "看着「电视」\r\nplain\n无尾", "")


@pytest.fixture
def lines(tmp_path: Path) -> Callable[[bytes], Any]:
    def opened(content: bytes) -> Any:
        (tmp_path / "in").write_bytes(content)
        return open(tmp_path / "in", "rb")

    return opened


def test_alone_what_is_not_utf8_is_one_line(
    lines: Callable[[bytes], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lines("漢\n".encode() + "漢字".encode("big5")) as source, open(tmp_path / "out", "wb") as sink:
        assert main([], source, sink) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("zh_simplify: error: standard input, line 2: not UTF-8 text (byte 1); if it is GBK or Big5,")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_alone_a_full_disk_is_one_line() -> None:
    command = f"{sys.executable} -m mini_chat.data.zh_simplify > /dev/full"
    done = subprocess.run(command, shell=True, input="漢\n".encode(), capture_output=True, cwd=REPOSITORY, timeout=60)
    expected = b"zh_simplify: error: cannot write (No space left on device); free space\n"
    assert (done.returncode, done.stderr) == (1, expected)
