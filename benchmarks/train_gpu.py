"""Training speed, memory and exactness on a GPU, beside plain loops over transformers' own model, in one run.

    python -m benchmarks.train_gpu [--rows 16] [--loops NAME ...]

The 124M model on rows of 1,024 tokens. Loops as in `benchmarks.train_loops`: `plain` float32, `bf16` under autocast,
`bf16_compiled` the same compiled, `ours` with AdamW for all so that the update is the same, `ours_packed` on short
documents, `ours_muon` as recipes have it, `ours_large` with four times the rows. Rates are medians over steps; the
limit is the measured rate of bf16 matrix products.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.results import table, write
from benchmarks.train_loops import SEED, WIDE, RandomRows, Shape, trained
from mini_chat.cli import prepare_environment

STEPS, WARM_UP = 14, 4
LOOPS = ("ours", "bf16", "plain", "ours_large", "ours_packed", "ours_muon", "ours_any_order", "bf16_compiled")


def stock(shape: Shape, autocast: bool, compiled: bool) -> list[float]:
    """Seconds of each step of a loop over transformers' own model."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from mini_chat.model import SLMConfig

    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config(**SLMConfig(**shape.model).to_dict())).float().cuda().train()
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    seconds = []
    for _ in range(STEPS):
        tokens = torch.randint(0, shape.model["vocab_size"], (shape.rows, shape.row_tokens), device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def ours(shape: Shape, short: bool = False, optimizer: str = "adamw", in_order: bool = True) -> list[float]:
    """Seconds of each step of our loop."""
    return trained(shape, STEPS, short, optimizer, in_order)[1]


def same_bits(shape: Shape) -> bool:
    """Whether two runs of our loop end in the same weights."""
    import torch

    one, other = (trained(shape, STEPS, True, "muon")[0].state_dict() for _ in range(2))
    return all(torch.equal(one[name], other[name]) for name in one)


def agreement(shape: Shape) -> float:
    """Largest difference of a packed batch's losses between FlashAttention and sdpa with a mask, over their mean."""
    import torch

    from mini_chat.config import Machine
    from mini_chat.device import choose
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.trainer.attention import packed_attention
    from mini_chat.trainer.loop import labelled, run_packed
    from mini_chat.trainer.losses import token_nll

    device = choose(Machine())
    torch.manual_seed(SEED)
    model = SLMForCausalLM(SLMConfig(**shape.model)).to(device.torch_device)  # type: ignore[arg-type]
    batch = RandomRows(shape, True).batch(0, 4).to(device.torch_device)
    losses = []
    with torch.no_grad(), device.autocast():
        with packed_attention(model, device):
            hidden_NH, labels_N = labelled(run_packed(model, batch).hidden_BLH, batch)
            losses.append(token_nll(hidden_NH, model.lm_head.weight, labels_N))
        hidden_NH, labels_N = labelled(run_packed(model, batch).hidden_BLH, batch)
        losses.append(token_nll(hidden_NH, model.lm_head.weight, labels_N))
    return float((losses[0] - losses[1]).abs().max() / losses[1].mean())


def measure(rows: int = 16, chosen: Sequence[str] = LOOPS) -> dict[str, float | str]:
    """Each of the chosen loops, one after the other."""
    import torch

    from mini_chat.config import Machine
    from mini_chat.device import choose
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.trainer.progress import training_flops_per_token

    device = choose(Machine())
    limit = device.matmul_flops
    work = training_flops_per_token(SLMForCausalLM(SLMConfig(**WIDE)))
    shape, large = Shape(WIDE, rows, 1024), Shape(WIDE, 4 * rows, 1024)
    figures: dict[str, float | str] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "limit_flops": limit,
        "rows": rows,
        "flash_over_sdpa_difference": agreement(shape),
    }
    loops: dict[str, tuple[Callable[[], list[float]], Shape]] = {
        "ours": (lambda: ours(shape), shape),
        "bf16": (lambda: stock(shape, True, False), shape),
        "plain": (lambda: stock(shape, False, False), shape),
        "ours_large": (lambda: ours(large), large),
        "ours_packed": (lambda: ours(shape, short=True), shape),
        "ours_muon": (lambda: ours(shape, optimizer="muon"), shape),
        "ours_any_order": (lambda: ours(shape, in_order=False), shape),
        "bf16_compiled": (lambda: stock(shape, True, True), shape),
    }
    for name in chosen:
        loop, taken = loops[name]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            rate = taken.rows * taken.row_tokens / median(loop()[WARM_UP:])
        except Exception as error:  # one loop that fails leaves the others
            print(f"{name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            continue
        figures[f"{name}_tokens_per_s"] = rate
        figures[f"{name}_mfu"] = rate * work / limit
        figures[f"{name}_peak_bytes"] = torch.cuda.max_memory_allocated()
        print(f"{name}: {rate:,.0f} tokens/s, {rate * work / limit:.0%} of the limit", flush=True)
        if name in {"plain", "bf16", "bf16_compiled"} and "ours_tokens_per_s" in figures:
            figures[f"over_{name}"] = float(figures["ours_tokens_per_s"]) / rate
        write("gpu", figures)  # what is measured stays, whatever becomes of the next
    figures["same_bits"] = float(same_bits(Shape(WIDE, 4, 1024)))
    return figures


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="rows of 1,024 tokens of a step (default 16)")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS, help="only these, in this order")
    options = parser.parse_args()
    prepare_environment()
    figures = measure(options.rows, options.loops)
    print(table(figures))
    print(write("gpu", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
