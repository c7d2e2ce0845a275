"""A preference pair and an ordered set of them: the one form in which data enters the house."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

Messages = tuple[dict[str, Any], ...]
"""Chat messages, each with `role` and `content`, both text, and what else a template may read."""

Text = str | Messages
"""Plain text, or chat messages."""


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to one prompt.

    Attributes:
        prompt: what both answers follow; may be empty, then the answers are whole sequences.
        chosen: the better answer.
        rejected: the worse answer.
        item: pairs cut from one multi-response item share this name. Splits, intervals and
            accuracies count items, never pairs.
        concept: an optional label of what the pair is about.
        source: where the pair was read, for error messages (`file:line`).
        system: a text that goes before the messages (or before a plain prompt).
        tools: JSON schemas of functions, for the chat template.
        chat_template_kwargs: further values for the chat template.
        open: the answers go on: what ends an answer is not scored.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    item: str
    concept: str | None = None
    source: str | None = None
    system: str | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    open: bool = False

    @property
    def conversational(self) -> bool:
        """Whether the answers are chat messages instead of plain text."""
        return not isinstance(self.chosen, str)

    @property
    def setting(self) -> str:
        """System text, tools, values for the template and whether answers go on, as JSON; empty where there
        is none of it. Pairs with one prompt in two settings have two prompts."""
        named = ("system", "tools", "chat_template_kwargs", "open")
        given = {name: value for name in named if (value := getattr(self, name))}
        return json.dumps(given, ensure_ascii=False, sort_keys=True) if given else ""

    def content(self) -> list[object]:
        """Prompt, chosen, rejected and the setting, if any, as JSON values: what digests look at."""
        texts = (self.prompt, self.chosen, self.rejected)
        return [
            *(t if isinstance(t, str) else list(t) for t in texts),
            *([self.setting] if self.setting else []),
        ]


class PairSet(Sequence[Pair]):
    """Pairs in file order, with the spec they came from and a digest of their content."""

    def __init__(
        self,
        pairs: Iterable[Pair],
        name: str,
        left_out: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ):
        self.pairs: tuple[Pair, ...] = tuple(pairs)
        self.name = name
        """The spec string, or what the caller named it."""
        self.left_out: dict[str, int] = dict(left_out or {})
        """What reading the source left out and how often, by reason; parts of the set keep it."""
        self.notes: tuple[str, ...] = tuple(notes)
        """What else is to be said of how the source was read, unused columns among it."""

    def _part(self, pairs: Iterable[Pair]) -> PairSet:
        return PairSet(pairs, self.name, self.left_out, self.notes)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> PairSet: ...
    def __getitem__(self, index: int | slice) -> Pair | PairSet:
        if isinstance(index, slice):
            return self._part(self.pairs[index])
        return self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __repr__(self) -> str:
        return f"PairSet({self.name!r}, {len(self)} pairs, {len(self.items())} items)"

    @property
    def digest(self) -> str:
        """sha256 over the content and the grouping, independent of where the file lies."""
        sha = hashlib.sha256()
        for pair in self.pairs:
            sha.update(json.dumps([*pair.content(), pair.item], ensure_ascii=False).encode())
            sha.update(b"\n")
        return sha.hexdigest()

    def items(self) -> dict[str, list[Pair]]:
        """Pairs by item, items in order of first appearance."""
        groups: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            groups.setdefault(pair.item, []).append(pair)
        return groups

    def limit(self, n: int | None) -> PairSet:
        """The first `n` items (all of their pairs); None keeps everything."""
        if n is None:
            return self
        keep = set(list(self.items())[:n])
        return self._part(p for p in self.pairs if p.item in keep)

    def split(self, fraction: float, seed: int = 0) -> tuple[PairSet, PairSet]:
        """Two disjoint sets by item: about `1 - fraction` and `fraction` of the items.

        The same seed gives the same split; file order is kept within each part.
        """
        names = list(self.items())
        random.Random(seed).shuffle(names)
        held = set(names[: round(len(names) * fraction)])
        return (
            self._part(p for p in self.pairs if p.item not in held),
            self._part(p for p in self.pairs if p.item in held),
        )
