"""A corpus of a few lines, a tokenizer of it, and a run of every training stage."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCAB_SIZE, chinese, dialogue, english, preference, tiny_recipe, write_jsonl
from transformers import PreTrainedTokenizerFast

from mini_chat import console
from mini_chat.config import Machine, Recipe, Tokenizer
from mini_chat.device import Device, choose
from mini_chat.trainer.train_tokenizer import save_tokenizer, train_tokenizer

# A shell starts what it runs in the background with Ctrl-C ignored, which the processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with en.jsonl, zh.jsonl, dialogues.jsonl and pairs.jsonl."""
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "en.jsonl", [{"text": english(number)} for number in range(120)])
    write_jsonl(folder / "zh.jsonl", [{"text": chinese(number)} for number in range(120)])
    write_jsonl(folder / "dialogues.jsonl", [dialogue(number) for number in range(60)])
    write_jsonl(folder / "pairs.jsonl", [preference(number) for number in range(40)])
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the corpus' words and characters."""
    settings = Tokenizer(vocab_size=VOCAB_SIZE, hanzi="corpus", reserved_tokens=1)
    return train_tokenizer(map(english, range(120)), map(chinese, range(120)), settings, 128)


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer on disk."""
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def device() -> Device:
    """One thread of the processor, float32."""
    return choose(Machine(device="cpu", precision="fp32", threads=1))


@pytest.fixture(autouse=True)
def _not_quiet() -> None:
    """No test inherits another's silence."""
    console.set_quiet(False)


@pytest.fixture(scope="session", autouse=True)
def _machine_limit() -> Iterator[None]:
    """Measuring the matrix-product rate takes two seconds; nothing that is tested depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "matmul_flops", 1e11)
        yield


@pytest.fixture
def make_recipe(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`make_recipe(out=…, section={…})`: the tiny recipe with changes; its run goes to `tmp_path/run`."""

    def make(out: Path | None = None, **sections: Any) -> Recipe:
        return tiny_recipe(corpus, out or tmp_path / "run", tokenizer_directory, **sections)

    return make


@pytest.fixture(scope="session")
def finished_run(
    _machine_limit: None, corpus: Path, tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """The recipe of a run whose every training stage is finished; tests read it and leave it as it is."""
    from mini_chat.pipeline import run_stages

    recipe = tiny_recipe(corpus, tmp_path_factory.mktemp("finished") / "run", tokenizer_directory)
    run_stages(recipe, list(recipe.stages))
    return recipe
