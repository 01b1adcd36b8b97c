"""Traditional to Simplified Chinese, by OpenCC's phrase tables: one script in the corpus, fewer characters to learn.

What is left as it is, byte for byte: English documents; text without Chinese characters; Japanese, where kana are more
than a quarter of the kana and Chinese characters, since its 学 and 國 are not ours to change; and, under the regional
conversions, every line that is Simplified already. These take each 著 for Taiwan's 着, and would turn a mainland text's
显著 into 显着. Quotation marks stay 「so」 unless asked.

Also runs alone, a document a line: `python -m mini_chat.data.zh_simplify --config tw2s < in.txt > out.txt`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, get_args

from mini_chat.config import Recipe, Simplify, Source
from mini_chat.console import abandon_output
from mini_chat.data.documents import Document
from mini_chat.data.steps import Kept, run_step
from mini_chat.data.tally import SetAside
from mini_chat.errors import UserError

CONFIGS: tuple[str, ...] = get_args(Simplify.model_fields["config"].annotation)
PLAIN = "t2s"
CHANGED = "to Simplified"
CHINESE_PER_KANA = 3  # with fewer a text is Japanese, which has 0.5 to 1.5; Chinese about Japan has over 10

_CHINESE = re.compile("[\u2e80-\u2fdf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]")
_QUOTES = str.maketrans("「」『』", "“”‘’")


def simplify_text(text: str, config: str = PLAIN, punctuation: bool = False) -> str:
    """`text` in Simplified characters; the same string if there is nothing to change.

    Args:
        text: Unicode without lone surrogates, as every reader here gives it.
        config: a conversion of OpenCC's: see `Simplify.config`.
        punctuation: 「」『』 become “”‘’ as well.

    Raises:
        UserError: an unknown conversion, or OpenCC is not installed.
    """
    if text.isascii() or not _CHINESE.search(text) or is_japanese(text):
        return text
    simplified = _convert(text, config)
    return simplified.translate(_QUOTES) if punctuation else simplified


def is_japanese(text: str) -> bool:
    """Whether kana are more than a quarter of the kana and Chinese characters."""
    if not _KANA.search(text):
        return False
    enough = len(_KANA.findall(text)) * CHINESE_PER_KANA  # looking stops there: mostly a few kana are in a long text
    return sum(1 for _ in itertools.islice(_CHINESE.finditer(text), enough)) < enough


def _convert(text: str, config: str) -> str:
    plain = _converter(PLAIN)(text)
    if config == PLAIN or plain == text:
        return plain
    lines = text.split("\n")
    traditional = [place for place, line in enumerate(plain.split("\n")) if line != lines[place]]
    converted = _converter(config)("\n".join(lines[place] for place in traditional))
    for place, line in zip(traditional, converted.split("\n"), strict=True):
        lines[place] = line
    return "\n".join(lines)


@functools.cache
def _converter(config: str) -> Callable[[str], str]:
    """OpenCC's conversion, its tables read once in a process."""
    if config not in CONFIGS:
        raise UserError(f"simplify.config {config}: no such conversion; choose one of {', '.join(CONFIGS)}")
    try:
        import opencc
    except ImportError as error:
        raise UserError("simplify: OpenCC is not installed; run: pip install opencc") from error
    convert: Callable[[str], str] = opencc.OpenCC(config).convert
    return convert


def make_transform(config: str, punctuation: bool) -> Callable[[Sequence[Document]], list[Kept | SetAside]]:
    """The step's work in one process, see `steps.run_step`."""

    def transform(documents: Sequence[Document]) -> list[Kept | SetAside]:
        return [simplified(document) for document in documents]

    def simplified(document: Document) -> Kept:
        if document.language == "en":
            return Kept(document.text)
        text = simplify_text(document.text, config, punctuation)
        return Kept(text, (CHANGED,) if text != document.text else ())

    return transform


def simplify(sources: list[Source], directory: Path, recipe: Recipe) -> None:
    """Bring the sources' documents to Simplified characters, in parts under `directory`; what changed is counted.

    Raises:
        UserError: see `steps.run_step`.
    """
    settings = recipe.simplify
    _converter(settings.config)  # a missing library is told before workers start
    run_step(
        "simplify",
        sources,
        directory,
        # Another version of the tables writes other text, so that parts of two must not be mixed.
        {**settings.model_dump(), "opencc": importlib.metadata.version("opencc")},
        functools.partial(make_transform, settings.config, settings.punctuation),
        recipe.machine,
        recipe.data.max_line_bytes,
    )


def simplified_lines(lines: Iterable[bytes], config: str, punctuation: bool) -> Iterator[bytes]:
    """Each line converted, as a document of its own; line ends stay as they are.

    Raises:
        UserError: a line that is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield simplify_text(line.decode(), config, punctuation).encode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input, line {number}: not UTF-8 text (byte {error.start + 1}); if it is GBK or Big5, "
                "convert it first: iconv -f GB18030 -t UTF-8"
            ) from error


def main(arguments: list[str] | None = None, source: IO[bytes] | None = None, sink: IO[bytes] | None = None) -> int:
    """Convert standard input to standard output; returns the exit status."""
    parser = argparse.ArgumentParser("python -m mini_chat.data.zh_simplify", description=__doc__.splitlines()[0])
    fields = Simplify.model_fields
    parser.add_argument(
        "--config", choices=CONFIGS, default=PLAIN, help=f"{fields['config'].description} (default t2s)"
    )
    parser.add_argument("--punctuation", action="store_true", help=fields["punctuation"].description)
    given = parser.parse_args(arguments)
    source, sink = source or sys.stdin.buffer, sink or sys.stdout.buffer
    try:
        for line in simplified_lines(source, given.config, given.punctuation):
            sink.write(line)
        sink.flush()
    except BrokenPipeError:  # the reader (| head) has left
        abandon_output()
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"zh_simplify: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"zh_simplify: error: cannot write ({error.strerror or error}); free space", file=sys.stderr)
        abandon_output()
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
