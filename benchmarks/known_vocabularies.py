"""The vocabularies of GPT-2, GPT-4 (cl100k) and GPT-4o (o200k), from an npm package that bundles them.

tiktoken for Python fetches them from a host that a machine may not reach; the npm package `tiktoken` has them inside.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from benchmarks.venv import VENV, run
from mini_chat.console import say

PACKAGE = "tiktoken@1.0.22"
NAMES = ("gpt2", "cl100k_base", "o200k_base")


def known_vocabularies() -> dict[str, Path]:
    """Files of `{"pattern": …, "tokens": [base64 by rank]}` by name; none where there is no npm."""
    folder = VENV.parent / "bench-npm"
    if not all((folder / f"{name}.json").is_file() for name in NAMES):
        if not shutil.which("npm"):
            say("benchmarks: no npm, so GPT-2's and its successors' vocabularies are left out")
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        packed = run(["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]).split()[-1]
        with tarfile.open(folder / packed) as archive:
            for name in NAMES:
                member = archive.extractfile(f"package/encoders/{name}.json")
                assert member is not None, f"{PACKAGE} has no {name}"
                (folder / f"{name}.json").write_text(json.dumps(_plain(json.load(member))), encoding="utf-8")
    return {name: folder / f"{name}.json" for name in NAMES}


def _plain(published: dict[str, str]) -> dict[str, object]:
    """The package's form: lines of `! FIRST_RANK token token …`, in base64."""
    tokens: list[str] = []
    for line in published["bpe_ranks"].split("\n"):
        _, first, *some = line.split(" ")
        assert int(first) == len(tokens)
        tokens += some
    return {"pattern": published["pat_str"], "tokens": tokens}
