"""Several processes train what one trains: the same batches, the same loss but for rounding, one checkpoint for all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import crash
import psutil
import pytest
import spread
import torch
import yaml
from kernels import needs_kernels
from safetensors.torch import load_file, save_file
from torch import nn

from mini_chat import distributed
from mini_chat.config import Recipe
from mini_chat.trainer.muon import Muon

# AdamW for comparisons to rounding: Muon's orthogonalisation runs in bfloat16, in which rounding shows.
ADAMW = ["--pretrain.optimizer", "adamw"]
SHARDED = ["--machine.parallel", "fsdp"]


@pytest.fixture(scope="module", autouse=True)
def _preload() -> None:
    crash.preload()
    assert crash.finish(["--version"], Path(os.devnull)) == 0


@pytest.fixture
def run(finished_run: Recipe, tmp_path: Path) -> Any:
    """`run(name)`: the directory of a run whose stages before SFT's are finished, but for pretraining."""

    def make(name: str, *stages: str) -> Path:
        directory = tmp_path / name
        for part in ("tokenizer", "shards", *stages):
            shutil.copytree(finished_run.directory / part, directory / part)
        recipe = finished_run.model_dump() | {"out": str(directory)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
        return directory

    return make


def train(size: int, directory: Path, *options: str, stage: str = "pretrain") -> str:
    """Train to the end; returns what was said."""
    log = directory.parent / f"{directory.name}.log"
    log.unlink(missing_ok=True)
    words = [stage, str(directory.with_suffix(".yaml")), *options]
    assert spread.finish(size, words, log) == [0] * size, log.read_text()
    return log.read_text()


def losses(directory: Path, stage: str = "pretrain", key: str = "loss") -> list[float]:
    lines = (directory / stage / "metrics.jsonl").read_text().splitlines()
    return [record[key] for line in lines if key in (record := json.loads(line))]


def weights(directory: Path, stage: str = "pretrain") -> dict[str, torch.Tensor]:
    return load_file(directory / stage / "model.safetensors")


def bits(directory: Path) -> bytes:
    return (directory / "pretrain/model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [[], SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(options: list[str], run: Any) -> None:
    one, two = run("one"), run("two")
    train(1, one, *ADAMW)
    said = train(2, two, *ADAMW, *options)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, key="valid_bpb_zh") == pytest.approx(losses(one, key="valid_bpb_zh"), rel=1e-5)
    assert losses(two, key="grad_norm") == pytest.approx(losses(one, key="grad_norm"), rel=1e-4)
    assert losses(two, key="tokens") == losses(one, key="tokens")
    theirs = weights(two)
    for name, ours in weights(one).items():
        torch.testing.assert_close(theirs[name], ours, rtol=1e-3, atol=1e-4)
    assert said.count("step 3/6") == 1, "one of them speaks"
    assert not list(two.rglob("*.partial"))


# Tall, wide, square; rows that two processes cannot share evenly, or not at all; odd numbers of a shape.
MATRICES = [(12, 8), (8, 12), (8, 8), (8, 8), (8, 12), (8, 12), (5, 7), (3, 20), (1, 6)]
EXPERTS = [(4, 12, 8), (3, 8, 12), (1, 8, 8)]  # stacks: more than processes, not a multiple of them, fewer
SHAPES = [*MATRICES, *EXPERTS]


def muon_weights(kind: str) -> list[torch.Tensor]:
    """Matrices after a few updates of Muon in float32, whole in the first process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    gradients = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(3)]
    mesh = init_device_mesh("cpu", (distributed.processes(),)) if kind == "fsdp" else None

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)]) if mesh else tensor.clone()

    parameters = [nn.Parameter(placed(tensor)) for tensor in tensors]
    muon = Muon(parameters, lr=0.1, weight_decay=0.1, dtype=torch.float32)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = placed(gradient)
        muon.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]


def muon_process(kind: str, path: str) -> None:
    """In a process of several: write what they came to."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        tensors = {str(number): tensor.detach() for number, tensor in enumerate(muon_weights(kind))}
        if distributed.is_first():
            save_file(tensors, path)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_muons_update_is_that_of_the_whole_matrix(kind: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    assert spread.statuses(spread.processes(size, muon_process, kind, str(path))) == [0] * size
    theirs = load_file(path)
    for number, ours in enumerate(muon_weights("alone")):
        torch.testing.assert_close(theirs[str(number)], ours.detach(), rtol=1e-4, atol=1e-5)


def test_two_processes_with_muon_come_as_far_as_one(run: Any) -> None:
    found = []
    for name, size, options in (("one", 1, []), ("two", 2, []), ("shards", 2, SHARDED)):
        train(size, directory := run(name), "--pretrain.steps", "15", "--pretrain.lr_max", "5e-3", *options)
        found.append(losses(directory))
    for other in found[1:]:
        assert other[:3] == pytest.approx(found[0][:3], rel=1e-3)
        assert other[-1] == pytest.approx(found[0][-1], rel=0.02)
    assert found[0][-1] < found[0][0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_with_compiled_layers_train_what_one_trains(options: list[str], run: Any) -> None:
    compiled = [*ADAMW, "--machine.compile", "on"]
    one, two = run("one"), run("two")
    train(1, one, *compiled)
    train(2, two, *compiled, *options)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, key="grad_norm") == pytest.approx(losses(one, key="grad_norm"), rel=1e-4)
    state = json.loads((two / "pretrain/state/step-00000006/state.json").read_text())
    assert state["identity"]["compiled"] is True, "the layers were compiled indeed"


@pytest.mark.parametrize("options", [[], SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_twice_have_the_same_bits(options: list[str], run: Any) -> None:
    one, two = run("one"), run("two")
    train(2, one, *options)
    train(2, two, *options)
    assert bits(one) == bits(two)


def test_any_number_of_processes_reads_what_any_other_wrote(run: Any) -> None:
    """1 → 2 in shards → 1 → 2 copies → 2 in shards, a few steps each: the loss curve is that of one process."""
    one, many = run("one"), run("many")
    train(1, one, *ADAMW, "--pretrain.steps", "10")
    log = many.parent / "many.log"
    for size, last, options in ((1, 2, []), (2, 4, SHARDED), (1, 6, []), (2, 8, []), (2, None, SHARDED)):
        words = ["pretrain", str(many.with_suffix(".yaml")), *ADAMW, "--pretrain.steps", "10", *options]
        ended = spread.statuses(spread.processes(size, spread.run_until_saved, words, str(log), last))
        assert set(ended) == {0 if last is None else -signal.SIGKILL}, log.read_text()
    told = log.read_text()
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    for step, was, now in ((2, 1, 2), (4, 2, 1), (6, 1, 2)):
        assert f"step-{step:08d}: written by {was} processes, going on with {now}: " in told
    assert "Traceback" not in told


@pytest.mark.parametrize("stage, before", [("sft", ("pretrain",)), ("dpo", ("pretrain", "sft"))])
def test_two_processes_fine_tune_and_align_as_one_does(stage: str, before: tuple[str, ...], run: Any) -> None:
    one, two = run("one", *before), run("two", *before)
    options = [f"--{stage}.optimizer", "adamw"]
    train(1, one, *options, stage=stage)
    train(2, two, *options, stage=stage)
    assert losses(two, stage) == pytest.approx(losses(one, stage), rel=1e-4)
    key = {"sft": "valid_bpb_en", "dpo": "valid_preference_accuracy"}[stage]
    assert losses(two, stage, key) == pytest.approx(losses(one, stage, key), rel=1e-4)
    assert json.loads((two / stage / "stage.json").read_text())["steps"] == len(losses(two, stage))


@pytest.mark.parametrize("options", [[], SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_train_a_mixture_of_experts(options: list[str], run: Any) -> None:
    shape = ["--model.num_experts", "4", "--model.moe_intermediate_size", "24", "--model.router_aux_loss_coef", "0"]
    one, two = run("one"), run("two")
    train(1, one, *ADAMW, *shape)
    train(2, two, *ADAMW, *shape, *options)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)


def saved(directory: Path, step: int) -> bool:
    """Whether there is a checkpoint of this step, or a later one."""
    paths = (directory / "pretrain/state").glob("step-????????")
    return any(int(path.name.removeprefix("step-")) >= step for path in paths)


def test_one_of_two_killed_ends_the_other_in_one_line_and_the_same_command_goes_on(run: Any) -> None:
    undisturbed, killed = run("one"), run("two")
    train(2, undisturbed, "--pretrain.steps", "30")
    log = killed.parent / "two.log"
    words = ["pretrain", str(killed.with_suffix(".yaml")), "--pretrain.steps", "30"]
    started = spread.processes(2, crash.run, words, str(log), None)
    while not saved(killed, 10) and started[1].exitcode is None:
        started[1].join(0.005)
    started[1].kill()
    assert spread.statuses(started) == [1, -signal.SIGKILL], log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("mini-chat pretrain: error: process 0 of 2: another process is gone (")
    assert last.endswith(
        "); the same command goes on from the last checkpoint, and with torchrun --max-restarts 3 it does so by itself"
    )
    assert spread.finish(2, words, log) == [0, 0], log.read_text()
    assert "pretrain: going on from step " in log.read_text()
    assert bits(killed) == bits(undisturbed)


def test_sigterm_ends_all_processes_with_status_75_and_the_same_command_goes_on(run: Any) -> None:
    undisturbed, stopped = run("one"), run("two")
    train(2, undisturbed, "--pretrain.steps", "40", "--pretrain.checkpoint_every", "1000")
    log = stopped.parent / "two.log"
    words = ["pretrain", str(stopped.with_suffix(".yaml")), "--pretrain.steps", "40"]
    words += ["--pretrain.checkpoint_every", "1000"]
    started = spread.processes(2, crash.run, words, str(log), None)
    metrics = stopped / "pretrain/metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and started[0].exitcode is None:
        started[0].join(0.005)
    for process in started:
        process.terminate()
    assert spread.statuses(started) == [75, 75], log.read_text()
    assert log.read_text().count("saved; the same command goes on from here") == 1
    assert spread.finish(2, words, log) == [0, 0], log.read_text()
    assert bits(stopped) == bits(undisturbed)


def test_what_does_not_fit_the_processes_is_told_at_once_and_once(run: Any) -> None:
    directory = run("one")
    log = directory.parent / "one.log"
    words = ["run", str(directory.with_suffix(".yaml")), "--machine.device", "mps", "--pretrain.batch_tokens", "192"]
    words += ["--dpo.batch_tokens", "128", "--sft.lr_max", "0"]
    assert spread.finish(2, words, log) == [1, 1]
    assert log.read_text().splitlines() == [
        f"mini-chat run: error: {directory}.yaml: sft.lr_max: input should be greater than 0, not 0",
        "mini-chat run: error: pretrain: a batch of 3 rows cannot be shared out among 2 processes; set "
        "pretrain.batch_tokens to 4 times row_tokens, or start another number of processes",
        "mini-chat run: error: dpo: a batch of 1 rows cannot be shared out among 2 processes; set "
        "dpo.batch_tokens to 2 times row_tokens, or start another number of processes",
        "mini-chat run: error: machine.device mps: this machine has no MPS device that torch can use; use auto or cpu",
    ]


def test_shards_that_cannot_be_written_end_all_in_one_line_each_and_the_same_command_goes_on(run: Any) -> None:
    directory = run("one")
    log = directory.parent / "one.log"
    words = ["pretrain", str(directory.with_suffix(".yaml")), *SHARDED]
    assert spread.statuses(spread.processes(2, spread.run_with_full_disk, words, str(log), 4)) == [1, 1]
    path = directory / "pretrain/state/step-00000004"
    said = log.read_text()
    assert [f"{path}: cannot write (process 1: " in line for line in said.splitlines()[-2:]] == [True, True], said
    assert "Traceback" not in said
    assert [one.name for one in path.parent.iterdir()] == ["step-00000002"]
    assert "going on from step 2" in train(2, directory, *SHARDED)


@needs_kernels
def test_processes_that_would_not_train_the_same_stop_before_the_first_step(run: Any) -> None:
    directory = run("one")
    log = directory.parent / "one.log"
    words = ["pretrain", str(directory.with_suffix(".yaml"))]
    options = ["--machine.compile", "off", "--pretrain.eval_every", "7"]
    assert spread.statuses(spread.processes(2, spread.run_second_with, words, options, str(log))) == [1, 1]
    assert sorted(log.read_text().splitlines()) == [
        "mini-chat pretrain: error: process 0 stops: another process would not train the same, and says why",
        "mini-chat pretrain: error: process 1: this process would not train what process 0 trains (compile is off, "
        "there auto; eval_every is 7, there 3; kernels is False, there True (it takes a C++ "
        "compiler)); start all with the same recipe and data, on machines alike",
    ]


def test_the_first_of_several_processes_does_what_does_not_train(run: Any) -> None:
    directory = run("one")
    log = directory.parent / "one.log"
    words = ["run", str(directory.with_suffix(".yaml")), "--stages", "[tokenizer, shards, pretrain, sft]"]
    assert spread.finish(2, words, log) == [0, 0], log.read_text()
    assert (directory / "sft/stage.json").is_file()
    assert log.read_text().count("[1/4] tokenizer") == 1


def torchrun(*options: str) -> list[str]:
    """What the user types before the stage's name."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    return [*words, str(spread.free_port()), *options, "-m", "mini_chat"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], SHARDED], ids=["ddp", "fsdp"])
def test_torchrun_goes_on_by_itself_when_one_of_two_workers_is_killed(options: list[str], run: Any) -> None:
    undisturbed, killed = run("one"), run("two")
    long = ["--pretrain.steps", "60", "--pretrain.checkpoint_every", "5", *options]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    words = [*torchrun(), "pretrain", str(undisturbed.with_suffix(".yaml")), *long]
    assert subprocess.run(words, env=environment, capture_output=True).returncode == 0
    words = [*torchrun("--max-restarts", "3"), "pretrain", str(killed.with_suffix(".yaml")), *long]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as agent:
        try:
            deaths = 0
            for step in (10, 30):
                while not saved(killed, step) and agent.poll() is None:
                    time.sleep(0.005)
                workers = psutil.Process(agent.pid).children() if agent.poll() is None else []
                for worker in workers[deaths % 2 : deaths % 2 + 1]:
                    worker.kill()
                    deaths += 1
            _, said = agent.communicate(timeout=240)
        finally:
            agent.kill()
    assert agent.returncode == 0, said
    assert deaths == 2 and said.count("pretrain: going on from step ") == 2
    assert bits(killed) == bits(undisturbed)
