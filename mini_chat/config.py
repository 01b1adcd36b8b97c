"""One typed configuration: the recipe in YAML, the defaults, the help texts and the command line's overrides.

Every stage has a section; every field says what it means, its unit in brackets, and its default. All that is wrong with
a recipe is found and said at once, before anything runs.
"""

from __future__ import annotations

import copy
import difflib
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mini_chat import model_size
from mini_chat.errors import UserError

UNTRAINED = "untrained"
"""The stage before the first: a model as it is initialised."""
TRAINING_STAGES = ("pretrain", "sft", "dpo")
"""The stages that leave a model, in order; each in a directory of its name."""
STAGE_RECORD = "stage.json"
"""What a finished stage writes last: its identity, the checksums of its weights, what was measured."""
DUMP_NAME = re.compile(r"\.xml([-*?\[][^./]*)?(\.(bz2|gz|zst))?$", re.IGNORECASE)
"""How the names of Wikipedia dumps end, and patterns of them: ….xml, ….xml.bz2, ….xml-p1p41242.bz2, *.xml*.bz2."""

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(ge=0, le=model_size.MAX_SIZE)]


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


class Source(Section):
    """A file, folder or glob of documents, dialogues or preference pairs."""

    path: str
    """File, folder or glob; relative to the directory of the command, `$NAME` is taken from the environment."""
    language: str = "auto"
    """Language of the text: en, zh, or auto to tell by its characters."""
    format: Literal["auto", "lines", "paragraphs", "jsonl", "json", "parquet", "wiki"] = "auto"
    """auto goes by the ending; lines: one document a line; paragraphs: blank lines between documents; wiki: a Wikipedia
    dump (.xml, .xml.bz2), which the stage extract turns into documents."""
    field: str = "text"
    """Field that holds the text of a JSONL object or parquet row."""
    weight: Rate = 1.0
    """How often its documents are seen relative to the others' [epochs]; fractions take a hash-chosen part."""

    @property
    def is_dump(self) -> bool:
        """Whether it is a Wikipedia dump, which `extract` reads."""
        is_named_so = DUMP_NAME.search(Path(self.path).name) is not None
        return self.format == "wiki" or (self.format == "auto" and is_named_so)


class World(Section):
    """The embedded bilingual world, which stands in for a corpus where `pretrain_documents` is above 0."""

    pretrain_documents: Count = 0
    """Documents of pretraining text, both languages together; 0 turns the world off."""
    sft_dialogues: Positive = 40_000
    """Dialogues for supervised fine-tuning."""
    preferences: Positive = 6_000
    """Preference pairs for DPO."""
    held_out_preferences: Positive = 400
    """Preference pairs held out, of compositions that are not trained on."""
    exam_items: Positive = 40
    """Exam items per skill and language."""


class Data(Section):
    """What the user brings; every list may be empty."""

    documents: list[Source] = []
    """Sources of pretraining text."""
    dialogues: list[Source] = []
    """Sources of dialogues for SFT."""
    preferences: list[Source] = []
    """Sources of preference pairs for DPO."""
    max_line_bytes: Positive = 10_000_000
    """A longer line is set aside and counted [bytes]."""


class Address(Section):
    """A file to fetch: by its address, or a Wikipedia dump by language and date."""

    url: str = ""
    """http:// or https:// address, or a path on this machine."""
    wikipedia: str = ""
    """Language code of the Wikipedia whose dump of articles to fetch (en, zh, simple); instead of url."""
    date: Annotated[str, BeforeValidator(lambda value: digits_as_text(value))] = "latest"
    """Date of the dump, such as 20261101, or latest; what is fetched as latest stays until you remove it."""
    name: str = ""
    """Name of the file; empty: the last part of the address."""
    checksum: Annotated[str, BeforeValidator(lambda value: digits_as_text(value))] = ""
    """md5, sha1 or sha256 of the file in hexadecimal, told by its length; of a dump it is fetched too."""

    @staticmethod
    def is_file_name(name: str) -> bool:
        """Whether it is a bare name, none that hides or leads out of its directory."""
        bare = not any(character in name for character in "/\\") and name.isprintable()
        return bare and not name.startswith(".") and not name.endswith(".partial") and 0 < len(name.encode()) <= 200

    @model_validator(mode="after")
    def one_file(self) -> Address:
        problems = []
        if bool(self.url) == bool(self.wikipedia):
            problems.append("give url or wikipedia, one of both")
        if "://" in self.url and not re.match(r"https?://[^/\s]", self.url, re.IGNORECASE):
            problems.append(f"url {self.url}: give http://, https:// or a path on this machine")
        if self.wikipedia and not re.fullmatch(r"[a-z]{2,}(-[a-z]+)*", self.wikipedia):
            problems.append(f"wikipedia {self.wikipedia}: give a language code as in its address: en, zh, simple")
        if not re.fullmatch(r"latest|20\d{6}", self.date):
            problems.append(f"date {self.date}: give the eight digits of a dump's date (20261101), or latest")
        if self.name and not self.is_file_name(self.name):
            problems.append(f"name {self.name}: give a bare file name, without / or \\ and no dot before it")
        self.checksum = self.checksum.strip().lower()
        if self.checksum and not re.fullmatch(r"([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})", self.checksum):
            problems.append(f"checksum {self.checksum}: give 32 (md5), 40 (sha1) or 64 (sha256) hexadecimal digits")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Fetch(Section):
    """Files from the network, or from elsewhere on this machine."""

    files: list[Address] = []
    """What to fetch."""
    directory: str = "dataset"
    """Where the files go."""
    mirror: str = "https://dumps.wikimedia.org"
    """Server of the Wikipedia dumps, or a folder laid out like it; a mirror near you is faster."""
    parallel: Positive = 2
    """Files fetched at once; the Wikimedia servers allow 2 per address."""
    retries: Count = 8
    """Tries after a failure, each waiting twice as long as the one before (1 s, 2 s, … and longer where the server asks
    for it); a failure after progress counts as the first again."""
    timeout_seconds: Rate = 30.0
    """Silence after which a connection counts as lost [seconds]."""


class Extract(Section):
    """Articles of Wikipedia dumps as documents."""

    min_characters: Count = 100
    """An article with less text is set aside [characters]."""
    variant: Literal["zh-hans", "zh-hant", "zh-cn", "zh-tw", "zh-hk"] = "zh-cn"
    """Which side of the conversion marks -{zh-hans:…;zh-hant:…}- is taken in Chinese pages."""
    keep_apparatus: bool = False
    """Keep the sections that hold no prose: references, external links, further reading, see also."""
    max_page_bytes: Annotated[int, Field(ge=10_000)] = 8_000_000
    """A page of more XML is set aside; MediaWiki's own limit is 2 MB of wikitext [bytes]."""
    part_bytes: Positive = 16_000_000
    """Text of a part, which is held in memory until it is whole; a kill costs no more than one [bytes]."""


class Simplify(Section):
    """Traditional to Simplified Chinese."""

    config: Literal["t2s", "tw2s", "tw2sp", "hk2s", "hk2sp"] = "t2s"
    """OpenCC's conversion: t2s changes characters, by phrases; tw2s knows Taiwan's use of them too (看著 → 看着, right
    nine times in ten) and is best for Wikipedia, hk2s Hong Kong's; tw2sp and hk2sp bring words to the mainland's too
    (軟體 → 软件)."""
    punctuation: bool = False
    """Bring quotation marks to the mainland's form too: 「」『』 become “”‘’."""


class Clean(Section):
    """What is left out of the corpus, and what is mended in it."""

    unicode: Annotated[Literal["nfc", "nfkc", "off"], BeforeValidator(lambda value: switch_as_word(value))] = "nfc"
    """Normalisation form; nfkc turns compatibility characters into plain ones too, full-width punctuation excepted."""
    html: bool = True
    """Take out what is left of HTML: scripts, comments, tags of layout, character references."""
    brackets: bool = True
    """Take out brackets that hold nothing, and separators that dangle in others."""
    frame_lines: bool = True
    """Take out short lines of a web page's frame: cookie and policy notices, "read more", sharing."""
    repeated_lines: bool = True
    """Keep a line that comes three times or more in a document once only; code and tables are left alone."""
    boilerplate_documents: Count = 0
    """A line that so many documents of a source have is taken out of all of them; 0 does not count them, which saves a
    pass over the text [documents]."""
    personal_data: Literal["keep", "mask"] = "keep"
    """mask: mail addresses, telephone, identity and card numbers and public IP addresses become [email], [phone], …"""
    min_words: Weight = 2.0
    """A shorter document is dropped; two Chinese characters count as one word [words]."""
    max_words: Count = 0
    """A longer document is dropped; Gopher takes 100,000; 0: no limit, since books are documents too [words]."""
    min_language_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of Chinese characters (or, of an English source, Latin words) among characters and words together below
    which a document counts as in another language."""
    max_digit_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Most digits among letters and digits of a page; a shorter document may have twice that share."""
    max_mark_share: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Most punctuation and symbols among all characters but spaces."""
    repetition: bool = True
    """Drop documents in which phrases, lines or paragraphs repeat too much (Gopher's limits, MAP-CC's for Chinese)."""
    page_rules: bool = True
    """Drop pages by the rules of Gopher, FineWeb and MAP-CC on stop words, word length, symbols, bullets and lines."""
    page_words: Positive = 150
    """Documents from this length on are pages, to which the rules made for pages apply [words]."""
    dedup: Annotated[Literal["off", "exact", "near"], BeforeValidator(lambda value: switch_as_word(value))] = "near"
    """exact: drop a text that came before; near: also one that is nearly the same (MinHash over runs of 5 words or
    characters)."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Estimated Jaccard similarity from which on a document is a near duplicate of an earlier one."""
    bands: Annotated[int, Field(ge=1, le=64)] = 14
    """Bands of 8 hash functions: pairs of similarity s meet with probability 1 - (1 - s^8)^bands. 14 find 92% of those
    at 0.8 and 99.9% at 0.9; each costs 8 bytes a document on disk."""
    seen: list[str] = []
    """Directories of earlier runs (out/first): documents that they cleaned are duplicates here."""
    memory_bytes: Annotated[int, Field(ge=200_000_000)] = 1_000_000_000
    """Memory of all its processes together; 80 MB a process are Python's own [bytes]."""


def digits_as_text(value: Any) -> Any:
    """A whole number as its digits: YAML takes an unquoted 3500 for a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def switch_as_word(value: Any) -> Any:
    """`on` or `off` as written: YAML takes the bare words for true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Tokenizer(Section):
    """The byte-level BPE tokenizer."""

    path: str = ""
    """Directory of a ready tokenizer to use as it is, of any size; empty trains one."""
    vocab_size: Positive = 32_000
    """Entries in all, special tokens included; at most 65,536, so that tokens fit uint16 (those of a larger ready
    tokenizer are stored as uint32)."""
    hanzi: Annotated[Literal["3500", "6500", "6763", "8105", "corpus"], BeforeValidator(digits_as_text)] = "3500"
    """Chinese characters that get a token each: the first levels of the official table, those of GB 2312 (6763), or
    those of the corpus."""
    chinese_words: Count = 0
    """Entries for words of two and more Chinese characters, learnt from the Chinese text; 0 keeps one token a
    character."""
    english_from: Literal["english", "all"] = "english"
    """Documents that English merges are learnt from: those that are not Chinese; all: what is not Chinese in any."""
    min_frequency: Positive = 2
    """Occurrences below which a pair (or with `corpus` a character) gets no token."""
    reserved_tokens: Count = 32
    """Special tokens kept free for later uses."""
    memory_bytes: Annotated[int, Field(ge=200_000_000)] = 1_000_000_000
    """Memory of all its processes together [bytes]."""
    max_bytes: Positive = 10_000_000_000
    """Text that is counted; of a larger corpus a sample of this size, chosen by the hash of the text [bytes]."""

    @model_validator(mode="after")
    def fits_uint16(self) -> Tokenizer:
        if self.vocab_size > 65_536:
            raise ValueError(
                f"vocab_size {self.vocab_size} is over 65536; a tokenizer made here fits uint16, choose a smaller one"
            )
        return self


class Shards(Section):
    """Tokens on disk: mixed, shuffled, split."""

    shard_bytes: Annotated[int, Field(ge=4096)] = 50_000_000
    """Size of a shard file [bytes]."""
    memory_bytes: Annotated[int, Field(ge=1_000_000)] = 256_000_000
    """Memory that the shuffle may use, beside what each process needs to encode [bytes]."""
    validation_share: Share = 0.01
    """Share of the documents that is held out, chosen by the hash of the text."""
    validation_max_documents: Positive = 2_000
    """Most held-out documents per language, those of the lowest hashes."""
    near_duplicates: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A document is not trained on if this share of its 8-grams of tokens stands in one held-out document; 0 looks for
    none."""
    languages: dict[str, Weight] = {}
    """Share of the training tokens that each language is to have, relative to the others, such as {en: 1, zh: 1}; empty
    takes them as the sources have them."""
    max_epochs: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """How often at most a document is seen to give its language its share [epochs]."""


def size_of(model: Any) -> int:
    """The size that a section `model` asks for; 0: none.

    For a size that there is not it is the reference, so that nothing is said of defaults that were not asked for.
    """
    given = model.get("size", 0) if isinstance(model, dict) else getattr(model, "size", 0)
    return valid_or(model_size.REFERENCE_SIZE, Size, given)


def valid_or(otherwise: int, kind: Any, value: Any) -> int:
    """The value as the recipe's check takes it, or `otherwise` where that finds fault with it."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return otherwise


class Model(Section):
    """Shape of the model; names as in transformers."""

    # What it gives stands under its own names; a run is the same whether they were written out or not.
    size: Annotated[Size, Field(exclude=True)] = 0
    """One number for all: N layers of width 64 N with N heads, and what goes with them of pretrain.batch_tokens,
    pretrain.weight_decay and every stage's learning rates. 12 is the default shape; 0: off. A key that is given itself
    stays; beside a size on the command line only one given there does [layers]."""
    hidden_size: Positive = 768
    """Width of the residual stream."""
    intermediate_size: Positive = 2_048
    """Width of the SwiGLU feed-forward."""
    num_hidden_layers: Positive = 12
    """Decoder layers."""
    num_attention_heads: Positive = 12
    """Query heads."""
    num_key_value_heads: Positive = 4
    """Key and value heads; must divide num_attention_heads."""
    head_dim: Positive | None = None
    """Width of a head; hidden_size / num_attention_heads when empty."""
    max_position_embeddings: Positive = 2_048
    """Context limit [tokens]."""
    rope_theta: Rate = 10_000.0
    """Base of the rotary frequencies."""
    tie_word_embeddings: bool = False
    """Use the embedding matrix as the output head too."""
    initializer_range: Rate = 0.02
    """Standard deviation of the initial weights."""
    num_experts: Count = 0
    """Experts of each layer's feed-forward; 0 is a dense model."""
    num_experts_per_tok: Positive = 2
    """Experts that see each token."""
    moe_intermediate_size: Positive = 768
    """Width of an expert."""
    router_aux_loss_coef: Weight = 0.01
    """Weight of the load-balancing loss."""

    @model_validator(mode="before")
    @classmethod
    def shape_of_size(cls, values: Any) -> Any:
        size = size_of(values)
        return {**model_size.shape(size), **values} if size and isinstance(values, dict) else values

    @model_validator(mode="after")
    def sizes_fit(self) -> Model:
        problems = []
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}; "
                "change one or give head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if (self.head_dim or self.hidden_size // self.num_attention_heads) % 2:
            problems.append("head_dim is odd; rotary embeddings turn pairs of dimensions, choose an even one")
        if self.num_experts and self.num_experts_per_tok > self.num_experts:
            problems.append(f"num_experts_per_tok {self.num_experts_per_tok} is over num_experts {self.num_experts}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Training(Section):
    """What every training stage has."""

    steps: Count = 0
    """Optimiser steps; 0 means as many as `epochs` take."""
    epochs: Rate = 1.0
    """Passes over the data, when steps is 0."""
    row_tokens: Positive = 1_024
    """Length of a row into which documents are packed [tokens]."""
    batch_tokens: Positive = 65_536
    """Tokens of an optimiser step; a multiple of row_tokens [tokens]."""
    micro_tokens: Positive = 8_192
    """Tokens of one forward pass; the step accumulates gradients over them [tokens]."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: matrices by Muon, the rest by AdamW; adamw: all by AdamW."""
    lr_max: Rate = 1e-3
    """Peak learning rate of AdamW's parameters."""
    muon_lr_max: Rate = 0.01
    """Peak learning rate of Muon's matrices."""
    muon_momentum: Share = 0.95
    """Muon's decay of the mean of the gradients."""
    muon_momentum_warmup_steps: Count = 0
    """Steps over which that rises from 0.85: the first gradients are soon out of date."""
    lr_min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Last learning rate as a part of the peak."""
    warmup_steps: Count = 20
    """Steps of linear warm-up."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Part of the steps, at the end, over which the rate falls linearly (WSD, arXiv:2404.06395)."""
    weight_decay: Weight = 0.0
    """Decoupled weight decay of matrices, per unit of learning rate."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Share = 0.95
    """AdamW's decay of the second moment."""
    max_grad_norm: Rate = 1.0
    """Gradients are scaled down to this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    eval_every: Positive = 250
    """Steps between validations."""
    eval_tokens: Positive = 100_000
    """Most tokens of a validation, per language [tokens]."""
    sample_every: Count = 0
    """Steps between sample generations; 0 for none before the end."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints."""
    checkpoint_minutes: Rate = 10.0
    """Minutes between checkpoints, whichever comes first [minutes]."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept while training."""
    spike_factor: Weight = 25.0
    """A step whose gradient norm is more than so many times the median of the last ones is skipped; 0 skips none but
    those whose loss or norm is no number."""
    spike_window: Positive = 50
    """Steps over which that median is taken; before there are so many no norm is too large [steps]."""
    max_bad_steps: Positive = 5
    """Steps skipped in a row after which training goes back to the last checkpoint, and leaves out the batches that it
    has seen since [steps]."""
    max_rollbacks: Count = 3
    """Times that it goes back before it stops with an error."""

    @model_validator(mode="after")
    def batch_fits(self) -> Training:
        problems = []
        if self.batch_tokens % self.row_tokens:
            problems.append(f"batch_tokens {self.batch_tokens} is not a multiple of row_tokens {self.row_tokens}")
        if self.micro_tokens % self.row_tokens:
            problems.append(f"micro_tokens {self.micro_tokens} is not a multiple of row_tokens {self.row_tokens}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Pretrain(Training):
    """Next-token prediction on the shards."""

    checkpoint_shards: bool = False
    """A checkpoint each time as many tokens are trained on as a shard file holds (`shards.shard_bytes`), instead of
    every `checkpoint_every` steps. Rows of all shards are shuffled together, so none is finished before the others."""


class Sft(Training):
    """Supervised fine-tuning: the loss is on the assistant's tokens only."""

    lr_max: Rate = 5e-4
    """Peak learning rate of AdamW's parameters."""
    muon_lr_max: Rate = 0.005
    """Peak learning rate of Muon's matrices."""
    validation_share: Share = 0.02
    """Share of the dialogues that is held out, chosen by the hash of the text."""


class Dpo(Training):
    """Direct preference optimisation (arXiv:2305.18290) against the frozen SFT model."""

    row_tokens: Positive = 1_024
    """Length of a row, which holds both documents of a pair: longer answers are cut to half of it [tokens]."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: matrices by Muon, the rest by AdamW; adamw: all by AdamW."""
    lr_max: Rate = 1e-5
    """Peak learning rate of AdamW's parameters."""
    beta: Rate = 0.1
    """Strength of the pull towards the reference."""
    sft_weight: Weight = 0.2
    """Weight of the chosen answers' own mean token loss (RPO, arXiv:2404.19733), which keeps them likely."""
    validation_share: Share = 0.1
    """Share of the pairs that is held out where no held-out file is given."""


STAGE_SECTIONS: dict[str, type[Training]] = {"pretrain": Pretrain, "sft": Sft, "dpo": Dpo}


class Evaluate(Section):
    """Scores of a checkpoint."""

    max_new_tokens: Positive = 48
    """Longest answer in the exam [tokens]."""
    batch_size: Positive = 96
    """Exam items answered at once."""


class Machine(Section):
    """The machine's part; nothing here changes which tokens make a batch."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto takes the fastest there is."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it fast, fp32 elsewhere."""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch_as_word)] = "auto"
    """Compile for training, where there is a C++ compiler: our kernels for CPUs, once, and the decoder layers
    (torch.compile), which auto does where the stage is long enough to pay back the half minute; never with experts."""
    threads: Count = 0
    """Threads of the processor, in each process; 0 for one per core, shared out among the processes that torchrun
    starts. Bits depend on it, so it is part of a run's identity."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Of several processes (torchrun): ddp gives each a copy of the model, fsdp a part of it; auto takes fsdp where
    weights, gradients and optimiser fill more than 60% of a GPU."""
    processes: Count = 0
    """Processes of the corpus stages; 0 for one per core. What they write does not depend on it."""
    engine: Literal["none", "local", "ray", "slurm"] = "none"
    """Who runs the corpus stages: none, our own processes; local, ray, slurm: datatrove's executors, the last two on
    many machines that share the run's directory. What they write does not depend on it. `--engine` for short."""
    tasks: Count = 0
    """With an engine: tasks that a stage's files are dealt to; 0: as many as run at once, or 16 where that is open."""
    workers: Count = 0
    """With an engine: tasks at once; 0: local, one per core; ray and slurm, all of them."""
    task_memory_bytes: Annotated[int, Field(ge=500_000_000)] = 2_000_000_000
    """With ray and slurm: memory that a task asks for; each has one core [bytes]."""
    ray_address: str = "auto"
    """Of the Ray cluster; auto: the one that this machine is part of; local: one that is started for this command."""
    partition: str = "cpu"
    """Slurm's partition."""
    time_limit_hours: Rate = 24.0
    """Slurm's time limit of a task [hours]."""


class Recipe(Section):
    """Everything about a run."""

    name: Annotated[str, BeforeValidator(digits_as_text)] = "run"
    """Name of the run; its directory is `out/<name>` unless `out` says otherwise."""
    out: str = ""
    """Directory of the run; empty: `out/<name>`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of everything random."""
    stages: list[
        Literal[
            "world",
            "fetch",
            "extract",
            "simplify",
            "clean",
            "tokenizer",
            "shards",
            "pretrain",
            "sft",
            "dpo",
            "report",
        ]
    ] = [
        "tokenizer",
        "shards",
        "pretrain",
        "sft",
        "dpo",
        "report",
    ]
    """Stages that `run` goes through, in this order."""
    samples: list[str] = []
    """Prompts answered in samples during training and in the report."""
    machine: Machine = Machine()
    """The machine's part."""
    world: World = World()
    """The embedded world."""
    data: Data = Data()
    """What the user brings."""
    fetch: Fetch = Fetch()
    """Files from the network."""
    extract: Extract = Extract()
    """Articles of Wikipedia dumps."""
    simplify: Simplify = Simplify()
    """Traditional to Simplified Chinese."""
    clean: Clean = Clean()
    """What is left out and mended."""
    tokenizer: Tokenizer = Tokenizer()
    """The tokenizer."""
    shards: Shards = Shards()
    """Tokens on disk."""
    model: Model = Model()
    """Shape of the model."""
    pretrain: Pretrain = Pretrain()
    """Pretraining."""
    sft: Sft = Sft()
    """Supervised fine-tuning."""
    dpo: Dpo = Dpo()
    """Preference alignment."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""

    @model_validator(mode="before")
    @classmethod
    def training_of_size(cls, values: Any) -> Any:
        size = size_of(values.get("model")) if isinstance(values, dict) else 0
        if not size:
            return values
        sections = {stage: values.get(stage, {}) for stage in TRAINING_STAGES}
        return values | {
            stage: {**settings_of_size(stage, size, given), **given} if isinstance(given, dict) else given
            for stage, given in sections.items()
        }

    @model_validator(mode="after")
    def rows_fit_context(self) -> Recipe:
        problems = []
        for stage in TRAINING_STAGES:
            row_tokens, limit = getattr(self, stage).row_tokens, self.model.max_position_embeddings
            if row_tokens > limit:
                problems.append(f"{stage}.row_tokens {row_tokens} is over model.max_position_embeddings {limit}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def directory(self) -> Path:
        """Where the run's outputs go."""
        return Path(self.out) if self.out else Path("out") / self.name


def settings_of_size(stage: str, size: int, given: dict[str, Any]) -> dict[str, float]:
    """What a size makes of the learning rates, batch and weight decay of a stage whose section says `given`."""
    defaults = {key: info.default for key, info in STAGE_SECTIONS[stage].model_fields.items()}
    if stage == "pretrain":
        return model_size.pretraining(size, valid_or(defaults["row_tokens"], Positive, given.get("row_tokens")))
    return model_size.later_rates(size, defaults["lr_max"], defaults["muon_lr_max"])


def keys_of_size() -> list[str]:
    """The keys that `model.size` stands for: `model.hidden_size`, …, `pretrain.lr_max`, …"""
    size = model_size.REFERENCE_SIZE
    sections = {"model": [*model_size.shape(size), "head_dim"]}
    sections |= {stage: list(settings_of_size(stage, size, {})) for stage in TRAINING_STAGES}
    return [f"{section}.{key}" for section, keys in sections.items() for key in keys]


Problems = Callable[["Recipe"], list[str]]


def load_recipe(
    path: str | Path | None, overrides: dict[str, str] | None = None, more_problems: Problems = lambda recipe: []
) -> Recipe:
    """Read a recipe, lay the overrides (`{"pretrain.lr_max": "3e-4"}`) over it, and check all of it.

    Where `model.size` is overridden, what the file says of the keys that a size gives would undo it, and is left out.

    Args:
        more_problems: what else will be wrong with a recipe, to be told together with what is wrong in it.

    Raises:
        UserError: with one line per problem.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise UserError(f"{path}: cannot read ({error.strerror}); recipes are in config/") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text; a recipe is a YAML file, see config/") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', error)}); mend that line") from error
        except ValueError as error:
            raise UserError(f"{path}: a value is no valid YAML ({error}); quote it") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: a recipe is a mapping of sections, see config/demo.yaml")
        # A section whose keys are all commented out is one with nothing but defaults.
        values = {key: value for key, value in values.items() if value is not None}
    for key, text in (overrides or {}).items():
        lay_over(values, key, text)
    if "model.size" in (overrides or {}) and size_of(values.get("model")):
        for key in keys_of_size():
            if key not in (overrides or {}):
                leave_out(values, key.split("."))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(all_problems(values, error, path, more_problems))) from error


def all_problems(
    values: dict[str, Any], error: ValidationError, path: str | Path | None, more_problems: Problems
) -> list[str]:
    """A line for each problem, those too that are looked for only where the values are right otherwise.

    What is wrong is left away, and the rest looked at again; what is then said of a value that was left away is not
    true of the recipe.
    """
    values, lines, left_out = copy.deepcopy(values), list[str](), set[str]()
    is_sized = isinstance(values.get("model"), dict) and "size" in values["model"]
    found: ValidationError | None = error

    def still_true(new: list[str]) -> list[str]:
        """Lines that are not told yet, and do not speak of what was left out."""
        words = {line: set(re.findall(r"\w+", line.removeprefix(str(path)))) for line in new}
        return [line for line in new if line not in lines and not left_out & words[line]]

    while found is not None:
        new = [line for problem in found.errors() for line in describe(problem, path)]
        lines += still_true(new)
        taken = [leave_out(values, list(problem["loc"])) for problem in found.errors()]
        if None in taken or not taken:
            break
        left_out |= {name for name in taken if name}
        if is_sized and left_out & {"model", "size"}:  # and with it the values that the size gives
            left_out |= {key.rpartition(".")[2] for key in keys_of_size()}
        try:
            lines += still_true(more_problems(Recipe.model_validate(values)))
            found = None
        except ValidationError as again:
            found = again
    return lines


def leave_out(values: Any, location: list[Any]) -> str | None:
    """Take the value at a location away; returns the last name in it, or None where there is nothing to take."""
    for part in location[:-1]:
        if not (isinstance(values, list) or (isinstance(values, dict) and part in values)):
            return None
        values = values[part]
    if not location or not isinstance(values, dict) or location[-1] not in values:
        return None
    del values[location[-1]]
    return str(location[-1])


def find_recipe(name: str) -> Path:
    """The file of a recipe given as a path, or as the name of one in `config/`.

    Raises:
        UserError: there is no such file; the nearest name is given.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    folders = (Path("config"), Path(__file__).parent.parent / "config")
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"recipes in config/: {', '.join(known) or 'none'}"
    raise UserError(f"{name}: no such recipe; {hint}")


def describe_section(name: str) -> list[str]:
    """Lines of help for a section's options (or, for an empty name, the recipe's own): meaning, unit, default."""
    section = getattr(Recipe(), name) if name else Recipe()
    lines = []
    for key, info in type(section).model_fields.items():
        default = getattr(section, key)
        if isinstance(default, Section):
            continue
        option = f"--{name}.{key}" if name else f"--{key}"
        shown = "" if default in ("", [], None) else f" (default {default})"
        lines.append(f"  {option}")
        lines += textwrap.wrap(f"{info.description}{shown}", 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def lay_over(values: dict[str, Any], key: str, text: str) -> None:
    """Set `values["a"]["b"]` to the YAML value of `text` for the key `a.b`."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--{key}: {parent} is a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as a date with month 13
        raise UserError(f"--{key} {text}: not a value; quote it") from error


def describe(problem: Any, path: str | Path | None) -> list[str]:
    """A line for each of what one of pydantic's problems tells of: where, what, and the nearest right name."""
    location = list(problem["loc"])
    key = ".".join(str(part) for part in location)
    where = f"{path}: {key}" if path else key
    if problem["type"] == "extra_forbidden":
        known = known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return [f"{where}: unknown key; {hint}"]
    if problem["type"] == "missing":
        return [f"{where}: missing; give it a value"]
    if problem["type"] in {"model_type", "dict_type"}:
        return [f"{where}: a section of keys belongs here, not {problem['input']!r}"]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return [f"{where if key else path or 'recipe'}: {line}" for line in message.splitlines()]
    return [f"{where}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"]


def known_keys(location: list[str | int]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = arguments[0] if arguments else annotation
    return list(section.model_fields)
