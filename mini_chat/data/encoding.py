"""Text → token ids, for text that nobody vouches for.

Special tokens are instructions to the model ("the user's turn ends here"). In what a user, a document or a web page
contains, the characters `<|im_end|>` are only characters, and must stay so: otherwise a message could close its own
turn and speak as the assistant. `tokenizer(text)` and `apply_chat_template` both parse them. So here text is encoded
with special tokens switched off, and `encode_chat` alone sets them, between the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from mini_chat.errors import UserError

if TYPE_CHECKING:  # loaded where it is needed: the corpus' workers read this module and are to stay light
    from transformers import PreTrainedTokenizerFast

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
ROLES = ("system", "user", "assistant", "tool")

_plain_backends: WeakKeyDictionary[PreTrainedTokenizerFast, Tokenizer] = WeakKeyDictionary()


def load_tokenizer(directory: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer in a directory: one of its own, or a model's.

    Raises:
        UserError: there is none, or one that is damaged.
    """
    if not Path(directory, "tokenizer.json").is_file():
        raise UserError(f"{directory}: no tokenizer.json in it; give a directory that has a tokenizer or a model")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust parser raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{directory}: the tokenizer does not load ({reason}); make it again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{directory}: not a tokenizer of ours; use one that `mini-chat tokenizer` made")
    return tokenizer


def check_text(text: str, where: str = "text") -> str:
    """Return `text` if it can be written as UTF-8, which is all that a byte-level tokenizer asks.

    Args:
        where: what the message names as the place, such as `corpus.jsonl:17`.

    Raises:
        UserError: `text` has a lone surrogate (U+D800 to U+DFFF), half of a character that was cut in two.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UserError(
            f"{where}: character {error.start} is a lone surrogate (U+{code:04X}), half of a character that was cut "
            "in two; remove it, or read the source again with errors='replace'"
        ) from None
    return text


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str, where: str = "text") -> list[int]:
    """The ids of `text` as ordinary text: special tokens in it are spelt out, none is added.

    Raises:
        UserError: see `check_text`.
    """
    return _plain_backend(tokenizer).encode(check_text(text, where), add_special_tokens=False).ids


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], where: str = "text") -> list[list[int]]:
    """`encode_text` of each text, on all cores; messages call the texts `where[0]`, `where[1]`, …"""
    for index, text in enumerate(texts):
        check_text(text, f"{where}[{index}]")
    encodings = _plain_backend(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Iterable[Mapping[str, str]],
    add_generation_prompt: bool = False,
    where: str = "messages",
) -> tuple[list[int], list[bool]]:
    """The ids of a dialogue in the chat format, and which of them the assistant wrote.

    The ids are those of `tokenizer.apply_chat_template(messages)` but for two cases where ours are the better ones:
    special tokens inside the content are spelt out (see above), and content that begins with a line break does not
    melt with the header's (in generation the header stands alone, so in training it must too).

    Args:
        messages: `role` (system, user, assistant or tool) and `content` of each turn.
        add_generation_prompt: end with the header of an assistant's turn, for the model to go on from.

    Returns:
        Token ids, and a mask of the same length that is true on the assistant's content and its `<|im_end|>`.

    Raises:
        UserError: an unknown role, content that is no string, a lone surrogate.
    """
    ids: list[int] = []
    mask: list[bool] = []
    turn_start, turn_end = (_special_id(tokenizer, token) for token in (TURN_START, TURN_END))
    newline = encode_text(tokenizer, "\n")

    def put(piece: list[int], by_assistant: bool = False) -> None:
        ids.extend(piece)
        mask.extend([by_assistant] * len(piece))

    for index, message in enumerate(messages):
        place = f"{where}[{index}]"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"{place}: unknown role {role!r}; use {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        if not isinstance(content, str):
            raise UserError(f"{place}: the content is {type(content).__name__}, not text; give it as one string")
        put([turn_start, *encode_text(tokenizer, f"{role}\n")])
        put([*encode_text(tokenizer, content, place), turn_end], by_assistant=role == "assistant")
        put(newline)
    if add_generation_prompt:
        put([turn_start, *encode_text(tokenizer, "assistant\n")])
    return ids, mask


def _special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(token_id, int) or tokenizer.convert_ids_to_tokens(token_id) != token:
        raise UserError(f"the tokenizer has no token {token}; use one that `mini-chat tokenizer` made")
    return token_id


def _plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the backend that never parses special tokens, nor truncates or pads.

    `tokenizer(text, split_special_tokens=True)` sets a flag on the shared backend instead, so that of two threads
    one may encode under the other's flag.
    """
    backend = _plain_backends.get(tokenizer)
    if backend is None:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        _plain_backends[tokenizer] = backend
    return backend
