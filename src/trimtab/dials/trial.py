"""What a model's modules do with rows and tokens, and which linear layers can be adapted: by trying."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.dials.contexts import paused
from trimtab.dials.linear import dense_weight, linear_shape
from trimtab.errors import ConfigError, DialError, ModelError
from trimtab.sites import Site
from trimtab.states import input_of, module_at

SHAPES = ((2, 5), (3, 7))
"""Rows and tokens of the passes that are compared: no two of their numbers or products are alike."""

UNRUN = "it is not run on text"
"""Of a module that a few tokens do not pass."""


T = TypeVar("T")


@dataclass(frozen=True)
class Axes:
    """Which axes of a module's output are rows and tokens.

    Attributes:
        rank: how many axes there are.
        rows: the axis of rows.
        tokens: that of tokens; the same where rows of tokens stand in one line; None without tokens.
        streams: axes beside these and the last one, of more than one entry: residual streams, heads.
    """

    rank: int
    rows: int
    tokens: int | None
    streams: tuple[int, ...] = ()

    def spread(self, values: Tensor, y: Tensor, what: str) -> Tensor:
        """Values `[B]` or `[B, T]` as they multiply an output y, whose rows may be k times as many:
        each value then serves k rows in a row (beams).

        Raises:
            ConfigError: y has other axes, or another number of rows or tokens.
        """
        if y.ndim != self.rank:
            raise ConfigError(
                f"{what}: an output of shape {tuple(y.shape)}, not of {self.rank} axes"
            )
        flat = self.tokens == self.rows
        per_token = values.ndim == 2
        many = values.numel() if flat and per_token else len(values)
        repeat, rest = divmod(y.shape[self.rows], many)
        if rest or not repeat:
            raise ConfigError(f"{what} has {many} rows, the batch has {y.shape[self.rows]}")
        shape = [1] * self.rank
        if flat:
            values = values.reshape(-1).repeat_interleave(repeat, 0)
            shape[self.rows] = -1
            return values.to(y.device).view(shape)
        values = values.to(y.device).repeat_interleave(repeat, 0)
        shape[self.rows] = len(values)
        if per_token:
            if self.tokens is None or values.shape[1] not in (1, y.shape[self.tokens]):
                tokens = 0 if self.tokens is None else y.shape[self.tokens]
                raise ConfigError(
                    f"{what} has {values.shape[1]} tokens a row, the batch has {tokens}"
                )
            shape[self.tokens] = values.shape[1]
            if self.tokens < self.rows:
                values = values.mT
        return values.reshape(shape)


def axes_at(model: nn.Module, site: Site) -> Axes | str:
    """The axes of the output at a site, or why there are none that could be told."""
    module, _ = module_at(model, site)
    return _shape_of(model, module)[0]


def width_at(model: nn.Module, site: Site, what: str) -> int | None:
    """Entries of a state at a site; None where that cannot be told beforehand.

    Raises:
        DialError: after a decoder layer, states in several streams, in which a vector has no one place.
    """
    module, is_input = module_at(model, site)
    if is_input:
        return None
    found, width = _shape_of(model, module)
    if isinstance(found, str):
        return models.text_config(model).hidden_size if is_named(site) else None
    if found.streams and (is_named(site) or module in set(models.layers(model))):
        raise DialError(
            f"{what} at site {site!r}: {type(models.unwrapped(model)).__name__} keeps several residual "
            f"streams there, and a state has no one place in them; expected sites with one state a "
            f"token, such as {_single(model)}"
        )
    return width if is_named(site) else None


def is_named(site: Site) -> bool:
    """Whether a site is a block, the embedding or the final norm, and no module's path."""
    return isinstance(site, int) or site in ("embed", "final")


def _single(model: nn.Module) -> str:
    """Sites whose output is one state a token, as an example."""
    names = []
    with suppress(ModelError):  # a model may have no final norm
        names += ["'final'"] if is_one_state(axes_at(model, "final")) else []
    path, layer = models.layer_paths(model)[-1], models.layers(model)[-1]
    names += [
        f"'{path}.{n}:out'"
        for n, m in layer.named_children()
        if is_one_state(_shape_of(model, m)[0])
    ]
    return ", ".join(names[:4]) or "none is known"


def is_one_state(found: Axes | str) -> bool:
    """Whether an output is `[B, T, d]`."""
    return isinstance(found, Axes) and (found.rank, found.rows, found.tokens) == (3, 0, 1)


# ---- passes over a few random tokens ------------------------------------------------------------

_known: weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[int, Any]]] = (
    weakref.WeakKeyDictionary()
)


def once(model: nn.Module, what: str, find: Callable[[], T]) -> T:
    """What was found of a model, as long as it consists of the same modules."""
    parts = hash(tuple((id(m), type(m)) for m in models.unwrapped(model).modules()))
    known = _known.setdefault(models.trunk(model), {})
    if what not in known or known[what][0] != parts:
        known[what] = parts, find()
    return known[what][1]


def tensor_of(output: Any) -> Tensor | None:
    """The hidden states that a module gives: its output, or the first of several."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def few_tokens(model: nn.Module, shape: tuple[int, int]) -> dict[str, Any]:
    """What to call a model with for a pass over (rows, tokens) random tokens, always the same."""
    where = next(p.device for p in model.parameters() if p.device.type != "meta")
    vocabulary = min(models.text_config(model).vocab_size, 1000)
    generator = torch.Generator().manual_seed(shape[0])
    ids = torch.randint(vocabulary, shape, generator=generator).to(where)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


@contextmanager
def trying(model: nn.Module) -> Iterator[Callable[[tuple[int, int]], Tensor]]:
    """Within it, a function of (rows, tokens) that runs the bare model on random tokens and gives its
    logits. The model is in eval mode meanwhile."""
    model = models.unwrapped(model)
    with models.reading(model), models.uncompiled(), paused(), torch.inference_mode(False):
        yield lambda shape: model(**few_tokens(model, shape)).logits


def _shape_of(model: nn.Module, module: nn.Module) -> tuple[Axes | str, int | None]:
    """The axes of a module's output, or why they cannot be told; and its last axis's length."""
    return once(model, "shapes", lambda: _all_shapes(model)).get(module, (UNRUN, None))


def _all_shapes(
    model: nn.Module,
) -> weakref.WeakKeyDictionary[nn.Module, tuple[Axes | str, int | None]]:
    try:
        first, second = (_shapes(model, shape) for shape in SHAPES)
    except Exception as error:  # of any kind: the model cannot be tried
        why = f"a pass over {SHAPES[0]} tokens fails ({type(error).__name__}: {error})"
        first = second = dict.fromkeys(model.modules(), why)
    found: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    for module, shape in first.items():
        width = shape[-1] if shape and not isinstance(shape, str) else None
        found[module] = (
            _compared(shape, second.get(module, "it is run on some tokens alone")),
            width,
        )
    return found


def _shapes(model: nn.Module, shape: tuple[int, int]) -> dict[nn.Module, Any]:
    """The shape of each module's output in a pass, or what it is instead."""
    seen: dict[nn.Module, Any] = {}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        y = tensor_of(output)
        new = f"it gives a {type(output).__name__}" if y is None else tuple(y.shape)
        seen[module] = new if seen.get(module, new) == new else "it is run on different shapes"

    with trying(model) as run, ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(look).remove)
        run(shape)
    return seen


def _compared(first: Any, second: Any) -> Axes | str:
    """The axes that grew with rows and tokens."""
    for shape in (first, second):
        if isinstance(shape, str):
            return shape
    (b, t), (B, T) = SHAPES
    grew = [
        (i, pair) for i, pair in enumerate(zip(first, second, strict=False)) if len({*pair}) > 1
    ]
    places = {pair: i for i, pair in grew}
    if len(first) == len(second) and len(places) == len(grew):
        others = tuple(i for i, n in enumerate(first[:-1]) if n > 1 and i not in places.values())
        if set(places) == {(b * t, B * T)}:
            at = places[b * t, B * T]
            return Axes(len(first), at, at, others)
        if (b, B) in places and set(places) <= {(b, B), (t, T)}:
            return Axes(len(first), places[b, B], places.get((t, T)), others)
    return f"it gives {first} for {b} rows of {t} tokens and {second} for {B} of {T}"


# ---- linear layers ------------------------------------------------------------------------------


NO_GRADIENT = "nothing that is added to its output reaches the logits with a gradient"
LONG = 512
"""Tokens of a pass in which layers are tried that act on long texts alone (compressed keys)."""


def unfit(model: nn.Module) -> dict[str, str]:
    """For every linear layer within the decoder layers why an adapter cannot sit there, by its path;
    empty where it can: it gives W x + b, and what is added to its output moves the logits.

    One pass over a few tokens, and back, once a model. A model that cannot be tried is taken at its
    word.
    """
    return once(model, "linear", lambda: _tried(model))


def refuse_unfit(model: nn.Module, paths: Iterable[str], *, training: bool = False) -> None:
    """Raise DialError where an adapter would sit on layers that it cannot act on as it would on a
    weight: what is trained or exported there would differ from what runs."""
    reasons = unfit(model)
    bad = [p for p in paths if reasons.get(p) and (training or reasons[p] != NO_GRADIENT)]
    if bad:
        raise DialError(
            f"{bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''}: no adapter can sit "
            f"there, {reasons[bad[0]]}; leave such layers out (targets all-linear does)"
        )


def _tried(model: nn.Module) -> dict[str, str]:
    layers: dict[nn.Module, list[str]] = {}
    kin: dict[str, tuple[str, str]] = {}  # the layer, and the name less the number of an expert
    for prefix, layer in zip(models.layer_paths(model), models.layers(model), strict=True):
        for name, module in layer.named_modules():
            if linear_shape(module) is not None:
                path = f"{prefix}.{name}"
                layers.setdefault(module, []).append(path)
                kin[path] = prefix, re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", name)
    limit = getattr(models.text_config(model), "max_position_embeddings", None) or LONG
    try:
        found = _pass(model, list(layers), SHAPES[0])
        late = [m for m in layers if found.get(m) == NO_GRADIENT]
        if late:
            found |= _pass(model, late, (1, min(LONG, int(limit))))
    except Exception:  # of any kind: what cannot be tried is taken at its word
        found = dict.fromkeys(layers, "")
    # Of many experts a few tokens meet some alone: what holds for one holds for its like.
    met = {
        kin[path] for module, paths in layers.items() for path in paths if found.get(module) == ""
    }
    unmet = "its model never runs it as a module"
    return {
        path: found.get(module, "" if kin[path] in met else unmet)
        for module, paths in layers.items()
        for path in paths
    }


def _pass(
    model: nn.Module, layers: Sequence[nn.Module], shape: tuple[int, int]
) -> dict[nn.Module, str]:
    """Why each layer that is run is not fit for an adapter, empty where it is."""
    found: dict[nn.Module, str] = {}
    added: dict[nn.Module, Tensor] = {}

    def look(module: Any, args: Any, kwargs: Any, y: Any) -> Any:
        if not isinstance(y, Tensor):
            found[module] = f"it gives a {type(y).__name__}, not W x + b"
            return None
        with torch.no_grad():
            linear = _is_linear(module, input_of(args, kwargs), y)
        found[module] = found.get(module, "") if linear else "it is not W x + b"
        if module not in added:
            added[module] = torch.zeros_like(y).requires_grad_()
        return y + added[module] if added[module].shape == y.shape else None

    with trying(model) as run, models.differentiable(model), ExitStack() as stack:
        for module in layers:
            stack.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        with torch.enable_grad():
            logits = run(shape).float()
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
            total = (logits * weights.to(logits.device)).sum()
            leaves = list(added.values())
            slopes = (
                torch.autograd.grad(total, leaves, allow_unused=True)
                if total.requires_grad
                else [None] * len(leaves)
            )
    for module, slope in zip(added, slopes, strict=True):
        if not found[module] and (slope is None or not slope.any()):
            found[module] = NO_GRADIENT
    return found


def _is_linear(module: Any, x: Tensor, y: Tensor) -> bool:
    """Whether y is W x + b; of a weight that is not plain, taken for granted."""
    weight = getattr(module, "weight", None)
    if type(weight) is not nn.Parameter or not weight.dtype.is_floating_point or weight.ndim != 2:
        return True
    W, b = dense_weight(module), module.bias
    if x.shape[-1] != W.shape[1]:
        return False
    expected = nn.functional.linear(x.float(), W, None if b is None else b.float())
    if expected.shape != y.shape:
        return False
    tolerance = 1e-3 if y.dtype.itemsize >= 4 else 5e-2
    return bool((y.float() - expected).norm() <= tolerance * expected.norm())
