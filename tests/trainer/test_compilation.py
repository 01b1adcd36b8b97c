"""Compiled layers: the same numbers, one compilation for all layers, and a way on where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch
from tiny import recorded, tiny_model

from mini_chat.trainer import compilation
from mini_chat.trainer.compilation import WORTHWHILE_FLOPS, CompiledLayers, compiler_works, worth_compiling


def test_compiled_layers_give_the_same_loss_and_gradients_from_one_compilation() -> None:
    model = tiny_model(num_hidden_layers=3)
    tokens = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # other tests compile too, in the same process
    for enabled in (False, True):
        layers = CompiledLayers(model, enabled)
        model.zero_grad()
        with layers:
            loss = model(tokens, labels=tokens, use_cache=False).loss
            loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_outside_the_block_layers_run_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    calls: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: recorded(calls, lambda *given: call, call))
    layers = CompiledLayers(model, True)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    model(tokens)
    assert not calls
    with layers:
        model(tokens, use_cache=False)
    assert len(calls) == len(model.model.layers)
    model(tokens)
    assert len(calls) == len(model.model.layers)


def test_only_long_stages_of_dense_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compiler_works", lambda: True)
    dense, sparse = tiny_model().config, tiny_model(num_experts=4).config
    assert worth_compiling("auto", dense, WORTHWHILE_FLOPS["cpu"]) and not worth_compiling("auto", dense, 1e9)
    assert worth_compiling("on", dense, 1e9) and not worth_compiling("off", dense, 1e20)
    assert not worth_compiling("on", sparse, 1e20)


def test_without_a_compiler_training_goes_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    compiler_works.cache_clear()
    try:
        assert not worth_compiling("on", tiny_model().config, 1.0)
        assert not worth_compiling("on", tiny_model().config, 1.0)
        shown = capsys.readouterr()
        assert (shown.out + shown.err).count("without torch.compile") == 1
        assert "long story" not in shown.out + shown.err
    finally:
        compiler_works.cache_clear()
