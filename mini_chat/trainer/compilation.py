"""Compiled decoder layers for training: one layer is compiled, all run its code (docs/log.md has what it brings)."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn

from mini_chat.console import say
from mini_chat.model import SLMConfig

WORTHWHILE_FLOPS = {"cpu": 1e13, "cuda": 1e15}  # half a minute of training on two cores, or on a small GPU


def worth_compiling(setting: str, config: SLMConfig, flops: float, device_type: str = "cpu") -> bool:
    """Whether a stage of so many FLOPs is trained with compiled layers: its bits depend on it, so no clock decides.

    Args:
        setting: auto, on or off, see `config.Machine`.
        flops: of the whole stage, however much of it is left.
    """
    if setting == "off" or config.is_moe:  # experts' sizes vary from step to step, and so would the code
        return False
    if setting == "auto" and flops < WORTHWHILE_FLOPS.get(device_type, math.inf):
        return False
    return compiler_works()


@cache
def compiler_works() -> bool:
    """Whether torch.compile can make code here; where it cannot, one line says so."""
    try:
        torch.compile(torch.neg)(torch.ones(8))
        return True
    except Exception as error:  # of a compiler that is missing, or broken in any way
        why = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        say(f"training without torch.compile, which cannot work here ({why}); a C++ compiler makes it faster")
        return False


class CompiledLayers:
    """Within the block the model's layers run compiled. Outside of it, where batches have any shape, they do not."""

    def __init__(self, model: Any, enabled: bool) -> None:
        self.layers: list[nn.Module] = list(model.model.layers) if enabled else []
        # The layers' weights are inputs of the code, so the first layer's serves them all.
        self.calls = [torch.compile(layer._call_impl, dynamic=False) for layer in self.layers]

    def __enter__(self) -> None:
        for layer, call in zip(self.layers, self.calls, strict=True):
            layer._compiled_call_impl = call

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer._compiled_call_impl = None
