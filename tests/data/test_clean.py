"""The stage: every document accounted for, the first of its kind kept, the same bytes whatever interrupted it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import crash
import pytest
import yaml
import zstandard
from rich.cells import cell_len

from mini_chat import files
from mini_chat.config import Recipe, Source
from mini_chat.data.clean import clean, shown
from mini_chat.data.steps import finished_sources, folders
from mini_chat.data.tally import Tally
from mini_chat.errors import UserError

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def prose(seed: int, words: int = 60) -> str:
    """A paragraph like no other."""
    generator = random.Random(seed)
    some = ["".join(generator.choices(SYLLABLES, k=generator.choice([2, 3, 4]))) for _ in range(words)]
    some[3::17] = ["of the"] * len(some[3::17])
    return " ".join(some) + "."


def prose_zh(seed: int, characters: int = 80) -> str:
    generator = random.Random(seed)
    return "".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(characters)) + "的。"


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def recipe_of(processes: int = 1, **settings: Any) -> Recipe:
    return Recipe.model_validate({"machine": {"processes": processes}, "clean": settings})


def run(tmp_path: Path, *texts: list[str], name: str = "run", recipe: Recipe | None = None, **settings: Any) -> Path:
    """Clean lists of documents, a source each; the directory of the step."""
    sources = sources_of(tmp_path, *texts)
    clean(sources, tmp_path / name / "clean", recipe or recipe_of(**settings))
    return tmp_path / name / "clean"


def sources_of(tmp_path: Path, *texts: list[str]) -> list[Source]:
    sources = []
    for number, own in enumerate(texts):
        path = tmp_path / f"source{number}.jsonl"
        if not path.exists():
            write(path, own)
        sources.append(Source(path=str(path), language="auto"))
    return sources


def kept(directory: Path, sources: list[Source]) -> list[list[str]]:
    """What is left of each source."""
    result = []
    for source in finished_sources("clean", sources, directory, lambda _: True):
        texts = []
        for part in sorted(Path(source.path).parent.glob("part-*.jsonl.zst")):
            lines = zstandard.ZstdDecompressor().decompress(part.read_bytes()).splitlines()
            texts += [json.loads(line)["text"] for line in lines]
        result.append(texts)
    return result


def account(directory: Path, source: Source) -> Tally:
    manifest = files.read_json(directory / folders([source])[0] / "manifest.json")
    tally = Tally.from_json(manifest["accounting"])
    tally.check()
    return tally


def contents(directory: Path) -> dict[str, str]:
    """Hashes of all files under a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_every_document_is_accounted_for_by_reason(tmp_path: Path) -> None:
    texts = [
        prose(1),
        prose(2),
        prose(1),
        "Heading",
        "\u200b \u200b",
        prose(3) + "  \n ",
        "1 2 3 4 5 6 7",
        "",
        "a\x00b",
    ]
    directory = run(tmp_path, texts)
    (source,) = sources_of(tmp_path, texts)
    assert kept(directory, [source]) == [[prose(1), prose(2), prose(3)]]
    tally = account(directory, source)
    expected = {
        "duplicate": 1, "too short": 1, "nothing left": 1, "mostly digits": 1, "empty": 1, "NUL byte": 1,
    }  # fmt: skip
    assert (tally.read, tally.written, dict(tally.dropped)) == (9, 3, expected)
    assert tally.bytes == sum(len(prose(seed).encode()) for seed in (1, 2, 3))
    assert tally.repaired == {"white space": 1}
    assert any(example.endswith("source0.jsonl:3: duplicate") for example in tally.examples)


def test_the_first_of_its_kind_stays_across_sources(tmp_path: Path) -> None:
    near, near_zh = prose(1).replace("of the", "of a", 1), prose_zh(1)[:60] + "新" + prose_zh(1)[61:]
    texts = [prose(1), prose_zh(1)], [prose(2), near, near_zh, prose(1)]
    directory = run(tmp_path, *texts)
    sources = sources_of(tmp_path, *texts)
    assert kept(directory, sources) == [[prose(1), prose_zh(1)], [prose(2)]]
    assert account(directory, sources[1]).dropped == {"near duplicate": 2, "duplicate": 1}


def test_dedup_may_be_exact_or_off(tmp_path: Path) -> None:
    texts = [prose(1), prose(1).replace("of the", "of a", 1), prose(1)]
    sources = sources_of(tmp_path, texts)
    assert kept(run(tmp_path, texts, dedup="exact"), sources) == [texts[:2]]
    directory = run(tmp_path, texts, name="off", dedup="off")
    assert kept(directory, sources) == [texts]
    assert not (directory / "keys").exists()


def test_similarity_is_a_setting(tmp_path: Path) -> None:
    words = prose(1, 150).split()
    assert len(words) > 150
    changed = " ".join([*words[:75], "another", *words[76:]])  # 5 of its runs of 5 words are new
    sources = sources_of(tmp_path, [prose(1, 150), changed])
    assert len(kept(run(tmp_path, [], similarity=0.8), sources)[0]) == 1
    assert len(kept(run(tmp_path, [], name="strict", similarity=0.99), sources)[0]) == 2


def test_lines_that_many_documents_have_are_taken_out(tmp_path: Path) -> None:
    texts = [f"{prose(number)}\nThe newspaper of our town\n{prose(-number)}" for number in range(1, 9)]
    texts.append("The newspaper of our town")
    sources = sources_of(tmp_path, texts)
    directory = run(tmp_path, texts, boilerplate_documents=8)
    assert kept(directory, sources) == [[f"{prose(n)}\n{prose(-n)}" for n in range(1, 9)] + [texts[-1]]]
    assert account(directory, sources[0]).repaired == {"repeated lines": 8}
    assert kept(run(tmp_path, texts, name="nine", boilerplate_documents=9), sources) == [texts]


def test_documents_of_an_earlier_run_are_left_out(tmp_path: Path) -> None:
    first = run(tmp_path, [prose(1), prose(2)], name="first")
    (source,) = sources_of(tmp_path / "more", [prose(3), prose(2), prose(1).replace("of the", "of a", 1)])
    clean([source], tmp_path / "second" / "clean", recipe_of(seen=[str(first.parent)]))
    assert kept(tmp_path / "second" / "clean", [source]) == [[prose(3)]]
    with pytest.raises(UserError, match=r"clean.seen: .*nowhere: no finished `clean` in this run"):
        clean([source], tmp_path / "third" / "clean", recipe_of(seen=[str(tmp_path / "nowhere")]))
    with pytest.raises(UserError, match="dedup near, bands 14; clean it again"):
        clean([source], tmp_path / "third" / "clean", recipe_of(seen=[str(first.parent)], bands=20))


# --- the same bytes ---------------------------------------------------------------------------------------------------


def many(seed: int, documents: int = 700) -> list[str]:
    """Documents of all kinds."""
    generator = random.Random(seed)
    texts = []
    for number in range(documents):
        text = generator.choice([prose, prose_zh])(generator.randrange(seed, seed + documents))
        dirt = generator.choice(["", "", "", " \u200b", "（，）", "<br>", "1 2 3 4 5 6 7 8 9" * 30])
        texts.append(generator.choice([text, text, text[:200] + f" {number}", "x"]) + dirt)
    return texts


def test_processes_and_memory_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = many(1), many(500)
    expected = contents(run(tmp_path, *texts))
    monkeypatch.setattr("mini_chat.data.clean.FEW_BYTES", 1)
    assert contents(run(tmp_path, *texts, name="two", recipe=recipe_of(processes=2))) == expected
    monkeypatch.setattr("mini_chat.data.clean._resources", lambda recipe: (1, 64 * 50))
    monkeypatch.setattr("mini_chat.data.clean.FEW_DOCUMENTS", 0)
    assert contents(run(tmp_path, *texts, name="tiny")) == expected


def test_temporary_files_are_gone_and_a_second_start_does_nothing(tmp_path: Path) -> None:
    directory = run(tmp_path, many(1), many(2))
    assert {path.name.split("-")[0] for path in directory.iterdir()} == {"source0.jsonl", "source1.jsonl", "keys"}
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    run(tmp_path, many(1), many(2))
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before


def test_a_changed_source_is_made_again_and_what_follows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [prose(1)], [prose(2), prose(5)], [prose(3), prose(2), prose(5)]
    directory = run(tmp_path, *texts)
    sources = sources_of(tmp_path, *texts)
    first = next(directory.glob("source0*")) / "part-00000.jsonl.zst"
    made = first.stat().st_mtime_ns
    write(tmp_path / "source1.jsonl", [prose(4), prose(5)])
    capsys.readouterr()
    run(tmp_path, *texts)
    assert kept(directory, sources) == [[prose(1)], [prose(4), prose(5)], [prose(3), prose(2)]]
    assert first.stat().st_mtime_ns == made
    said = capsys.readouterr().err
    assert "source0" in said.split("finished")[0]
    assert "files changed since the last run" in said
    assert "earlier documents changed since the last run" in said
    again = contents(directory)
    assert contents(run(tmp_path, *texts, name="fresh")) == again


def test_a_changed_option_is_said_and_all_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [prose(1), prose(1, 12)]
    directory = run(tmp_path, texts)
    run(tmp_path, texts, min_words=20)
    assert "settings changed since the last run" in capsys.readouterr().err
    assert kept(directory, sources_of(tmp_path, texts)) == [[prose(1)]]


def test_a_full_disk_is_one_line_and_the_next_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = many(1), many(2)
    monkeypatch.setattr("mini_chat.data.clean.SURVIVOR_BYTES", 20_000)
    expected = contents(run(tmp_path, *texts))
    fsync, left = os.fsync, [30]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    failures = 0
    for room in (3, 7, 15, 30, 10**9):
        left[0] = room
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                run(tmp_path, *texts, name="full")
            except UserError as error:
                assert "No space left on device" in str(error)
                assert "\n" not in str(error)
                failures += 1
    assert failures >= 3
    assert contents(tmp_path / "full" / "clean") == expected


def killed_at(tmp_path: Path, points: list[int], name: str) -> Path:
    """The directory of a run that was killed before that many operations on files, one kill a start."""
    directory, output = tmp_path / name, tmp_path / f"{name}.log"
    arguments = ["clean", str(tmp_path / "recipe.yaml"), "--out", str(directory)]
    for point in points:
        assert crash.finish(arguments, output, die_at=point) in {-9, 0}, output.read_text()
    assert crash.finish(arguments, output) == 0, output.read_text()
    return directory / "clean"


@pytest.fixture
def crash_recipe(tmp_path: Path) -> None:
    crash.preload()
    sources = sources_of(tmp_path, many(1, 300), many(2, 300))
    recipe = {
        "data": {"documents": [{"path": source.path, "language": "auto"} for source in sources]},
        "clean": {"boilerplate_documents": 50},
        "machine": {"processes": 1},
        "stages": ["clean"],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.usefixtures("crash_recipe")
def test_killed_at_any_operation_the_bytes_are_the_same(tmp_path: Path) -> None:
    expected = contents(killed_at(tmp_path, [], "undisturbed"))
    assert contents(killed_at(tmp_path, [25, 45, 50, 40, 20], "killed")) == expected


@pytest.mark.slow
@pytest.mark.timeout(2_000)
@pytest.mark.usefixtures("crash_recipe")
def test_killed_before_each_operation_in_turn_the_bytes_are_the_same(tmp_path: Path) -> None:
    expected = contents(killed_at(tmp_path, [], "undisturbed"))
    for point in range(1, 125):
        assert contents(killed_at(tmp_path, [point], f"killed{point}")) == expected, point


# --- bad input --------------------------------------------------------------------------------------------------------


def test_invalid_utf8_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "source0.txt"
    path.write_bytes(b"\n".join([prose(1).encode(), b"caf\xe9 au lait is not UTF-8", prose(2).encode()]))
    source = Source(path=str(path), language="en", format="lines")
    clean([source], tmp_path / "clean", recipe_of())
    assert account(tmp_path / "clean", source).dropped == {"invalid UTF-8": 1}


def test_a_source_of_which_nothing_is_left_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source0.jsonl: nothing is left of it \(too short: 2\); look at") as caught:
        run(tmp_path, ["x", "y"])
    assert "\n" not in str(caught.value)


def test_documents_of_ten_megabytes_pass_in_bounded_time_and_memory(tmp_path: Path) -> None:
    zh = "".join(prose_zh(seed, 1_000) for seed in range(3_000))
    en = prose(1, 1_400_000)
    repeated = "便宜的手表在线购买。" * 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    directory = run(tmp_path, [zh, en, repeated, zh + "！"])
    assert time.process_time() - started < 40
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kilobytes
    (source,) = sources_of(tmp_path, [])
    assert account(directory, source).dropped == {"repeated phrases": 1, "near duplicate": 1}


def one_character_documents(tmp_path: Path, documents: int) -> Counter[str]:
    path = tmp_path / "source0.txt"
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, documents, 100_000):
            file.write("".join(f"{chr(0x4E00 + n % 20_000)}\n" for n in range(start, min(start + 100_000, documents))))
    source = Source(path=str(path), language="zh", format="lines")
    clean([source], tmp_path / "clean", recipe_of(min_words=0))
    return account(tmp_path / "clean", source).dropped


def test_one_character_documents_are_counted(tmp_path: Path) -> None:
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert one_character_documents(tmp_path, 60_000) == {"duplicate": 40_000}
    assert time.process_time() - started < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_ten_million_one_character_documents_are_counted(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert one_character_documents(tmp_path, 10_000_000) == {"duplicate": 9_980_000}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900_000  # of the 1 GB of clean.memory_bytes


# --- what the user sees -----------------------------------------------------------------------------------------------


def test_samples_are_shown_by_reason_in_two_narrow_lines_each(tmp_path: Path) -> None:
    near = prose(1).replace("of the", "of a", 1)
    texts = [
        prose(1),
        "（）" + prose_zh(3, 200),
        near,
        "Heading",
        "标题",
        *["1 2 3 4 5 6 7\t8"] * 30,
        prose(2) + "\u200b",
    ]
    directory = run(tmp_path, texts)
    text = shown(sources_of(tmp_path, texts), directory, 5)
    blocks = {block.split(":")[0]: block.splitlines() for block in text.split("\n\n")}
    assert set(blocks) == {
        "dropped, near duplicate", "dropped, mostly digits", "dropped, too short", "changed, empty brackets",
        "changed, invisible characters",
    }  # fmt: skip
    assert blocks["dropped, mostly digits"][0] == "dropped, mostly digits: 30 (first ones)"
    assert len(blocks["dropped, mostly digits"]) == 1 + 5
    assert blocks["dropped, too short"][1:] == ["  - Heading", "  - 标题"]
    assert blocks["dropped, near duplicate"][1].startswith(f"  - {near[:40]}")
    assert blocks["dropped, near duplicate"][2].startswith(f"  = {prose(1)[:40]}")
    assert [line[:3] for line in blocks["changed, empty brackets"][1:]] == ["  -", "  →"]
    assert all(cell_len(line) <= 78 for line in text.splitlines())


def test_the_summary_names_what_was_dropped_and_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [prose(1), prose(1), "Heading"], [prose(2)])
    said = capsys.readouterr().err
    assert "dropped: 1 duplicate, 1 too short" in said or "dropped: 1 too short, 1 duplicate" in said
    assert "MB/s" in said
    assert all(len(line) <= 120 for line in said.splitlines() if "source" in line and "finished" not in line)


def test_fewer_processes_than_cores_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [prose(1)], recipe=recipe_of(processes=64))
    assert "of 64 processes, as many as clean.memory_bytes allows" in capsys.readouterr().err
