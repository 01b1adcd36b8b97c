"""How far `mini-chat plan` is off: short real training runs beside what was predicted of them.

    python -m benchmarks.plan_check            the largest relative errors of memory and of time
    python -m benchmarks.plan_check --fit      first fit the constants in mini_chat/plan/rates.yaml to this machine
    python -m benchmarks.plan_check --kept     make no runs: predict those that were made last, after a formula changed

Each run is a process of its own that goes through `trainer.loop.train` on packed documents of random tokens, long
enough for the allocator to come to rest. The constants are fitted on some shapes and judged on others. After each step
the rate of matrix products is measured, and a step's time is taken at the median rate, so that what the machine's
neighbours do counts little (two cores: about half an hour). What was measured of each run is kept in
`benchmarks/results/plan_runs.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks.results import RESULTS, processor, table, write
from mini_chat.config import Machine, Model, Pretrain

RUNS = "plan_runs"
"""The file of results that holds what was measured of each run."""
WARM_UP = 3  # steps: the first compiles, the next fill caches
MEDIAN_DOCUMENT, SPREAD = 200, 0.8  # tokens; of their logarithm
SEED = 1


@dataclass(frozen=True)
class Case:
    """A short training run: a model, a vocabulary, the stage's settings, whether layers are compiled."""

    vocab_size: int
    model: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    compiled: bool = True

    @property
    def settings(self) -> Pretrain:
        """The stage's settings; nothing but training happens."""
        idle = {"eval_every": 1 << 30, "checkpoint_every": 1 << 30, "log_every": 1 << 20}
        return Pretrain.model_validate(idle | self.training)

    @property
    def shape(self) -> Model:
        """The model's section of a recipe."""
        return Model(**({"max_position_embeddings": 2048} | self.model))


def shape(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """A dense model of the usual proportions."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 64 * round(hidden * 8 / 3 / 64),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        **more,
    }


def rows(row_tokens: int, micro_rows: int, steps: int, micro_batches: int = 1, **more: Any) -> dict[str, Any]:
    """Settings of so many steps."""
    micro_tokens = row_tokens * micro_rows
    sizes = {"row_tokens": row_tokens, "micro_tokens": micro_tokens, "batch_tokens": micro_tokens * micro_batches}
    return {"steps": steps, **sizes, **more}


TIED = {"tie_word_embeddings": True}
EXPERTS = {"num_experts": 8, "moe_intermediate_size": 256}
FITTED = {
    "narrow": Case(4096, shape(192, 4, 3, **TIED), rows(256, 12, 16)),
    "narrow, as it is": Case(4096, shape(192, 6, 3), rows(512, 8, 14), compiled=False),
    "deep": Case(2048, shape(256, 10, 4, **TIED), rows(512, 8, 12)),
    "large vocabulary": Case(32_000, shape(256, 4, 4, **TIED), rows(512, 8, 12)),
    "wide, AdamW": Case(8192, shape(512, 4, 8), rows(512, 8, 12, optimizer="adamw")),
    "wide": Case(4096, shape(640, 4, 10), rows(1024, 4, 9, micro_batches=2)),
    "experts": Case(4096, shape(256, 4, 4, **EXPERTS), rows(256, 16, 14)),
    "large micro-batch": Case(8192, shape(384, 6, 6, **TIED), rows(1024, 16, 8)),
}
"""Runs that the constants are fitted to."""
JUDGED = {
    "demo": Case(1664, shape(256, 4, 4, **TIED), rows(256, 16, 16)),
    "demo, as it is": Case(1664, shape(256, 4, 4, **TIED), rows(256, 16, 16), compiled=False),
    "real-small": Case(8192, shape(256, 6, 4, **TIED), rows(512, 8, 12, micro_batches=2)),
    "real-small, 32 rows": Case(8192, shape(256, 6, 4, **TIED), rows(512, 32, 9)),
    "6 x 512": Case(8192, shape(512, 6, 8), rows(1024, 4, 9, micro_batches=2)),
    "6 x 512, recomputed": Case(8192, shape(512, 6, 8), rows(1024, 8, 8, gradient_checkpointing=True)),
    "6 x 512, AdamW": Case(8192, shape(512, 6, 8), rows(512, 16, 9, optimizer="adamw")),
    "6 x 256, experts": Case(6400, shape(256, 6, 4, **EXPERTS), rows(512, 8, 12)),
}
"""Runs, of other shapes, that the predictions are judged by."""
CASES = FITTED | JUDGED


def documents(directory: Path, case: Case) -> Any:
    """Random documents, enough for the run, as the split `train` on disk."""
    from mini_chat.data.token_shards import ShardWriter, TokenDocuments, token_dtype, write_manifest

    draw, settings, dtype = np.random.default_rng(SEED), case.settings, token_dtype(case.vocab_size)
    writer = ShardWriter(directory, "train", 50_000_000, dtype=dtype)
    for length in lengths(case, draw):
        writer.add(draw.integers(0, case.vocab_size, length).astype(dtype))
    write_manifest(directory, {"train": writer.close()}, dtype, tokenizer="none")
    assert settings.steps
    return TokenDocuments(directory, "train")


def lengths(case: Case, draw: np.random.Generator) -> list[int]:
    """Lengths of the documents of a run: their logarithms are normal, as those of web pages are [tokens]."""
    needed = int(1.2 * case.settings.batch_tokens * case.settings.steps)
    drawn: list[int] = []
    while sum(drawn) < needed:
        drawn += (draw.lognormal(np.log(MEDIAN_DOCUMENT), SPREAD, 1000).astype(int) + 2).tolist()
    return drawn


def run(case: Case) -> dict[str, Any]:
    """Train in this process: seconds of a step, peak memory, the machine's rates."""
    from mini_chat.cli import prepare_environment

    prepare_environment()
    import torch

    from mini_chat.console import set_quiet
    from mini_chat.data.packing import PackedDocuments
    from mini_chat.device import choose
    from mini_chat.model import SLMConfig, SLMForCausalLM
    from mini_chat.pipeline import peak_memory_bytes
    from mini_chat.plan.machines import this_machine
    from mini_chat.trainer import loop
    from mini_chat.trainer.language_modelling import LanguageModelling

    set_quiet(True)
    seconds: list[float] = []
    rates: list[float] = []

    class Noted(loop.Window):  # the loop's own, which hears of every step
        def add(self, tokens: int, spent: float) -> None:
            seconds.append(spent)
            rates.append(replace(device).matmul_flops)  # a new one has not measured yet
            super().add(tokens, spent)

    loop.Window = Noted  # type: ignore[misc]
    torch.manual_seed(SEED)
    settings = Machine(compile="on" if case.compiled else "auto")  # so short a run is not worth compiling its layers
    model = SLMForCausalLM(SLMConfig(**case.shape.model_dump(exclude={"rope_theta"}), vocab_size=case.vocab_size))
    device = choose(settings)
    with tempfile.TemporaryDirectory() as scratch:
        data = PackedDocuments(documents(Path(scratch), case), case.settings.row_tokens, SEED, 0)
        task = LanguageModelling("pretrain", data, {}, np.zeros(0), 1, 1)
        loop.train(model, task, case.settings, Path(scratch) / "run", device, {})
    peak_bytes = peak_memory_bytes()  # before the memory's rate is measured, which takes memory too
    machine = this_machine(settings)
    usual = median(rates[WARM_UP:])
    products = [spent * rate for spent, rate in zip(seconds[WARM_UP:], rates[WARM_UP:], strict=True)]
    return {
        "step_seconds": median(products) / usual,
        "peak_bytes": peak_bytes,
        "compute_bytes": machine.compute_bytes,
        "matmul_flops": usual,
        "memory_rate": machine.memory_rate,
        "kind": machine.kind,
    }


@dataclass(frozen=True)
class Comparison:
    """A run beside its prediction; the parts of either, from which constants are fitted.

    Args:
        tensors: bytes of tensors that the plan counts, without the process and the allocator.
        expert_product: bytes of one of the experts' products.
    """

    name: str
    case: Case
    step_seconds: float
    peak_bytes: float
    work: Any
    tensors: float
    expert_product: float
    predicted_seconds: float
    predicted_bytes: float

    @property
    def is_compiled(self) -> float:
        """1 if its layers run compiled, else 0."""
        return float(self.case.compiled and not self.case.shape.num_experts)

    @property
    def time_error(self) -> float:
        """Relative error of the predicted seconds of a step."""
        return abs(self.predicted_seconds / self.step_seconds - 1)

    @property
    def memory_error(self) -> float:
        """Relative error of the predicted peak memory."""
        return abs(self.predicted_bytes / self.peak_bytes - 1)


def compare(name: str, found: dict[str, Any]) -> Comparison:
    """What was found in a run beside what the plan says of it."""
    from mini_chat.plan import machines, rates
    from mini_chat.plan.memory import Compute, expert_product_bytes, peak
    from mini_chat.plan.parameters import count, keys_seen
    from mini_chat.plan.throughput import step_work
    from mini_chat.trainer.losses import chunk_logits

    case = CASES[name]
    machine = machines.Machine(
        name="this",
        kind=found["kind"],
        compute_bytes=found["compute_bytes"],
        matmul_flops=found["matmul_flops"],
        memory_rate=found["memory_rate"],
        memory_bytes=0.0,
        link_rate=1.0,
        source="measured",
    )
    constants = rates.of(machine.kind, machine.precision)
    sizes = np.array(lengths(case, np.random.default_rng(SEED)), float)
    keys = keys_seen(case.settings.row_tokens, float((sizes**2).sum() / sizes.sum()))
    compiled, on_cpu = case.compiled and not case.shape.num_experts, machine.kind == "cpu"
    compute = Compute(machine.compute_bytes, compiled, chunk_logits(machine.kind), kernels=on_cpu, one_heap=on_cpu)
    parameters = count(case.shape, case.vocab_size)
    shape_of = (case.shape, parameters, case.settings, case.vocab_size, compute)
    memory = peak(*shape_of, constants.memory)
    work = step_work(*shape_of, machine, keys)
    return Comparison(
        name=name,
        case=case,
        step_seconds=found["step_seconds"],
        peak_bytes=found["peak_bytes"],
        work=work,
        tensors=memory.total - memory.process - memory.allocator - memory.prepared,
        expert_product=expert_product_bytes(case.shape, case.settings.micro_tokens, machine.compute_bytes),
        predicted_seconds=work.seconds(constants.time),
        predicted_bytes=memory.total,
    )


def compared(names: Iterable[str], kept: bool = False, memory_only: bool = False) -> list[Comparison]:
    """Each case run in a process of its own (or `kept` from the last time that it was), and compared.

    Args:
        memory_only: of the runs keep the peak of memory alone, beside the times of the last ones.
    """
    results = []
    for name in names:
        if not kept:
            words = [sys.executable, "-m", "benchmarks.plan_check", "--case", name]
            output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            keep(name, kept_runs()[name] | {"peak_bytes": found["peak_bytes"]} if memory_only else found)
        one = compare(name, kept_runs()[name])
        print(
            f"  {name:<22} {one.step_seconds:7.3f} s a step, predicted {one.predicted_seconds:7.3f} "
            f"({one.predicted_seconds / one.step_seconds - 1:+4.0%}); {one.peak_bytes / 1e9:5.2f} GB, "
            f"predicted {one.predicted_bytes / 1e9:5.2f} ({one.predicted_bytes / one.peak_bytes - 1:+4.0%})",
            flush=True,
        )
        results.append(one)
    return results


def keep(name: str, found: dict[str, Any]) -> None:
    """Lay what was found in a run over what was found in that case before."""
    write(RUNS, {name: found})


def kept_runs() -> dict[str, dict[str, Any]]:
    """What was found in each case when it was last run."""
    path = RESULTS / f"{RUNS}.json"
    return {name: found for name, found in json.loads(path.read_text(encoding="utf-8")).items() if name in CASES}


def measure(kept: bool = False, memory_only: bool = False) -> dict[str, float]:
    """The largest relative errors over the judged runs; see `compared`."""
    results = compared(JUDGED, kept, memory_only)
    return {
        "plan_memory_error": max(one.memory_error for one in results),
        "plan_time_error": max(one.time_error for one in results),
    }


def fit(kept: bool = False, memory_only: bool = False) -> None:
    """Fit the constants to this machine, and write them, with where they are from, into the plan's rates.yaml."""
    from mini_chat.device import choose
    from mini_chat.plan.rates import PATH, MemoryRates, TimeRates, section

    results = compared(FITTED, kept, memory_only)
    kinds = list(TimeRates.__annotations__)
    columns = np.array([[1.0, one.is_compiled, one.expert_product, one.tensors] for one in results])
    found = least_squares(columns, np.array([float(one.peak_bytes) for one in results]), np.array([0, 0, 0, 1.0]))
    process, compiler, products, used = found.tolist()
    memory = MemoryRates(process, compiler, products, used - 1)
    about = f"{processor()}, {datetime.date.today().isoformat()}, {len(results)} runs of benchmarks.plan_check --fit"
    values = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    here = section("cpu", choose(Machine(device="cpu")).precision)
    values[here] |= {"memory_from": about, "memory": rounded(vars(memory))}
    if not memory_only:
        work = np.array([[getattr(one.work, kind) for kind in kinds] for one in results])
        factors = least_squares(work, np.array([one.step_seconds for one in results]), np.zeros(len(kinds)))
        values[here] |= {"time_from": about, "time": rounded(dict(zip(kinds, factors.tolist(), strict=True)))}
    write_rates(PATH, values)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Numbers of four digits."""
    return {key: float(f"{value:.4g}") for key, value in values.items()}


def write_rates(path: Path, values: dict[str, Any]) -> None:
    """Write the constants under the file's own heading."""
    heading = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    written = yaml.safe_dump(values, sort_keys=False, width=120, default_flow_style=None)
    path.write_text(heading + written, encoding="utf-8")


def least_squares(columns: np.ndarray, wanted: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Factors of the columns, none under its floor, whose sum comes nearest to what is wanted, relative to it.

    The best of all ways to hold some factors to their floors: with six columns there are 64.
    """
    best, least = floor, np.inf
    count = columns.shape[1]
    for free in range(1, 1 << count):
        chosen = np.array([bool(free >> place & 1) for place in range(count)])
        left = 1 - columns[:, ~chosen] @ floor[~chosen] / wanted
        found = np.linalg.lstsq(columns[:, chosen] / wanted[:, None], left, rcond=None)[0]
        factors = floor.astype(float).copy()
        factors[chosen] = found
        error = float(((columns @ factors / wanted - 1) ** 2).sum())
        if (factors >= floor).all() and error < least:
            best, least = factors, error
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants of mini_chat/plan/rates.yaml first")
    parser.add_argument("--memory-only", action="store_true", help="leave times, and their constants, as they are")
    parser.add_argument("--kept", action="store_true", help="make no runs, take what was measured of the last ones")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(CASES[options.case])))
    else:
        if options.fit:
            fit(options.kept, options.memory_only)
        print(table(measure(options.kept, options.memory_only)))
