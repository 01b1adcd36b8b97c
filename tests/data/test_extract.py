"""Dumps become documents: the same bytes however often it is killed, and every page accounted for."""

from __future__ import annotations

import bz2
import io
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash
import pytest
import wiki_pages
import yaml
import zstandard

from mini_chat.config import Recipe, Source
from mini_chat.data.extract import DISAMBIGUATION, NOT_ARTICLE, REDIRECT, SHORT, extract
from mini_chat.data.steps import finished_sources, folders
from mini_chat.data.tally import DAMAGED, EMPTY
from mini_chat.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
DATA = Path(os.environ.get("MINI_CHAT_DATA", REPOSITORY / "../shared/data"))
needs_pages = pytest.mark.skipif(
    not (DATA / "gensim-wiki").exists(), reason=f"no real pages in {DATA}; set MINI_CHAT_DATA to the folder of them"
)
LEFTOVER = re.compile(
    r"-\{|\}-|\{\{|\}\}|\[\[|\]\]|<ref|</ref|[(（][\s,;:，；：、]*[)）]|《\s*》|「\s*」|[(（][,，;；、]"
)


def run(source: Source, out: Path, processes: int = 1, **settings: Any) -> list[dict[str, str]]:
    """Extract, and read what was written."""
    recipe = Recipe.model_validate({"extract": settings, "machine": {"processes": processes}})
    extract([source], out, recipe)
    return documents(out / folders([source])[0])


def documents(folder: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted(folder.glob("part-*.jsonl.zst")):
        with open(path, "rb") as file:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
            found += [json.loads(line) for line in lines]
    return found


def accounting(source: Source, out: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / folders([source])[0] / "manifest.json").read_text())
    account: dict[str, Any] = manifest["accounting"]
    assert account["read"] == account["written"] + sum(account["dropped"].values())
    return account


def test_articles_are_kept_and_every_other_page_is_counted_by_reason(tmp_path: Path) -> None:
    written = [
        *wiki_pages.pages(3),
        wiki_pages.page("Talk:A", "talk " * 100, namespace=1),
        wiki_pages.page("B", "#REDIRECT [[A]]", redirect="A"),
        wiki_pages.page("C", "#重定向 [[A]]" + " " * 200),
        wiki_pages.page("D", "D may be:\n* " + "A " * 100 + "\n{{disambig}}"),
        wiki_pages.page("E", "short"),
        wiki_pages.page("F", ""),
    ]
    source = Source(path=str(wiki_pages.write(tmp_path / "a.xml", wiki_pages.dump(written))))
    found = run(source, tmp_path / "out")
    assert [document["title"] for document in found] == ["Article 0", "Article 1", "Article 2"]
    assert found[0]["text"].startswith("Article 0\n\nArticle 0 is about a thing.")
    account = accounting(source, tmp_path / "out")
    assert account["dropped"] == {NOT_ARTICLE: 1, REDIRECT: 2, DISAMBIGUATION: 1, SHORT: 1, EMPTY: 1}
    assert f"{source.path}: E: {SHORT}" in account["examples"]


@pytest.mark.parametrize("language", ["zh", "auto"])
def test_the_variant_is_the_recipes_and_the_language_the_dumps(language: str, tmp_path: Path) -> None:
    text = "-{zh-hans:计算机;zh-hant:電腦}-是一种机器。" * 20
    data = wiki_pages.dump([wiki_pages.page("甲", text)], "zh")
    source = Source(path=str(wiki_pages.write(tmp_path / "a.xml", data)), language=language)
    assert run(source, tmp_path / "out")[0]["text"] == "甲\n\n" + "计算机是一种机器。" * 20
    assert run(source, tmp_path / "tw", variant="zh-tw")[0]["text"] == "甲\n\n" + "電腦是一种机器。" * 20


def test_a_folder_of_dumps_is_one_source_which_the_next_step_finds(tmp_path: Path) -> None:
    for number in range(3):
        data = wiki_pages.dump(wiki_pages.pages(5, 5 * number))
        wiki_pages.write(tmp_path / f"wiki/part{number}.xml-p{number}p9.bz2", bz2.compress(data))
    source = Source(path=str(tmp_path / "wiki"), format="wiki", language="en", weight=2.0)
    assert [document["title"] for document in run(source, tmp_path / "out")] == [f"Article {n}" for n in range(15)]
    (found,) = finished_sources("extract", [source], tmp_path / "out", lambda source: source.is_dump)
    assert (found.format, found.language, found.weight) == ("jsonl", "en", 2.0)
    assert accounting(source, tmp_path / "out")["files"] == 3


def test_the_bytes_do_not_depend_on_processes(tmp_path: Path) -> None:
    plain = wiki_pages.write(tmp_path / "a.xml", wiki_pages.dump(wiki_pages.pages(1_500)))
    packed = wiki_pages.write(tmp_path / "b.xml.bz2", wiki_pages.multistream(wiki_pages.pages(1_500), 100))
    for path in (plain, packed):
        source = Source(path=str(path))
        for processes in (1, 2):
            run(source, tmp_path / f"out{processes}", processes, part_bytes=200_000)
        first, second = (bits(tmp_path / f"out{processes}") for processes in (1, 2))
        assert first == second
        assert len(first) > 4


def test_what_is_finished_is_not_made_again_and_what_changed_is(tmp_path: Path) -> None:
    source = Source(path=str(wiki_pages.write(tmp_path / "a.xml", wiki_pages.dump(wiki_pages.pages(3)))))
    run(source, tmp_path / "out")
    (part,) = (tmp_path / "out").rglob("part-*.zst")
    made = part.stat().st_mtime_ns
    heavier = source.model_copy(update={"weight": 3.0})
    run(heavier, tmp_path / "out")  # the weight is the mixer's affair
    assert part.stat().st_mtime_ns == made
    wiki_pages.write(tmp_path / "a.xml", wiki_pages.dump(wiki_pages.pages(4)))
    assert len(run(source, tmp_path / "out")) == 4


@pytest.mark.parametrize("form", ["single", "multistream"])
def test_a_truncated_dump_gives_what_came_before_and_says_what_is_lost(form: str, tmp_path: Path) -> None:
    noise = random.Random(3)
    written = [wiki_pages.page(f"Article {n}", noise.randbytes(2_000).hex()) for n in range(700)]
    data = bz2.compress(wiki_pages.dump(written)) if form == "single" else wiki_pages.multistream(written, 100)
    source = Source(path=str(wiki_pages.write(tmp_path / "a.xml.bz2", data[: len(data) * 2 // 3])))
    found = run(source, tmp_path / "out")
    assert [document["title"] for document in found] == [f"Article {n}" for n in range(len(found))]
    assert len(found) > 200
    account = accounting(source, tmp_path / "out")
    assert account["dropped"] == {DAMAGED: 1}
    assert re.search(r"[\d,]+ bytes from there on are lost", account["notes"][0])


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.xml", b"<feed/>", "no Wikipedia dump"),
        ("a.xml.bz2", b"<mediawiki>", "not .bz2 data"),
        ("a.xml", wiki_pages.dump([wiki_pages.page("A", "short")]), "no article in it"),
        ("a.xml", wiki_pages.dump([]), "no article in it"),
    ],
)
def test_a_dump_without_articles_is_one_line(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    source = Source(path=str(wiki_pages.write(tmp_path / name, data)))
    with pytest.raises(UserError, match=said) as raised:
        run(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").rglob("manifest.json"))


@needs_pages
def test_real_pages_keep_no_markup_and_no_empty_brackets(tmp_path: Path) -> None:
    found = []
    for path in ("gensim-wiki/*.bz2", "wikiclean-pages/*wiki-*.xml"):
        found += run(Source(path=str(DATA / path), format="wiki"), tmp_path / "out")
    assert len(found) > 100
    for document in found:
        assert not LEFTOVER.search(document["text"]), document["title"]
    chinese = next(document["text"] for document in found if document["title"] == "数学")
    assert "西方语言中“數學”（mathematics；μαθηματικά）一詞源自於古希臘語的μάθημα（máthēma）" in chinese


@needs_pages
def test_marks_that_another_extractor_leaves_are_evaluated() -> None:
    from mini_chat.data.wiki.wikitext import clean

    seen = 0
    for name in ("raw-traditional", "simplified"):
        for line in (DATA / f"zhwiki-extracted/wiki_00.{name}.jsonl").read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            seen += text.count("-{")
            assert not LEFTOVER.search(clean(text, "zh-cn").text)
    assert seen > 50


# Kills.


@pytest.fixture(scope="module", autouse=True)
def _preload() -> None:
    crash.preload()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """A recipe whose extraction writes several parts, and what it writes."""
    folder = tmp_path_factory.mktemp("extract")
    path = wiki_pages.write(folder / "a.xml", wiki_pages.dump(wiki_pages.pages(1_200)))
    recipe = {
        "out": str(folder / "run"),
        "stages": ["extract"],
        "data": {"documents": [{"path": str(path)}]},
        "extract": {"part_bytes": 300_000},
        "machine": {"processes": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert crash.finish(command(folder), folder / "log") == 0, (folder / "log").read_text()
    whole = bits(folder / "run")
    assert len(whole) > 4
    yield folder, whole


def command(folder: Path, processes: int = 1) -> list[str]:
    return ["extract", str(folder / "recipe.yaml"), "--machine.processes", str(processes)]


def bits(directory: Path) -> dict[str, bytes]:
    """What an extraction left, but for what says when."""
    names = ("part-*.zst", "part-*.json", "manifest.json")
    return {path.name: path.read_bytes() for name in names for path in directory.rglob(name)}


def test_a_kill_at_any_file_operation_changes_no_byte(undisturbed: tuple[Path, dict[str, bytes]]) -> None:
    folder, whole = undisturbed
    for number in range(1, 40, 5):
        shutil.rmtree(folder / "run")
        if crash.finish(command(folder), folder / "log", die_at=number) == 0:
            break
        assert crash.finish(command(folder), folder / "log") == 0, (folder / "log").read_text()
        assert bits(folder / "run") == whole
        assert not list((folder / "run").rglob("*.partial"))
    else:
        pytest.fail("it was never finished")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_instants_change_no_byte(kills: int, undisturbed: tuple[Path, dict[str, bytes]]) -> None:
    folder, whole = undisturbed
    processes = 1 if kills == 3 else 2
    shutil.rmtree(folder / "run")
    seconds = crash.timed(command(folder, processes), folder / "log")
    chance = random.Random(kills)
    for _ in range(kills):
        shutil.rmtree(folder / "run", ignore_errors=True)
        crash.kill_after(command(folder, processes), folder / "log", seconds * chance.random())
        assert crash.finish(command(folder, processes), folder / "log") == 0, (folder / "log").read_text()
        assert bits(folder / "run") == whole
