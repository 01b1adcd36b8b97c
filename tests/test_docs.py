"""What the documentation says is what the files say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks import tables
from mini_chat.cli import COMMANDS
from mini_chat.config import find_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text, wanted = tables.filled(page)
    assert text == wanted, "run python -m benchmarks.tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_a_page_shows_is_one(page: Path) -> None:
    shown = re.findall(r"^ {4}mini-chat ([a-z]+)(?: +([\w./-]+))?", page.read_text(encoding="utf-8"), re.MULTILINE)
    for stage, recipe in shown:
        assert stage in COMMANDS
        if re.fullmatch(r"[a-z][\w-]+", recipe) and COMMANDS[stage].usage.startswith(f"{stage} RECIPE"):
            find_recipe(recipe)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=\[;! ]", requirement)[0].lower() for group in groups for requirement in group}
    unexplained = {name for name in names if name not in reasons and not name.startswith("types-")}
    assert not unexplained


def test_the_two_languages_show_the_same_commands_and_figures() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
    for pattern in (
        r"`mini-chat (\w+)`",
        r"^ {4}((?:make|mini-chat) [^#\n]*?)\s*(?:#.*)?$",
        r"\|\s*([\d.]+%?)\s*(?=\|)",
    ):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE)
