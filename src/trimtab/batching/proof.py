"""Which layout holds for a model and the rows that it is about to read, found by trying."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models, proofs
from trimtab.batching import masks, probes
from trimtab.batching.batches import WIDEST, Batch, collate
from trimtab.batching.block_proof import know_blocks
from trimtab.batching.contrast import ROW, Contrast
from trimtab.batching.forward import forget_lengths, forward, prefix_of
from trimtab.batching.layouts import Arrangement, BatchLayout, Layout, unshared
from trimtab.batching.spans import BARE, are_rows_apart
from trimtab.batching.tokens import Encoded, Row
from trimtab.errors import DataError, ModelError
from trimtab.logprobs import know_head, watching_head


@dataclass(frozen=True)
class Proof:
    """What a model gives for some rows, laid out so and so, against each answer run by itself as a
    plain forward pass. Differences are in nats: the root of the mean square over an answer's tokens,
    of the worst answer.

    Attributes:
        holds: packed rows give the log-probs of separate ones, and leaked masks do not.
        error: the difference of packed rows; of padded ones where those are not computed.
        leaked: the least difference over the deliberately wrong masks.
        shares: whether several rows in a line, and rows behind a prefix that was computed once, give
            these log-probs, too.
        reason: why it does not hold; empty where it does.
        pads: whether padded rows give them (found where packed ones do not).
        refused: why these are no log-probs of next tokens at all; empty where they are.
        tried: tokens of the longest sequence that was tried; 0 where trying costs more than it saves.
        plain_head: whether logits are the LM head's product, with nothing done to them after it.
    """

    holds: bool
    error: float
    leaked: float
    reason: str = ""
    shares: bool = False
    pads: bool = False
    refused: str = ""
    tried: int = 0
    plain_head: bool = False

    @property
    def layout(self) -> BatchLayout:
        """The cheapest layout that holds."""
        if self.holds:
            return "shared" if self.shares else "packed"
        return "padded" if self.pads else "alone"


_UNPACKABLE = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention", "hybrid")
_NAN = float("nan")
_told: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def layout_of(model: nn.Module, rows: Encoded | Contrast | None = None) -> Layout:
    """The cheapest layout in which a model reads these rows right, found by trying some of them.

    Rows that share a batch must give the log-probs that each answer gives by itself, in a plain
    forward pass. `shared` or `packed` rows are tried first, then `padded` ones. Where none holds for
    all rows (a RoPE that scales with the longest row of the batch, a block-sparse attention) they are
    tried by length, on either side of what the config says, and those for which none holds run
    `alone`, one by one. So do rows that are too long to be tried in ten seconds or a tenth of the pass.
    What was found is remembered for the model and the rows; a fallback is told once.

    Args:
        rows: what is about to be read; None tries rows of random tokens, beyond the sliding window.

    Raises:
        ModelError: the model gives no log-probs of next tokens: it cannot run on a row alone, sees
            what follows, or gives other values at each pass.
        DataError: rows longer than the positions that the model has learned.
    """
    if rows is not None:
        _check_positions(model, rows)
    if why := models.rows_depend(model):
        _tell(model, f"{why}; rows are read one by one")
        return "alone"
    _tell(model, know_blocks(model, lambda: _prove(model, probes.random_rows(model), 4 * WIDEST)))
    found = proofs.proven(
        model,
        "layout 1",
        "random" if rows is None else [type(rows).__name__, rows.digest],
        lambda: _arranged(model, rows),
    )
    know_head(model, found["plain_head"])
    _tell(model, found["told"])
    parts = tuple((end, kind) for end, kind in found["parts"])
    layout: Layout = parts[0][1] if len(parts) == 1 else Arrangement(parts)
    return unshared(layout) if are_rows_apart(model) else layout


def packing_proof(model: nn.Module, rows: Encoded | Contrast | None = None) -> Proof:
    """Try the layouts on a model and rows as `layout_of` does, on all of them together."""
    every, width = _every(model, rows)
    on = "random" if rows is None else [type(rows).__name__, rows.digest]
    found = proofs.proven(model, "packing 1", on, lambda: asdict(_prove(model, every, width)))
    know_head(model, found["plain_head"])
    return Proof(**found)


def _tell(model: nn.Module, text: str) -> None:
    """Say something of a model, once."""
    told = _told.setdefault(model, set())
    if text and text not in told:
        told.add(text)
        warnings.warn(f"{type(models.unwrapped(model)).__name__}: {text}", stacklevel=3)


def _check_positions(model: nn.Module, rows: Encoded | Contrast) -> None:
    limit = models.learned_positions(model)
    long = [row.longest for row in probes.rows_of(rows) if limit and row.longest > limit]
    if long:
        raise DataError(
            f"{rows.name}: {len(long)} of its rows have up to {max(long)} tokens, and "
            f"{type(model).__name__} has learned {limit} positions; leave longer rows out "
            f"(--max-length {limit})"
        )


# ---- what is tried on what ----------------------------------------------------------------------


def _every(model: nn.Module, rows: Encoded | Contrast | None) -> tuple[list[Row], int]:
    """All rows, and the width of the widest line that several of them may share."""
    every = probes.random_rows(model) if rows is None else probes.rows_of(rows)
    return every, ROW if isinstance(rows, Contrast) else WIDEST


def _arranged(model: nn.Module, rows: Encoded | Contrast | None) -> dict[str, Any]:
    """`layout_of` as JSON values."""
    every, width = _every(model, rows)
    whole = _prove(model, every, width)
    if whole.refused:
        raise ModelError(f"{type(model).__name__}: {whole.refused}")
    parts: list[list[Any]] = [[None, whole.layout]]
    divisible = rows is not None and not isinstance(rows, Contrast)
    if whole.tried and not whole.holds and divisible:
        by_length = _by_length(model, every, width)
        if not whole.pads or any(kind in ("shared", "packed") for _, kind in by_length):
            parts = by_length
    longest = max(row.longest for row in every)
    if len(parts) == 1 and 0 < whole.tried < longest:
        parts = [[whole.tried, parts[0][1]], [None, "alone"]] if divisible else [[None, "alone"]]
    return {"parts": parts, "told": _told_of(whole, parts), "plain_head": whole.plain_head}


def _by_length(model: nn.Module, rows: Sequence[Row], width: int) -> list[list[Any]]:
    """Layouts of the ranges between the lengths that the config names, each tried on its own rows; of
    the shorter and the longer half where it names none."""
    lengths = sorted(row.longest for row in rows)
    ends = probes.cuts(model, rows) or sorted({lengths[(len(lengths) - 1) // 2]} - {lengths[-1]})
    parts: list[list[Any]] = []
    low = -1
    for end in [*ends, None]:
        mine = [r for r in rows if r.longest > low and (end is None or r.longest <= end)]
        if mine:
            parts.append([end, _prove(model, mine, width).layout])
            if parts[0][1] == "alone":  # the shortest ones: it is not their length
                return [[None, "alone"]]
        low = end or low
    parts[-1][0] = None
    return [  # rows that run alone need no bounds between them
        part
        for part, after in zip(parts, [*parts[1:], [None, ""]], strict=True)
        if not part[1] == after[1] == "alone"
    ]


def _told_of(proof: Proof, parts: list[list[Any]]) -> str:
    kinds = {kind for _, kind in parts}
    if proof.holds or not proof.tried:
        return ""
    if kinds == {"padded"}:
        return "" if proof.reason == _MASKED else f"{proof.reason}; rows are padded"
    how = "rows are read one by one" if kinds == {"alone"} else "rows are batched by length"
    return f"{proof.reason}; {how}"


# ---- one trial ----------------------------------------------------------------------------------

_MASKED = "its attention cannot be masked per answer"
Truth = dict[int, Tensor]
"""Log-probs of the scored tokens of answers, by their number in the set, each run alone."""


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The bare model in eval mode, without gradients."""
    token = BARE.set(True)
    try:
        with models.reading(model), torch.no_grad(), models.uncompiled():
            yield
    finally:
        BARE.reset(token)


def _prove(model: nn.Module, rows: Sequence[Row], width: int) -> Proof:
    """The layouts on a few of these rows, each against what the answers give alone."""
    tried, longest = probes.choose(rows, probes.affordable(model, rows))
    if not tried:
        return Proof(False, _NAN, _NAN, "its rows are too few to be worth trying")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    half = dtype in (torch.bfloat16, torch.float16)
    tolerance, share = (0.2, 0.25) if half else (1e-3, 0.01)
    encoded = probes.encoded(tried)
    with quiet(model):
        try:
            with watching_head(model):
                _alone(model, tried[0].prompt, tried[0].answers[0])
            refused = _refused(model, tried[0], tolerance)
            answers = [(row.prompt, answer) for row in tried for answer in row.answers]
            truth = {n: _alone(model, *answer) for n, answer in enumerate(answers)}
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds; each means that it cannot be read
            refused = f"it cannot run on a row of {longest} tokens alone ({_line(error)})"
        if refused:
            return Proof(False, _NAN, _NAN, refused, refused=refused)
        seen: dict[str, Any] = {"tried": longest, "plain_head": know_head(model)}
        error, leaked, reason = _packed(model, encoded, truth, tolerance, share)
        wide = probes.widest(rows, tried)
        if not reason and wide is not None:
            reason = _wide(model, wide, tolerance)
        if not reason:
            below = min(tolerance, share * leaked)
            shares = _shares(model, encoded, truth, below, width)
            return Proof(True, error, leaked, shares=shares, **seen)
        worst, why = _error(model, collate(encoded, range(len(tried)), "padded"), truth)
        if not why and not worst <= tolerance:
            why = f"padded rows and single ones differ by {worst:.2g} nats a token"
        if why:
            return Proof(False, worst, leaked, why, **seen)
        return Proof(False, error, leaked, reason, pads=True, **seen)


def _alone(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Log-probs of an answer's tokens in a plain forward pass of its sequence."""
    ids = torch.tensor([[*prompt, *answer]], device=_device(model))
    forget_lengths(model)
    logits = model(input_ids=ids, use_cache=False).logits
    first = max(len(prompt), 1)
    logps = logits[0, first - 1 : -1].float().log_softmax(-1)
    return logps.gather(-1, ids[0, first:, None])[:, 0]


def _refused(model: nn.Module, row: Row, tolerance: float) -> str:
    """Why what the model gives for a row is no log-prob of next tokens; empty where it is."""
    ids = [*row.prompt, *row.answers[-1]]
    cut = max(1, len(ids) // 2)
    first, again = (_alone(model, ids[:1], ids[1:]) for _ in range(2))
    if not first.isfinite().all():
        return "its logits are not finite: its numbers overflow in this dtype (try float32), or are wrong"
    most = tolerance / 10
    if models.quantisation_of(model):  # inputs rounded by the whole batch's range are no look ahead
        most = max(most, _root(first - first.mean()) / 20)
    if (gap := _root(first - again)) > most:
        return f"two passes over one row differ by {gap:.2g} nats a token"
    later = [*ids[:cut], *reversed(ids[cut:])]
    gap = _root((first - _alone(model, later[:1], later[1:]))[: cut - 1])
    if gap > most:
        return (
            f"a token's log-prob changes by {gap:.2g} nats with the tokens that follow it: it is no "
            "causal language model"
        )
    return ""


def _packed(
    model: nn.Module, encoded: Encoded, truth: Truth, tolerance: float, share: float
) -> tuple[float, float, str]:
    """The difference of packed rows, the least one of leaking masks, and why they do not hold."""
    config = models.text_config(model)
    kinds = " ".join(getattr(config, "layer_types", None) or ())
    if getattr(config, "alibi", False) or any(kind in kinds for kind in _UNPACKABLE):
        return _NAN, _NAN, _MASKED
    packed = collate(encoded, range(len(encoded.rows)))
    error, why = _error(model, packed, truth)
    if why:
        return error, _NAN, why
    if not error <= tolerance:
        return error, _NAN, f"packed and separate log-probs differ by {error:.2g} nats a token"
    leaked = min(_error(model, packed, truth, mask)[0] for mask in _leaks(model, packed))
    if not error < share * leaked:  # strictly: two zeros prove nothing
        return error, leaked, f"a leaked mask differs by {leaked:.2g} only: the proof cannot tell"
    return error, leaked, ""


def _leaks(model: nn.Module, packed: Batch) -> list[Any]:
    """Wrong masks: one where the answers see each other; one without the window, where it matters."""
    config = models.text_config(model)
    packed = packed.to(_device(model))
    window = masks.sliding_window(config)
    blind = masks.packed_mask(packed.segments.clamp(max=0), packed.positions, window)
    if masks.adds_masks(config):
        blind = masks.additive(blind, model)
    right = masks.attention_mask(packed, model)
    leaks: list[Any] = [dict.fromkeys(right, blind) if isinstance(right, dict) else blind]
    if window and int(packed.positions.max()) >= window:
        leaks.append(masks.build_masks(packed.segments, packed.positions, model, windowed=False))
    return leaks


def _wide(model: nn.Module, row: Row, tolerance: float) -> str:
    """Why a row of many answers does not hold, judged on its first, its longest and its last."""
    longest = max(range(len(row.answers)), key=lambda n: len(row.answers[n]))
    some = {0, longest, len(row.answers) - 1}
    truth = {n: _alone(model, row.prompt, row.answers[n]) for n in some}
    row = replace(row, turns=())  # whole answers, as in the truth, whatever of them is scored
    worst, why = _error(model, collate(probes.encoded([row]), [0]), truth)
    if not why and not worst <= tolerance:
        why = f"packed and separate log-probs differ by {worst:.2g} nats a token"
    return why


def _shares(model: nn.Module, encoded: Encoded, truth: Truth, below: float, width: int) -> bool:
    """Whether several rows in a line, and rows behind a shared prefix, long or short, give the
    log-probs of separate ones."""
    rows = encoded.rows
    line = list(range(len(rows)))
    while sum(rows[n].packed_length for n in line) < width:
        line.append(line[len(line) % len(rows)])
    batches = [collate(encoded, line, "shared", share_least=10**9, one_line=True)]
    long = max(range(len(rows)), key=lambda n: len(rows[n].prompt))
    if len(rows[long].prompt) > 1:
        other = probes.changed(rows[long])
        truth = {**truth, encoded.n_answers: _alone(model, other.prompt, other.answers[0])}
        more = replace(encoded, rows=(*rows, other))
        batches += [collate(more, [long, n], "shared", share_least=1) for n in (long, len(rows))]
    return all(_error(model, batch, truth)[0] < below for batch in batches)


def _error(model: nn.Module, batch: Batch, truth: Truth, mask: Any = None) -> tuple[float, str]:
    """How far the worst answer of a batch is from the truth about it, or why it cannot be run."""
    batch = batch.to(_device(model))
    scored = batch.token_scored
    row, at, ids = batch.token_row[scored], batch.token_from[scored], batch.token_id[scored]

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][row, at][None], *args[1:])

    try:
        past = prefix_of(model, batch, models.n_layers(model) - 1)
        handle = models.head(model).register_forward_pre_hook(gather)
        try:
            logits = forward(model, batch, past, mask).logits[0]
        finally:
            handle.remove()
        logps = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        parts = logps.split(torch.bincount(batch.token_answer[scored]).tolist())
        gaps = [
            _root(part - truth[n])
            for n, part in zip(batch.answer_ids.tolist(), parts, strict=True)
            if n in truth
        ]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does not take, other layouts do without
        return _NAN, f"{batch.layout} rows cannot be run ({_line(error)})"
    return (max(gaps), "") if all(gap == gap for gap in gaps) else (_NAN, "")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _root(difference: Tensor) -> float:
    """The root of the mean square; 0 of nothing."""
    return float(difference.square().mean().sqrt()) if difference.numel() else 0.0


def _line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:120]}"
