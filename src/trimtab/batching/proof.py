"""The proof of the packed layout, run on each model's first use."""

from __future__ import annotations

import random
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trimtab.batching import masks
from trimtab.batching.batches import Layout, collate
from trimtab.batching.forward import forward, run_prefix
from trimtab.batching.spans import are_rows_apart
from trimtab.batching.tokens import Encoded, Row
from trimtab.logprobs import watching_head
from trimtab.models import text_config


@dataclass(frozen=True)
class Proof:
    """Whether the packed layout holds for a model.

    Attributes:
        holds: packed rows give the log-probs of separate ones, and leaked masks do not.
        error: mean absolute log-prob difference, packed against separate, in nats a token.
        leaked: the least such difference over the deliberately wrong masks.
        shares: whether rows behind a prefix that was computed once give these log-probs, too.
        reason: why it does not hold; empty where it does.
    """

    holds: bool
    error: float
    leaked: float
    reason: str = ""
    shares: bool = False


_UNPACKABLE = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention", "hybrid")
_proofs: weakref.WeakKeyDictionary[nn.Module, dict[str, Proof]] = weakref.WeakKeyDictionary()


def layout_of(model: nn.Module) -> Layout:
    """`shared` or `packed` where the proof holds for this model (run once, on first use), else
    `padded`."""
    proof = packing_proof(model)
    if proof.shares and not are_rows_apart(model):
        return "shared"
    return "packed" if proof.holds else "padded"


def packing_proof(model: nn.Module) -> Proof:
    """Prove the packed layout on a model with random tokens, beyond its smallest sliding window.

    Run on the bare model (no dial attached). The error must stay under a tolerance of the dtype
    and far under what leaking masks give: one where answers see each other, and one without the
    window. The result is kept for the model, its dtype and its attention implementation.
    """
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    config = text_config(model)
    key = f"{parameter.dtype} {getattr(config, '_attn_implementation', '')} {parameter.device}"
    proofs = _proofs.setdefault(model, {})
    if key not in proofs:
        proofs[key] = _prove(model, config, parameter)
    return proofs[key]


def _prove(model: nn.Module, config: Any, parameter: Tensor) -> Proof:
    kinds = " ".join(getattr(config, "layer_types", None) or ())
    if getattr(config, "alibi", False) or any(kind in kinds for kind in _UNPACKABLE):
        return Proof(False, float("nan"), float("nan"), "its attention cannot be masked per answer")
    window = masks.sliding_window(config)
    draw = random.Random(0)
    vocabulary = min(config.vocab_size, 1000)
    n_prompt = (window or 0) + 9
    limit = getattr(config, "max_position_embeddings", None)
    if limit and n_prompt + 8 > limit:
        n_prompt, window = max(1, min(9, limit - 8)), None  # no sequence outruns this window
    prompt = tuple(draw.randrange(vocabulary) for _ in range(n_prompt))
    answers = tuple(tuple(draw.randrange(vocabulary) for _ in range(7)) for _ in range(3))
    encoded = Encoded((Row("proof", prompt, answers, ((0, 1),), (0,)),), 0, None, "proof")
    packed = collate(encoded, [0]).to(parameter.device)
    blind = packed.segments.clamp(max=0)  # every answer taken for a part of the prompt
    leaks: dict[str, Any] = {"answers": masks.packed_mask(blind, packed.positions, window)}
    if masks.adds_masks(config):
        leaks = {k: masks.additive(v, model) for k, v in leaks.items()}
    given: dict[str, Any] = {"right": masks.attention_mask(packed, model)}
    if isinstance(given["right"], dict):
        leaks["answers"] = dict.fromkeys(given["right"], leaks["answers"])
    if window:
        leaks["window"] = masks.build_masks(
            packed.segments, packed.positions, model, windowed=False
        )
    given |= leaks
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.tensor([prompt + a for a in answers], device=parameter.device)
            with watching_head(model):
                logits = model(input_ids=alone, use_cache=False).logits.float()
            truth = torch.log_softmax(logits[:, n_prompt - 1 : -1], -1)
            truth = truth.gather(-1, alone[:, n_prompt:, None])[..., 0].flatten()
            errors = {}
            for name, mask in given.items():
                out = model(
                    input_ids=packed.input_ids,
                    attention_mask=mask,
                    position_ids=packed.positions,
                    use_cache=False,
                ).logits.float()
                logps = torch.log_softmax(out[packed.token_row, packed.token_from], -1)
                logps = logps.gather(-1, packed.token_id[:, None])[:, 0]
                errors[name] = (logps - truth).abs().mean().item()
    except Exception as error:  # whatever a model does not take, padded rows do without
        return Proof(False, float("nan"), float("nan"), f"{type(error).__name__}: {error}")
    finally:
        model.train(was_training)
    error, leaked = errors["right"], min(v for k, v in errors.items() if k != "right")
    tolerance, share = (0.2, 0.25) if half else (1e-3, 0.01)
    if not error <= tolerance:
        return Proof(False, error, leaked, f"packed and separate log-probs differ by {error:.2g}")
    if not error < share * leaked:  # strictly: two zeros prove nothing
        return Proof(
            False,
            error,
            leaked,
            f"a leaked mask differs by {leaked:.2g} only: the proof cannot tell",
        )
    return Proof(
        True, error, leaked, shares=_shares(model, encoded, truth, tolerance, share * leaked)
    )


def _shares(
    model: nn.Module, encoded: Encoded, truth: Tensor, tolerance: float, below: float
) -> bool:
    """Whether two equal rows behind their shared prefix give the log-probs of separate ones."""
    twice = replace(encoded, rows=encoded.rows * 2)
    batch = collate(twice, [0, 1], "shared", share_least=1).to(truth.device)
    past = DynamicCache()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            run_prefix(model, batch, past)
            past.batch_repeat_interleave(len(batch.input_ids))
            out = forward(model, batch, past).logits.float()
    except Exception:  # whatever a model does not take, packed rows do without
        return False
    finally:
        model.train(was_training)
    logps = torch.log_softmax(out[batch.token_row, batch.token_from], -1)
    logps = logps.gather(-1, batch.token_id[:, None])[:, 0]
    error = (logps - truth.repeat(2)).abs().mean().item()
    return error <= tolerance and error < below
