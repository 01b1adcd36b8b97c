"""One training loop in one process: what `benchmarks.train_speed` starts, several times each and in turn.

    python -m benchmarks.train_loops LOOP SHAPE STEPS [in-turn]

LOOP is one of
- plain: what the users of the peers run on a CPU. transformers' `Qwen3ForCausalLM` in float32, AdamW, the logits of
  the whole batch and torch's cross-entropy;
- bf16: the same under `torch.autocast(bfloat16)`;
- ours: `mini_chat.trainer.loop.train`, as `mini-chat pretrain` calls it, with AdamW for all parameters, so that the
  update is the same for all three;
- packed: ours, on rows of packed short documents (median 200 tokens) instead of one document a row;
- muon: ours with its own optimisers;
- limit: none, but the rate of matrix products in what our loop computes in, and the work of a token.

Prints one JSON object: seconds of each step, tokens of a step, peak memory. With `in-turn` it writes a line before each
step and waits for one, so that several loops may take turns step by step.

torch is imported where it is used: for our loops the environment is set before, as the command line does it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from mini_chat.cli import prepare_environment
from mini_chat.pipeline import peak_memory_bytes

SEED = 1
MEDIAN_DOCUMENT = 200  # tokens


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    model: dict[str, Any]
    rows: int
    row_tokens: int


WIDE: dict[str, Any] = {
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
}  # the rest is the default: the 124M model
SMALL: dict[str, Any] = {
    "vocab_size": 6400,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SHAPES = {
    "124m": Shape(WIDE, 2, 1024),
    "124m-memory": Shape(WIDE, 8, 1024),
    "small": Shape(SMALL, 8, 512),
}


class Turn:
    """Waits before each step until it is this process's turn, if it takes turns; knows how long it waited."""

    def __init__(self, taken: bool) -> None:
        self.taken = taken
        self.waited: list[float] = []

    def wait(self) -> None:
        """Say that the next step may begin, and wait for the line that allows it."""
        began = time.perf_counter()
        if self.taken:
            print("ready", flush=True)
            sys.stdin.readline()
        self.waited.append(time.perf_counter() - began)


def stock(shape: Shape, steps: int, autocast: bool, turn: Turn) -> list[float]:
    """Seconds of each step of the loop over transformers' own model."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mini_chat.model import SLMConfig

    config = Qwen3Config(**SLMConfig(**shape.model).to_dict())
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(config).float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    seconds = []
    for _ in range(steps):
        tokens = torch.randint(0, config.vocab_size, (shape.rows, shape.row_tokens))
        turn.wait()
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


class RandomRows:
    """Stands for `PackedDocuments`: rows of random tokens, of one document each or of short ones."""

    def __init__(self, shape: Shape, short: bool, turn: Turn | None = None) -> None:
        self.shape, self.short, self.turn = shape, short, turn or Turn(False)
        self.documents = SimpleNamespace(directory=Path("nowhere"))
        self.draw = np.random.default_rng(SEED)

    def __len__(self) -> int:
        return 1 << 30

    def batch(self, first: int, count: int) -> Any:
        """The next rows, whatever their number."""
        import torch

        from mini_chat.data.packing import Batch

        self.turn.wait()
        length = self.shape.row_tokens
        ids, positions = np.zeros((count, length), np.int64), np.zeros((count, length), np.int64)
        documents = 0
        for row in range(count):
            at = 0
            while at < length:
                size = int(self.draw.lognormal(np.log(MEDIAN_DOCUMENT), 0.8)) + 1 if self.short else length
                size = min(size, length - at)
                ids[row, at : at + size], positions[row, at : at + size] = documents, np.arange(size)
                at, documents = at + size, documents + 1
        tokens = self.draw.integers(0, self.shape.model["vocab_size"], (count, length))
        tensors = (torch.from_numpy(array) for array in (tokens, tokens.copy(), positions, ids))
        return Batch(list(range(documents)), *tensors)


def trained(
    shape: Shape, steps: int, short: bool, optimizer: str, in_order: bool = True, turn: Turn | None = None
) -> tuple[Any, list[float]]:
    """A model after some steps of our loop, and the seconds of each, from what the loop logs of itself.

    Args:
        in_order: on a GPU, with sums in one order, as the device layer has them.
    """
    import torch

    from mini_chat.config import Machine, Pretrain
    from mini_chat.console import set_quiet
    from mini_chat.device import Device, choose
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.trainer.language_modelling import LanguageModelling
    from mini_chat.trainer.loop import train

    set_quiet(True)
    device = choose(Machine(compile="on"))
    torch.manual_seed(SEED)
    model = SLMForCausalLM(SLMConfig(**shape.model)).to(device.torch_device)  # type: ignore[arg-type]
    settings = Pretrain.model_validate(
        {
            "steps": steps,
            "row_tokens": shape.row_tokens,
            "batch_tokens": shape.rows * shape.row_tokens,
            "micro_tokens": shape.rows * shape.row_tokens,
            "optimizer": optimizer,
            "lr_max": 5e-4,
            "log_every": 1,
            "eval_every": 1 << 30,
            "checkpoint_every": 1 << 30,
        }
    )
    turn = turn or Turn(False)
    task = LanguageModelling("pretrain", RandomRows(shape, short, turn), {}, np.zeros(0), 1, shape.rows)  # type: ignore[arg-type]
    as_it_comes = contextlib.nullcontext() if in_order else patch.object(Device, "in_order", contextlib.nullcontext)
    with tempfile.TemporaryDirectory() as scratch:
        with as_it_comes:
            train(model, task, settings, Path(scratch), device, {})
        lines = (Path(scratch) / "metrics.jsonl").read_text().splitlines()
    ends = [record["train_seconds"] for record in map(json.loads, lines) if "train_seconds" in record]
    taken = zip([0.0, *ends], ends, turn.waited, strict=False)
    return model, [end - before - waited for before, end, waited in taken]


def limit(shape: Shape, steps: int, turn: Turn) -> dict[str, Any]:
    """Of the device that our loop takes: its precision; its rate of matrix products in it at each turn [FLOP/s].

    And a token's work [FLOP].
    """
    from mini_chat.config import Machine
    from mini_chat.device import choose
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.trainer.progress import training_flops_per_token

    device = choose(Machine())
    flops_per_token = training_flops_per_token(SLMForCausalLM(SLMConfig(**shape.model)))
    flops = []
    for _ in range(steps):
        turn.wait()
        flops.append(replace(device).matmul_flops)  # a new one has not measured yet
    return {"precision": device.precision, "flops": flops, "flops_per_token": flops_per_token}


def main(loop: str, name: str, steps: int, in_turn: bool) -> None:
    """Run one loop and print what it took."""
    shape, turn = SHAPES[name], Turn(in_turn)
    if loop in {"plain", "bf16"}:
        seconds = stock(shape, steps, loop == "bf16", turn)
    else:
        prepare_environment()
        if loop == "limit":
            print(json.dumps(limit(shape, steps, turn)))
            return
        _, seconds = trained(shape, steps, loop == "packed", "muon" if loop == "muon" else "adamw", turn=turn)
    tokens = shape.rows * shape.row_tokens
    print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "in-turn" in sys.argv[4:])
