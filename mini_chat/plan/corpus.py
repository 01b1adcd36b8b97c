"""How many tokens the training stages will find: from what earlier stages left, or from a look at the sources.

Nothing is read whole: of each source the first megabytes are, and the rest goes by its size on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

from mini_chat.config import Recipe, Source
from mini_chat.errors import UserError

SAMPLE_BYTES = 2_000_000
WORLD_SAMPLE = 400  # records of the embedded world
DUMP_TEXT = {".bz2": 0.9, ".gz": 0.7, ".zst": 0.9, "": 0.2}
"""Text in a Wikipedia dump as a part of its size, by its compression: roughly, they differ by language."""
ARTICLE_BYTES = 3_000  # of an article's text, on average
PROCESSED_SHARE = 0.4
"""Size of zstd-compressed JSONL, what a corpus step leaves, as a part of its text."""


class Text(NamedTuple):
    """Some text that a model learns from in one piece: strings, their language, tokens of the format around them."""

    strings: list[str]
    language: str
    around: int = 1


@dataclass
class Amount:
    """What a stage finds to learn from.

    Args:
        squares: the sum of the documents' squared lengths, from which their length as a token sees it follows.
        source: how it is known; of what is not there, why.
        known: whether it is known at all.
        largest_file_tokens: of the shards; 0 where there are none yet.
    """

    tokens: float = 0.0
    documents: float = 0.0
    squares: float = 0.0
    text_bytes: float = 0.0
    disk_bytes: float = 0.0
    source: str = ""
    known: bool = True
    largest_file_tokens: int = 0

    @property
    def document_tokens(self) -> float | None:
        """Length of the document that a token is in, on average over tokens."""
        return self.squares / self.tokens if self.squares and self.tokens else None

    def add(self, lengths: list[int], text_bytes: float, times: float) -> None:
        """Count documents of these lengths, so many times."""
        self.documents += times * len(lengths)
        self.tokens += times * sum(lengths)
        self.squares += times * float(sum(length * length for length in lengths))
        self.text_bytes += times * text_bytes


class Vocabulary:
    """The tokenizer that is there already, or what can be said of one that is to be made."""

    def __init__(self, recipe: Recipe) -> None:
        ready = recipe.directory / "tokenizer"
        self.directory = ready if (ready / "tokenizer.json").is_file() else Path(recipe.tokenizer.path or ready)
        self.encoder: Any = None
        self.size = recipe.tokenizer.vocab_size
        if (self.directory / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            try:
                self.encoder = Tokenizer.from_file(str(self.directory / "tokenizer.json"))
            except Exception as error:  # the Rust parser raises bare Exception
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{self.directory}: the tokenizer does not load ({reason}); make it again") from error
            self.size = self.encoder.get_vocab_size()
        elif recipe.tokenizer.path:
            raise UserError(f"{self.directory}: no tokenizer.json; correct tokenizer.path, or leave it empty")

    def tokens(self, texts: list[Text]) -> list[int]:
        """Tokens of each text."""
        if self.encoder is None:
            return [self.guessed(text) for text in texts]
        counts = []
        for text in texts:
            encoded = self.encoder.encode_batch(text.strings, add_special_tokens=False)
            counts.append(sum(len(part.ids) for part in encoded) + text.around)
        return counts

    def guessed(self, text: Text) -> int:
        """One token a Chinese character; of English, more bytes a token the larger the vocabulary (docs/plan.md)."""
        size = sum(len(string.encode()) for string in text.strings)
        per_token = 3.0 if text.language == "zh" else max(1.0, 0.37 * log2(self.size) - 1.2)
        return round(size / per_token) + text.around


def stage_amount(recipe: Recipe, stage: str, vocabulary: Vocabulary) -> Amount:
    """What a training stage reads in an epoch: what stands ready for it, or what its sources promise."""
    ready = recipe.directory / ("shards" if stage == "pretrain" else f"{stage}/data")
    if (ready / "manifest.json").is_file():
        return of_shards(ready)
    from mini_chat.pipeline import Run

    run, amount = Run(recipe), Amount()
    try:
        made = not run.has_world or (recipe.directory / "world" / "world.json").is_file()
        if not made:
            add_world(amount, recipe, stage, vocabulary)
        for source in sources_of(run, stage, made):
            add_source(amount, source, stage, vocabulary)
    except UserError as error:
        return Amount(source=str(error).splitlines()[0], known=False)
    if not amount.documents:
        return Amount(source=f"no source in the recipe for {stage}", known=False)
    amount.source = "estimated from a sample"
    return amount


def of_shards(directory: Path) -> Amount:
    """What finished shards hold.

    Raises:
        UserError: they are damaged.
    """
    from mini_chat.data.token_shards import TokenDocuments

    documents = TokenDocuments(directory, "train")
    lengths = documents.lengths().astype(float)
    disk_bytes = float(sum(file.stat().st_size for file in directory.iterdir() if file.is_file()))
    return Amount(
        tokens=float(lengths.sum()),
        documents=float(len(lengths)),
        squares=float((lengths**2).sum()),
        disk_bytes=disk_bytes,
        source="counted in the shards",
        largest_file_tokens=documents.largest_file_tokens,
    )


def sources_of(run: Any, stage: str, with_world: bool) -> list[Source]:
    """A stage's sources, documents as far as the corpus steps have brought them.

    Raises:
        UserError: a name in a path is not in the environment.
    """
    from mini_chat.pipeline import DOCUMENT_STEPS, expanded

    data = run.recipe.data
    if not with_world:
        return expanded({"pretrain": data.documents, "sft": data.dialogues, "dpo": data.preferences}[stage])
    if stage != "pretrain":
        return {"sft": lambda: run.dialogues, "dpo": lambda: run.preferences}[stage]()
    try:
        return run.documents("shards")
    except UserError:  # a step is not finished: then as they are before the steps
        return run.documents(DOCUMENT_STEPS[0])


def add_source(amount: Amount, source: Source, stage: str, vocabulary: Vocabulary) -> None:
    """Count a source: the first megabytes are read, the rest goes by its size.

    Raises:
        UserError: nothing is there, or nothing usable.
    """
    from mini_chat.data.inputs import input_size
    from mini_chat.data.tally import Tally

    disk_bytes = float(input_size([source.path]))
    amount.disk_bytes += disk_bytes
    if source.is_dump:
        add_dump(amount, source, disk_bytes, vocabulary)
        return
    tally, texts, read_bytes, whole = Tally(), [], 0, True
    for text in READERS[stage](source, tally):
        texts.append(text)
        read_bytes += sum(len(string.encode()) for string in text.strings)
        if read_bytes > SAMPLE_BYTES:
            whole = False
            break
    consumed = float(tally.input_bytes or read_bytes)
    times = source.weight * (1.0 if whole else max(1.0, disk_bytes / consumed))
    amount.add(vocabulary.tokens(texts), read_bytes, times)


def add_dump(amount: Amount, source: Source, disk_bytes: float, vocabulary: Vocabulary) -> None:
    """Count a Wikipedia dump by its size, as articles of a few hundred words."""
    share = DUMP_TEXT.get(Path(source.path).suffix.lower(), DUMP_TEXT[""])
    language = "zh" if source.language == "auto" and "zhwiki" in source.path else source.language
    article = Text(["x" * ARTICLE_BYTES], language)
    length = vocabulary.guessed(article)
    amount.add([length], ARTICLE_BYTES, source.weight * disk_bytes * share / ARTICLE_BYTES)


def add_world(amount: Amount, recipe: Recipe, stage: str, vocabulary: Vocabulary) -> None:
    """Count what the embedded world will write, by a sample of it."""
    from mini_chat.world import dialogues, prose
    from mini_chat.world.facts import Facts
    from mini_chat.world.holdout import TRAIN, Guard
    from mini_chat.world.lexicon import LANGUAGES

    world, nothing, sizes = Facts(recipe.seed), Guard.of(()), recipe.world
    if stage == "pretrain":
        parts: list[Iterable[Any]] = [prose.documents(world, recipe.seed, each, nothing) for each in LANGUAGES]
        texts = [
            Text([text], language)
            for language, part in zip(LANGUAGES, parts, strict=True)
            for text in islice(part, WORLD_SAMPLE)
            if text
        ]
        total = sizes.pretrain_documents
    elif stage == "sft":
        records = filter(None, islice(dialogues.dialogues(world, recipe.seed, nothing), WORLD_SAMPLE))
        texts, total = [turns(record["messages"], record["language"]) for record in records], sizes.sft_dialogues
    else:
        records = filter(None, islice(dialogues.preferences(world, recipe.seed, TRAIN, nothing), WORLD_SAMPLE))
        texts = [
            answered(record["prompt"], record[answer], record["language"])
            for record in records
            for answer in ("chosen", "rejected")
        ]
        total = 2 * sizes.preferences
    size = sum(len(string.encode()) for text in texts for string in text.strings)
    times = total / len(texts)
    amount.add(vocabulary.tokens(texts), size, times)
    amount.disk_bytes += size * times


def documents_of(source: Source, tally: Any) -> Iterator[Text]:
    """The documents of a source."""
    from mini_chat.data.documents import read_documents

    for document in read_documents([source], tally):
        yield Text([document.text], document.language)


def dialogues_of(source: Source, tally: Any) -> Iterator[Text]:
    """The dialogues of a source."""
    from mini_chat.data.dialogues import read_dialogues

    for dialogue in read_dialogues([source], tally):
        yield turns(dialogue.messages, dialogue.language)


def answers_of(source: Source, tally: Any) -> Iterator[Text]:
    """The prompts of a source with either answer."""
    from mini_chat.data.preferences import read_preferences

    for pair in read_preferences([source], tally):
        yield answered(pair.prompt, pair.chosen, pair.language)
        yield answered(pair.prompt, pair.rejected, pair.language)


def turns(messages: list[Any], language: str) -> Text:
    """A dialogue in the chat format, as `data.encoding.encode_chat` puts it together."""
    strings = [text for message in messages for text in (f"{message['role']}\n", message["content"], "\n")]
    return Text(strings, language, 2 * len(messages))


def answered(prompt: list[Any], answer: str, language: str) -> Text:
    """A prompt and an answer as text."""
    return turns([*prompt, {"role": "assistant", "content": answer}], language)


READERS: dict[str, Callable[[Source, Any], Iterator[Text]]] = {
    "pretrain": documents_of,
    "sft": dialogues_of,
    "dpo": answers_of,
}
"""Training stage → what reads its sources."""
