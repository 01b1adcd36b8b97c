"""What a tokenizer is on disk: the files that stock tools load, the same bytes for the same tokenizer."""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mini_chat.data.encoding import DOCUMENT_END, TURN_END
from mini_chat.files import atomic_directory, atomic_open
from mini_chat.trainer.tokenizer_counts import QWEN2_PATTERN
from mini_chat.trainer.tokenizer_merges import MergeTable, to_letters

MODEL_MAX_LENGTH = 32_768


def qwen2_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """How text is cut before BPE: nothing is merged across these cuts."""
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def assemble(table: MergeTable, specials: list[str], model_max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer that a table of merges and some special tokens make, with its chat template."""
    vocab = {to_letters(token): token_id for token, token_id in table.ids.items()}
    for special in specials:
        vocab[special] = len(vocab)
    merges = [(to_letters(left), to_letters(right)) for left, right in table.merges]
    backend = Tokenizer(BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = qwen2_pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(special, normalized=False, special=True) for special in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # A turn's end is where generation stops. Padding is another token: who pads with the token that ends a turn
        # and then masks padding in the loss teaches the model never to stop.
        eos_token=TURN_END,
        pad_token=DOCUMENT_END,
        model_max_length=model_max_length,
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,  # it would delete spaces before punctuation in decode
    )
    template = resources.files("mini_chat.data").joinpath("chat_template.jinja")
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path | str) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(directory)` reads, the same bytes for the same tokenizer.

    A directory that is new, or holds a tokenizer and nothing else, appears whole. Elsewhere each file does.

    Raises:
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    files = _files_of(tokenizer)
    if directory.exists() and {entry.name for entry in directory.iterdir()} != set(files):
        for name, data in files.items():
            with atomic_open(directory / name) as file:
                file.write(data)
    else:
        with atomic_directory(directory) as partial:
            for name, data in files.items():
                (partial / name).write_bytes(data)


def _files_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """What `save_pretrained` writes, freed of what only says where the tokenizer was loaded from."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    config = json.loads(files["tokenizer_config.json"])
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    # transformers 5 writes TokenizersBackend, its new name for this class, and reads both; version 4 only the old one.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    files["tokenizer_config.json"] = (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return files
