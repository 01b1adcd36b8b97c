"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, orthogonalised, all matrices of a
shape at once.

The same update as `torch.optim.Muon`, which goes through the matrices one by one; at this project's sizes that is a
fifth of a training step, and batched products are several times as fast (docs/log.md).

Several processes share the matrices out, whole ones, since the update is that of the whole matrix: where each process
has all of them (DDP) it orthogonalises its part and they exchange results; where each has some rows of all of them
(FSDP2) they first exchange rows, so that each has its part of the matrices whole, and then give the rows back. Experts,
stacked in one tensor, are so many matrices; FSDP2 shares them out whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mini_chat.distributed import my_part, processes
from mini_chat.trainer.parallelism import is_sharded

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration drives singular values to 0.7 … 1.2
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices and stacks of them.

    A matrix with more rows than columns moves √(rows / columns) times as far, so that every layer's outputs change
    alike.

    Args:
        momentum: decay of the mean of the gradients.
        dtype: of the orthogonalisation's products; bfloat16 is precise enough and slow only where it is emulated.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        if any(p.ndim not in (2, 3) for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon orthogonalises matrices; give other parameters to another optimiser")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # Shards are put together row by row, so a matrix and a transposed one do not go together.
                    shape = parameter.shape if is_sharded(parameter) else sorted(parameter.shape[-2:])
                    alike.setdefault(tuple(shape), []).append(parameter)
            for parameters in alike.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters of one shape, but for transposition."""
        updates: list[Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            mean: Tensor = local(state["momentum_buffer"])
            gradient = local(parameter.grad)
            mean.lerp_(gradient, 1 - group["momentum"])
            update = gradient.lerp(mean, group["momentum"])
            updates.append(update.mT if is_tall(parameter) and not by_rows(parameter) else update)
        for parameter, update in zip(parameters, orthogonalised(updates, parameters[0], self.dtype), strict=True):
            rows, columns = parameter.shape[-2:]
            weights = local(parameter)
            if is_tall(parameter) and not by_rows(parameter):
                update = update.mT
            if group["weight_decay"]:
                weights.mul_(1 - group["lr"] * group["weight_decay"])
            weights.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def local(tensor: Any) -> Tensor:
    """This process's rows of a sharded tensor, any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def by_rows(parameter: Tensor) -> bool:
    """Whether each process has some rows of a matrix; of stacked ones it has whole ones."""
    return is_sharded(parameter) and parameter.ndim == 2


def orthogonalised(updates: list[Tensor], parameter: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """`orthogonalise` of the updates of parameters like this one, however they are spread over processes."""
    if by_rows(parameter):
        return orthogonalise_sharded(updates, dtype, parameter.shape)
    if is_sharded(parameter):  # experts, which each process has whole
        return [orthogonalise(update, dtype) for update in updates]
    matrices = torch.cat([update.reshape(-1, *update.shape[-2:]) for update in updates])
    made = orthogonalise_shared_out(matrices, dtype).split([update.shape[:-2].numel() for update in updates])
    return [part.view_as(update) for part, update in zip(made, updates, strict=True)]


def orthogonalise_shared_out(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """`orthogonalise` of matrices that every process has; each makes its part, and all get all results."""
    if processes() == 1:
        return orthogonalise(matrices, dtype)
    count = len(matrices)
    matrices = filled_up(matrices, -count % processes())
    part = my_part(len(matrices))
    mine = orthogonalise(matrices[part.start : part.stop], dtype)
    everyones = torch.empty(matrices.shape, dtype=dtype, device=mine.device)
    torch.distributed.all_gather(list(everyones.chunk(processes())), mine.contiguous())
    return everyones[:count]


def orthogonalise_sharded(updates: list[Tensor], dtype: torch.dtype, shape: torch.Size) -> list[Tensor]:
    """`orthogonalise` of matrices of this whole `shape`, of each of which every process has some rows.

    Process p has rows p · n to (p + 1) · n, the last ones fewer or none, as torch shards them.
    """
    rows, columns = shape
    each = -(-rows // processes())
    here = updates[0].shape[0]
    stacked = torch.stack([nn.functional.pad(update, (0, 0, 0, each - here)) for update in updates])
    stacked = filled_up(stacked, -len(updates) % processes())
    count = len(stacked) // processes()
    mine = torch.empty_like(stacked)
    torch.distributed.all_to_all_single(mine, stacked)  # (process, matrix of mine, its rows, columns)
    matrices = mine.view(processes(), count, each, columns).transpose(0, 1).reshape(count, -1, columns)[:, :rows]
    matrices = orthogonalise(matrices.mT, dtype).mT if rows > columns else orthogonalise(matrices, dtype)
    back = nn.functional.pad(matrices, (0, 0, 0, each * processes() - rows))
    back = back.reshape(count, processes(), each, columns).transpose(0, 1).contiguous()
    result = torch.empty_like(back)
    torch.distributed.all_to_all_single(result, back)
    return [update[:here] for update in result.view(-1, each, columns)[: len(updates)]]


def filled_up(matrices: Tensor, missing: int) -> Tensor:
    """So many matrices of zeros more."""
    return torch.cat([matrices, matrices.new_zeros(missing, *matrices.shape[1:])]) if missing else matrices


def is_tall(parameter: Tensor) -> bool:
    """Whether a matrix has more rows than columns."""
    return parameter.shape[-2] > parameter.shape[-1]


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values of 0.7 to 1.2, by Newton-Schulz iteration.

    Args:
        matrices: (matrices, rows, columns) with rows ≤ columns, of any float dtype.
    """
    a, b, c = COEFFICIENTS
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
