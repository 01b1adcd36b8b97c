"""The model is Qwen3: what it computes, what it saves, and what it adds (documents apart, an even load of experts)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import VOCAB_SIZE, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from mini_chat.model import SLMConfig, SLMForCausalLM
from mini_chat.model.model_slm import Experts, Router, SparseMoeBlock, load_balancing_loss
from mini_chat.trainer.attention import BLOCKS

SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense-tied": {"tie_word_embeddings": True},
    "dense-one-kv-head": {"num_key_value_heads": 1},
    "dense-every-head-its-kv": {"num_key_value_heads": 4},
    "dense-wide-heads": {"head_dim": 16},
    "dense-theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "moe": {"num_experts": 4},
    "moe-tied-top-1": {"num_experts": 4, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    "moe-raw-weights": {"num_experts": 4, "norm_topk_prob": False},
}
TOLERANCE: Any = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our model, and the stock model that transformers loads from the directory that ours saved."""
    ours = tiny_model(**SHAPES[request.param])
    directory = tmp_path_factory.mktemp("model")
    ours.save_pretrained(directory)
    stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    assert type(stock).__name__ == ("Qwen3MoeForCausalLM" if "moe" in request.param else "Qwen3ForCausalLM")
    return ours, stock


def ids(*shape: int, seed: int = 1) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(0, VOCAB_SIZE - 2, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Tensor:
    return model(*args, **kwargs).logits


def test_logits_are_those_of_stock_qwen3(pair: Any) -> None:
    ours, stock = pair
    tokens = ids(3, 40)
    expected = logits(stock, tokens)
    assert expected.std() > 0.1  # logits that hardly differ would agree whatever the arithmetic
    torch.testing.assert_close(logits(ours, tokens), expected, **TOLERANCE)


def test_logits_of_a_left_padded_batch_are_those_of_stock_qwen3(pair: Any) -> None:
    ours, stock = pair
    tokens, mask = ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = mask[1, :1] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    real = mask.bool()
    for given in ({}, {"position_ids": positions}):
        expected = logits(stock, tokens, attention_mask=mask, **given)[real]
        torch.testing.assert_close(logits(ours, tokens, attention_mask=mask, **given)[real], expected, **TOLERANCE)


def test_padding_changes_nothing(pair: Any) -> None:
    ours, _ = pair
    tokens = ids(1, 12)
    padded, mask = torch.cat((ids(1, 5, seed=9), tokens), 1), torch.tensor([[0] * 5 + [1] * 12])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = logits(ours, padded, attention_mask=mask, position_ids=positions)[:, 5:]
    torch.testing.assert_close(given, logits(ours, tokens), **TOLERANCE)


def test_logits_with_a_cache_are_those_without_and_those_of_stock_qwen3(pair: Any) -> None:
    ours, stock = pair
    tokens = ids(2, 18)
    expected = logits(stock, tokens)
    cache = DynamicCache(config=ours.config)
    parts = [logits(ours, tokens[:, :11], past_key_values=cache, use_cache=True)]
    parts += [logits(ours, tokens[:, i : i + 1], past_key_values=cache, use_cache=True) for i in range(11, 18)]
    assert cache.get_seq_length() == 18
    torch.testing.assert_close(torch.cat(parts, 1), expected, **TOLERANCE)


def test_logits_with_a_cache_and_left_padding_are_those_of_stock_qwen3(pair: Any) -> None:
    ours, stock = pair
    tokens, mask = ids(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)

    def in_steps(model: PreTrainedModel) -> Tensor:
        cache = DynamicCache(config=model.config)
        parts = []
        for start, end in ((0, 9), (9, 10), (10, 14)):
            here = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
            parts.append(logits(model, tokens[:, start:end], past_key_values=cache, use_cache=True, **here))
        return torch.cat(parts, 1)[mask.bool()]

    torch.testing.assert_close(in_steps(ours), in_steps(stock), **TOLERANCE)


def packed(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A row of documents of these lengths: ids, positions, and the mask (1, 1, L, L) that keeps them apart."""
    tokens = ids(1, sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    return tokens, positions, (numbers[:, None] == numbers[None]).tril()[None, None]


def test_packed_documents_have_the_logits_that_they_have_alone(pair: Any) -> None:
    ours, stock = pair
    lengths = [5, 17, 1, 9]
    tokens, positions, mask = packed(lengths)
    alone = torch.cat([logits(stock, document) for document in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits(ours, tokens, position_ids=positions, use_cache=False), alone, **TOLERANCE)
    by_mask = logits(ours, tokens, position_ids=positions, attention_mask=mask, use_cache=False)
    torch.testing.assert_close(by_mask, alone, **TOLERANCE)


def test_attention_in_blocks_is_sdpa(pair: Any) -> None:
    ours, _ = pair
    tokens, positions, mask = packed([5, 17, 1, 9])
    given = {"position_ids": positions, "use_cache": False}
    expected = logits(ours, tokens, attention_mask=mask, **given)
    before = ours.config._attn_implementation
    ours.config._attn_implementation = BLOCKS
    try:
        starts = torch.arange(tokens.shape[1]) - positions
        torch.testing.assert_close(logits(ours, tokens, document_starts_BL=starts, **given), expected, **TOLERANCE)
    finally:
        ours.config._attn_implementation = before


def test_generate_is_stock_qwen3s_greedy_choice(pair: Any) -> None:
    ours, stock = pair
    tokens, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    torch.testing.assert_close(ours.generate(tokens, **settings), stock.generate(tokens, **settings))


def test_what_stock_qwen3_saves_loads_as_ours(pair: Any, tmp_path: Path) -> None:
    _, stock = pair
    stock.save_pretrained(tmp_path)
    ours = SLMForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = ids(1, 10)
    torch.testing.assert_close(logits(ours, tokens), logits(stock, tokens), **TOLERANCE)


def test_the_files_are_those_that_stock_qwen3_saves(pair: Any, tmp_path: Path) -> None:
    """vLLM and llama.cpp go by the names of tensors and the keys of config.json."""
    for name, model in zip(("ours", "stock"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
    tensors, configs = {}, {}
    for name in ("ours", "stock"):
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            tensors[name] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        configs[name] = json.loads((tmp_path / name / "config.json").read_text())
    assert tensors["ours"] == tensors["stock"]
    shared = configs["ours"].keys() & configs["stock"].keys()
    assert {"architectures", "model_type", "rope_parameters", "head_dim", "num_key_value_heads"} <= shared
    assert {key: configs["ours"][key] for key in shared} == {key: configs["stock"][key] for key in shared}
    assert not {"auto_map", "trust_remote_code"} & configs["ours"].keys()


def test_loads_where_there_is_no_mini_chat(tmp_path: Path) -> None:
    tokens, expected = ids(1, 8), {}
    for shape in ("dense", "moe"):
        ours = tiny_model(**SHAPES[shape])
        ours.save_pretrained(tmp_path / shape)
        expected[shape] = logits(ours, tokens)[0, -1]
    program = f"""
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mini_chat":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
tokens, found = torch.tensor({tokens.tolist()}), {{}}
for shape in ("dense", "moe"):
    model = AutoModelForCausalLM.from_pretrained(shape, dtype=torch.float32)
    found[shape] = model(tokens).logits[0, -1].tolist()
assert not any(name.split(".")[0] == "mini_chat" for name in sys.modules)
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for shape, found in json.loads(done.stdout.splitlines()[-1]).items():
        torch.testing.assert_close(torch.tensor(found), expected[shape], **TOLERANCE)


def test_the_default_has_124m_parameters() -> None:
    with torch.device("meta"):
        model = SLMForCausalLM(SLMConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(124e6, rel=0.01)


def test_what_writes_into_the_residual_stream_starts_smaller_by_the_depth() -> None:
    torch.manual_seed(0)
    config = SLMConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4, num_experts=4
    )
    moe = SLMForCausalLM(config)
    dense = SLMForCausalLM(
        SLMConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4)
    )
    into_residual = 0.02 / (2 * 8) ** 0.5
    found = set()
    for model in (dense, moe):
        for name, parameter in model.named_parameters():
            if "norm" in name:
                assert bool((parameter == 1).all()), name
                continue
            last = "o_proj" in name or "down_proj" in name
            found.add(last)
            # The deviation of n draws is itself known to 1/√(2n); five times that is never passed by chance.
            near = 5 / (2 * parameter.numel()) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(into_residual if last else 0.02, rel=near), name
    assert found == {True, False}


@pytest.mark.parametrize("shape", ["dense", "moe"])
def test_gradient_checkpointing_gives_the_same_gradients(shape: str) -> None:
    tokens = ids(2, 24)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(**SHAPES[shape]).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_loss_is_the_mean_of_the_next_tokens() -> None:
    model = tiny_model()
    tokens = ids(2, 9)
    labels = tokens.clone()
    labels[0, :4] = -100
    given = model(tokens, labels=labels)
    flat, targets = given.logits[:, :-1].reshape(-1, VOCAB_SIZE), labels[:, 1:].flatten()
    torch.testing.assert_close(given.loss, torch.nn.functional.cross_entropy(flat, targets))
    # Whoever accumulates gradients (transformers' Trainer) divides by the tokens of all its batches instead.
    total = model(tokens, labels=labels, num_items_in_batch=100).loss
    torch.testing.assert_close(total, torch.nn.functional.cross_entropy(flat, targets, reduction="sum") / 100)


def test_logits_to_keep_computes_the_last_ones() -> None:
    model = tiny_model(num_experts=4)
    tokens = ids(2, 9)
    expected = logits(model, tokens)
    torch.testing.assert_close(logits(model, tokens, logits_to_keep=2), expected[:, -2:])
    torch.testing.assert_close(logits(model, tokens, logits_to_keep=torch.tensor([0, 5])), expected[:, [0, 5]])


# Mixture of experts


def test_grouped_experts_are_a_loop_over_tokens() -> None:
    torch.manual_seed(3)
    experts = Experts(SLMConfig(hidden_size=32, num_attention_heads=4, num_experts=5, moe_intermediate_size=24))
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x_TH, weights_Tk = torch.randn(30, 32), torch.rand(30, 2)
    chosen_Tk = torch.stack([torch.randperm(4)[:2] for _ in range(30)])  # the last expert gets nothing
    expected = torch.zeros(30, 32)
    for token in range(30):
        for place in range(2):
            expert = int(chosen_Tk[token, place])
            gate, up = (experts.gate_up_proj[expert] @ x_TH[token]).chunk(2)
            fed = experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
            expected[token] += weights_Tk[token, place] * fed
    torch.testing.assert_close(experts(x_TH, chosen_Tk, weights_Tk), expected, atol=1e-5, rtol=1e-5)


def test_load_balancing_loss_is_transformers() -> None:
    logits_TE = torch.randn(2 * 20, 4, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :8] = 0
    expected = load_balancing_loss_func((logits_TE,), 4, 2)
    torch.testing.assert_close(load_balancing_loss([logits_TE], 2), expected)
    expected = load_balancing_loss_func((logits_TE,), 4, 2, mask)
    torch.testing.assert_close(load_balancing_loss([logits_TE], 2, mask.flatten().bool()), expected)
    # Of several layers it is the mean, so that one layer's overload cannot make up for another's.
    skewed = logits_TE + torch.tensor([3.0, 0, 0, 0])
    layers = [float(load_balancing_loss_func((layer,), 4, 2)) for layer in (logits_TE, skewed)]
    assert float(load_balancing_loss([logits_TE, skewed], 2)) == pytest.approx(sum(layers) / 2)


def test_load_balancing_loss_of_an_even_load_is_top_k() -> None:
    even = torch.eye(4).repeat(5, 1) * 1e-4
    assert float(load_balancing_loss([even], 1)) == pytest.approx(1, abs=1e-3)
    one_expert = torch.tensor([[9.0, 0, 0, 0]]).repeat(20, 1)
    assert float(load_balancing_loss([one_expert], 1)) > 3.9


def router_gradients(coefficient: float) -> dict[str, Tensor]:
    """Gradients of the load-balancing part alone: of the loss with it, less those without."""
    tokens = ids(2, 20)
    gradients = []
    for weight in (coefficient, 0.0):
        model = tiny_model(num_experts=4, router_aux_loss_coef=weight).train()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if n.endswith("gate.weight")})
    return {name: gradients[0][name] - gradients[1][name] for name in gradients[0]}


def test_the_load_balancing_loss_carries_gradient_into_every_router() -> None:
    gradients = router_gradients(1.0)
    assert len(gradients) == 2
    assert all(float(gradient.norm()) > 1e-3 for gradient in gradients.values())


def test_the_gradient_of_the_load_balancing_loss_grows_with_its_coefficient() -> None:
    once, twice = router_gradients(0.5), router_gradients(1.0)
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient, atol=1e-6, rtol=1e-3)


def test_no_load_balancing_gradient_when_the_coefficient_is_0() -> None:
    model = tiny_model(num_experts=4, router_aux_loss_coef=0.0).train()
    tokens = ids(2, 20)
    given = model(tokens, labels=tokens)
    flat = given.logits[:, :-1].reshape(-1, VOCAB_SIZE)
    torch.testing.assert_close(given.loss, torch.nn.functional.cross_entropy(flat, tokens[:, 1:].flatten()))
    assert given.aux_loss.item() > 0


def loads(block: SparseMoeBlock, x_TH: Tensor) -> Tensor:
    """Share of the assignments that each expert gets."""
    chosen = block.gate(x_TH).topk(block.top_k, dim=-1).indices
    return torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()


def test_the_load_of_a_skewed_router_evens_out_in_training() -> None:
    torch.manual_seed(0)
    x_TH = torch.randn(256, 32)
    x_TH[:, 0] = 1.0  # a constant feature, by which a router can favour an expert whatever the token
    target_TH = torch.randn(256, 32)

    def trained(coefficient: float) -> Tensor:
        torch.manual_seed(1)
        config = SLMConfig(hidden_size=32, num_attention_heads=4, num_experts=4, moe_intermediate_size=16)
        block = SparseMoeBlock(config)
        for module in block.modules():
            if isinstance(module, Router | Experts):
                for weight in module.parameters():
                    torch.nn.init.normal_(weight, std=0.1)
        with torch.no_grad():
            block.gate.weight[0, 0] = block.gate.weight[1, 0] = 4.0
        assert float(loads(block, x_TH).max()) > 0.45  # of 0.5 that one expert can have with two a token
        optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
        for _ in range(150):
            out, router_logits = block(x_TH[None])
            loss = (out[0] - target_TH).square().mean()
            loss = loss + coefficient * load_balancing_loss([router_logits], block.top_k)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loads(block, x_TH)

    evened, left = trained(0.3), trained(0.0)
    assert float(evened.max()) < 0.32 and float(evened.min()) > 0.18
    assert float(left.max()) > 0.4, "without the loss the load must stay skewed, or this test shows nothing"
