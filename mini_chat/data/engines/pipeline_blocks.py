"""The steps as blocks for pipelines of one's own, between datatrove's: readers, and what is done to documents.

The recipe's stages do not go this way: they keep accounts, parts and the order (`stretches`, `shards`). These blocks
are for those who have a datatrove pipeline already:

    [DumpReader([Source(path="zhwiki.xml.bz2", language="zh")], Extract()), SimplifyBlock(Simplify()),
     CleanBlock(Clean()), JsonlWriter("out")]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.readers.base import BaseReader
from datatrove.pipeline.writers.disk_base import DiskWriter

from mini_chat.config import Clean, Extract, Simplify, Source
from mini_chat.data import documents, extract, zh_simplify
from mini_chat.data.cleaning.cleaner import Cleaner
from mini_chat.data.steps import Kept
from mini_chat.data.streams import MAX_LINE_BYTES
from mini_chat.data.tally import Tally
from mini_chat.data.wiki.dump import dump_files

CLEAN_BATCH = 100  # documents cleaned at once


class SourceReader(BaseReader):
    """Reads sources: of their files, task r of n reads the numbers r, r + n, r + 2n, …

    A document's id is `source/file/number`, numbers that its place in the shuffle is drawn by (`keys`).
    """

    def __init__(self, sources: list[Source], limit: int = -1, skip: int = 0) -> None:
        super().__init__(limit=limit, skip=skip)
        self.sources = sources

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The task's documents."""
        yield from data or ()
        end = None if self.limit < 0 else self.skip + self.limit
        for place, document in enumerate(self._documents(rank, world_size)):
            if end is not None and place >= end:
                return
            if place >= self.skip:
                self.update_doc_stats(document)
                yield document

    def _documents(self, rank: int, world_size: int) -> Iterator[Document]:
        number = 0
        for place, source in enumerate(self.sources):
            for file_place, file in enumerate(self.files(source)):
                if number % world_size == rank:
                    self.stat_update("input_files")
                    tally = Tally()
                    for document in self.read(source, file, tally):
                        document.id = f"{place}/{file_place}/{document.id}"
                        yield document
                    for reason, count in tally.dropped.items():
                        self.stat_update(f"dropped_{reason}", value=count)
                number += 1

    def files(self, source: Source) -> list[Any]:
        """The files of a source, in order."""
        raise NotImplementedError

    def read(self, source: Source, file: Any, tally: Tally) -> Iterator[Document]:
        """The documents of a file, with their numbers in it as ids."""
        raise NotImplementedError


class DocumentReader(SourceReader):
    """Files, folders and patterns of text, JSONL and parquet, as the recipe's sources name them."""

    name = "sources of documents"

    def __init__(
        self, sources: list[Source], max_line_bytes: int = MAX_LINE_BYTES, limit: int = -1, skip: int = 0
    ) -> None:
        super().__init__(sources, limit, skip)
        self.max_line_bytes = max_line_bytes

    def files(self, source: Source) -> list[Any]:
        """The files of a source, in order."""
        return documents.document_files(source, Tally())

    def read(self, source: Source, file: Any, tally: Tally) -> Iterator[Document]:
        """The documents of a file."""
        for document in documents.read_document_files(source, [file], tally, self.max_line_bytes):
            about = {"language": document.language, "file_path": document.source}
            yield Document(document.text, str(document.number), metadata=about)


class DumpReader(SourceReader):
    """Wikipedia dumps, as articles in plain text."""

    name = "Wikipedia dumps"

    def __init__(self, sources: list[Source], settings: Extract, limit: int = -1, skip: int = 0) -> None:
        super().__init__(sources, limit, skip)
        self.settings = settings

    def files(self, source: Source) -> list[Any]:
        """The dumps of a source, in order."""
        return [str(path) for path in dump_files(source.path, Tally())]

    def read(self, source: Source, file: Any, tally: Tally) -> Iterator[Document]:
        """The articles of a dump."""
        work, number = extract.Extractor(self.settings), 0
        for block in extract.DumpBlocks(source, self.settings.max_page_bytes).items([[file]], tally):
            output = work(block)
            tally.merge(output.tally)
            for line in output.lines.splitlines():
                number += 1
                article = json.loads(line)
                about = {"language": block.language, "file_path": file, "title": article["title"]}
                yield Document(article["text"], str(number), metadata=about)


class SimplifyBlock(PipelineStep):
    """Traditional to Simplified Chinese; documents whose `language` is `en` pass."""

    type, name = "Mini-Chat", "simplify"

    def __init__(self, settings: Simplify) -> None:
        super().__init__()
        self._make = partial(zh_simplify.make_transform, settings.config, settings.punctuation)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents, simplified."""
        transform = self._make()
        for document in data:
            with self.track_time():
                (kept,) = transform([_ours(document)])
            assert isinstance(kept, Kept)
            self.stat_update(*kept.changes)
            document.text = kept.text
            yield document


class CleanBlock(BaseFilter):
    """Mends documents and drops what the rules of `clean` drop; duplicates are left to datatrove's blocks."""

    name = "clean"

    def __init__(self, settings: Clean, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer, CLEAN_BATCH)
        self.settings = settings.model_copy(update={"dedup": "off"})

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept, or why not."""
        return self.filter_batch([document])[0]

    def filter_batch(self, batch: Iterable[Document]) -> list[bool | tuple[bool, str]]:
        """Mend some documents; whether each is kept, or why not."""
        batch = list(batch)
        cleaned, _ = Cleaner(self.settings)([one.text for one in batch], [_ours(one).language for one in batch])
        for document, outcome in zip(batch, cleaned, strict=True):
            document.text = outcome.text
        return [True if outcome.reason is None else (False, outcome.reason) for outcome in cleaned]


def _ours(document: Document) -> documents.Document:
    language = document.metadata.get("language", "auto")
    if language == "auto":
        language = documents.guess_language(document.text)
    return documents.Document(document.text, language, str(document.metadata.get("file_path", "")), 0)
