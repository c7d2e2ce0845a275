"""Names of columns by what they hold, in the data sets that people have: `data/columns.yaml`."""

from __future__ import annotations

from .written import written

_NAMES = written("columns")
PROMPTS, STEMS, VERDICTS, SIGNED, SCORES, ANSWERS, LISTS, RIGHT = (
    tuple(_NAMES[what])
    for what in ("prompts", "stems", "verdicts", "signed", "scores", "answers", "lists", "right")
)
PAIRS: tuple[tuple[str, str], ...] = tuple(map(tuple, _NAMES["pairs"]))
ENDS: tuple[tuple[str, str], ...] = tuple(map(tuple, _NAMES["ends"]))
THIRD: dict[str, tuple[str, ...]] = {end: tuple(more) for end, more in _NAMES["third"].items()}
OWN = {
    *("prompt", "chosen", "rejected", "positive", "negative", "suffix", "item", "concept"),
    *("system", "tools", "chat_template_kwargs"),
}
KNOWN = {
    *(*OWN, "choices", "options", "a", "b", "c", "d", "e"),
    *("kto_tag", "scores", "ratings", "rewards", "ranks", "winner", "score_a", "score_b"),
    *PROMPTS,
    *(name for pair in PAIRS for name in pair),
    *(stem + end for stem in (*STEMS, "score") for ends in ENDS for end in ends),
    *(*VERDICTS, *SCORES, *ANSWERS, *LISTS, *RIGHT),
}
"""Names that a header may write in another case, or with blanks."""
