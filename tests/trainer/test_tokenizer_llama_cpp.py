"""The same ids in llama.cpp: what is trained here is what a quantised model is asked in.

The oracle is llama.cpp itself (`pip install 'mini-chat[oracle]'`): a GGUF with our vocabulary, `pre=qwen2`, and a
model of zeros, asked through its own server for tokens and for the rendered chat template.
"""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mini_chat.config import Tokenizer
from mini_chat.data.encoding import encode_texts, load_tokenizer
from mini_chat.data.fast_encoding import FastEncoder
from mini_chat.data.hanzi import MARKS, hanzi_table
from mini_chat.trainer.train_tokenizer import train_tokenizer

gguf = pytest.importorskip("gguf", reason="no gguf package; pip install 'mini-chat[oracle]'")
xllamacpp = pytest.importorskip("xllamacpp", reason="no llama.cpp; pip install 'mini-chat[oracle]'")

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("MINI_CHAT_DATA", REPOSITORY / "../shared/data"))
LINES_OF_EACH_FILE = 60

Ask = Callable[[str, dict[str, Any]], Any]


WORDS = "小猫坐在垫子上，小狗坐在花园里。老师问小狗：“安娜在哪里？”——她在花园里……"


@pytest.fixture(scope="module", params=["shipped", "with Chinese words"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "shipped":
        return load_tokenizer(REPOSITORY / "out")
    english = ["The cat sat on the mat; it's an old cat, and the mat isn't its own.\n\n"] * 9
    chinese = [WORDS, *real_chinese()] * 2
    return train_tokenizer(english, chinese, Tokenizer(vocab_size=8192, chinese_words=2000, reserved_tokens=4))


def real_chinese() -> list[str]:
    path = DATA / "classic-novels-zh" / "红楼梦.txt"
    return path.read_text(encoding="utf-8")[:300_000].splitlines() if path.exists() else []


def write_gguf(path: Path, tokenizer: PreTrainedTokenizerFast, pre: str) -> None:
    """The tokenizer as llama.cpp holds it, around a one-layer Qwen3 of zeros."""
    writer = gguf.GGUFWriter(path, "qwen3")
    width, size = 32, len(tokenizer)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(size))))
    special = set(tokenizer.added_tokens_decoder)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(size)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name in ("token_embd.weight", *(f"blk.0.{part}.weight" for part in ("ffn_gate", "ffn_up", "ffn_down"))):
        writer.add_tensor(name, np.zeros((size if name == "token_embd.weight" else width, width), np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((width, width), np.float32))
    for name in ("output_norm", *(f"blk.0.{part}" for part in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"))):
        writer.add_tensor(f"{name}.weight", np.zeros(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path: Path) -> tuple[Any, Ask]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.port = 256, 1, False, 0
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)

    def ask(route: str, question: dict[str, Any]) -> Any:
        body = json.dumps(question).encode()
        request = urllib.request.Request(server.listening_address + route, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    return server, ask


@pytest.fixture(scope="module")
def llama_cpp(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    path = tmp_path_factory.mktemp("gguf") / "qwen2.gguf"
    write_gguf(path, tokenizer, "qwen2")
    server, ask = serve(path)
    yield ask
    del server


def differing(tokenizer: PreTrainedTokenizerFast, ask: Ask, lines: list[str]) -> list[str]:
    theirs = (ask("/tokenize", {"content": line, "add_special": False, "parse_special": False}) for line in lines)
    return [
        line
        for line, ours, answer in zip(lines, encode_texts(tokenizer, lines), theirs, strict=True)
        if ours != answer["tokens"]
    ]


def real_lines() -> list[str]:
    """A fixed sample of the lines of every text file of the data folder, both languages."""
    lines: list[str] = []
    for path in sorted([*DATA.glob("*/*.txt"), *DATA.glob("*/*.jsonl"), *DATA.glob("*/*.yml")]):
        with path.open(encoding="utf-8", errors="ignore") as file:
            some = [line.rstrip("\n")[:2000] for line, _ in zip(file, range(20_000), strict=False) if line.strip()]
        lines += random.Random(path.name).sample(some, min(LINES_OF_EACH_FILE, len(some)))
    return [unescaped(line) for line in lines]


def unescaped(line: str) -> str:
    """JSON lines hold their line breaks and Chinese as escapes; the text itself is what is tokenized."""
    try:
        return "\n".join(str(value) for value in json.loads(line).values())
    except (ValueError, AttributeError):
        return line


EDGES = [
    WORDS,
    "I'VE don't it's we'll she'd 'tis 'S",
    "1234 5,678.90 ２０２４ ⅷ ½ ٣",
    "a  b   c\t\td \n\n e\r\n\r\nf \r g",
    "   leading\n   trailing   ",
    "——……“‘你好’”！？（）《》、；：　全角　",
    "中文English混排123，with punctuation。",
    "👩‍👩‍👧‍👦 🇨🇳 e\u0301 ﬁ café naïve Zürich",
    "<|im_end|><|endoftext|> <|reserved_0|>",
    "\x00\x01\x1b[0m\x7f",
    "𠮷𪚥㐀 กขค हिन्दी العربية עברית 한국어 にほんご",
    "\u200b\ufeff\u2028\u2029\xa0\u3000\u1680 x",
    "x" * 300,
    "=" * 200,
]


def test_edge_cases_have_the_same_ids(tokenizer: PreTrainedTokenizerFast, llama_cpp: Ask) -> None:
    assert differing(tokenizer, llama_cpp, EDGES) == []


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_same_ids(tokenizer: PreTrainedTokenizerFast, llama_cpp: Ask, text: str) -> None:
    assert differing(tokenizer, llama_cpp, [text]) == []


def test_all_common_characters_have_the_same_ids(tokenizer: PreTrainedTokenizerFast, llama_cpp: Ask) -> None:
    characters = [*hanzi_table(), *MARKS]
    random.Random(1).shuffle(characters)
    lines = ["".join(characters[i : i + 50]) for i in range(0, len(characters), 50)]
    assert differing(tokenizer, llama_cpp, lines) == []


@pytest.mark.skipif(not DATA.exists(), reason=f"no real text in {DATA}; set MINI_CHAT_DATA to its folder")
def test_no_line_of_real_text_differs_and_another_pattern_would_show(
    tokenizer: PreTrainedTokenizerFast, llama_cpp: Ask, tmp_path: Path
) -> None:
    lines = real_lines()[:: 1 if len(tokenizer) == 32_000 else 3]
    assert len(lines) > 500
    assert differing(tokenizer, llama_cpp, lines) == []
    fast = FastEncoder(tokenizer.backend_tokenizer.to_str())
    assert fast.is_fast
    assert [ids.tolist() for ids in fast.encode_documents(lines)] == encode_texts(tokenizer, lines)
    # The oracle can tell: under another pattern's name the same vocabulary gives other ids.
    write_gguf(tmp_path / "gpt-2.gguf", tokenizer, "gpt-2")
    server, ask = serve(tmp_path / "gpt-2.gguf")
    assert len(differing(tokenizer, ask, lines[::5])) > 10
    del server


def test_llama_cpp_renders_the_chat_template_alike(tokenizer: PreTrainedTokenizerFast, llama_cpp: Ask) -> None:
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "你好！\n\n  "},
        {"role": "assistant", "content": "Hello，小猫。"},
        {"role": "user", "content": "Thanks"},
    ]
    rendered = llama_cpp("/apply-template", {"messages": messages})["prompt"]
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parsed = llama_cpp("/tokenize", {"content": rendered, "add_special": False, "parse_special": True})["tokens"]
    assert parsed == tokenizer.encode(rendered)
