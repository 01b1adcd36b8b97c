"""Wikipedia dumps → documents: a JSON line with `text` and `title` for each article.

The text is the title, a blank line and the article: the title is what the first sentence is about, and for lists and
short articles it is the only place that says so. Set aside and counted are the pages of other namespaces, redirects,
disambiguation pages, articles with little text, and what is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mini_chat.config import Extract, Recipe, Source
from mini_chat.console import say
from mini_chat.data.inputs import InputFile, about, stretches
from mini_chat.data.language import guess_language
from mini_chat.data.parts import Output, Parts
from mini_chat.data.steps import fill, folders, json_line
from mini_chat.data.tally import EMPTY, SetAside, Tally, reasons
from mini_chat.data.wiki import bzip2
from mini_chat.data.wiki.cutter import TOO_LONG, PageCutter, title_of
from mini_chat.data.wiki.dump import Block, dump_files, read_blocks
from mini_chat.data.wiki.pages import parse_page, split_pages
from mini_chat.data.wiki.wikitext import clean
from mini_chat.errors import UserError

NOT_ARTICLE = "not an article"
REDIRECT = "redirect"
DISAMBIGUATION = "disambiguation page"
SHORT = "under min_characters"

_REDIRECT = re.compile(r"\s*#\s*(?:redirect|重定向|重新導向)\b", re.IGNORECASE)


def extract(sources: list[Source], directory: Path, recipe: Recipe) -> None:
    """Write the articles of every source's dumps to a directory of its own under `directory`.

    Raises:
        UserError: a source without dumps, a file that is none or cannot be read, nothing usable in a source, a full
            disk, a killed worker.
    """
    for source, folder in zip(sources, folders(sources), strict=True):
        asked = about(source)
        del asked["weight"]  # the mixer's affair
        parts = Parts(directory / folder, {"settings": recipe.extract.model_dump(), **asked}, recipe.extract.part_bytes)
        if parts.manifest is not None:
            say(f"  extract {folder}: finished")
            continue
        work_input = DumpBlocks(source, recipe.extract.max_page_bytes)
        tally = fill("extract", parts, work_input, partial(Extractor, recipe.extract), recipe.machine)
        if not parts.tally.written:
            lost = reasons(parts.tally.dropped + tally.dropped) or "no pages"
            raise UserError(f"{source.path}: no article in it ({lost}); mend it or leave it out")
        manifest = parts.close(tally)
        for line in Tally.from_json(manifest["accounting"]).lines():
            say(f"  extract {folder}: {line.strip()}")


@dataclass(frozen=True)
class DumpBlocks:
    """A source's dumps in blocks, the files in stretches."""

    source: Source
    max_page_bytes: int

    def stretches(self, tally: Tally) -> list[list[Any]]:
        """Files."""
        files = [InputFile(path, "wiki") for path in dump_files(self.source.path, tally)]
        return [[[str(file.path)] for file in stretch] for stretch in stretches(files)]

    def items(self, stretch: list[Any], tally: Tally) -> Iterator[Block]:
        """The blocks of some files; a language that is stated counts more than what a dump says of itself."""
        for (path,) in stretch:
            for block in read_blocks(Path(path), tally, self.max_page_bytes):
                yield block if self.source.language == "auto" else block._replace(language=self.source.language)


class Extractor:
    """In a worker: a block of pages → JSON lines of articles, and their account."""

    def __init__(self, settings: Extract) -> None:
        self.settings = settings

    def __call__(self, block: Block) -> Output:
        tally = Tally()
        lines = []
        for data in self._pages(block, tally):
            tally.read += 1
            try:
                text, title = self._article(data, block.language)
            except SetAside as why:
                tally.drop(why.reason, f"{block.path}: {title_of(data)}", why.detail)
                continue
            tally.keep(len(text.encode()))
            lines.append(json_line(text, title=title))
        return Output(b"".join(lines), tally)

    def _pages(self, block: Block, tally: Tally) -> Iterator[bytes]:
        """Each page of a block."""
        if not block.is_compressed:
            yield from split_pages(block.data)
            return
        begins = [found.start() for found in bzip2.STREAM.finditer(block.data)]
        for begin, end in zip(begins, [*begins[1:], len(block.data)], strict=True):
            cutter = PageCutter(block.path, self.settings.max_page_bytes, tally)
            with cutter.counting_damage(block.position + end, block.position + begin):
                for piece in bzip2.decompressed_bytes(block.data[begin:end]):
                    yield from split_pages(cutter.cut(piece))
            cutter.end()

    def _article(self, data: bytes, language: str) -> tuple[str, str]:
        """Text and title of an article.

        Raises:
            SetAside: the page is none.
        """
        if len(data) > self.settings.max_page_bytes:
            raise SetAside(TOO_LONG)
        page = parse_page(data)
        if page.namespace:
            raise SetAside(NOT_ARTICLE)
        if page.is_redirect or _REDIRECT.match(page.text):
            raise SetAside(REDIRECT)
        if not page.text.strip():
            raise SetAside(EMPTY)
        if language == "auto":
            language = guess_language(page.text)
        variant = self.settings.variant if language.startswith("zh") else None
        article = clean(page.text, variant, self.settings.keep_apparatus)
        if article.is_disambiguation:
            raise SetAside(DISAMBIGUATION)
        if len(article.text) < self.settings.min_characters:
            raise SetAside(SHORT)
        title = article.title or page.title.strip()
        return f"{title}\n\n{article.text}", title
