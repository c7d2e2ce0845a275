"""What the language-model experiments share: a small Llama, its terms and sheet, one loop, readings.

The model is an ordinary transformers model; `Anchors` adds the terms in a plain loop. Concept k is
anchored to dimension k of the residual stream after every block but the last.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from trimtab import models
from trimtab.anchoring import surgery
from trimtab.anchoring.callback import Anchors, Concepts, Monitor
from trimtab.anchoring.paths import warm_cosine
from trimtab.anchoring.timeline import Row, Sheet
from trimtab.dials import ConceptDial
from trimtab.objectives.anchoring import AngularAnchor, AntiSubspace, Term, cosine
from trimtab.progress import SILENT, Progress
from trimtab.sites import Site
from trimtab.states import seeing

LABELLED = {"recall": 0.2, "false_positives": 0.005}
"""Of the labels: as a careless annotator gives them."""
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5)


@dataclass(frozen=True)
class Setup:
    """A way of training."""

    name: str
    concepts: tuple[str, ...]
    """The k-th belongs to dimension k."""
    steps: int
    batch: int = 32
    rate: float = 3e-3
    weight: float = 0.1
    """Of the pull, over all blocks together."""
    width: int = 64
    layers: int = 4

    @property
    def sites(self) -> list[int]:
        """Every block: where a concept is taken out."""
        return list(range(self.layers))

    @property
    def middle(self) -> int:
        """The block where a concept is watched."""
        return self.layers // 2


@dataclass(frozen=True)
class Batch:
    """Texts as token ids, padded on the right."""

    ids: Int[Tensor, "text position"]
    mask: Bool[Tensor, "text position"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model takes."""
        return {"input_ids": self.ids, "attention_mask": self.mask.long()}


def pad(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Token ids and which of them count, both `[text, position]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), filler)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.arange(width) < torch.tensor([len(r) for r in rows])[:, None]


def build(setup: Setup, tokenizer: Any, seed: int) -> Any:
    """A fresh model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1_000_003 * seed + 6)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=setup.width,
        intermediate_size=4 * setup.width,
        num_hidden_layers=setup.layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).train()


def terms(setup: Setup) -> list[Term]:
    """At every block but the last: each concept to its dimension, everything else off them all."""
    axes = tuple(range(len(setup.concepts)))
    found = []
    for k in range(setup.layers - 1):
        for axis, concept in enumerate(setup.concepts):
            anchor = AngularAnchor(axis, enough=0.8)
            found.append(Term(f"{concept}-{k}", anchor, k, {concept: 1.0}, "mellowmax"))
        found.append(Term(f"off-{k}", AntiSubspace(axes, relative=True), k))
    return found


def sheet(setup: Setup, steps: int) -> Sheet:
    """An even pull that dies away at the end; a push that sinks to an eighth by 90 % of the way."""
    late, share = round(0.9 * (steps - 1)), setup.weight / (setup.layers - 1)
    rows = []
    for step, pull, push in ((0, 1.0, 2.5), (late, 1.0, 0.3), (steps - 1, 0.1, 0.03)):
        found = {t.name: share * (push if t.name.startswith("off") else pull) for t in terms(setup)}
        rows.append(Row(step, found))
    return Sheet(tuple(rows), name=setup.name)


def train(
    setup: Setup,
    tokenizer: Any,
    seed: int,
    steps: int,
    data: Callable[[int], tuple[Batch, Concepts]],
    watch: Callable[[Any], dict[str, float]],
    *,
    anchored: bool,
    monitors: Sequence[Mapping[str, Any]] = (),
    route: Callable[[Any], Callable[[Batch, Concepts], Tensor]] | None = None,
    progress: Progress = SILENT,
) -> tuple[Any, list[dict[str, float]]]:
    """A model, and what was measured on the way.

    Args:
        data: the texts of a step, and their labels.
        watch: readings of the model, taken 24 times.
        anchored: with the terms; else a control.
        monitors: inputs with true concepts, for the AUROC of dimension 0, taken 8 times.
        route: of the model, what gives it the gradients of a batch, and its loss.
    """
    model = build(setup, tokenizer, seed)
    anchors = None
    if anchored:
        monitor = Monitor(setup.middle, 0, monitors, every=max(1, steps // 8)) if monitors else None
        anchors = Anchors(terms(setup), sheet(setup, steps), monitor=monitor).attach(model)
    backward = route(model) if route else None
    adam = torch.optim.AdamW(model.parameters(), lr=setup.rate, betas=(0.9, 0.95), fused=True)
    history: list[dict[str, float]] = []
    title = f"{setup.name}, seed {seed}, {'anchored' if anchored else 'control'}"
    with progress.bar(title, steps, "steps") as update:
        for step in range(steps):
            batch, labels = data(step)
            for group in adam.param_groups:
                group["lr"] = warm_cosine(setup.rate, step, steps, warm=0.05, last=0.05)
            adam.zero_grad(set_to_none=True)
            if backward:
                loss = backward(batch, labels)
            else:
                loss = mean(surprisal(model, batch), batch.mask[:, 1:])
                if anchors is not None:
                    loss = loss + anchors.loss(labels, batch.mask)
                    anchors.step()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            if step % max(5, steps // 24) == 0:
                history.append({"step": step, "loss": float(loss.detach()), **watch(model)})
            update(step + 1, steps)
    if anchors is not None:
        history += [h for h in anchors.history if any(k.startswith("auroc") for k in h)]
        anchors.detach()
    return model.eval().requires_grad_(False), history


# ---- reading ------------------------------------------------------------------------------------


def surprisal(model: Any, batch: Batch) -> Float[Tensor, "text position-1"]:
    """Nats a token."""
    logits = model(**batch.inputs).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none")


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over what counts."""
    return (values * mask).sum() / mask.sum()


def bits(model: Any, batch: Batch) -> Float[Tensor, "text position-1"]:
    """Bits a token, the model at rest."""
    training = model.training
    with torch.no_grad():
        found = surprisal(model.eval(), batch) / math.log(2)
    model.train(training)
    return found


def states(model: Any, batch: Batch, sites: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream after blocks, `[text, position, d]` each."""
    found: dict[int, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for k in sites:
            stack.enter_context(seeing(model, k, lambda h, k=k: found.update({k: h})))
        model(**batch.inputs)
    return found


def along(setup: Setup, model: Any, batch: Batch) -> list[list[float]]:
    """Mean cosine of a text's states with each concept's dimension, `[dimension][text]`."""
    training = model.training
    h = states(model.eval(), batch, [setup.middle])[setup.middle]
    model.train(training)
    found = []
    for axis in range(len(setup.concepts)):
        values = cosine(h.float(), axis) * batch.mask
        found.append((values.sum(-1) / batch.mask.sum(-1)).tolist())
    return found


def difference(model: Any, batch: Batch, has: Bool[Tensor, "text"], sites: Any) -> ConceptDial:
    """A dial along the difference of means in a trained model: what one does without anchoring."""
    found: dict[Site, Tensor] = {}
    for k, h in states(model, batch, sites).items():
        middle = (h * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
        found[k] = middle[has].mean(0) - middle[~has].mean(0)
    return ConceptDial(found, "project")


def doses(
    setup: Setup,
    control: Any,
    anchored: Any,
    seen: Batch,
    has: Mapping[str, Tensor],
    read: Callable[[Any], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """Readings of both models untouched; of the anchored one with each concept's dimension projected
    out, and of the control with its difference of means over texts of which some `has` it, at every
    alpha."""
    rows = {"control": read(control), "anchored": read(anchored)}
    for axis, concept in enumerate(setup.concepts):
        axial = ConceptDial.at_axis(axis, setup.width, setup.sites)
        found = difference(control, seen, has[concept], setup.sites)
        for alpha in ALPHAS:
            with axial(anchored, alpha, force=True):
                rows[f"{concept} projected at {alpha:g}"] = read(anchored)
            with found(control, alpha, force=True):
                rows[f"{concept}, difference of means at {alpha:g}"] = read(control)
    return rows


def cut(model: Any, axes: Sequence[int]) -> Any:
    """A copy with dimensions of the residual stream zeroed in all its weights."""
    model = copy.deepcopy(model)
    stack: Any = models.layers(model)
    readers = [model.lm_head]
    for b in stack:
        attention, mlp = b.self_attn, b.mlp
        readers += [attention.q_proj, attention.k_proj, attention.v_proj]
        readers += [mlp.gate_proj, mlp.up_proj]
    surgery.ablate_stream(
        writers=[w for b in stack for w in (b.self_attn.o_proj, b.mlp.down_proj)],
        readers=readers,
        axes=axes,
        embeddings=[models.embed(model)],
    )
    return model


def relearn(
    setup: Setup,
    model: Any,
    data: Callable[[int], Batch],
    read: Callable[[Any], dict[str, float]],
    limit: int,
) -> list[dict[str, float]]:
    """Readings every fifth step while a model is trained on, at a tenth of the rate, after the concepts'
    dimensions are cut from its weights."""
    return trained_on(setup, cut(model, range(len(setup.concepts))), data, read, limit)


def trained_on(
    setup: Setup,
    model: Any,
    data: Callable[[int], Batch],
    read: Callable[[Any], dict[str, float]],
    limit: int,
) -> list[dict[str, float]]:
    """Readings every fifth step while a model itself is trained on, at a tenth of the rate."""
    model = model.requires_grad_(True).train()
    adam = torch.optim.AdamW(model.parameters(), lr=setup.rate / 10, fused=True)
    curve = []
    for step in range(limit + 1):
        if step % 5 == 0:
            curve.append(read(model))
        batch = data(step)
        loss = mean(surprisal(model, batch), batch.mask[:, 1:])
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
    return curve
