"""What two sets of pairs have in common, by content, and the check that a suite's splits do not."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import DataError
from .files import shown, text_of
from .pair import Pair, PairSet


def answered(pair: Pair) -> set[tuple[str, str]]:
    """Prompt with chosen, and prompt with rejected."""
    prompt = text_of(pair.prompt)
    return {(prompt, text_of(pair.chosen)), (prompt, text_of(pair.rejected))}


def overlap(first: PairSet, second: PairSet) -> dict[str, int]:
    """What of `second` is also in `first`, compared by text.

    Returns:
        `pairs` and `items` of `second` of which an answer to the same prompt is in `first`, be it
        as chosen or as rejected; `prompts`: distinct prompts (not the empty one) in both;
        `answers`: distinct answers in both, whatever the prompt.
    """
    seen = {key for pair in first for key in answered(pair)}
    shared = [pair for pair in second if not seen.isdisjoint(answered(pair))]
    prompts = {text_of(p.prompt) for p in first} & {text_of(p.prompt) for p in second}
    answers = {a for _, a in seen} & {a for pair in second for _, a in answered(pair)}
    return {
        "pairs": len(shared),
        "items": len({pair.item for pair in shared}),
        "prompts": len(prompts - {""}),
        "answers": len(answers),
    }


def check_disjoint(train: PairSet, others: Mapping[str, PairSet]) -> None:
    """Make sure that no other split holds an answer to a prompt that training holds too.

    Prompts alone may be shared, as in some published splits: `overlap` counts them.

    Raises:
        DataError: names the split, how many of its items and pairs it shares, and one of them.
    """
    seen = {key for pair in train for key in answered(pair)}
    for name, split in others.items():
        shared = [pair for pair in split if not seen.isdisjoint(answered(pair))]
        if not shared:
            continue
        prompt, answer = min(seen & answered(shared[0]))
        raise DataError(
            f"split {name!r} ({split.name}) shares {len({p.item for p in shared})} items "
            f"({len(shared)} pairs) with the training data ({train.name}); for example the prompt "
            f"{shown(prompt)} with the answer {shown(answer)} at {shared[0].source}"
        )


def unseen(train: PairSet, split: PairSet) -> PairSet:
    """A split without the items of which training holds an answer to the same prompt; what was left
    out is counted among its `left_out`."""
    seen = {key for pair in train for key in answered(pair)}
    shared = {pair.item for pair in split if not seen.isdisjoint(answered(pair))}
    kept = [pair for pair in split if pair.item not in shared]
    if not shared:
        return split
    if not kept:
        raise DataError(f"{split.name}: every item is in the training data ({train.name})")
    counts = {**split.left_out, "pairs of items that training holds, too,": len(split) - len(kept)}
    return PairSet(kept, split.name, counts, split.notes)
