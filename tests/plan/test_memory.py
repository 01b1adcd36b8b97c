"""Memory formulas, held to what autograd keeps and to what the optimiser and checkpoints hold."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import needs_kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mini_chat import native
from mini_chat.config import Machine, Model, Pretrain
from mini_chat.data.packing import Batch
from mini_chat.device import Device, choose
from mini_chat.model import SLMConfig, SLMForCausalLM
from mini_chat.plan.memory import (
    Compute,
    activation_bytes,
    checkpoint_bytes,
    copied_weights,
    loss_bytes,
    optimizer_bytes,
    peak,
    token_loss_bytes,
)
from mini_chat.plan.parameters import count
from mini_chat.plan.rates import MemoryRates
from mini_chat.trainer import losses
from mini_chat.trainer.attention import packed_attention
from mini_chat.trainer.checkpoint import Checkpoints
from mini_chat.trainer.compilation import CompiledLayers, compiler_works
from mini_chat.trainer.loop import checkpoint_activations, run_packed
from mini_chat.trainer.losses import CHUNK_LOGITS, token_nll, total_nll
from mini_chat.trainer.optimizer import Optimizers

VOCAB_SIZE = 300
ROWS, LENGTH = 2, 192
WIDE: dict[str, Any] = {
    "hidden_size": 80,
    "intermediate_size": 208,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 24,
}
MANY_KEYS: dict[str, Any] = WIDE | {"num_key_value_heads": 5, "head_dim": None, "num_hidden_layers": 5}
EXPERTS: dict[str, Any] = WIDE | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 72}
NOTHING = MemoryRates(0.0, 0.0, 0.0, 0.0)


def made(shape: Model) -> SLMForCausalLM:
    torch.manual_seed(0)
    return SLMForCausalLM(SLMConfig(**shape.model_dump(exclude={"rope_theta"}), vocab_size=VOCAB_SIZE)).train()


def batch() -> Batch:
    tokens = torch.randint(0, VOCAB_SIZE, (ROWS, LENGTH))
    places = torch.arange(LENGTH).repeat(ROWS, 1)
    return Batch(list(range(ROWS)), tokens, tokens.clone(), places, torch.arange(ROWS)[:, None] + 0 * places)


def kept_for_backward(model: SLMForCausalLM, device: Device, layers: CompiledLayers) -> tuple[float, float]:
    """Bytes of activations, and of copies of weights, that a forward pass leaves for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, tuple[Tensor, float]] = {}  # the tensors, so that no storage is freed and its place taken again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = tensor, float(storage.nbytes())
        return tensor

    data = batch()
    with packed_attention(model, device), layers, device.autocast():
        run_packed(model, data)  # compiles
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run_packed(model, data).hidden_BLH.sum()
    positions = {ROWS * LENGTH, ROWS, LENGTH}
    copies = [size for tensor, size in sizes.values() if not positions & set(tensor.shape) and is_weight(tensor, model)]
    return sum(size for _, size in sizes.values()) - sum(copies), sum(copies)


def is_weight(tensor: Tensor, model: SLMForCausalLM) -> bool:
    """Whether a tensor has as many numbers as one of the weights, or as one expert's part of them."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    return any(tensor.untyped_storage().nbytes() == p.numel() * tensor.itemsize for p in weights)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("shape", [WIDE, MANY_KEYS, EXPERTS], ids=["dense", "many keys", "experts"])
def test_activations_are_what_autograd_keeps(shape: dict[str, Any], precision: Any) -> None:
    section = Model(**shape)
    model, device = made(section), choose(Machine(device="cpu", precision=precision, threads=1))
    activations, _ = kept_for_backward(model, device, CompiledLayers(model, False))
    compute = Compute(2 if precision == "bf16" else 4, compiled=False)
    assert activation_bytes(section, ROWS * LENGTH, compute, False) == pytest.approx(activations, rel=0.03)


def test_compiled_layers_keep_as_little_as_the_formula_says() -> None:
    if not compiler_works():
        pytest.skip("no C++ compiler")
    section = Model(**WIDE)
    model, device = made(section), choose(Machine(device="cpu", precision="bf16", threads=1))
    activations, _ = kept_for_backward(model, device, CompiledLayers(model, True))
    assert activation_bytes(section, ROWS * LENGTH, Compute(2, True), False) == pytest.approx(activations, rel=0.03)


def test_recomputing_keeps_the_layers_inputs_and_one_layer() -> None:
    section = Model(**WIDE)
    model, device = made(section), choose(Machine(device="cpu", precision="bf16", threads=1))
    checkpoint_activations(model)
    kept, _ = kept_for_backward(model, device, CompiledLayers(model, False))
    compute, tokens = Compute(2, False), ROWS * LENGTH
    one_layer = Model(**WIDE | {"num_hidden_layers": 1})
    alone = activation_bytes(one_layer, tokens, compute, False)
    with_one = activation_bytes(section, tokens, compute, True)
    assert with_one == pytest.approx(kept + alone, rel=0.15)  # the ends are in both
    assert with_one < activation_bytes(section, tokens, compute, False)


def test_copies_are_those_of_the_weights_that_multiply() -> None:
    section = Model(**WIDE)
    model, device = made(section), choose(Machine(device="cpu", precision="bf16", threads=1))
    _, copies = kept_for_backward(model, device, CompiledLayers(model, False))
    parameters = count(section, VOCAB_SIZE)
    assert copies == 2 * copied_weights(parameters)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("shape", [WIDE, EXPERTS], ids=["dense", "experts"])
def test_state_and_checkpoint_are_as_large_as_said(shape: dict[str, Any], optimizer: Any, tmp_path: Path) -> None:
    section = Model(**shape)
    model, parameters = made(section), count(section, VOCAB_SIZE)
    optimizers = Optimizers(model, Pretrain(optimizer=optimizer))
    model(input_ids=batch().input_ids_BL, labels=batch().labels_BL).loss.backward()
    optimizers.step()
    held = sum(t.numel() * t.itemsize for path, t in optimizers.state_tensors().items() if not path.endswith("/step"))
    assert held == optimizer_bytes(parameters, optimizer)
    Checkpoints(tmp_path, {}).save(1, model, optimizers, {})
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert written == pytest.approx(checkpoint_bytes(parameters, optimizer), rel=0.05)  # names and shapes besides


class Living(TorchDispatchMode):
    """Notes the most bytes that the tensors made within it hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, int] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes():
                storage = tensor.untyped_storage()
                if storage.data_ptr() in self.owners or storage.data_ptr() not in given:
                    self.note(tensor, storage.data_ptr(), storage.nbytes())
        return result

    def note(self, tensor: Tensor, place: int, size: int) -> None:
        if not self.owners.get(place):
            self.bytes += size
        self.owners[place] = self.owners.get(place, 0) + 1
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, self.forget, place, size)

    def forget(self, place: int, size: int) -> None:
        self.owners[place] -= 1
        if not self.owners[place]:
            del self.owners[place]
            self.bytes -= size


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=needs_kernels), False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [total_nll, token_nll])
def test_the_loss_holds_what_is_said(
    loss: Any, dtype: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, width, vocab_size, chunk = 4090, 16, 2048, 1024 * 2048
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    losses.room_for_logits.cache_clear()
    source, head = torch.randn(tokens, width), torch.randn(vocab_size, width, requires_grad=True)
    labels = torch.randint(0, vocab_size, (tokens,))
    with Living() as living, native.in_use(kernels):
        hidden = (source * 1.0).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            total = loss(hidden, head, labels).sum()
        if loss is token_nll:  # makes its gradients in the backward pass
            total.backward()
    formula = loss_bytes if loss is total_nll else token_loss_bytes
    compute = Compute(dtype.itemsize, False, chunk, kernels)
    said = formula(tokens, width, vocab_size, compute, *[True] * (loss is total_nll))
    assert living.peak == pytest.approx(said, rel=0.1)


def test_logits_never_need_more_than_a_chunks() -> None:
    few, many, more = (loss_bytes(tokens, 64, 8192, Compute(2, False)) for tokens in (512, 8192, 80_000))
    chunk, a_row, head = 8 * CHUNK_LOGITS, 64 * (4 + 2 + 2), 64 * 8192 * (2 + 2)
    assert few == 512 * (8192 * 8 + a_row) + head
    assert (many, more) == (chunk + 8192 * a_row + head, chunk + 80_000 * a_row + head)


def test_lowering_what_the_plan_says_to_lower_lowers_the_peak() -> None:
    section = Model(**WIDE)
    parameters = count(section, VOCAB_SIZE)

    def total(compiled: bool = False, shards: int = 1, **settings: Any) -> float:
        given = {"row_tokens": 128, "micro_tokens": 4096, "batch_tokens": 8192} | settings
        compute = Compute(2, compiled)
        return peak(section, parameters, Pretrain(**given), VOCAB_SIZE, compute, NOTHING, shards).total

    assert total(micro_tokens=2048) < total()
    assert total(gradient_checkpointing=True) < total()
    assert total(compiled=True) < total()
    assert total(shards=4) < total()
    assert total(micro_tokens=65536) == total(micro_tokens=8192)  # a step has no more
    assert total() < total(optimizer="adamw")


def test_what_the_allocator_leaves_unused_is_a_share_of_what_is_used() -> None:
    section = Model(**WIDE)
    given = (section, count(section, VOCAB_SIZE), Pretrain(), VOCAB_SIZE)
    tight, loose = (peak(*given, Compute(2, True), MemoryRates(100.0, 10.0, 0.0, share)) for share in (0.0, 0.5))
    assert tight.process == 110.0
    assert loose.total - tight.total == pytest.approx(0.5 * (tight.total - 110.0))
