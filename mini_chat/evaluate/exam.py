"""Sitting the exam: every item answered greedily, so that a score is a function of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mini_chat.chat.engine import ChatEngine
from mini_chat.config import Evaluate
from mini_chat.console import progress


def take_exam(engine: ChatEngine, items: Sequence[Mapping[str, Any]], settings: Evaluate) -> list[str]:
    """The reply to every item, in the items' order; `exam_items.score` marks them."""
    replies: list[str] = []
    with progress("exam", len(items), "items") as bar:
        for first in range(0, len(items), settings.batch_size):
            batch = items[first : first + settings.batch_size]
            replies += engine.generate_batch(
                [item["messages"] for item in batch],
                max_new_tokens=settings.max_new_tokens,
                batch_rows=settings.batch_size,
            )
            bar.advance(len(batch), f"{len(replies)} of {len(items)} items")
    return replies
