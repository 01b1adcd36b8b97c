"""Kernels are had once, used where they may be, and done without where they cannot be compiled."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernels import PROCESSOR, needs_kernels
from tiny import tiny_model

from mini_chat import native
from mini_chat.config import Machine
from mini_chat.device import Device, choose
from mini_chat.errors import UserError
from mini_chat.native import build
from mini_chat.trainer.attention import BLOCKS, packed_attention
from mini_chat.trainer.block_attention import block_attention
from mini_chat.trainer.losses import nll_and_gradient
from mini_chat.trainer.native_attention import native_attention


@pytest.fixture
def forgotten() -> Iterator[None]:
    """As in a process that has not asked for the kernels yet."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_compiler_training_goes_on_without_kernels_and_says_so_once(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise UserError("there is no C++ compiler; install one (c++, g++, clang++)")

    monkeypatch.setattr(native, "built", missing)
    monkeypatch.setattr(native, "PROCESSORS", [platform.machine()])
    model, device = tiny_model(head_dim=16), choose(Machine(device="cpu", precision="fp32"))
    for _ in range(3):
        with packed_attention(model, device):
            assert model.config._attn_implementation == BLOCKS and not native.are_in_use()
    assert device.identity["kernels"] is False
    said = capsys.readouterr()
    assert (said.out + said.err).count("there is no C++ compiler") == 1


def test_a_machine_told_not_to_compile_does_not(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "built", lambda: pytest.fail("compiles"))
    model, device = tiny_model(head_dim=16), choose(Machine(device="cpu", compile="off"))
    with packed_attention(model, device):
        assert model.config._attn_implementation == BLOCKS and not native.are_in_use()
    assert device.identity["kernels"] is False


@needs_kernels
def test_kernels_are_used_while_training_and_not_outside(device: Device) -> None:
    model = tiny_model(head_dim=16)
    with pytest.raises(RuntimeError), packed_attention(model, device):
        assert native.are_in_use()
        raise RuntimeError
    assert not native.are_in_use() and device.identity["kernels"] is True


def test_a_library_that_does_not_load_is_done_without(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernels.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "built", lambda: tmp_path / "kernels.so")
    monkeypatch.setattr(native, "PROCESSORS", [platform.machine()])
    assert native.library() is None
    said = capsys.readouterr()
    assert "training without our own kernels" in said.out + said.err


def test_processors_that_the_kernels_do_not_suit_are_not_asked_to_compile(
    forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "built", lambda: pytest.fail("compiles"))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert native.library() is None


EMULATED = Path(__file__).parent / "emulated.h"
OTHERS = {
    "AVX2": (["-march=haswell"], "avx2"),
    "no AVX": (["-march=x86-64"], "sse2"),
    "AVX512-BF16": (["-march=skylake-avx512", "-include", str(EMULATED)], "avx512vl"),
    "AMX": (["-march=skylake-avx512", "-DEMULATE_AMX", "-include", str(EMULATED)], "avx512vl"),
}


@needs_kernels
@pytest.mark.parametrize("kind", OTHERS)
def test_other_processors_would_compute_the_same(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags, needed = OTHERS[kind]
    if f" {needed} " not in PROCESSOR:
        pytest.skip(f"no {needed}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", [*(flag for flag in build.FLAGS if flag != "-march=native"), *flags])
    other = ctypes.CDLL(str(build.built()))
    monkeypatch.setattr(native, "library", lambda: other)
    torch.manual_seed(0)
    for dtype, exact in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        q, k, v = (torch.randn(2, 256, n, 64).to(dtype).requires_grad_() for n in (4, 2, 2))
        starts = torch.stack([torch.arange(256) // 100 * 100, (torch.arange(256) // 17 * 17).clamp(max=238)])
        found = []
        for attend in (native_attention, block_attention):
            out = attend(q / 8, k, v, starts)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
        logits, labels = torch.randn(10, 301).to(dtype), torch.randint(0, 301, (10,))
        for results, use in zip(found, (True, False), strict=True):
            with native.in_use(use):
                results += nll_and_gradient(logits.clone(), labels)
        for one, other_one in zip(*found, strict=True):
            assert float((one - other_one).norm() / other_one.norm()) < exact


@needs_kernels
def test_the_loss_of_large_logits_and_of_what_is_no_label() -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(0)) * 30 + 1000
    labels = torch.tensor([0, 99, 50, 7, -100, 100])
    with native.in_use(True):
        nll, gradient = nll_and_gradient(logits.clone(), labels)
    exact = torch.log_softmax(logits[:4].double(), -1)
    assert nll[4:].isnan().all()
    torch.testing.assert_close(nll[:4].double(), -exact[range(4), labels[:4]], atol=2e-5, rtol=1e-6)
    expected = exact.exp()
    expected[range(4), labels[:4]] -= 1
    torch.testing.assert_close(gradient[:4].double(), expected, atol=1e-6, rtol=1e-5)


@needs_kernels
def test_probabilities_too_small_to_matter_are_zero_and_no_denormal_numbers() -> None:
    with native.in_use(True):
        _, gradient = nll_and_gradient(torch.tensor([[0.0, -86.0, -88.0, -500.0, -torch.inf]]), torch.tensor([0]))
    assert gradient[0, 1] > 1e-38 and not gradient[0, 2:].any()
