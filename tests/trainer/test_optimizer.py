"""The optimisers: what goes where, the shape of the schedule, and a state that survives safetensors to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor

from mini_chat.config import Pretrain
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer.optimizer import Optimizers, rate_factor


def settings(**changes: Any) -> Pretrain:
    return Pretrain.model_validate(changes)


@pytest.mark.parametrize("shape", [{}, {"tie_word_embeddings": True}, {"num_experts": 4}])
def test_muon_has_the_matrices_between_hidden_activations_and_nothing_else(shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    named = Optimizers(model, settings()).named
    muon, rest = set(named["muon"]), set(named["adamw"])
    assert muon | rest == {name for name, _ in model.named_parameters()} and not muon & rest
    per_layer = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    if "num_experts" in shape:
        per_layer |= {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    else:
        per_layer |= {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert muon == {f"model.layers.{layer}.{name}" for layer in range(2) for name in per_layer}


def test_adamw_alone_has_every_parameter() -> None:
    model = tiny_model()
    optimizers = Optimizers(model, settings(optimizer="adamw"))
    assert list(optimizers.optimizers) == ["adamw"]
    assert set(optimizers.named["adamw"]) == {name for name, _ in model.named_parameters()}


def test_weight_decay_is_on_matrices_only() -> None:
    model = tiny_model()
    optimizers = Optimizers(model, settings(weight_decay=0.1))
    decay = {
        id(p): group["weight_decay"]
        for o in optimizers.optimizers.values()
        for group in o.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0), name


def test_the_rate_warms_up_stays_and_decays() -> None:
    shape = settings(warmup_steps=10, decay_ratio=0.4, lr_min_ratio=0.1)
    factors = [rate_factor(step, 100, shape) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:61] == [1.0] * 51
    falls = [factors[step] - factors[step + 1] for step in range(60, 99)]
    assert falls == pytest.approx([0.9 / 40] * 39), "linear"
    assert factors[99] == pytest.approx(0.1 + 0.9 / 40), "the step after the last would be at the least rate"


@pytest.mark.parametrize(
    "changes", [{"warmup_steps": 0}, {"decay_ratio": 0.0}, {"decay_ratio": 1.0}, {"warmup_steps": 50}]
)
def test_the_rate_is_never_0_nor_above_its_peak(changes: dict[str, Any]) -> None:
    factors = [rate_factor(step, 20, settings(**changes)) for step in range(20)]
    assert all(0 < factor <= 1 for factor in factors)


def test_each_optimiser_follows_its_own_peak() -> None:
    optimizers = Optimizers(tiny_model(), settings(lr_max=1e-3, muon_lr_max=2e-2))
    assert optimizers.set_step(9, 20) == 0.5  # of 20 steps of warm-up
    rates = {kind: {group["lr"] for group in o.param_groups} for kind, o in optimizers.optimizers.items()}
    assert rates == {"adamw": {5e-4}, "muon": {1e-2}}


def test_muons_momentum_rises_to_what_is_asked_for() -> None:
    optimizers = Optimizers(tiny_model(), settings(muon_momentum=0.95, muon_momentum_warmup_steps=10))
    found = []
    for number in (0, 5, 10, 100):
        optimizers.set_step(number, 100)
        found += [group["momentum"] for group in optimizers.optimizers["muon"].param_groups]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    constant = Optimizers(tiny_model(), settings(muon_momentum=0.9))
    constant.set_step(0, 100)
    assert constant.optimizers["muon"].param_groups[0]["momentum"] == 0.9


def step(model: SLMForCausalLM, optimizers: Optimizers, seed: int) -> None:
    tokens = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(seed))
    model(tokens, labels=tokens).loss.backward()
    optimizers.set_step(13, 20)
    optimizers.step()
    optimizers.zero_grad()


@pytest.mark.parametrize("shape", [{}, {"num_experts": 4}])
def test_the_state_survives_safetensors_to_the_bit(shape: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**shape)
    optimizers = Optimizers(model, settings())
    for seed in range(3):
        step(model, optimizers, seed)
    save_file(optimizers.state_tensors(), tmp_path / "state.safetensors")

    other = tiny_model(seed=9, **shape)
    other.load_state_dict(model.state_dict())
    restored = Optimizers(other, settings())
    restored.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    before, after = optimizers.state_tensors(), restored.state_tensors()
    assert before.keys() == after.keys()
    assert all(equal(before[key], after[key]) for key in before)
    for seed in range(3, 6):
        step(model, optimizers, seed)
        step(other, restored, seed)
    weights, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert all(equal(weights[name], theirs[name]) for name in weights)


def equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
