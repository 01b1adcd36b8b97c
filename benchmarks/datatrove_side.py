"""Documents → shards by datatrove: its tokenizer on two processes and its merger, as its documentation has them.

Run by the bench environment's Python, so nothing of ours is imported: datatrove_side.py FOLDER OUT TOKENIZER.
"""

from __future__ import annotations

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger


def main(folder: str, out: str, tokenizer: str) -> None:
    """Tokenize and shuffle each of two files in a process of its own, then merge them in random order."""
    tokenize = DocumentTokenizer(f"{out}/tokens", tokenizer, eos_token="<|endoftext|>", seed=1)
    LocalPipelineExecutor([JsonlReader(folder), tokenize], tasks=2, workers=2, logging_dir=f"{out}/log1").run()
    merge = DocumentTokenizerMerger(f"{out}/tokens", f"{out}/merged", "train", max_tokens_per_file=25_000_000, seed=1)
    LocalPipelineExecutor([merge], tasks=1, logging_dir=f"{out}/log2").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
