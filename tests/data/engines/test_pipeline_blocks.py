"""Our steps as blocks between datatrove's: readers share files out, and documents become what the stages make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

import pytest
from tiny import chinese, english, write_jsonl

pytest.importorskip("datatrove", reason="datatrove is not installed; pip install 'mini-chat[cluster]'")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.writers.disk_base import DiskWriter

from mini_chat.config import Clean, Extract, Simplify, Source
from mini_chat.data.engines.pipeline_blocks import CleanBlock, DocumentReader, DumpReader, SimplifyBlock

PROSE = (
    "春天來了，花園裡的樹木長出新葉，孩子們跑到河邊看小魚游來游去，老人坐在長椅上談起許多年前的往事，"
    "遠處傳來教堂的鐘聲和集市上人們的叫賣聲。"
)
PAGE = "<page><title>{0}</title><ns>0</ns><revision><text>'''{0}'''{1}</text></revision></page>"


class LineWriter(DiskWriter):
    """JSON lines; datatrove's own needs a package more."""

    default_output_filename = "${rank}.jsonl"

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        file_handler.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")

    def __init__(self, folder: str) -> None:
        super().__init__(folder, mode="wb")


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """A folder of three files and a single file."""
    (tmp_path / "en").mkdir()
    for file in range(3):
        write_jsonl(tmp_path / "en" / f"{file}.jsonl", [{"text": english(10 * file + n)} for n in range(10)])
    write_jsonl(tmp_path / "zh.jsonl", [{"text": chinese(number)} for number in range(10)])
    return [Source(path=str(tmp_path / "en")), Source(path=str(tmp_path / "zh.jsonl"), language="zh")]


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_tasks_share_the_files_and_every_document_is_read_once(tasks: int, sources: list[Source]) -> None:
    shares = [list(DocumentReader(sources).run(None, rank, tasks)) for rank in range(tasks)]
    assert sorted(document.id for share in shares for document in share) == sorted(
        [f"0/{file}/{line}" for file in range(3) for line in range(1, 11)] + [f"1/0/{line}" for line in range(1, 11)]
    )
    texts = {document.id: document.text for share in shares for document in share}
    assert texts["0/2/4"] == english(23) and texts["1/0/10"] == chinese(9)
    languages = {document.metadata["language"] for share in shares for document in share}
    assert languages == {"en", "zh"}


def test_limit_and_skip_are_of_each_task(sources: list[Source]) -> None:
    ids = [document.id for document in DocumentReader(sources, limit=3, skip=9).run(None, 0, 2)]
    assert ids == ["0/0/10", "0/2/1", "0/2/2"]


def test_a_pipeline_of_our_blocks_and_theirs_reads_simplifies_cleans_and_writes(tmp_path: Path) -> None:
    article = "頭髮乾燥，後來國語發現。" * 30
    texts = {"甲": article + "（）", "乙": "短。", "丙": PROSE}
    pages = "".join(PAGE.format(title, text) for title, text in texts.items())
    dump = tmp_path / "wiki.xml"
    dump.write_text(f"<mediawiki xml:lang='zh'>{pages}</mediawiki>", encoding="utf-8")
    executor = LocalPipelineExecutor(
        [
            DumpReader([Source(path=str(dump), language="zh")], Extract(min_characters=50)),
            SimplifyBlock(Simplify()),
            CleanBlock(Clean(), exclusion_writer=LineWriter(str(tmp_path / "dropped"))),
            LineWriter(str(tmp_path / "kept")),
        ],
        logging_dir=str(tmp_path / "logs"),
    )
    executor.run()
    (kept,) = map(json.loads, (tmp_path / "kept/00000.jsonl").read_text(encoding="utf-8").splitlines())
    assert (
        kept["metadata"]["title"] == "丙"
        and kept["text"].startswith("丙\n\n丙春天来了，花园里的树木长出新叶")
        and kept["id"] == "0/0/2"
    )
    (lost,) = map(json.loads, (tmp_path / "dropped/00000.jsonl").read_text(encoding="utf-8").splitlines())
    assert lost["text"].startswith("甲\n\n甲头发干燥，后来国语发现。") and lost["metadata"]["filter_reason"]
