"""The device layer: what it sets for training, and takes back afterwards."""

from __future__ import annotations

import pytest
import torch

from mini_chat.device import Device


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_sums_are_in_order_while_a_gpu_trains_but_not_while_it_samples(kind: str) -> None:
    device, found = Device(torch.device(kind), torch.float32, 1), []
    with pytest.raises(ZeroDivisionError), device.in_order():
        found.append(torch.are_deterministic_algorithms_enabled())
        with device.in_order(False):
            found.append(torch.are_deterministic_algorithms_enabled())
        found.append(torch.are_deterministic_algorithms_enabled())
        raise ZeroDivisionError
    on_gpu = kind == "cuda"  # a CPU adds up in one order anyway, and some of its operations refuse to promise it
    assert found == [on_gpu, False, on_gpu]
    assert not torch.are_deterministic_algorithms_enabled()
