"""What anchoring costs: 60 seeds of a colour experiment, a mixing run, the callback in a real step."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from bench import data, results


def run_seeds(quick: bool) -> results.Found:
    """`anchor_60_seeds_over_20_s`: experiment 2.9.1 on one thread, training alone."""
    import torch

    from trimtab.studies.anchoring.catalogue import find
    from trimtab.studies.anchoring.train import members, train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        (group,) = members(find("2.9.1"), range(6 if quick else 60))
        train(find("2.9.1"), group, steps=60 if quick else None)
        took = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return {"anchor_60_seeds_over_20_s": (took / 20, {"seconds": took, "seeds": 60, "steps": 1501})}


def run_mixing(quick: bool) -> results.Found:
    """`anchor_mixing_over_90_s`: one anchored run of the mixing transformer, two threads."""
    import torch

    from trimtab.studies.anchoring import mixing

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        start = time.perf_counter()
        mixing.train(mixing.ARMS["pooling"], 0, mixing.data(), 20 if quick else mixing.STEPS)
        took = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return {"anchor_mixing_over_90_s": (took / 90, {"seconds": took, "steps": mixing.STEPS})}


def run_callback(repeats: int, quick: bool) -> results.Found:
    """`anchor_callback_over_step`: training steps of the real model with terms at three blocks, over
    the same steps without; interleaved, so that both see the same machine."""
    import torch

    from trimtab import models
    from trimtab.anchoring.callback import Anchors
    from trimtab.anchoring.timeline import Row, Sheet
    from trimtab.objectives.anchoring import AngularAnchor, AntiSubspace, Term

    model, _ = models.load(data.MODEL, dtype="float32")
    model.train().requires_grad_(True)
    terms: list[Term] = []
    for k in (7, 14, 21):
        terms.append(Term(f"pull-{k}", AngularAnchor(0), k, {"concept": 1.0}, "mellowmax"))
        terms.append(Term(f"push-{k}", AntiSubspace((0,), relative=True), k))
    keys = {t.name: 0.1 for t in terms}
    anchors = Anchors(terms, Sheet((Row(0, keys), Row(100, keys))))
    ids = torch.randint(0, 40_000, (4, 64), generator=torch.Generator().manual_seed(0))
    concepts = {"concept": torch.tensor([1.0, 0, 0, 0])}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(anchored: bool) -> float:
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        if anchored:
            loss = loss + anchors.loss(concepts)
            anchors.step()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return time.perf_counter() - start

    took: dict[bool, list[float]] = {False: [], True: []}
    # Many short steps: a difference of a hundredth is under the noise of a few long ones.
    for number in range(4 if quick else 2 * (8 * repeats + 1)):
        anchored = bool(number % 2)
        if anchored:
            anchors.attach(model)
        else:
            anchors.detach()
        took[anchored].append(step(anchored))
    with_it, without = (median(took[which][1:]) for which in (True, False))
    details: dict[str, Any] = {"with": with_it, "without": without}
    return {"anchor_callback_over_step": (with_it / without, details)}
