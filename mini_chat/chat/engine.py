"""The one engine that turns a conversation into an answer.

The terminal streams from it, the exam runs batches through it, and training draws its samples from it. The model may
be any transformers causal language model with a `Cache`; the tokenizer must be byte-level and have ChatML's tokens.

Shapes: B rows of a batch, L tokens of this step, V entries of the vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from mini_chat.chat.checkpoint import load_checkpoint
from mini_chat.chat.sampling import Sampling, make_chooser
from mini_chat.chat.text_stream import ByteVocabulary, IncrementalDecoder
from mini_chat.data.encoding import DOCUMENT_END, TURN_END, encode_chat
from mini_chat.errors import UserError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""

STOP_TOKENS = (TURN_END, DOCUMENT_END)
MAX_NEW_TOKENS = 256
BATCH_ROWS = 64


class ChatEngine:
    """A model and its tokenizer, ready to answer.

    Attributes:
        context_limit: tokens that prompt and answer may have together (`max_position_embeddings`).
        stop_ids: the tokens that end an answer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_limit = int(model.config.max_position_embeddings)
        self.stop_ids = find_stop_ids(model, tokenizer)
        self.vocabulary = ByteVocabulary(tokenizer)
        self._memory: tuple[list[int], DynamicCache] = ([], DynamicCache())
        self._memory_weights = 0

    @classmethod
    def load(cls, directory: Path | str, device: str | None = None) -> ChatEngine:
        """Load a model directory that training wrote (safetensors and JSON only).

        Raises:
            UserError: the directory is missing, incomplete or damaged.
        """
        return cls(*load_checkpoint(directory, device))

    # Text to tokens and back

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The conversation in the chat format, exactly as training encodes it.

        A special token that stands in a message's content is encoded as the ordinary characters it is written
        with, so that nobody can end a turn or begin one by typing it.

        Raises:
            UserError: an unknown role, or content that is not valid text.
        """
        return encode_chat(self.tokenizer, messages, add_generation_prompt)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens; special tokens have none, broken characters become U+FFFD."""
        return b"".join(self.vocabulary[token_id] for token_id in ids).decode("utf-8", "replace")

    def fit(self, messages: Sequence[Message], room: int) -> tuple[list[Message], int]:
        """Drop the oldest turns until the conversation leaves `room` tokens for the answer.

        A turn is a user message with the answer to it; the system message always stays, and so does the last turn.

        Args:
            messages: the conversation, ending with the user's message.
            room: tokens to keep free; never more than a quarter of the context.

        Returns:
            what is left, and the number of turns dropped.

        Raises:
            UserError: the last message alone is too long.
        """
        room = min(room, self.context_limit // 4)
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns: list[list[Message]] = []
        for message in messages[len(system) :]:
            if message["role"] == "user" or not turns:
                turns.append([])
            turns[-1].append(message)
        turns = turns or [[]]
        last = [*system, *turns[-1]]
        least = sum(len(message["content"].encode(errors="replace")) for message in last) // self.vocabulary.longest
        if least > self.context_limit:  # known without tokenizing what may be gigabytes
            raise self._too_long(f"at least {least}", room)
        for dropped in range(len(turns)):
            kept = system + [message for turn in turns[dropped:] for message in turn]
            count = len(self.encode_chat(kept))
            if count + room <= self.context_limit:
                return kept, dropped
        raise self._too_long(str(count), room)

    def _too_long(self, count: str, room: int) -> UserError:
        kept = f", of which {room} are kept for the answer" if room else ""
        return UserError(f"prompt has {count} tokens, the context is {self.context_limit}{kept}; shorten the message")

    # One answer, as it comes

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stop_event: threading.Event | None = None,
    ) -> AnswerStream:
        """Begin an answer: an iterator over pieces of text, each of whole characters.

        Args:
            messages: the conversation, ending with the user's message; see `fit`.
            sampling: how tokens are drawn.
            max_new_tokens: the answer is cut after this many.
            stop_event: once set, the answer ends before its next token.

        Raises:
            UserError: the prompt leaves no room in the context.
        """
        prompt_ids = self.encode_chat(messages)
        if len(prompt_ids) >= self.context_limit:
            raise self._too_long(str(len(prompt_ids)), 0)
        return AnswerStream(self, prompt_ids, sampling or Sampling(), max_new_tokens, stop_event)

    @torch.inference_mode()
    def next_scores(self, ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        """Run `ids` after what is in the cache; the scores (V,) of the token that follows.

        Raises:
            UserError: they are not finite.
        """
        ids_BL = torch.tensor([list(ids)], dtype=torch.long, device=self.model.device)
        logits_BLV = self.model(input_ids=ids_BL, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        scores_V = logits_BLV[0, -1]
        check_finite(scores_V.max())
        return scores_V

    def take_memory(self, prompt_ids: Sequence[int]) -> tuple[list[int], DynamicCache]:
        """The cache of the last answer, cut back to what it shares with this prompt.

        It is taken, not lent: a second stream at the same time starts from an empty one.

        Returns:
            the tokens in the cache, at least one fewer than the prompt has, and the cache.
        """
        (known_ids, cache), self._memory = self._memory, ([], DynamicCache())
        shared = 0
        if self._weights_version() != self._memory_weights:  # trained on since: what they computed is stale
            known_ids = []
        for known, wanted in zip(known_ids, prompt_ids[:-1], strict=False):
            if known != wanted:
                break
            shared += 1
        if not shared:
            return [], DynamicCache()
        cache.crop(shared - len(known_ids))  # negative: so many tokens off the end
        return known_ids[:shared], cache

    def keep_memory(self, ids: list[int], cache: DynamicCache) -> None:
        """Keep the cache for the next turn, unless an interrupted step left it half filled."""
        if cache.get_seq_length() == len(ids):
            self._memory = (ids, cache)
            self._memory_weights = self._weights_version()

    def _weights_version(self) -> int:
        """A number that grows whenever weights are written in place, as optimizers do."""
        return sum(weights._version for weights in self.model.parameters())

    # Many answers at once

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int] | Sequence[Message]],
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_rows: int = BATCH_ROWS,
    ) -> list[str]:
        """The likeliest answer to every prompt, in the prompts' order.

        Args:
            prompts: tokens, or messages, each ready to be answered.
            max_new_tokens: answers are cut after this many.
            batch_rows: prompts computed together; prompts of like length are, to waste little on padding.

        Raises:
            UserError: a prompt is empty or leaves no room in the context.
        """
        prompts_ids: list[list[int]] = []
        for number, prompt in enumerate(prompts, 1):
            ids = [item for item in prompt if isinstance(item, int)]
            if len(ids) != len(prompt) or not ids:
                ids = self.encode_chat([item for item in prompt if not isinstance(item, int)]) if prompt else []
            if not 0 < len(ids) < self.context_limit:
                raise UserError(f"prompt {number} has {len(ids)} tokens; it must have 1 to {self.context_limit - 1}")
            prompts_ids.append(ids)
        order = sorted(range(len(prompts_ids)), key=lambda place: len(prompts_ids[place]))
        answers = [""] * len(order)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(order), batch_rows):
                places = order[start : start + batch_rows]
                found = self._greedy([prompts_ids[place] for place in places], max_new_tokens)
                for place, ids in zip(places, found, strict=True):
                    answers[place] = self.decode(ids)
        finally:
            self.model.train(was_training)
        return answers

    @torch.inference_mode()
    def _greedy(self, prompts_ids: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy answers of one left-padded batch; a row that has ended leaves the batch."""
        device = self.model.device
        length = max(map(len, prompts_ids))
        ids_BL = torch.zeros(len(prompts_ids), length, dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for row, ids in enumerate(prompts_ids):
            ids_BL[row, length - len(ids) :] = torch.tensor(ids)
            mask_BL[row, length - len(ids) :] = 1
        ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
        positions_BL = (mask_BL.cumsum(dim=-1) - 1).clamp(min=0)
        cache = DynamicCache()
        rows = list(range(len(prompts_ids)))
        answers: list[list[int]] = [[] for _ in rows]
        for _ in range(max_new_tokens):
            logits_BLV = self.model(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                position_ids=positions_BL,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            best_B, next_B = logits_BLV[:, -1].max(dim=-1)
            check_finite(best_B)
            going = []
            for place, (row, token) in enumerate(zip(rows, next_B.tolist(), strict=True)):
                if token in self.stop_ids:
                    continue
                answers[row].append(token)
                if len(prompts_ids[row]) + len(answers[row]) < self.context_limit:
                    going.append(place)
            if not going:
                break
            if len(going) < len(rows):
                rows = [rows[place] for place in going]
                going_B = torch.tensor(going, device=device)
                cache.batch_select_indices(going_B)
                next_B, mask_BL, positions_BL = next_B[going_B], mask_BL[going_B], positions_BL[going_B]
            ids_BL = next_B[:, None]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=-1)
            positions_BL = positions_BL[:, -1:] + 1
        return answers


class AnswerStream(Iterator[str]):
    """An answer under way: iterate over it for its text.

    Attributes:
        prompt_tokens: length of the prompt.
        reused_tokens: of these, how many were still in the cache from the last answer.
        ids: tokens of the answer so far, without the one that ended it.
        finish_reason: "stop" (the model ended it), "length" (max_new_tokens), "context" (the context is full),
            "interrupted" (stop_event), or None while it goes on.
        seconds: time spent so far, reading the prompt included.
    """

    def __init__(
        self,
        engine: ChatEngine,
        prompt_ids: list[int],
        sampling: Sampling,
        max_new_tokens: int,
        stop_event: threading.Event | None,
    ) -> None:
        self.prompt_tokens = len(prompt_ids)
        self.reused_tokens = 0
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.seconds = 0.0
        self._engine = engine
        self._max_new_tokens = max_new_tokens
        self._stop_event = stop_event
        self._pieces = self._run(prompt_ids, sampling)

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def total_tokens(self) -> int:
        """Context used by prompt and answer together."""
        return self.prompt_tokens + len(self.ids)

    def _run(self, prompt_ids: list[int], sampling: Sampling) -> Iterator[str]:
        started = time.perf_counter()
        engine = self._engine
        decoder = IncrementalDecoder(engine.vocabulary)
        choose = make_chooser(sampling, engine.model.device)
        was_training = engine.model.training
        engine.model.eval()
        cached_ids, cache = engine.take_memory(prompt_ids)
        self.reused_tokens = len(cached_ids)
        feed = prompt_ids[len(cached_ids) :]
        try:
            while not (reason := self._reason_to_end()):
                scores_V = engine.next_scores(feed, cache)
                cached_ids += feed
                token = choose(scores_V, self.ids)
                self.seconds = time.perf_counter() - started
                if token in engine.stop_ids:
                    reason = "stop"
                    break
                self.ids.append(token)
                feed = [token]
                if piece := decoder.push(token):
                    yield piece
        finally:
            engine.model.train(was_training)
            engine.keep_memory(cached_ids, cache)
        self.finish_reason = reason
        if piece := decoder.finish():
            yield piece

    def _reason_to_end(self) -> str | None:
        if self._stop_event is not None and self._stop_event.is_set():
            return "interrupted"
        if len(self.ids) >= self._max_new_tokens:
            return "length"
        return "context" if self.total_tokens >= self._engine.context_limit else None


def find_stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The generation configuration's end tokens, the tokenizer's, and ChatML's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    vocabulary = tokenizer.get_vocab()
    ids.update(vocabulary.get(name) for name in STOP_TOKENS)
    return frozenset(int(token_id) for token_id in ids if token_id is not None)


def check_finite(scores: torch.Tensor) -> None:
    """Raise UserError if the model computed NaN or infinity."""
    if not torch.isfinite(scores).all():
        raise UserError("the model's scores are not finite numbers: its weights are damaged; copy or train it again")
