"""The training loop. Pretraining, SFT and DPO all run here; a stage is its data and its loss.

Read `Trainer.run` from top to bottom: that is the order in which things happen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from mini_chat.config import Training
from mini_chat.console import duration, progress, say
from mini_chat.data.packing import Batch, PackedDocuments
from mini_chat.device import Device
from mini_chat.distributed import is_first, my_part, processes, summed
from mini_chat.errors import UserError
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.attention import packed_attention, who_sees_whom
from mini_chat.trainer.checkpoint import Checkpoints
from mini_chat.trainer.compilation import CompiledLayers, worth_compiling
from mini_chat.trainer.guard import Guard
from mini_chat.trainer.identity import refuse_other_process
from mini_chat.trainer.metrics import Metrics, NoMetrics
from mini_chat.trainer.optimizer import Optimizers
from mini_chat.trainer.parallelism import Parallelism
from mini_chat.trainer.progress import Outcome, Progress, Totals, Window, training_flops_per_token
from mini_chat.trainer.stopping import GivenUp, Interrupted, StopRequests


class Task(Protocol):
    """What makes a stage: its data, its loss, its validation."""

    name: str
    data: PackedDocuments

    def weight(self, batch: Batch) -> float:
        """What the summed loss of a whole batch is divided by: its labelled tokens, or its pairs."""

    def loss(self, model: SLMForCausalLM, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss of a micro-batch, with gradient, and sums of whatever else is worth logging, without."""

    def validate(self, model: SLMForCausalLM) -> dict[str, float]:
        """Measures on held-out data; the model is in evaluation mode, no gradients are kept."""


def train(
    model: SLMForCausalLM,
    task: Task,
    settings: Training,
    directory: Path,
    device: Device,
    identity: dict[str, Any],
    sample: Callable[[], str] | None = None,
) -> Outcome:
    """Train `model` in place and return what was measured; going on from a checkpoint if there is one.

    Args:
        directory: the stage's directory: `metrics.jsonl`, `tensorboard/` and `state/` are kept there.
        identity: what the final bits depend on, see `stage.identity`; a checkpoint of another one is refused.
        sample: writes a few answers of the model as it is; called every `sample_every` steps.

    Raises:
        Interrupted: on SIGTERM or SIGINT, after a checkpoint.
        UserError: nothing to train on, a checkpoint of another run, a disk that is full, steps that stay broken.
    """
    return Trainer(model, task, settings, directory, device, identity, sample).run()


class Trainer:
    """One stage's training, see `train`; `run` has the order in which things happen."""

    def __init__(
        self,
        model: SLMForCausalLM,
        task: Task,
        settings: Training,
        directory: Path,
        device: Device,
        identity: dict[str, Any],
        sample: Callable[[], str] | None,
    ) -> None:
        self.model, self.task, self.settings, self.device = model, task, settings, device
        self.directory, self.sample = directory, sample
        self.rows_per_step = settings.batch_tokens // settings.row_tokens
        if len(task.data) == 0:
            raise UserError(f"{task.name}: there is no document to train on in {task.data.documents.directory}")
        self.steps = settings.steps or math.ceil(settings.epochs * len(task.data) / self.rows_per_step)
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        self.flops_per_token = training_flops_per_token(model)
        compiles = worth_compiling(
            device.compile,
            model.config,
            self.steps * settings.batch_tokens * self.flops_per_token,
            device.torch_device.type,
        )
        self.compiled_layers = CompiledLayers(model, compiles)
        self.parallelism = Parallelism(model, device, device.parallel)
        # After it, which may replace the parameters by their shards.
        self.optimizers = Optimizers(model, settings, device.compute_dtype)
        # On a CPU the writing would take cores from the training that it runs beside.
        background = device.torch_device.type != "cpu"
        compiled = {"compiled": compiles}
        refuse_other_process(compiled)  # the rest was held to the others' by `stage.identity`
        self.checkpoints = Checkpoints(directory / "state", identity | compiled, settings.keep_checkpoints, background)
        self.stop = StopRequests(patient=processes() > 1)
        self.window = Window()
        self.validation: dict[str, float] = {}
        self.step = 0
        self.at = Progress()
        self.go_on_from(self.checkpoints.load(model, self.optimizers, device.torch_device))

    def go_on_from(self, state: dict[str, Any] | None) -> None:
        """Take up where a checkpoint stands, or begin."""
        if state:
            self.at, self.step = Progress(**state["progress"]), state["step"]
            say(f"{self.task.name}: going on from step {self.step} of {self.steps}")
        self.guard = Guard(self.settings, self.at.norms)
        self.metrics = Metrics(self.directory, self.at.metrics_bytes, self.step) if is_first() else NoMetrics()
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.looked_at = (-1, 0)

    def run(self) -> Outcome:
        """Train to the last step."""
        settings, name = self.settings, self.task.name
        with self.stop, self.device.in_order(), progress(name, self.steps, "steps") as bar:
            bar.start_at(self.step)
            self.model.train()
            if self.step:  # what came after the checkpoint was lost with the process
                self.look()
            while self.step < self.steps:
                began = time.perf_counter()

                # The gradient of the whole batch; then the update, unless the numbers are broken.
                totals, asked, due = self.add_up_gradients()
                loss = totals.sums["loss"] / totals.weight
                factor = self.optimizers.set_step(self.step, self.steps)
                grad_norm = self.parallelism.clip_gradients(settings.max_grad_norm)
                if fault := self.guard.fault(loss, grad_norm):
                    self.skip(fault)
                else:
                    self.optimizers.step()
                    self.guard.accept(grad_norm)
                    self.at.bad_steps = 0
                self.optimizers.zero_grad()
                if self.at.bad_steps >= settings.max_bad_steps:
                    self.go_back()
                    bar.reach(self.step)
                    continue

                # Count.
                seconds = time.perf_counter() - began
                self.at.tokens += totals.tokens
                self.at.train_seconds += seconds
                self.window.add(totals.tokens, seconds)
                self.step += 1
                share = self.window.rate * self.flops_per_token / self.limit_flops
                bar.advance(1, f"loss {loss:.3f}  {self.window.rate:,.0f} tok/s ({share:.0%} of limit)")

                # Once in a while: log …
                if self.step % settings.log_every == 0 or self.step == self.steps:
                    self.metrics.write(
                        self.step,
                        **{key: value / totals.weight for key, value in totals.sums.items()},
                        grad_norm=grad_norm,
                        lr=factor * settings.lr_max,
                        tokens=self.at.tokens,
                        train_seconds=round(self.at.train_seconds, 3),
                        skipped_steps=self.at.skipped_steps,
                        tokens_per_second=round(self.window.rate, 1),
                        share_of_limit=round(share, 4),
                    )
                # … save, before anything that may fail, and leave if asked to …
                if self.step % settings.checkpoint_every == 0 or self.step == self.steps or due or asked:
                    self.save()
                if asked:
                    self.leave()
                # … validate, and let it speak.
                self.look(f"  train loss {loss:.3f}")
            if any(summed([self.stop.asked])):
                self.leave()
        self.checkpoints.finish()
        self.metrics.close()
        return self.outcome()

    def add_up_gradients(self) -> tuple[Totals, bool, bool]:
        """Add up the batch's gradients, and say whether someone asked to stop and whether a checkpoint is due.

        The batch is a function of the step alone (and of what was left out), whatever the number of processes, which
        take a run of its rows each. Its loss is divided by what the whole batch holds, so the size of the micro-batches
        changes nothing but rounding.
        """
        data, settings = self.task.data, self.settings
        part = my_part(self.rows_per_step)
        first = (self.step + self.at.batches_left_out) * self.rows_per_step
        batch = data.batch(first + part.start, len(part))
        weight, tokens = summed([self.task.weight(batch), int((batch.document_ids_BL >= 0).sum())])
        weight = max(1, weight)
        found: dict[str, list[Tensor]] = {}
        micro_batches = batch.split(settings.micro_tokens // settings.row_tokens)
        try:
            for number, micro in enumerate(micro_batches, 1):
                last = number == len(micro_batches)
                with self.stop.given_up_if_late(), self.parallelism.micro_batch(last):
                    loss, extra = self.micro_gradients(micro, self.parallelism.divisor(weight))
                for key, value in ({"loss": loss.detach()} | extra).items():
                    found.setdefault(key, []).append(value)
        except GivenUp:
            self.leave()
        sums = sums_of(found)
        overdue = is_first() and time.monotonic() - self.saved_at > settings.checkpoint_minutes * 60
        # Once: what is said to be saved must be. All processes learn of the same requests.
        *values, asked, due = summed([*sums.values(), self.stop.asked, overdue])
        return Totals(dict(zip(sums, values, strict=True)), weight, int(tokens)), bool(asked), bool(due)

    def micro_gradients(self, micro: Batch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Add a micro-batch's gradients to the parameters'; returns what the task's loss gave."""
        # The backward pass too: gradient checkpointing runs the forward pass again in it.
        with packed_attention(self.model, self.device), self.compiled_layers:
            with self.device.autocast():
                loss, extra = self.parallelism.loss(self.task.loss, micro.to(self.device.torch_device))
            (loss / divisor).backward()
        return loss, extra

    def skip(self, fault: str) -> None:
        """Count a step that is not taken: one bad batch must not spoil the weights."""
        self.at.bad_steps += 1
        self.at.skipped_steps += 1
        say(f"{self.task.name}: step {self.step} skipped, {fault}")

    def go_back(self) -> None:
        """Go back to the last good checkpoint, and from there on leave out the batches that were seen since.

        The same batches on the same weights would fail alike. Where it goes back to is a function of the steps: the
        last checkpoint of the schedule (`checkpoint_every`) before which no step was skipped. So a run that is killed
        amid all this, and does it again, ends in the same bits. Before the first of those it is whichever is whole: one
        by the clock, or by a signal.

        Raises:
            UserError: there is no checkpoint yet, or training has gone back `max_rollbacks` times.
        """
        failed, before, name = self.step, self.at, self.task.name
        in_a_row = f"{name}: {before.bad_steps} steps in a row were skipped (last: step {failed})"
        advice = "lower lr_max or muon_lr_max, or raise spike_factor if such gradients are right"
        if before.rollbacks >= self.settings.max_rollbacks:
            raise UserError(
                f"{in_a_row} after {before.rollbacks} times back to a checkpoint; {advice}; "
                f"the last good checkpoint is in {self.directory / 'state'}"
            )
        self.metrics.close()
        last = failed - before.bad_steps + 1 if before.good_step is None else before.good_step
        state = self.checkpoints.load(self.model, self.optimizers, self.device.torch_device, last=last)
        if state is None:
            raise UserError(f"{in_a_row}, and there is no whole checkpoint from before them; {advice}")
        say(
            f"{in_a_row}; going back to the last good checkpoint, without the batches since "
            f"({before.rollbacks + 1} of {self.settings.max_rollbacks})"
        )
        self.go_on_from(state)
        self.at.rollbacks = before.rollbacks + 1
        self.at.skipped_steps = before.skipped_steps
        self.at.batches_left_out = before.batches_left_out + failed + 1 - self.step
        self.metrics.write(
            self.step, went_back_from=failed, skipped_steps=self.at.skipped_steps, rollbacks=self.at.rollbacks
        )

    def save(self) -> None:
        """Write a checkpoint of the step that comes next."""
        if self.step % self.settings.checkpoint_every == 0 and not self.at.bad_steps:
            self.at.good_step = self.step
        looked_step, bytes_before = self.looked_at
        # Whoever goes on from here looks again, and writes of it again.
        self.at.metrics_bytes = bytes_before if looked_step == self.step else self.metrics.flush()
        self.checkpoints.save(self.step, self.model, self.optimizers, asdict(self.at), self.at.good_step)
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def leave(self) -> NoReturn:
        """Save what is not saved yet and raise Interrupted: a signal asked for it."""
        if self.step > self.saved_step:
            self.save()
        self.checkpoints.finish()
        self.metrics.close()
        raise Interrupted(
            f"{self.task.name}: stopped at step {self.step} of {self.steps}, saved; the same command goes on from here"
        )

    def look(self, train_loss: str = "") -> None:
        """Validate and let the model speak, where the step asks for it. It changes nothing, so it may be repeated."""
        self.looked_at = (self.step, self.metrics.flush())
        try:
            with self.stop.given_up_if_late():
                self._look(train_loss)
        except GivenUp:
            self.leave()

    def _look(self, train_loss: str) -> None:
        step, settings = self.step, self.settings
        if step % settings.eval_every == 0 or step == self.steps:
            self.validation = evaluate(self.parallelism, self.task, self.device)
            self.metrics.write(step, **{f"valid_{key}": value for key, value in self.validation.items()})
            shown = "  ".join(f"{key} {value:.3f}" for key, value in self.validation.items())
            say(f"  {self.task.name} step {step}/{self.steps}{train_loss}  {shown}")
        if self.sample is not None and settings.sample_every and step % settings.sample_every == 0:
            self.model.eval()
            with self.device.in_order(False):
                text = self.parallelism.speak(self.sample)
            self.model.train()
            self.metrics.write(step, samples=text)
            say(text)

    @property
    def limit_flops(self) -> float:
        """The matrix-product rate of all processes' devices together [FLOP/s]."""
        return self.device.matmul_flops * processes()

    def outcome(self) -> Outcome:
        """What the whole run was, and a line that says so."""
        at = self.at
        rate = at.tokens / max(at.train_seconds, 1e-9)
        share = rate * self.flops_per_token / self.limit_flops
        say(
            f"{self.task.name}: {self.steps} steps, {at.tokens:,} tokens in {duration(at.train_seconds)}, "
            f"{rate:,.0f} tokens/s, {share:.0%} of the {self.limit_flops / 1e9:,.0f} GFLOP/s that this machine "
            "multiplies at"
        )
        return Outcome(self.steps, at.tokens, at.train_seconds, rate, share, self.validation, at.skipped_steps)


def checkpoint_activations(model: SLMForCausalLM) -> None:
    """Have activations made again, layer by layer, in the backward pass."""
    if hasattr(model, "activation_checkpointing_enable"):  # transformers' new name; where it is, the old one warns
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def sums_of(found: dict[str, list[Tensor]]) -> dict[str, float]:
    """The sum of each key's scalars, read from the device all at once: every reading waits for it."""
    scalars = [scalar.float() for values in found.values() for scalar in values]
    read = iter(torch.stack(scalars).tolist())
    return {key: sum(next(read) for _ in values) for key, values in found.items()}


def evaluate(parallelism: Parallelism, task: Task, device: Device) -> dict[str, float]:
    """The task's validation, without gradients."""
    model = parallelism.model
    model.eval()
    with torch.no_grad(), device.autocast(), packed_attention(model, device):
        validation = parallelism.look(task.validate)
    model.train()
    return validation


class Decoded(NamedTuple):
    """The decoder's output: float (B, L, H), and of a mixture of experts (T, E) per layer."""

    hidden_BLH: Tensor
    router_logits: tuple[Tensor, ...] | None


def run_packed(model: SLMForCausalLM, batch: Batch) -> Decoded:
    """The decoder's output over packed documents, none of which sees another."""
    out = model.model(
        input_ids=batch.input_ids_BL,
        position_ids=batch.position_ids_BL,
        use_cache=False,
        **who_sees_whom(model, batch),
    )
    return Decoded(out.last_hidden_state, out.router_logits)


def labelled(hidden_BLH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden states of the positions that have a label, (N, H), and the labels, int64 (N,)."""
    hidden_NH = hidden_BLH.flatten(0, 1).index_select(0, batch.labelled_N)
    return hidden_NH, batch.labels_BL.flatten().index_select(0, batch.labelled_N)
