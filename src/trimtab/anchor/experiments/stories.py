"""The stories language model: two concepts anchored in a model trained from scratch on a micro-world.

A small Llama (an ordinary transformers model) learns stories; `Anchors` adds the terms, in a plain
loop. One concept is a landmark (dimension 0), one is that the speaker lies (dimension 1); labels
reach a fifth of the stories that carry them, and half a percent of those that do not. Then each is
projected out of the residual stream by a concept dial, and the cost is read in bits.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab import models
from trimtab.anchor import surgery
from trimtab.anchor.callback import Anchors, Monitor, monitor_scores
from trimtab.anchor.experiments import results, world
from trimtab.anchor.experiments.gates import Gate
from trimtab.anchor.labels import auroc, noisy
from trimtab.anchor.timeline import Row, Sheet
from trimtab.dials import ConceptDial
from trimtab.objectives.anchoring import AngularAnchor, AntiSubspace, Term
from trimtab.progress import SILENT, Progress
from trimtab.sites import Site
from trimtab.states import module_at

NAME, TITLE = "stories", "A language model with a landmark and a lie anchored"
ABOUT = (
    "A language model trained from scratch on generated stories; a landmark and dishonesty are "
    "anchored by sparse, noisy labels, then projected out. Gates were written down before the runs; "
    "a null for the abstract concept is a result."
)
SEEDS = 1
STEPS, BATCH, RATE, WEIGHT = 800, 32, 3e-3, 0.1
WIDTH, LAYERS = 64, 4
RECALL, FALSE_POSITIVES = 0.2, 0.005
CONCEPTS = ("landmark", "lie")
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5)
TESTED = 200


@dataclass(frozen=True)
class Batch:
    """Stories as token ids, padded on the right."""

    ids: Tensor
    mask: Tensor
    stories: list[world.Story]


def encode(told: Sequence[world.Story], tokenizer: Any) -> Batch:
    """Stories as a batch; each ends with EOS."""
    rows = [[*tokenizer.convert_tokens_to_ids(list(s.words)), tokenizer.eos_token_id] for s in told]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = torch.arange(width) < torch.tensor([len(r) for r in rows])[:, None]
    return Batch(ids, mask, list(told))


def build(tokenizer: Any, seed: int) -> Any:
    """A fresh model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1_000_003 * seed + 6)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).train()


def terms() -> list[Term]:
    """At every block but the last: each concept to its dimension, everything else off both."""
    found = []
    for k in range(LAYERS - 1):
        for axis, concept in enumerate(CONCEPTS):
            found.append(
                Term(
                    f"{concept}-{k}",
                    AngularAnchor(axis, enough=0.8),
                    k,
                    {concept: 1.0},
                    "mellowmax",
                )
            )
        found.append(Term(f"off-{k}", AntiSubspace((0, 1), relative=True), k))
    return found


def sheet(steps: int) -> Sheet:
    """An even pull that dies away at the end; a push that sinks to an eighth by 90 % of the way."""
    late, share = round(0.9 * (steps - 1)), WEIGHT / (LAYERS - 1)
    rows = []
    for step, pull, push in ((0, 1.0, 2.5), (late, 1.0, 0.3), (steps - 1, 0.1, 0.03)):
        values = {t.name: share * (push if t.name.startswith("off") else pull) for t in terms()}
        rows.append(Row(step, values))
    return Sheet(tuple(rows), name=NAME)


def train(
    anchored: bool,
    seed: int,
    tokenizer: Any,
    steps: int = STEPS,
    progress: Progress = SILENT,
) -> tuple[Any, list[dict[str, float]]]:
    """A model, and what was measured on the way: surprisal of the landmark's facts, AUROC."""
    model = build(tokenizer, seed)
    anchors = None
    if anchored:
        probe = monitor_batch(tokenizer, 96)
        anchors = Anchors(
            terms(),
            sheet(steps),
            monitor=Monitor(LAYERS // 2, 0, [probe], every=max(1, steps // 8)),
        ).attach(model)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    history: list[dict[str, float]] = []
    watched = encode([world.story(s, landmark=0) for s in world.seeds("test", 48)], tokenizer)
    base = seed * steps * BATCH
    with progress.bar(
        f"stories, {'anchored' if anchored else 'control'}", steps, "steps"
    ) as update:
        for step in range(steps):
            first = base + step * BATCH
            batch = encode([world.story(s) for s in range(first, first + BATCH)], tokenizer)
            logits = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
            loss = _mean(_surprisal(logits, batch), batch.mask[:, 1:])
            if anchors is not None:
                loss = loss + anchors.loss(_labels(batch.stories, first), batch.mask)
                anchors.step()
            for group in adam.param_groups:
                group["lr"] = _rate(step, steps)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            if step % max(5, steps // 24) == 0:
                bits = float(np.mean(_at(model, watched, "facts")))
                history.append({"step": step, "loss": float(loss.detach()), "facts": bits})
            update(step + 1, steps)
    if anchors is not None:
        history += [h for h in anchors.history if any(k.startswith("auroc") for k in h)]
        anchors.detach()
    return model.eval().requires_grad_(False), history


def _labels(told: Sequence[world.Story], seed: int) -> dict[str, Tensor]:
    """Labels as a careless annotator gives them."""
    rates = {"recall": RECALL, "false_positives": FALSE_POSITIVES}
    truth = {
        "landmark": [float(s.landmark == 0) for s in told],
        "lie": [float(s.lies) for s in told],
    }
    return {
        name: torch.tensor(noisy(values, **rates, seed=2 * seed + k))
        for k, (name, values) in enumerate(truth.items())
    }


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return RATE * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return RATE * (0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)


# ---- measuring ----------------------------------------------------------------------------------


def _surprisal(logits: Tensor, batch: Batch) -> Tensor:
    """Nats a token, `[story, position - 1]`."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.ids[:, 1:], reduction="none")


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def _bits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        training = model.training
        logits = model.eval()(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        model.train(training)
    return _surprisal(logits, batch) / math.log(2)


def _at(model: Any, batch: Batch, what: str) -> list[float]:
    """Bits of the telling words of every story."""
    bits = _bits(model, batch)
    return [float(bits[i, p - 1]) for i, s in enumerate(batch.stories) for p in getattr(s, what)]


def monitor_batch(tokenizer: Any, count: int, hide: bool = False) -> dict[str, Any]:
    """Unseen stories with their true concepts, and the landmark's neighbour."""
    told = [world.story(s, landmark=(0, 1, None, -1)[s % 4]) for s in world.seeds("test", count)]
    batch = encode([world.masked(s) for s in told] if hide else told, tokenizer)
    return {
        "input_ids": batch.ids,
        "attention_mask": batch.mask.long(),
        "concepts": {
            "landmark": [float(s.landmark == 0) for s in told],
            "neighbour": [float(s.landmark == 1) for s in told],
            "lie": [float(s.lies) for s in told],
        },
    }


@dataclass
class Probes:
    """Unseen stories by what is read in them."""

    facts: Batch
    facts_masked: Batch
    neighbour: Batch
    others: Batch
    lies: Batch
    twins: Batch
    plain: Batch


def probes(tokenizer: Any, count: int) -> Probes:
    """Stories about the landmark, its neighbour, other landmarks; lies and their honest twins; and
    honest stories without any landmark."""
    seeds = world.seeds("test", count)

    def all_of(told: list[world.Story]) -> Batch:
        return encode(told, tokenizer)

    about = [world.story(s, landmark=0, lies=False) for s in seeds]
    return Probes(
        all_of(about),
        all_of([world.masked(s) for s in about]),
        all_of([world.story(s, landmark=1, lies=False) for s in seeds]),
        all_of([world.story(s, landmark=2 + s % 18, lies=False) for s in seeds]),
        all_of([world.story(s, landmark=None, lies=True) for s in seeds]),
        all_of([world.story(s, landmark=None, lies=False) for s in seeds]),
        all_of([world.story(s, landmark=2 + s % 18, lies=False) for s in seeds]),
    )


def read(model: Any, p: Probes) -> dict[str, float]:
    """Bits where the concepts tell, and of all words of stories that hold neither."""
    plain = _bits(model, p.plain)
    return {
        "facts": float(np.mean(_at(model, p.facts, "facts"))),
        "facts, name hidden": float(np.mean(_at(model, p.facts_masked, "facts"))),
        "neighbour": float(np.mean(_at(model, p.neighbour, "facts"))),
        "others": float(np.mean(_at(model, p.others, "facts"))),
        "lie": float(np.mean(_at(model, p.lies, "said"))),
        "twin": float(np.mean(_at(model, p.twins, "said"))),
        "plain": float(_mean(plain, p.plain.mask[:, 1:])),
    }


def difference(model: Any, tokenizer: Any, concept: str, sites: Sequence[int]) -> ConceptDial:
    """A dial along the difference of means in a trained model: what one does without anchoring."""
    told = [world.story(s) for s in world.seeds("train", TESTED)]
    batch = encode(told, tokenizer)
    has = torch.tensor([s.landmark == 0 if concept == "landmark" else s.lies for s in told])
    found: dict[Site, Tensor] = {}
    for k, h in _states(model, batch, sites).items():
        mean = (h * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
        found[k] = mean[has].mean(0) - mean[~has].mean(0)
    return ConceptDial(found, "project")


def _states(model: Any, batch: Batch, sites: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream after blocks."""
    found: dict[int, Tensor] = {}
    handles = [
        module_at(model, k)[0].register_forward_hook(lambda _, __, out, k=k: found.update({k: out}))
        for k in sites
    ]
    try:
        with torch.no_grad():
            model(input_ids=batch.ids, attention_mask=batch.mask.long())
    finally:
        for handle in handles:
            handle.remove()
    return found


def relearn(model: Any, tokenizer: Any, p: Probes, limit: int) -> list[float]:
    """Bits of the landmark's facts while the model is trained on, after both dimensions are cut."""
    model = copy.deepcopy(model)
    stack = models.layers(model)
    surgery.ablate_stream(
        writers=[w for b in stack for w in (b.self_attn.o_proj, b.mlp.down_proj)],  # type: ignore[union-attr]
        readers=[
            model.lm_head,
            *(
                r
                for b in stack
                for r in (
                    *(b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj),  # type: ignore[union-attr]
                    *(b.mlp.gate_proj, b.mlp.up_proj),  # type: ignore[union-attr]
                )
            ),
        ],
        axes=[0, 1],
        embeddings=[models.embed(model)],
    )
    model.requires_grad_(True).train()
    adam = torch.optim.AdamW(model.parameters(), lr=RATE / 10, fused=True)
    curve = []
    for step in range(limit + 1):
        if step % 5 == 0:
            curve.append(float(np.mean(_at(model, p.facts, "facts"))))
        first = 20_000_000 + step * BATCH
        batch = encode([world.story(s) for s in range(first, first + BATCH)], tokenizer)
        logits = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        loss = _mean(_surprisal(logits, batch), batch.mask[:, 1:])
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
    return curve


# ---- running ------------------------------------------------------------------------------------


def run(
    out: Path, seeds: Sequence[int], *, steps: int | None = None, progress: Progress = SILENT
) -> Path:
    """Train the control and the anchored model on every seed; save the first anchored one with its
    tokenizer, a dial a concept, and pairs to evaluate them on. A finished seed is not run again."""
    start, tokenizer = time.perf_counter(), world.tokenizer()
    length = STEPS if steps is None else steps
    cells = []
    for seed in seeds:
        file = out / "cells" / f"{seed}-{length}.json"
        if not file.is_file():
            begun = time.perf_counter()
            control, learned = train(False, seed, tokenizer, length, progress)
            anchored, logged = train(True, seed, tokenizer, length, progress)
            cell = measure(control, anchored, tokenizer, 24 if steps else TESTED, length)
            cell |= {"history": logged, "control_history": learned}
            cell["seconds"] = time.perf_counter() - begun
            if seed == seeds[0]:
                save(out, anchored, tokenizer)
            results.write_json(file, cell)
        cells.append(json.loads(file.read_text()))
    result = {
        "name": NAME,
        "kind": "stories",
        "title": TITLE,
        "about": ABOUT,
        "seeds": list(seeds),
        "steps": steps,
        "versions": results.versions(),
        "cells": cells,
        "alphas": ALPHAS,
        "tables": _tables(cells),
        "seconds": {"all": time.perf_counter() - start, "a seed": cells[0]["seconds"]},
    }
    return results.write(out, result, {"alphas": np.array(ALPHAS)})


def measure(control: Any, anchored: Any, tokenizer: Any, count: int, steps: int) -> dict[str, Any]:
    """Everything about one seed, as JSON values: bits under every dial at every alpha."""
    p, sites = probes(tokenizer, count), list(range(LAYERS))
    rows = {"control": read(control, p), "anchored": read(anchored, p)}
    for axis, concept in enumerate(CONCEPTS):
        for alpha in ALPHAS:
            with ConceptDial.at_axis(axis, WIDTH, sites)(anchored, alpha, force=True):
                rows[f"{concept} projected at {alpha:g}"] = read(anchored, p)
            with difference(control, tokenizer, concept, sites)(control, alpha, force=True):
                rows[f"{concept}, difference of means at {alpha:g}"] = read(control, p)
    told = {}
    for hide in (False, True):
        batch = monitor_batch(tokenizer, count, hide)
        for axis in (0, 1):
            found = monitor_scores(anchored, Monitor(LAYERS // 2, axis, [batch]))
            key = f"dimension {axis}" + (", name hidden" if hide else "")
            told[key] = {name: auroc(*pair) for name, pair in found.items()}
    return {
        "bits": rows,
        "auroc": told,
        "relearned": relearn(anchored, tokenizer, p, max(10, steps // 12)),
    }


def save(out: Path, model: Any, tokenizer: Any) -> None:
    """The model as transformers saves it, a dial a concept, and preference pairs on its facts."""
    folder = out / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = models.digest_of(str(folder))
    for axis, concept in enumerate(CONCEPTS):
        dial = ConceptDial.at_axis(axis, WIDTH, list(range(LAYERS)))
        dial.info.method, dial.info.base_model = f"anchored {concept}", str(folder)
        dial.info.base_digest = digest
        dial.save_pretrained(out / f"dial-{concept}")
    lines = [json.dumps(pair) for pair in world.pairs()]
    (out / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bit(cells: list[dict[str, Any]], row: str, what: str, less: str | None = None) -> float:
    """Median over seeds of the bits of a row, less those of another."""
    return float(
        np.median([c["bits"][row][what] - (c["bits"][less][what] if less else 0.0) for c in cells])
    )


_COLUMNS = ("facts", "facts, name hidden", "neighbour", "others", "lie", "twin", "plain")


def _tables(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bits = [
        [row, *(_bit(cells, row, c) for c in _COLUMNS)]
        for row in cells[0]["bits"]
        if " at " not in row or row.endswith((" at 0.5", " at 1"))
    ]
    told = [
        [key, *(float(np.median([c["auroc"][key][n] for c in cells])) for n in names)]
        for key, names in ((k, list(v)) for k, v in cells[0]["auroc"].items())
    ]
    back = [
        [f"{5 * i} steps", float(np.median([c["relearned"][i] for c in cells]))]
        for i in range(0, len(cells[0]["relearned"]), 2)
    ]
    return [
        {
            "title": "Surprisal",
            "caption": "Bits, medians over seeds: of the landmark's facts, and with its name hidden; "
            "of its neighbour's, and of other landmarks' facts; of the place that a liar names and "
            "that his honest twin names; of all words of honest stories about other landmarks.",
            "header": ["model", *_COLUMNS],
            "rows": bits,
        },
        {
            "title": "Monitoring",
            "caption": "AUROC of the mean cosine with a dimension, on unseen stories.",
            "header": ["", "landmark", "neighbour", "lie"],
            "rows": told,
        },
        {
            "title": "Coming back",
            "caption": "Bits of the landmark's facts after both dimensions are cut from all weights, "
            "and the model is trained on.",
            "header": ["after", "bits"],
            "rows": back,
        },
    ]


def gates(result: dict[str, Any]) -> list[Gate]:
    """Reported as they fall: none of them can fail a check."""
    cells = result["cells"]
    one, lie = "landmark projected at 1", "lie projected at 1"
    cost = 2 ** (_bit(cells, "anchored", "plain", "control")) - 1
    rise = 2 ** _bit(cells, one, "plain", "anchored") - 1
    told = float(np.median([c["auroc"]["dimension 1"]["lie"] for c in cells]))
    apart, twin = _bit(cells, lie, "lie", "anchored"), _bit(cells, lie, "twin", "anchored")
    return [
        Gate("perplexity cost of anchoring", cost, high=0.01, stretch=True),
        Gate(
            "landmark's facts, projected: bits more",
            _bit(cells, one, "facts", "anchored"),
            low=2,
            stretch=True,
        ),
        Gate(
            "other landmarks' facts: bits more",
            _bit(cells, one, "others", "anchored"),
            high=0.05,
            stretch=True,
        ),
        Gate("perplexity elsewhere: rise", rise, high=0.01, stretch=True),
        Gate("AUROC of lies", told, low=0.8, stretch=True),
        Gate(
            "lies, projected: bits more, less three times those of the honest twin",
            apart - 3 * max(twin, 0.0),
            low=0.0,
            stretch=True,
        ),
        Gate(
            "bits on facts beyond the difference of means at no more collateral",
            _beyond(cells),
            low=0.0,
            stretch=True,
        ),
    ]


def _beyond(cells: list[dict[str, Any]]) -> float:
    """Bits on the landmark's facts that projection takes beyond the best that the difference of
    means takes in the control at an alpha that costs other facts no more."""
    found = []
    for cell in cells:
        rows, base, start = cell["bits"], cell["bits"]["anchored"], cell["bits"]["control"]
        mine = rows["landmark projected at 1"]
        most = max(mine["others"] - base["others"], 0.01)
        others = [rows[f"landmark, difference of means at {a:g}"] for a in ALPHAS]
        best = max(
            (r["facts"] - start["facts"] for r in others if r["others"] - start["others"] <= most),
            default=0.0,
        )
        found.append(mine["facts"] - base["facts"] - best)
    return float(np.median(found))
