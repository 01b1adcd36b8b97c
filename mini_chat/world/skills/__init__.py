"""The twelve skills. A maker takes the facts, a random generator, a language and a split, and returns an `Example`."""

from __future__ import annotations

from mini_chat.world.skills.numbers import arithmetic, compare, counting, order
from mini_chat.world.skills.personal import Maker, identity, known_fact, memory
from mini_chat.world.skills.reading import in_language, story, unknown
from mini_chat.world.skills.words import category, translate

SKILLS: dict[str, Maker] = {
    "identity": identity,
    "facts": known_fact,
    "story": story,
    "memory": memory(known_fact, arithmetic, category, counting),
    "compare": compare,
    "order": order,
    "arithmetic": arithmetic,
    "counting": counting,
    "translate": translate,
    "language": in_language,
    "unknown": unknown,
    "category": category,
}
# How often each is practised: the ones that have to be computed need more of it than the ones that are copied.
WEIGHTS = {
    "identity": 2, "facts": 3, "story": 2, "memory": 3, "compare": 4, "order": 3, "arithmetic": 5, "counting": 4,
    "translate": 3, "language": 2, "unknown": 2, "category": 4,
}  # fmt: skip
