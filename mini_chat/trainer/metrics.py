"""metrics.jsonl and TensorBoard: one record at a time, and after a crash exactly the records of the checkpoint."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class Metrics:
    """Appends records to `metrics.jsonl` and mirrors their numbers to TensorBoard.

    Args:
        offset: bytes of the file that belong to the checkpoint gone on from; what a killed run wrote after is cut off.
        step: the step gone on from.
    """

    def __init__(self, directory: Path, offset: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        self.file = open(directory / "metrics.jsonl", "ab")  # noqa: SIM115 - closed in close()
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(self.file.truncate(min(offset, size)))
        self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=step)

    def write(self, step: int, **values: Any) -> None:
        """Append one record."""
        record = {"step": step} | {key: finite(value) for key, value in values.items()}
        self.file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self.file.flush()  # whoever follows the file sees it, and it outlives a kill
        for key, value in values.items():
            if isinstance(value, float | int) and math.isfinite(value):
                self.board.add_scalar(key, value, step)

    def flush(self) -> int:
        """Bring everything to the disk; returns the length of metrics.jsonl in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.board.flush()
        return self.file.tell()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self.file.close()
        self.board.close()


class NoMetrics:
    """Where another process writes them."""

    def write(self, step: int, **values: Any) -> None:
        """Nothing."""

    def flush(self) -> int:
        """Nothing; 0 bytes."""
        return 0

    def close(self) -> None:
        """Nothing."""


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON does not have (nan, inf)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
