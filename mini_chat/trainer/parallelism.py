"""One model on several processes: copies that add up their gradients (DDP), or one model in shards (FSDP2).

Whatever computes with the model goes through here, since under FSDP its weights are whole only within a forward pass of
the outermost module. Gradients are those of the summed loss over all processes' micro-batches, as with one process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mini_chat.device import Device
from mini_chat.distributed import is_first, processes
from mini_chat.model import SLMForCausalLM

BYTES_PER_PARAMETER = 20
"""Weights, gradients, two moments, in float32, and the compute dtype's copy; DDP's buckets are the gradients."""
SHARE_FOR_MODEL = 0.6
"""Of the device's memory; the rest is for activations."""


class Within(nn.Module):
    """Calls a function of the model as a forward pass of its own, so that DDP's and FSDP's hooks see it."""

    def __init__(self, model: SLMForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(model, *arguments)`."""
        return function(self.model, *arguments)


class Parallelism:
    """The model spread over the processes that torchrun started, or as it is where there is one.

    Args:
        setting: auto, ddp or fsdp, see `config.Machine`.
    """

    def __init__(self, model: SLMForCausalLM, device: Device, setting: str = "auto") -> None:
        self.model, self.device = model, device
        self.kind = kind_of_parallelism(model, device, setting)
        self.outer: Any = Within(model)
        if self.kind == "fsdp":
            shard(self.outer, device)
        elif self.kind == "ddp":
            self.outer = copies(self.outer)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Forward and backward pass of a micro-batch; copies exchange their gradients in the step's last one.

        Shards exchange them in every one: kept whole until the last they would need the memory that sharding saves.
        """
        with nullcontext() if last or self.kind != "ddp" else self.outer.no_sync():
            yield

    def loss(self, function: Callable[..., tuple[Tensor, dict[str, Tensor]]], batch: Any) -> tuple[Tensor, Any]:
        """`function(model, batch)`, with what gathers the gradients."""
        return self.outer(function, batch)

    def divisor(self, weight: float) -> float:
        """What this process's loss is divided by for a batch of so much weight: DDP takes the mean over processes."""
        return weight / processes() if self.kind == "ddp" else weight

    def look(self, function: Callable[[SLMForCausalLM], Any]) -> Any:
        """`function(model)` for a look at the model without gradients, by all processes in step."""
        if self.kind != "fsdp":
            return function(self.model)
        result = self.outer(function)
        self.outer.reshard()  # it stays whole for a backward pass, which does not come
        return result

    def speak(self, function: Callable[[], str]) -> str:
        """Samples of the model, which the first process prints; with shards all have to make them."""
        if self.kind == "fsdp":
            return self.look(lambda model: function())
        return function() if is_first() else ""

    def clip_gradients(self, largest: float) -> float:
        """Scale the gradients down to this norm; returns the norm that they had, which is the same in every process."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = float(whole(norm))
        if value > largest:  # multiplying by 1 would read and write all gradients too
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return value


def kind_of_parallelism(model: SLMForCausalLM, device: Device, setting: str) -> str:
    """`single`, `ddp` or `fsdp`; auto shards a model whose training state does not fit the device."""
    if processes() == 1:
        return "single"
    if setting != "auto":
        return setting
    if device.torch_device.type != "cuda":
        return "ddp"
    memory_bytes = torch.cuda.get_device_properties(device.torch_device).total_memory
    needed_bytes = BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
    return "fsdp" if needed_bytes > SHARE_FOR_MODEL * memory_bytes else "ddp"


def copies(outer: Within) -> nn.Module:
    """The same module in every process; buffers are the same in all and stay as they are."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
    settings: dict[str, Any] = {name: False}
    return nn.parallel.DistributedDataParallel(outer, gradient_as_bucket_view=True, **settings)


def shard(outer: Within, device: Device) -> None:
    """Shard each decoder layer, and all else with the outermost module; gradients are summed, not averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.torch_device.type, (processes(),))
    for layer in outer.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(outer, mesh=mesh)
    for module in outer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    if processes() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Any) -> Tensor:
    """The whole of a tensor that may be sharded; all processes must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def state_to_write(model: nn.Module) -> dict[str, Tensor] | None:
    """The whole weights of a sharded model on the CPU, in the first process; None where each process has them all."""
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state
