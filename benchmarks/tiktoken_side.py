"""Vocabularies that users know, through tiktoken: what `benchmarks.tokenizers` runs in the benchmarks' environment.

    python tiktoken_side.py TASK.json

The task names files of texts by language, and vocabularies: `{"pattern": …, "tokens": [base64, …]}`. Printed is, for
each vocabulary, tokens of each language's held-out texts; for the one that is to be timed, rates too [bytes a second of
the processor], and the ids of some texts, which are compared.
"""

import base64
import json
import sys
import time
from pathlib import Path

import tiktoken


def encoding(vocabulary: dict) -> tiktoken.Encoding:
    """tiktoken's encoding of a vocabulary."""
    ranks = {base64.b64decode(token): rank for rank, token in enumerate(vocabulary["tokens"])}
    return tiktoken.Encoding("bench", pat_str=vocabulary["pattern"], mergeable_ranks=ranks, special_tokens={})


def rates(encoder: tiktoken.Encoding, texts: list[str]) -> dict:
    """Bytes of the texts by seconds of the processor, encoding and decoding, and the ids."""
    size = sum(len(text.encode()) for text in texts)
    began = time.process_time()
    ids = [encoder.encode_ordinary(text) for text in texts]
    encoded = time.process_time()
    decoded = [encoder.decode(some) for some in ids]
    ended = time.process_time()
    assert decoded == texts
    return {"encode": size / (encoded - began), "decode": size / (ended - encoded), "ids": ids[:2000]}


def main() -> None:
    """Read the task, print the answer."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    texts = {key: json.loads(Path(path).read_text(encoding="utf-8")) for key, path in task["texts"].items()}
    answer: dict[str, dict] = {}
    for name, path in task["vocabularies"].items():
        encoder = encoding(json.loads(Path(path).read_text(encoding="utf-8")))
        if name == task["timed"]:
            answer[name] = {language: rates(encoder, texts[f"run_{language}"]) for language in ("en", "zh")}
        else:
            held_out = {language: texts[f"held_out_{language}"] for language in ("en", "zh")}
            answer[name] = {
                language: sum(len(encoder.encode_ordinary(text)) for text in some)
                for language, some in held_out.items()
            }
    print(json.dumps(answer))


main()
