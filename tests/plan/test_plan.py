"""The command from a recipe to its table: figures that hold together, verdicts, and one line for every mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from runs import Make
from tiny import write_jsonl

from benchmarks import plan_check
from mini_chat import cli
from mini_chat.config import Recipe, load_recipe
from mini_chat.device import Device
from mini_chat.errors import UserError
from mini_chat.plan import machines, rates
from mini_chat.plan.plan import Plan, amount_of, make_plan, verdicts
from mini_chat.plan.table import shown

CONFIG = Path(__file__).parent.parent.parent / "config"
RECIPES = sorted(CONFIG.glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "memory_rate", lambda device: 2e10)
    monkeypatch.setenv("MINI_CHAT_DATA", str(Path(__file__).parent / "nothing-here"))


def planned(machine: str = "h100", gpus: int = 1, price: float | None = None, **overrides: Any) -> Plan:
    """The plan of the 124M recipe, with steps, since there are no data."""
    given = {"pretrain.steps": "1000", "sft.steps": "100", "dpo.steps": "10"} | overrides
    recipe = load_recipe(CONFIG / "slm-124m.yaml", {key.replace("__", "."): value for key, value in given.items()})
    return make_plan(recipe, machine, gpus, price)


def test_predictions_are_within_15_percent_of_runs_that_were_measured() -> None:
    assert all(0 < error < 0.15 for error in plan_check.measure(kept=True).values())


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and lines of standard error of `mini-chat plan …`."""
    status = cli.main(["plan", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.splitlines()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", ["this", "rtx-3060"])
def test_every_recipe_has_a_plan_of_80_columns(path: Path, machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, complaints = called(capsys, str(path), "--machine", machine, "--hours-price", "1.2")
    assert (status, complaints) == (0, [])
    assert max(map(len, text.splitlines())) <= 80
    for part in ("parameters", "tokens a second", "peak", "checkpoints kept", "total: "):
        assert part in text


def test_json_holds_every_figure_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = called(capsys, "demo", "--json", "--machine", "rtx-4090", "--hours-price", "2")
    figures = json.loads(text)
    assert status == 0
    assert set(figures["stages"]) == {"pretrain", "sft", "dpo"}
    assert figures["seconds"] == pytest.approx(sum(stage["seconds"] for stage in figures["stages"].values()))
    assert figures["money"] == pytest.approx(2 * figures["seconds"] / 3600)
    assert figures["memory_bytes"] == max(stage["memory"]["total"] for stage in figures["stages"].values())
    for stage in figures["stages"].values():
        memory = stage["memory"]
        assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"])
        assert stage["tokens"] == stage["steps"] * 4096
        assert stage["flops"] == stage["tokens"] * figures["training_flops_per_token"]
    assert figures["parameters"]["total"] == figures["parameters"]["embedding"] + figures["parameters"]["layers"]


def test_json_may_stand_before_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = called(capsys, "--json", "--machine=m1", "demo")
    assert status == 0 and json.loads(text)["machine"]["name"] == "m1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("demo", "--machine", "rtx-4009"), "did you mean rtx-4090?"),
        (("demo", "--machine", "abacus"), "known: this, rtx-3060"),
        (("demo", "--machine"), "--machine needs a value"),
        (("demo", "--gpus", "0"), "--gpus 0: a number of devices"),
        (("demo", "--gpus", "1.5"), "--gpus 1.5: a number of devices"),
        (("demo", "--gpus", "many"), "--gpus many: not a number"),
        (("demo", "--gpus", "2", "--machine", "m1"), "leave it out"),
        (("demo", "--gpus", "2", "--machine.device", "cpu"), "leave it out"),
        (("demo", "--hours-price", "-1"), "--hours-price -1: a price"),
        (("demo", "--hours-price", "nan"), "--hours-price nan: a price"),
        (("demo", "--hours-price", "inf"), "--hours-price inf: a price"),
        (("demo", "--hours-price", "cheap"), "--hours-price cheap: not a number"),
        (("demo", "--machine.device", "cuda"), "no CUDA device"),
        (("dmeo",), "did you mean demo?"),
        (("demo", "twice"), "twice: not expected here"),
        (("demo", "--model.hidden_size", "-3"), "model.hidden_size"),
        (("demo", "--out", "no-run", "--tokenizer.path", "nowhere"), "nowhere: no tokenizer.json"),
        (("demo", "--prices", "3"), "prices: unknown key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_mistake_is_one_line(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, text, complaints = called(capsys, *words)
    assert status in (1, 2) and text == ""
    assert len(complaints) == 1 and says in complaints[0]


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    status, _, complaints = called(
        capsys, "demo", "--out", "no-run", "--tokenizer.path", str(tmp_path), "--machine", "m1"
    )
    assert status == 1 and len(complaints) == 1 and "does not load" in complaints[0]


def test_what_is_not_there_is_said_and_not_counted() -> None:
    plan = make_plan(load_recipe(CONFIG / "slm-124m.yaml"), "h100")
    assert set(plan.unknown) == {"pretrain", "sft", "dpo"}
    assert plan.seconds == 0
    lines = verdicts(plan)
    assert any(line.startswith("memory: fits") for line in lines)  # memory needs no data
    assert sum("or give --" in line for line in lines) == 3


def test_what_does_not_fit_is_told_what_to_lower_and_then_fits() -> None:
    tight = planned("rtx-3060", pretrain__micro_tokens="131072")
    assert not tight.fits
    lines = [line for line in verdicts(tight) if "does not fit" in line]
    words = [word for line in lines for word in line.split("; ")[1].split(" fits")[0].split()]
    options = dict(zip(words[0::2], words[1::2], strict=True))
    assert "--pretrain.micro_tokens" in options
    lower: dict[str, Any] = {key.removeprefix("--"): value for key, value in options.items()}
    mended = planned("rtx-3060", **lower)
    assert mended.fits
    assert any(line.startswith("memory: fits") for line in verdicts(mended))


def test_a_model_too_large_for_any_setting_is_told_so() -> None:
    plan = planned("m1", model__hidden_size="12288", model__num_hidden_layers="96", model__num_attention_heads="96")
    assert any("a smaller model or a machine with more memory" in line for line in verdicts(plan))


def test_longer_runs_take_longer_and_cost_more() -> None:
    short, long = planned(price=1.0), planned(price=1.0, pretrain__steps="2000")
    assert short.money is not None and long.money is not None
    assert long.seconds > short.seconds and long.money > short.money
    assert long.stages[1:] == short.stages[1:]


def test_several_devices_are_faster_together_and_none_is_free() -> None:
    one, eight = planned(price=3.0), planned(gpus=8, price=3.0)
    assert 4 < one.stages[0].train_seconds / eight.stages[0].train_seconds < 8
    assert one.money is not None and eight.money is not None and eight.money > one.money


def test_a_model_over_one_device_is_sharded() -> None:
    large: dict[str, Any] = {
        "model__hidden_size": "4096",
        "model__intermediate_size": "11008",
        "model__num_attention_heads": "32",
    }
    plan = planned(gpus=8, model__num_hidden_layers="32", **large)
    assert {stage.parallelism for stage in plan.stages} == {"fsdp"}
    assert planned(gpus=8).stages[0].parallelism == "ddp"
    layer = plan.parameters.layer_matrices / 32
    whole = plan.parameters.total - 30 * layer  # the layer at work, the next one, and what is outside of the layers
    assert plan.stages[0].memory.weights == pytest.approx(4 * plan.parameters.total / 8 + 4 * whole)
    assert plan.stages[0].save_seconds > 0, "shards are written in step"


def test_rows_that_do_not_divide_are_named_with_a_batch_that_does() -> None:
    (line,) = (line for line in verdicts(planned(gpus=7)) if line.startswith("pretrain: "))
    batch_tokens = int(line.split("--pretrain.batch_tokens ")[1])
    assert batch_tokens % (7 * 1024) == 0
    assert not any("shared out" in line for line in verdicts(planned(gpus=8)))


@pytest.mark.parametrize(
    ("steps", "hint"), [("100", "large for so few"), ("9000", ""), ("2000000", "small for so many")]
)
def test_a_run_far_off_twenty_tokens_a_parameter_gets_a_hint(steps: str, hint: str) -> None:
    (line,) = (line for line in verdicts(planned(pretrain__steps=steps)) if line.startswith("tokens: "))
    assert (hint in line) if hint else line.endswith("(compute-optimal: about 20)")


def test_the_hint_spends_the_same_work_at_twenty_tokens_a_parameter() -> None:
    plan = planned(pretrain__steps="100")
    stage = plan.stages[0]
    best = (stage.flops / 6 / 20) ** 0.5
    (line,) = (line for line in verdicts(plan) if line.startswith("tokens: "))
    assert f"{amount_of(best)} parameters on {amount_of(20 * best)} tokens" in line
    assert math.isclose(6 * best * 20 * best, stage.flops)


def test_checkpoints_cost_what_their_number_and_size_say() -> None:
    plan = planned("this", pretrain__checkpoint_every="50", pretrain__checkpoint_minutes="1e9")
    stage = plan.stages[0]
    assert stage.saves == 20
    assert stage.waiting_seconds == 20 * stage.save_seconds > 0
    assert stage.lost_seconds == 50 * stage.step_seconds
    assert planned("h100").stages[0].waiting_seconds == 0  # written while training goes on
    by_the_clock = planned("this", pretrain__checkpoint_every="1000", pretrain__checkpoint_minutes="0.5").stages[0]
    assert by_the_clock.lost_seconds == 30


def test_checkpoints_by_shards_come_as_often_as_a_shard_is_through() -> None:
    stage, *_ = planned(
        "this",
        shards__shard_bytes="2000000",
        pretrain__checkpoint_shards="true",
        pretrain__checkpoint_minutes="1e9",
    ).stages
    steps = 1_000_000 // stage.settings.batch_tokens  # two bytes a token
    assert stage.lost_seconds == steps * stage.step_seconds
    assert stage.saves == math.ceil(stage.steps / steps)


def test_finished_shards_are_counted_and_not_guessed(finished_run: Recipe) -> None:
    plan = make_plan(finished_run, "this")
    for stage in plan.stages:
        assert stage.amount.source == "counted in the shards"
    from mini_chat.data.token_shards import TokenDocuments

    assert plan.stages[0].amount.tokens == len_of(TokenDocuments(finished_run.directory / "shards", "train"))
    assert plan.vocabulary.size == 384


def len_of(documents: Any) -> int:
    """Tokens of a split."""
    return int(documents.lengths().sum())


def test_tokens_told_from_the_sources_are_those_of_the_shards(finished_run: Recipe, make_recipe: Make) -> None:
    counted = {stage.name: stage.amount for stage in make_plan(finished_run, "this").stages}
    for stage in make_plan(make_recipe(), "this").stages:
        # A part is held out of the shards: a tenth of the documents, a fifth of dialogues and pairs.
        kept = counted[stage.name].documents / stage.amount.documents
        assert 0.6 < kept <= 1
        assert stage.amount.tokens * kept == pytest.approx(counted[stage.name].tokens, rel=0.05)


def test_a_large_source_goes_by_its_size(make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mini_chat.plan import corpus

    documents = [{"text": f"Story {number % 7} of the cat and the dog."} for number in range(4000)]
    path = write_jsonl(tmp_path / "long.jsonl", documents)
    recipe = make_recipe(data={"documents": [{"path": str(path)}]})
    vocabulary = corpus.Vocabulary(recipe)
    whole = corpus.stage_amount(recipe, "pretrain", vocabulary)
    monkeypatch.setattr(corpus, "SAMPLE_BYTES", 60_000)
    sampled = corpus.stage_amount(recipe, "pretrain", vocabulary)
    assert whole.documents == 4000
    assert sampled.tokens == pytest.approx(whole.tokens, rel=0.15)


def test_the_embedded_world_is_counted_before_it_is_written() -> None:
    recipe = load_recipe(CONFIG / "demo.yaml", {"out": "nowhere-at-all"})
    plan = make_plan(recipe, "m1")
    documents = {stage.name: stage.amount.documents for stage in plan.stages}
    assert documents == pytest.approx({"pretrain": 60_000, "sft": recipe.world.sft_dialogues, "dpo": 12_000})
    assert not plan.unknown


def test_this_machine_is_measured_and_the_others_are_published() -> None:
    this = machines.find("this", Recipe().machine)
    assert this.matmul_flops == Device.matmul_flops  # what conftest puts in its place
    assert this.memory_bytes > 1e8 and this.source == "measured now"
    for machine in machines.TABLE.values():
        assert machine.source and machine.memory_bytes >= 8e9 and machine.kind in {"cuda", "mps"}


def test_constants_say_where_they_are_from() -> None:
    for kind, precision in (("cpu", "bf16"), ("cpu", "fp32"), ("cuda", "bf16"), ("mps", "fp32")):
        constants = rates.of(kind, precision)
        assert constants.time_from and constants.memory_from
        assert min(vars(constants.time).values()) >= 0 and min(vars(constants.memory).values()) >= 0


def test_an_unknown_machine_raises_for_callers_too() -> None:
    with pytest.raises(UserError, match="did you mean a100"):
        make_plan(Recipe(), "A100 ")


def test_a_plan_reads_and_writes_nothing_in_the_runs_directory(tmp_path: Path) -> None:
    recipe = Recipe(out=str(tmp_path / "run"))
    assert shown(make_plan(recipe, "h100"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("page", ["plan.md", "plan.zh.md"])
def test_the_page_has_every_machine_with_its_figures(page: str) -> None:
    text = (CONFIG.parent / "docs" / page).read_text(encoding="utf-8")
    for name, machine in machines.TABLE.items():
        rate, memory = machine.matmul_flops / 1e12, machine.memory_bytes / 1e9
        assert f"| `{name}` | {rate:g} | {memory:g} GB | {machine.memory_rate / 1e9:,g} |" in text


def test_the_help_names_every_machine() -> None:
    for name in ("this", *machines.TABLE):
        assert name in cli.COMMANDS["plan"].more


def test_the_embedded_world_is_not_measured_by_a_rule_for_natural_text() -> None:
    (line,) = (line for line in verdicts(make_plan(load_recipe(CONFIG / "demo.yaml"), "m1")) if "tokens: " in line)
    assert line.endswith("(compute-optimal: about 20)")
