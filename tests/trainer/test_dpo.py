"""DPO: the loss is that of two whole models side by side, and the reference is computed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import preference, tiny_model, write_jsonl
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Recipe, Source
from mini_chat.data.holdout import holdout_share
from mini_chat.data.packing import PackedDocuments
from mini_chat.data.preferences import read_preferences
from mini_chat.data.tally import Tally
from mini_chat.data.token_shards import TokenDocuments, read_manifest
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.model import SLMForCausalLM
from mini_chat.trainer import dpo as module
from mini_chat.trainer.dpo import (
    TOO_LONG,
    PreferenceTask,
    all_log_probabilities,
    encode_pair,
    held_out_pairs,
    preference_accuracy,
    prepare_pairs,
    reference_log_probabilities,
)
from mini_chat.trainer.stage import load_model

BETA, SFT_WEIGHT = 0.3, 0.25


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, corpus: Path, tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Path:
    """The corpus' pairs, prepared."""
    source = Source(path=str(corpus / "pairs.jsonl"))
    prepare_pairs(make_recipe(), [source], [], tokenizer, "t", tmp_path / "data")
    return tmp_path / "data"


def packed_pairs(data: Path) -> PackedDocuments:
    return PackedDocuments(TokenDocuments(data, "train"), 128, 0, group=2)


def answer_log_p(model: SLMForCausalLM, tokens: list[int], mask: list[int]) -> Tensor:
    """Directly: the whole dialogue through the model alone, the answer's tokens summed."""
    log_p = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    return sum(
        (log_p[place - 1, token] for place, (token, counts) in enumerate(zip(tokens, mask, strict=True)) if counts),
        start=torch.zeros(()),
    )


def test_the_loss_is_that_of_two_models_side_by_side(data: Path, device: Device) -> None:
    policy, reference = tiny_model(seed=1), tiny_model(seed=2)
    packed = packed_pairs(data)
    batch = packed.batch(0, 3)
    task = PreferenceTask(
        "dpo", packed, packed, all_log_probabilities(reference, packed, 2, device), BETA, SFT_WEIGHT, device, 2
    )
    policy.eval()
    total, sums = torch.zeros(()), {"dpo_loss": 0.0, "reward_accuracy": 0.0}
    for micro in batch.split(2):
        loss, extra = task.loss(policy, micro)
        total = total + loss
        sums = {key: sums[key] + float(extra[key]) for key in sums}

    documents = packed.documents
    expected, expected_dpo, right = torch.zeros(()), 0.0, 0
    for chosen, rejected in zip(batch.documents[0::2], batch.documents[1::2], strict=True):
        assert rejected == chosen + 1
        values = {}
        for name, number in (("chosen", chosen), ("rejected", rejected)):
            mask = documents.mask(number)
            assert mask is not None
            ids, weighed = documents.document(number).tolist(), mask.tolist()
            with torch.no_grad():
                before = answer_log_p(reference, ids, weighed)
            values[name] = (answer_log_p(policy, ids, weighed), before, sum(weighed))
        gained = {name: now - before for name, (now, before, _) in values.items()}
        margin = BETA * (gained["chosen"] - gained["rejected"])
        pair = -torch.nn.functional.logsigmoid(margin)
        expected_dpo += pair.item()
        right += margin.item() > 0
        expected = expected + pair - SFT_WEIGHT * values["chosen"][0] / values["chosen"][2]
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert sums["dpo_loss"] == pytest.approx(expected_dpo, rel=1e-4)
    assert sums["reward_accuracy"] == right
    assert task.weight(batch) == len(batch.documents) / 2

    parameters = list(policy.parameters())
    for given, wanted in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-3)


def test_a_policy_that_is_its_reference_has_loss_ln_2(data: Path, device: Device) -> None:
    model = tiny_model()
    packed = packed_pairs(data)
    task = PreferenceTask("dpo", packed, packed, all_log_probabilities(model, packed, 1, device), BETA, 0.0, device, 1)
    batch = packed.batch(0, 2)
    loss, extra = task.loss(model, batch)
    assert loss.item() / task.weight(batch) == pytest.approx(0.693147, abs=1e-3)
    assert extra["reward_margin"] == pytest.approx(0, abs=1e-2)


def test_the_answer_alone_is_weighed_and_not_earlier_turns(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What does Tom have?"},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": prompt, "chosen": "A cat.", "rejected": "没有。"}])
    (pair,) = read_preferences([Source(path=str(path))], Tally())
    size, chosen, rejected = encode_pair(tokenizer, pair)
    for (ids, mask), answer in ((chosen, "A cat."), (rejected, "没有。")):
        assert tokenizer.decode(ids[mask.astype(bool)].tolist()) == f"{answer}<|im_end|>"
        assert not mask[:size].any()
        assert ids[:size].tolist() == chosen[0][:size].tolist()


def test_reference_log_probabilities_equal_recomputation_and_are_computed_once(
    data: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, packed = tiny_model(), packed_pairs(data)
    bits = {"data": "d", "first_weights": "w"}
    first = reference_log_probabilities(model, packed, 2, device, data, bits)
    assert torch.equal(first, all_log_probabilities(model, packed, 2, device))
    torch.testing.assert_close(first, all_log_probabilities(model, packed, 1, device), atol=1e-4, rtol=1e-4)
    for number in (0, 1, len(packed.documents) - 1):
        mask = packed.documents.mask(number)
        assert mask is not None
        with torch.no_grad():
            direct = answer_log_p(model, packed.documents.document(number).tolist(), mask.tolist())
        assert float(first[number]) == pytest.approx(float(direct), rel=1e-4)

    monkeypatch.setattr(module, "all_log_probabilities", lambda *a: pytest.fail("computed again"))
    assert torch.equal(reference_log_probabilities(model, packed, 2, device, data, bits), first)


def test_reference_log_probabilities_are_made_again_when_damaged_or_of_another_model(
    data: Path, device: Device
) -> None:
    packed = packed_pairs(data)
    first = reference_log_probabilities(tiny_model(), packed, 2, device, data, {"data": "d", "first_weights": "w"})
    (path,) = data.glob("*.reference.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    again = reference_log_probabilities(tiny_model(), packed, 2, device, data, {"data": "d", "first_weights": "w"})
    assert torch.equal(again, first)
    other = tiny_model(seed=5)
    theirs = reference_log_probabilities(other, packed, 2, device, data, {"data": "d", "first_weights": "v"})
    assert not torch.equal(theirs, first)


def test_preference_accuracy_is_the_share_of_pairs_whose_better_answer_is_likelier(data: Path, device: Device) -> None:
    model, held_out = tiny_model(), held_out_pairs(data, 128)
    documents, right = held_out.documents, 0
    for pair in range(len(documents) // 2):
        values = []
        for number in (2 * pair, 2 * pair + 1):
            mask = documents.mask(number)
            assert mask is not None
            with torch.no_grad():
                values.append(float(answer_log_p(model, documents.document(number).tolist(), mask.tolist())))
        right += values[0] > values[1]
    assert preference_accuracy(model, held_out, 2, device) == pytest.approx(right / (len(documents) // 2))


def test_pairs_are_held_out_by_their_prompt_and_accounted_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    long = {"prompt": "x " * 200, "chosen": "a", "rejected": "b"}
    equal = {"prompt": "x", "chosen": "a", "rejected": "a"}
    path = write_jsonl(tmp_path / "p.jsonl", [*map(preference, range(40)), long, equal])
    recipe = make_recipe(dpo={"validation_share": 0.25})
    prepare_pairs(recipe, [Source(path=str(path))], [], tokenizer, "t", tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    held_out = sum(holdout_share(preference(number)["prompt"], 0.25) for number in range(40))
    assert 0 < held_out < 20
    assert manifest["splits"]["valid"]["documents"] == 2 * held_out
    assert manifest["splits"]["train"]["documents"] == 2 * (40 - held_out)
    account = manifest["accounting"]
    assert account["read"] == 42 and account["written"] == 40 and sum(account["dropped"].values()) == 2
    assert account["dropped"][TOO_LONG] == 1


def test_no_pair_left_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, make_recipe: Any) -> None:
    with pytest.raises(UserError, match=r"^dpo: no preference pairs; name some under data\.preferences in the recipe$"):
        prepare_pairs(make_recipe(), [], [], tokenizer, "t", tmp_path / "data")
    path = write_jsonl(tmp_path / "p.jsonl", [preference(1)])
    with pytest.raises(UserError, match=r"^dpo: no pairs left to train on or to validate with; 1 read = 1 kept"):
        prepare_pairs(make_recipe(), [Source(path=str(path))], [], tokenizer, "t", tmp_path / "data")


def test_dpo_moves_the_model_towards_the_chosen_answers(
    finished_run: Recipe, make_recipe: Callable[..., Recipe], device: Device
) -> None:
    directory = finished_run.directory
    metrics = [json.loads(line) for line in (directory / "dpo/metrics.jsonl").read_text().splitlines()]
    steps = [record for record in metrics if "reward_margin" in record]
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=1e-4), "the first step starts at the reference"
    assert steps[-1]["reward_margin"] > 0.01
    data = PackedDocuments(TokenDocuments(directory / "dpo/data", "train"), 128, 0, group=2)
    gaps = []
    for stage in ("sft", "dpo"):
        log_p = all_log_probabilities(load_model(directory / stage), data, 2, device)
        gaps.append(float((log_p[0::2] - log_p[1::2]).mean()))
    assert gaps[1] > gaps[0]
