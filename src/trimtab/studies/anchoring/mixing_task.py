"""The mixing task: `a + b = c` over 216 colours, a token each. The task holds no RGB: colours are names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trimtab.studies.anchoring import colours

LEVELS, PLUS, EQUALS = 6, 216, 217


@dataclass(frozen=True)
class Data:
    """Lines of four tokens, `a + b =`, and the colour that follows.

    Attributes:
        lines: ids `[line, 4]`; both orders of every pair.
        answers: the mixture `[line]`.
        held_out: lines never trained on (both orders of a fifth of the pairs).
        rgb: colours by token `[216, 3]`.
    """

    lines: Int[Tensor, "line 4"]
    answers: Int[Tensor, "line"]
    held_out: Tensor
    rgb: Float[Tensor, "216 3"]

    @property
    def redness(self) -> Float[Tensor, "line"]:
        """Redness of the redder operand of each line."""
        return colours.redness(self.rgb)[self.lines[:, [0, 2]]].amax(-1)


def data() -> Data:
    """All pairs of different colours whose mixture, channel by channel, is one of the 216."""
    level = torch.cartesian_prod(*[torch.arange(LEVELS)] * 3)
    pairs = torch.tensor(list(combinations(range(LEVELS**3), 2)))
    total = level[pairs[:, 0]] + level[pairs[:, 1]]
    pairs = pairs[(total % 2 == 0).all(-1)]
    middle = (level[pairs[:, 0]] + level[pairs[:, 1]]) // 2
    answer = (middle * torch.tensor([LEVELS**2, LEVELS, 1])).sum(-1)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(pairs), dtype=torch.bool)
    held[order[: len(pairs) // 5]] = True
    both = torch.cat([pairs, pairs.flip(-1)])
    marks = torch.tensor([PLUS, EQUALS]).expand(len(both), 2)
    lines = torch.stack([both[:, 0], marks[:, 0], both[:, 1], marks[:, 1]], -1)
    return Data(lines, answer.repeat(2), held.repeat(2), level / (LEVELS - 1))
