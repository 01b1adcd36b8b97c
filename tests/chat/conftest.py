"""A model and a tokenizer small enough to make anew: random, but it speaks whole words of both languages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import mini_chat.data
from mini_chat.chat.engine import ChatEngine
from mini_chat.model.configuration_slm import SLMConfig
from mini_chat.model.model_slm import SLMForCausalLM

WORDS = "The cat and a dog live in the old house, near that river. Hello! Do you like tea? Yes, I do; she does not. "
HANZI = "我们住在河边的老房子里，猫和狗都喜欢喝茶。你好！你叫什么名字？今天、明天：《书》“是”（不）很大…"


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 50 + list(HANZI) * 50, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (Path(mini_chat.data.__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    return fast


def make_model(vocab_size: int, context: int, seed: int = 0) -> SLMForCausalLM:
    torch.manual_seed(seed)
    config = SLMConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
    )
    model = SLMForCausalLM(config).eval()
    with torch.no_grad():  # large enough that scores differ and answers depend on the whole prompt
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(std=0.3)
    return model


def make_talkative(model: SLMForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `model` choose among whole characters and words only; it never ends an answer."""
    with torch.no_grad():
        for token_id in range(len(tokenizer)):
            text = str(tokenizer.decode([token_id], skip_special_tokens=True))
            if not text.strip() or not text.isprintable() or "\ufffd" in text:
                model.lm_head.weight[token_id] = 0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A model this small is slower on several threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def engine(tokenizer: PreTrainedTokenizerFast) -> ChatEngine:
    """Every token of the vocabulary, broken characters and ends too, may come next."""
    return ChatEngine(make_model(len(tokenizer), context=128), tokenizer)


@pytest.fixture(scope="session")
def directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that talks without end."""
    path = tmp_path_factory.mktemp("models") / "talkative"
    model = make_model(len(tokenizer), context=4096)
    make_talkative(model, tokenizer)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
