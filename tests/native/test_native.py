"""Kernels are had once, used where they may be, and done without where they cannot be compiled."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from mini_chat import native
from mini_chat.config import Machine
from mini_chat.device import choose
from mini_chat.errors import UserError
from mini_chat.native import build
from mini_chat.trainer import attention
from mini_chat.trainer.attention import BLOCKS
from mini_chat.trainer.block_attention import block_attention
from mini_chat.trainer.losses import nll_and_gradient
from mini_chat.trainer.native_attention import native_attention

CPUINFO = Path("/proc/cpuinfo")
HAS_AVX2 = platform.machine() == "x86_64" and CPUINFO.exists() and " avx2 " in CPUINFO.read_text(encoding="utf-8")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """As in a process that has not asked for the kernels yet."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()
    native.allow(True)


def test_without_a_compiler_training_goes_on_without_kernels_and_says_so_once(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise UserError("there is no C++ compiler (c++, g++, clang++)")

    monkeypatch.setattr(native, "built", missing)
    device = choose(Machine(device="cpu", precision="fp32"))
    assert [attention.fastest(tiny_model(head_dim=16), device) for _ in range(3)] == [BLOCKS] * 3
    nll_and_gradient(torch.zeros(2, 5), torch.tensor([1, 2]))
    said = capsys.readouterr()
    assert (said.out + said.err).count("there is no C++ compiler") == 1


def test_a_machine_told_not_to_compile_does_not(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "built", lambda: pytest.fail("compiles"))
    device = choose(Machine(device="cpu", compile="off"))
    assert attention.fastest(tiny_model(head_dim=16), device) == BLOCKS
    assert not native.available()


def test_a_library_that_does_not_load_is_done_without(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernels.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "built", lambda: tmp_path / "kernels.so")
    assert not native.available()
    said = capsys.readouterr()
    assert "training without our kernels" in said.out + said.err


@pytest.mark.skipif(not HAS_AVX2, reason="no AVX2")
def test_narrow_vectors_compute_the_same(forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = [flag if flag != "-march=native" else "-march=haswell" for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", flags)
    narrow = ctypes.CDLL(str(build.built()))
    monkeypatch.setattr(native, "library", lambda: narrow)
    monkeypatch.setattr(native.library, "cache_clear", lambda: None, raising=False)
    torch.manual_seed(0)
    for dtype, exact in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        q, k, v = (torch.randn(1, 256, n, 32).to(dtype).requires_grad_() for n in (4, 2, 2))
        starts = (torch.arange(256) // 100 * 100)[None]
        found = []
        for attend in (native_attention, block_attention):
            out = attend(q / 6, k, v, starts)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
        logits, labels = torch.randn(10, 300).to(dtype), torch.randint(0, 300, (10,))
        found[0] += nll_and_gradient(logits.clone(), labels)
        monkeypatch.setattr(native, "_allowed", False)
        found[1] += nll_and_gradient(logits, labels)
        monkeypatch.setattr(native, "_allowed", True)
        for one, other in zip(*found, strict=True):
            assert float((one - other).norm() / other.norm()) < exact
