"""Optimisers and the learning rate.

Matrices of the decoder layers, experts' too, go to Muon, which orthogonalises their momentum; embeddings, head, norms
and routers go to AdamW (arXiv:1711.05101).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mini_chat.config import Training
from mini_chat.trainer.muon import Muon

FIRST_MOMENTUM = 0.85
"""Muon's momentum at the first step where it has a warm-up, as in https://github.com/KellerJordan/modded-nanogpt."""


class Optimizers:
    """Muon and AdamW over one model, with one schedule.

    Args:
        dtype: of Muon's products, what the device multiplies fast.
    """

    def __init__(self, model: nn.Module, settings: Training, dtype: torch.dtype = torch.float32) -> None:
        self.settings = settings
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        muon = {name: p for name, p in parameters.items() if settings.optimizer == "muon" and is_hidden_matrix(name, p)}
        rest = {name: p for name, p in parameters.items() if name not in muon}
        decayed = [p for p in rest.values() if p.ndim >= 2]
        plain = [p for p in rest.values() if p.ndim < 2]
        self.named = {"adamw": rest, "muon": muon}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(
                [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
                lr=settings.lr_max,
                betas=(settings.adam_beta1, settings.adam_beta2),
                fused=True,
            )
        }
        self.lr_max = {"adamw": settings.lr_max, "muon": settings.muon_lr_max}
        if muon:
            self.optimizers["muon"] = Muon(
                muon.values(), settings.muon_lr_max, settings.weight_decay, settings.muon_momentum, dtype
            )

    def set_step(self, step: int, steps: int) -> float:
        """Set every learning rate, and Muon's momentum, to those of a step; returns the rate's part of its peak."""
        factor = rate_factor(step, steps, self.settings)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.lr_max[name] * factor
                if name == "muon":
                    group["momentum"] = momentum(step, self.settings)
        return factor

    def step(self) -> None:
        """Update the weights from their gradients."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """All state under `optimizer/parameter/key`, ready for safetensors."""
        tensors = {}
        for kind, optimizer in self.optimizers.items():
            for name, parameter in self.named[kind].items():
                for key, value in optimizer.state[parameter].items():
                    tensors[f"{kind}/{name}/{key}"] = torch.as_tensor(value).contiguous()
        return tensors

    def empty_state(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """Tensors to fill and give to `load_state_tensors`, for paths as of `state_tensors` and the shapes saved."""
        tensors = {}
        for path, shape in shapes.items():
            kind, name, _ = path.split("/")
            parameter = self.named[kind][name]
            alike = shape == parameter.shape  # and then sharded as it is; the count of steps is not
            tensors[path] = torch.zeros_like(parameter) if alike else torch.zeros(shape, device=parameter.device)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_tensors` gave."""
        for path, tensor in tensors.items():
            kind, name, key = path.split("/")
            self.optimizers[kind].state[self.named[kind][name]][key] = tensor


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon's orthogonalisation makes sense: a matrix between hidden activations, or a stack of experts'."""
    return parameter.ndim in (2, 3) and ".layers." in name and ".gate.weight" not in name


def momentum(step: int, settings: Training) -> float:
    """Muon's momentum at a step: a linear rise from FIRST_MOMENTUM."""
    if step >= settings.muon_momentum_warmup_steps:
        return settings.muon_momentum
    done = step / settings.muon_momentum_warmup_steps
    return FIRST_MOMENTUM + (settings.muon_momentum - FIRST_MOMENTUM) * done


def rate_factor(step: int, steps: int, settings: Training) -> float:
    """The learning rate of a step as a part of its peak: warm-up, constant, linear decay to `lr_min_ratio` (WSD)."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    decay_steps = max(1, round(steps * settings.decay_ratio))
    left = (steps - step) / decay_steps
    return settings.lr_min_ratio + (1 - settings.lr_min_ratio) * min(1.0, left)
