"""From pairs to token batches: the packed shared-prefix layout, its masks and its proof.

One row holds one prompt and *all* answers to it that an item has. Each answer sees the prompt and
itself alone and counts its positions from the prompt's end, so that a row gives the same log-probs
and states as the answers run one by one, while the prompt is computed once.

    row        p p p p a a a b b          (prompt, answer 1, answer 2)
    segment    0 0 0 0 1 1 1 2 2
    position   0 1 2 3 4 5 6 4 5

The masks that make this true are built per layer type, a sliding window counted in positions. The
layout proves itself on each model's first use (`packing_proof`); a model that fails, and one whose
attention cannot be masked so (ALiBi, recurrent, hybrid), gets padded rows of one answer each.

What all prompts of a batch begin with (an instruction, a chat template) is computed once: its keys
and values, gradients included, stand before every row (layout `shared`, proved likewise).
"""

from trimtab.batching.batches import (
    Batch,
    Over,
    Spans,
    answer_spans,
    by_answer,
    collate,
    plan_batches,
    row_cost,
    row_length,
    trimmed,
)
from trimtab.batching.contrast import (
    Contrast,
    batches_of,
    contrast_batches,
    gradient_batches,
    node_batches,
)
from trimtab.batching.forward import forward, run_prefix
from trimtab.batching.layouts import Arrangement, Layout, unshared
from trimtab.batching.masks import attention_mask, packed_mask, sliding_window, tree_mask
from trimtab.batching.poles import encode_contrast, is_contrast, make_contrast
from trimtab.batching.positions import (
    Positions,
    Where,
    layout_for,
    pooled_tokens,
    token_positions,
)
from trimtab.batching.proof import Proof, layout_of, packing_proof
from trimtab.batching.schedule import Schedule, plan_training
from trimtab.batching.tokens import Encoded, Row, encode, encode_answers
from trimtab.batching.trunk import Trunk
from trimtab.rendering import PromptStyle, Turn

__all__ = [
    "Arrangement",
    "Batch",
    "Contrast",
    "Encoded",
    "Layout",
    "Over",
    "Positions",
    "PromptStyle",
    "Proof",
    "Row",
    "Schedule",
    "Spans",
    "Trunk",
    "Turn",
    "Where",
    "answer_spans",
    "attention_mask",
    "batches_of",
    "by_answer",
    "collate",
    "contrast_batches",
    "encode",
    "encode_answers",
    "encode_contrast",
    "forward",
    "gradient_batches",
    "is_contrast",
    "layout_for",
    "layout_of",
    "make_contrast",
    "node_batches",
    "packed_mask",
    "packing_proof",
    "plan_batches",
    "plan_training",
    "pooled_tokens",
    "row_cost",
    "row_length",
    "run_prefix",
    "sliding_window",
    "token_positions",
    "tree_mask",
    "trimmed",
    "unshared",
]
