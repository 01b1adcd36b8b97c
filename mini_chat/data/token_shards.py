"""Token shards: documents as token ids on disk, with their ends beside them and a manifest over all.

A split `train` is the files `train-00000.ds` (uint16, or uint32 where a vocabulary is over 65,536, little-endian,
documents one after the other), `train-00000.ds.index` (uint64: the number of tokens up to and including each document),
where only some tokens are learnt from `train-00000.ds.loss` (uint8 per token, 1 where the loss counts), and
`train-00000.ds.metadata` (a name for the tokenizer with the bytes of a token, and the number of tokens). These names
and this layout are datatrove's, whose readers take our shards as ours take its. `manifest.json` is written last: it
holds counts, checksums, languages and the fingerprint that a training run is tied to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from mini_chat.errors import UserError
from mini_chat.files import fsync_path, read_json, sha256_file, sha256_json, write_json

MANIFEST = "manifest.json"
LAYOUT = 2
"""Of the files; another one in what was asked for, and they are made again."""
SUFFIXES = {"tokens": ".ds", "ends": ".ds.index", "mask": ".ds.loss"}
"""What a file of a shard holds → how its name ends."""
METADATA = ".ds.metadata"
UINT16_VOCABULARY = 65_536


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrower of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= UINT16_VOCABULARY else np.dtype("<u4")


class _HashedFile:
    """A file being written under a temporary name, and the checksum of what went into it."""

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, hashlib.sha256()
        self.partial = path.with_name(path.name + ".partial")
        self.file: IO[bytes] = open(self.partial, "wb", buffering=1 << 18)  # noqa: SIM115 - closed in finish

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).data
        self.digest.update(data)
        self.file.write(data)

    def finish(self) -> str:
        """Flush to the disk and rename; the checksum in hexadecimal."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.partial.replace(self.path)
        return self.digest.hexdigest()


class ShardWriter:
    """Writes the documents of one split into shard files of at most `shard_bytes`, each whole or not there.

    A document larger than that has a file of its own. What is in memory does not grow with the documents.

    Args:
        dtype: of the tokens, see `token_dtype`.
        files: entries of files that an earlier run finished, behind which to go on.
        name: what the metadata beside the tokens call the tokenizer.

    Raises:
        UserError: from any of its methods, if the disk is full or cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        shard_bytes: int,
        with_mask: bool = False,
        dtype: np.dtype | None = None,
        files: list[dict[str, Any]] | None = None,
        name: str = "mini-chat",
    ) -> None:
        self.directory, self.split, self.with_mask, self.name = directory, split, with_mask, name
        self.dtype = np.dtype("<u2") if dtype is None else dtype
        self.shard_tokens = max(1, shard_bytes // self.dtype.itemsize)
        self.files: list[dict[str, Any]] = list(files or [])
        self._open: dict[str, _HashedFile] = {}
        self._documents = self._tokens = self._trained = 0

    def fitting(self, lengths: np.ndarray) -> int:
        """How many of the documents of these lengths the open shard still takes; of an empty one, at least one."""
        fitting = int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), self.shard_tokens - self._tokens, "right"))
        return fitting if self._documents else max(fitting, min(1, len(lengths)))

    def add(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append one document: (n,) of the dtype, and its mask, uint8 (n,), where the split has masks."""
        if self._documents and self._tokens + len(tokens) > self.shard_tokens:
            self.flush()
        self.extend(tokens, np.array([len(tokens)]), mask)

    def extend(self, tokens: np.ndarray, lengths: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append documents of these lengths, int (documents,), that lie in `tokens` and `mask`, to the open shard."""
        assert (mask is not None) == self.with_mask and (mask is None or len(mask) == len(tokens))
        assert len(tokens) == 0 or self.dtype.itemsize >= tokens.dtype.itemsize, "ids are not cut"
        ends = self._tokens + np.cumsum(lengths, dtype=np.uint64)
        try:
            if not self._open:
                path = self.directory / self._shard_name
                kinds = ("tokens", "ends", "mask") if self.with_mask else ("tokens", "ends")
                self._open = {kind: _HashedFile(path.with_name(path.name + SUFFIXES[kind])) for kind in kinds}
            self._open["tokens"].write(tokens.astype(self.dtype, copy=False))
            self._open["ends"].write(ends.astype("<u8"))
            if mask is not None:
                self._open["mask"].write(mask.astype(np.uint8, copy=False))
                self._trained += int(np.count_nonzero(mask))
        except OSError as error:
            raise self._full(error) from error
        self._documents += len(lengths)
        self._tokens += len(tokens)

    @property
    def _shard_name(self) -> str:
        return f"{self.split}-{len(self.files):05d}"

    def flush(self) -> None:
        """Close the open shard, if there is one; the next document begins another."""
        if not self._open:
            return
        name = self._shard_name
        try:
            # As datatrove writes it; readers go by the first two lines.
            about = f"{self.name}|{self.dtype.itemsize}\n{self._tokens}\n{self._tokens / 1e6:.3f} MT"
            (self.directory / f"{name}{METADATA}").write_text(about, encoding="utf-8")
            checksums = {kind: file.finish() for kind, file in self._open.items()}
            fsync_path(self.directory)
        except OSError as error:
            raise self._full(error) from error
        entry = {"name": name, "documents": self._documents, "tokens": self._tokens, "sha256": checksums}
        if self.with_mask:
            entry["trained_tokens"] = self._trained
        self.files.append(entry)
        self._open = {}
        self._documents = self._tokens = self._trained = 0

    def _full(self, error: OSError) -> UserError:
        for file in self._open.values():
            with contextlib.suppress(OSError):  # what cannot be flushed is thrown away
                file.file.close()
            file.partial.unlink(missing_ok=True)
        self._open = {}
        reason = error.strerror or error
        return UserError(f"{self.directory}: cannot write ({reason}); free space or choose another directory")

    def close(self) -> dict[str, Any]:
        """Write what is left; returns the split's entry in the manifest."""
        self.flush()
        kinds = ("documents", "tokens", "trained_tokens") if self.with_mask else ("documents", "tokens")
        return {kind: sum(file[kind] for file in self.files) for kind in kinds} | {"files": self.files}


def write_manifest(
    directory: Path, splits: dict[str, dict[str, Any]], dtype: np.dtype | None = None, **about: Any
) -> None:
    """Write the manifest, last of all files; its fingerprint covers the bytes of every shard."""
    content = {name: [file["sha256"] for file in entry["files"]] for name, entry in splits.items()}
    fingerprint = sha256_json({"splits": content, "tokenizer": about.get("tokenizer")})
    named = {2: "uint16", 4: "uint32"}[(dtype or np.dtype("<u2")).itemsize]
    write_json(
        directory / MANIFEST, {"format": LAYOUT, "dtype": named, "fingerprint": fingerprint, **about, "splits": splits}
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a directory's manifest.

    Raises:
        UserError: there is none, it is damaged, or it is of shards in an older layout.
    """
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory}: no {MANIFEST}, so these are no finished shards; run `mini-chat shards` first")
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not {"splits", "fingerprint", "tokenizer"} <= manifest.keys():
        raise UserError(f"{directory / MANIFEST}: not a manifest of shards; remove {directory} and run again")
    return manifest


def adopt(directory: Path, tokenizer: str) -> dict[str, Any]:
    """Write a manifest over a folder of `.ds` files that datatrove wrote, as the split `train`; returns it.

    Args:
        tokenizer: the fingerprint of the tokenizer that they were made with.

    Raises:
        UserError: no shards there, one without its index or with a broken one, or of mixed token sizes.
    """
    files: list[dict[str, Any]] = []
    sizes = set()
    for path in sorted(directory.glob("*.ds")):
        name = path.name.removesuffix(".ds")
        index, loss, metadata = (directory / f"{name}{end}" for end in (SUFFIXES["ends"], SUFFIXES["mask"], METADATA))
        if not index.is_file():
            raise UserError(f"{index}: missing; run datatrove's tokenizer with save_index=True")
        ends = np.fromfile(index, "<u8")
        tokens = int(ends[-1]) if len(ends) else 0
        size = path.stat().st_size // tokens if tokens else 2
        stated = metadata.read_text(encoding="utf-8").split("\n")[0].rpartition("|")[2] if metadata.is_file() else ""
        if size not in (2, 4) or path.stat().st_size != size * tokens or (stated and stated != str(size)):
            raise UserError(f"{path}: does not fit its index ({tokens:,} tokens); make it again")
        sizes.add(size)
        kinds = {"tokens": path, "ends": index} | ({"mask": loss} if loss.is_file() else {})
        checksums = {kind: sha256_file(file) for kind, file in kinds.items()}
        files.append({"name": name, "documents": len(ends), "tokens": tokens, "sha256": checksums})
    if not files:
        raise UserError(f"{directory}: no .ds file in it; give the folder that datatrove wrote")
    if len(sizes) > 1:
        raise UserError(f"{directory}: tokens of 2 and of 4 bytes; keep them in folders of their own")
    entry = {kind: sum(file[kind] for file in files) for kind in ("documents", "tokens")} | {"files": files}
    write_manifest(directory, {"train": entry}, np.dtype(f"<u{sizes.pop()}"), tokenizer=tokenizer)
    return read_manifest(directory)


@dataclass
class TokenDocuments:
    """The documents of one split, mapped from disk: `document(i)` is a view of uint16, or uint32 (manifest `dtype`).

    Raises:
        UserError: a file is missing, is not as long as the manifest says, or (with `verify`) its bytes changed.
    """

    directory: Path
    split: str
    verify: bool = False
    manifest: dict[str, Any] = field(init=False)
    first_document: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = read_manifest(self.directory)
        if self.split not in self.manifest["splits"]:
            raise UserError(f"{self.directory}: no split {self.split}; there are {', '.join(self.manifest['splits'])}")
        entry = self.manifest["splits"][self.split]
        self.dtype = np.dtype({"uint32": "<u4"}.get(self.manifest.get("dtype", ""), "<u2"))
        self.files = entry["files"]
        self.tokens: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        for file in self.files:
            self.tokens.append(self._map(file, "tokens", self.dtype, file["tokens"]))
            self.ends.append(self._map(file, "ends", "<u8", file["documents"]))
            if "mask" in file["sha256"]:
                self.masks.append(self._map(file, "mask", np.uint8, file["tokens"]))
        self.first_document = np.cumsum([0] + [file["documents"] for file in self.files])

    def _map(self, file: dict[str, Any], kind: str, dtype: Any, count: int) -> np.ndarray:
        path = self.directory / f"{file['name']}{SUFFIXES[kind]}"
        expected = count * np.dtype(dtype).itemsize
        if not path.is_file():
            raise UserError(f"{path}: missing, though the manifest names it; run `mini-chat shards` again")
        if (size := path.stat().st_size) != expected:
            raise UserError(f"{path}: {size} bytes, not the {expected} of the manifest; run `mini-chat shards` again")
        if self.verify and sha256_file(path) != file["sha256"][kind]:
            raise UserError(f"{path}: its bytes are not those that were written; run `mini-chat shards` again")
        return np.memmap(path, dtype=dtype, mode="r") if expected else np.zeros(0, dtype)

    def __len__(self) -> int:
        return int(self.first_document[-1])

    @property
    def fingerprint(self) -> str:
        """The identity of all splits' bytes."""
        return self.manifest["fingerprint"]

    @property
    def largest_file_tokens(self) -> int:
        """Tokens of the shard file that holds most."""
        return max((file["tokens"] for file in self.files), default=0)

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 (documents,)."""
        if not self.ends:
            return np.zeros(0, np.int64)
        return np.concatenate([np.diff(ends, prepend=np.uint64(0)).astype(np.int64) for ends in self.ends])

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where each document begins in its file, int64 (documents,)."""
        starts = np.zeros(len(self), np.int64)
        for first, ends in zip(self.first_document.tolist(), self.ends, strict=False):
            starts[first + 1 : first + len(ends)] = ends[:-1]
        return starts

    def places(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each document, int (n,), the number of its file in `tokens`, and where in it it begins."""
        return np.searchsorted(self.first_document, documents, side="right") - 1, self._starts[documents]

    def _locate(self, index: int) -> tuple[int, int, int]:
        shard = int(np.searchsorted(self.first_document, index, side="right")) - 1
        local = index - int(self.first_document[shard])
        start = int(self.ends[shard][local - 1]) if local else 0
        return shard, start, int(self.ends[shard][local])

    def document(self, index: int) -> np.ndarray:
        """Tokens of a document, (n,)."""
        shard, start, end = self._locate(index)
        return self.tokens[shard][start:end]

    def mask(self, index: int) -> np.ndarray | None:
        """Loss mask of a document, uint8 (n,), or None where every token is learnt from."""
        if not self.masks:
            return None
        shard, start, end = self._locate(index)
        return self.masks[shard][start:end]
