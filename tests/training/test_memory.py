"""What a step keeps for its backward pass, and microbatches that fit the memory they are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers_fit import random_pairs, recipe
from trimtab import sparing
from trimtab.batching import collate, encode, layout_of, plan_batches
from trimtab.dials import AdapterDial
from trimtab.dials.adapter import linear_modules
from trimtab.errors import ConfigError
from trimtab.states import read
from trimtab.training import METHODS, fit
from trimtab.training.adapters import plan
from trimtab.training.forecast import forecast
from trimtab.training.plan import MICROBATCH, MOST, Run
from trimtab.training.recipes import Method
from trimtab.training.settings import bytes_of

PAIRS = random_pairs(12, items=8)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3moe"])
def test_sparing_changes_no_bit(
    name: str, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of every adapter weight are those of a plain pass, of whatever architecture, and less is
    kept than autograd keeps by itself."""
    monkeypatch.setattr(sparing, "LEAST", 1)
    model = tiny(name).requires_grad_(False)
    encoded = encode(PAIRS, tokenizer)
    layout = layout_of(model, encoded)
    batch = collate(encoded, plan_batches(encoded, 400, layout)[0], layout)
    dial = AdapterDial(linear_modules(model), rank=2, generator=torch.Generator().manual_seed(0))
    for B in dial.B:
        torch.nn.init.normal_(B, std=0.1)
    plain, seen = {}, set()

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in mine:
            plain[storage.data_ptr()] = storage.nbytes()
            seen.add(t)  # alive, so that no address is used twice
        return t

    parameters = [*model.parameters(), *dial.parameters()]
    mine = {p.untyped_storage().data_ptr() for p in parameters}
    with dial(model, 0.7, training=True, force=True):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            before = read(model, batch, logps=True, sites=(0,))
        with sparing.sparing(parameters) as counted:
            after = read(model, batch, logps=True, sites=(0,))
        found = []
        for readings in (before, after):
            total = readings.logps.sum() + readings.states[0].square().sum()
            found.append(torch.autograd.grad(total, list(dial.parameters())))
    assert all(map(torch.equal, *found))
    assert 0 < counted.bytes < 0.85 * sum(plain.values())


def test_sparing_keeps_what_is_written_over() -> None:
    """A tensor whose source has been written to, or has gone, is not computed again from what is there."""
    w = torch.ones(64, 128, requires_grad=True)
    base = torch.ones(64, 128)
    with sparing.sparing([w]) as counted:
        doubled = base * 2
        y = (doubled + 0) * w  # of a sum, which is kept
        z = doubled * w
        assert counted.bytes == 2 * w.nbytes  # the sum, and `base` in the place of `doubled`
        tripled = base * 3
        base.zero_()
        late = tripled * w  # kept as it is
        gone = (torch.ones(64, 128) + 4).mul(2) * w
    del doubled, tripled
    for value, of in ((3.0, late), (2.0, y), (10.0, gone)):
        (grad,) = torch.autograd.grad(of.sum(), w, retain_graph=True)
        assert (grad == value).all()
    with pytest.raises(RuntimeError, match="written to"):
        torch.autograd.grad(z.sum(), w)


def test_memory_sizes_microbatches(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More memory, larger microbatches; the parameters are those of any others; what a run has chosen
    stays when it goes on; a forecast names the same memory."""
    monkeypatch.setattr(sparing, "LEAST", 1)
    model, found, chosen = tiny("llama"), [], []
    monkeypatch.setattr(
        "trimtab.training.plan.write_text", lambda f, text: chosen.append((f, text))
    )
    for memory in (None, "3MiB", "1GiB"):
        made = fit(
            recipe(max_steps=2, memory=memory),
            model,
            tokenizer,
            PAIRS,
            out=tmp_path / "d",
            overwrite=True,
        )
        found.append(torch.cat([p.flatten() for p in made.parameters()]))
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-4, atol=1e-6)
    sizes = [int(text) for _, text in chosen]
    assert sizes[0] < sizes[1] == MOST
    assert {f.name for f, _ in chosen} == {MICROBATCH}
    encoded = encode(PAIRS, tokenizer)
    run = Run(Method("dpo", recipe(memory="1GiB"), "", ""), model, encoded, 0, tmp_path)
    (tmp_path / MICROBATCH).write_text("77")
    assert (
        plan(run).schedule
        == plan(replace(run, named=Method("dpo", recipe(microbatch_tokens=77), "", ""))).schedule
    )
    said = forecast(Method("dpo", recipe(memory="1GiB"), "", ""), model, encoded)
    held = sum(p.nbytes for p in model.parameters())
    assert said.expected.bytes == held + 2**30


def test_memory_is_refused_where_it_cannot_be(tiny: Any, tokenizer: Any) -> None:
    """Sizes that are none, that hold no row, and methods whose steps are not measured."""
    assert [bytes_of(t, "m") for t in ("2GiB", "1.5 KB", "10MB")] == [2**31, 1500, 10**7]
    for text in ("2", "GiB", "0GiB", "2gib", "-1GiB", "1e3GiB"):
        with pytest.raises(ConfigError, match=r"train.memory is .*expected a size, such as 2GiB"):
            recipe(memory=text)
    with pytest.raises(ConfigError, match=r"a step on the longest row .* takes about"):
        fit(recipe(memory="1KiB"), tiny("llama"), tokenizer, PAIRS)
    iav = METHODS["iav"].recipe
    with pytest.raises(ConfigError, match="steps of iav are not measured"):
        fit(replace(iav, train=replace(iav.train, memory="1GiB")), tiny("llama"), tokenizer, PAIRS)
