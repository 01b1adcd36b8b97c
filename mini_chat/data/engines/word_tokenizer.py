"""Words for datatrove's own blocks: Chinese by characters, everything else by runs of letters and digits.

datatrove's tokenizers for Chinese and English (spaCy, with jieba) load models and a dozen packages. For comparing
documents by runs of five words, as its MinHash blocks do, a character is the better word of Chinese: no segmenter cuts
two editions of a sentence differently. These are the words of `cleaning.tokens` too.

    MinhashDedupSignature(output_folder=…, language=ChineseEnglishTokenizer())
"""

from __future__ import annotations

import re
from itertools import pairwise

from datatrove.utils.word_tokenizers import WordTokenizer, load_tokenizer_assignments, load_word_tokenizer

from mini_chat.data.hanzi import HAN_CLASS

LANGUAGES = ("en", "eng", "eng_Latn", "zh", "cmn", "cmn_Hani")
"""Names that our sources and datatrove have for the two languages."""

_WORD = re.compile(rf"[{HAN_CLASS}〇々]|[^\W_{HAN_CLASS}〇々]+(?:['’][^\W\d_{HAN_CLASS}〇々]+)?")
# What ends a sentence, with the white space behind it: a mark and the quotes around it, full stops only before white
# space, or a line's end.
_END = re.compile(
    r"(?:[。！？!?…]++[”’」』）\"')\]]*+|(?<!\.)\.++[”’\"')\]]*+(?=\s)|\n)\s*+",
)


class ChineseEnglishTokenizer(WordTokenizer):
    """Words and sentences of texts in Chinese, English, or both."""

    def __init__(self) -> None:
        super().__init__("zh")

    def word_tokenize(self, text: str) -> list[str]:
        """Chinese characters, and words of other scripts with their apostrophes; no punctuation."""
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences, without the white space around them."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where sentences begin and end: one begins where the one before ends, so that nothing lies between."""
        edges = [0]
        for found in _END.finditer(text):
            if text[edges[-1] : found.end()].strip():
                edges.append(found.end())
        if text[edges[-1] :].strip():
            edges.append(len(text))
        return list(pairwise(edges))


def register() -> None:
    """Have datatrove's blocks find this tokenizer under the names of both languages."""
    assignments = load_tokenizer_assignments()
    assignments.update(dict.fromkeys(LANGUAGES, ChineseEnglishTokenizer))
    load_word_tokenizer.cache_clear()
