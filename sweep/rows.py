"""The pairs that every kind is read and trained on, and the truth about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab import Pair, PairSet
from trimtab.batching import Encoded

_LONG = (
    "Question: here is a long common beginning that all prompts of this set have, in every row. "
)
_PAIRS = [
    ("Is the sky blue?", (" Yes.",), (" No, never.",)),
    ("Two and two?", (" Four it is, my dear friend.",), (" Five.", " Nine of them, no more.")),
    (
        "What do cats say to the dogs when nobody is there?",
        (" Meow, and then they run up the tree.",),
        (" Moo.",),
    ),
    ("Hi", (" Hello there.", " Good day."), (" Go away!",)),
    ("Ok", (" A.",), (" B",)),
    (_LONG + "Is it cold?", (" Rather.",), (" Hot as an oven.",)),
    (_LONG + "Is it wet?", (" A little bit so.",), (" Dry.",)),
    (_LONG + "Is it big?", (" No.",), (" Vast and tall.",)),
]
"""Of 4 to 120 bytes: on both sides of every window, chunk, block and RoPE length of the tiny configs."""


def pairs(longest: int = 10**6) -> PairSet:
    """All pairs whose prompts are not longer than this."""
    made = [
        Pair(prompt, chosen, rejected, str(n))
        for n, (prompt, better, worse) in enumerate(_PAIRS)
        if len(prompt) <= longest
        for chosen in better
        for rejected in worse
    ]
    return PairSet(made, "sweep")


def logits(model: Any, ids: list[int] | tuple[int, ...]) -> Tensor:
    """What a plain forward pass over one sequence gives, `[T, V]`. A short one goes before: models
    with dynamic NTK scaling keep the frequencies of the longest sequence until then."""
    with torch.no_grad():
        if "dynamic" in str(getattr(model.config, "rope_parameters", "")):
            model(input_ids=torch.tensor([[3, 4]]), use_cache=False)
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()


def truth(model: Any, encoded: Encoded) -> Tensor:
    """The summed log-prob of every answer, each in a pass of its own."""
    found = []
    for row in encoded.rows:
        for answer, turns in zip(row.answers, row.turns, strict=True):
            z = logits(model, row.prompt + answer).log_softmax(-1)
            scored = [n for turn in turns for n in range(turn.start, turn.stop)]
            at = [len(row.prompt) + n for n in scored if len(row.prompt) + n > 0]
            ids = torch.tensor(row.prompt + answer)[at]
            found.append(z[torch.tensor(at) - 1].gather(-1, ids[:, None]).sum())
    return torch.stack(found)
