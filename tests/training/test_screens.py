"""Screens before fitting: by hand, by what is planted, and the logit lens against the model's own logits."""

from __future__ import annotations

import math

import pytest
import torch

from helpers_fit import random_pairs
from helpers_study import trimtab
from trimtab import models
from trimtab.batching import encode
from trimtab.directions.screens import agreement, separation
from trimtab.errors import DataError
from trimtab.objectives import DPO
from trimtab.pairs import Pair, PairSet
from trimtab.training import fit
from trimtab.training import screens as screens_module
from trimtab.training.recipes import Recipe
from trimtab.training.screens import best_site, by_item, disagreement, lens_margins, screened
from trimtab.training.settings import TrainSettings, VectorSettings
from trimtab.training.steering import DirectionRecipe


def noise(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- by hand ------------------------------------------------------------------------------------


def test_agreement_is_the_mean_cosine_of_two_items():
    d = noise(9, 4) * torch.arange(1, 10)[:, None]
    u = d / d.norm(dim=1, keepdim=True)
    cosines = [float(u[i] @ u[j]) for i in range(9) for j in range(9) if i != j]
    assert agreement(d).value == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
    two = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert agreement(two).value == pytest.approx(math.sqrt(0.5))
    same = agreement(two[:1].expand(12, 2))
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    assert 0 < same.chance < 0.5
    with pytest.raises(ValueError, match="length 0"):
        agreement(torch.zeros(3, 2))


def test_agreement_of_noise_is_none_and_of_a_direction_is_some():
    found = agreement(noise(60))
    assert found.low < 0 < found.high
    assert abs(found.value) < found.chance
    # an item drawn twice does not meet itself: resampled, noise agrees no more than it did
    assert (found.low + found.high) / 2 == pytest.approx(found.value, abs=0.01)
    told = agreement(noise(60) + 2 * torch.eye(16)[0])
    assert told.low > told.chance


def test_separation_by_hand():
    # along the one axis that there is: mean 2, standard deviation sqrt(2/3), whichever half is held out
    d = torch.tensor([[1.0], [2.0], [3.0]] * 4)
    assert separation(d).value == pytest.approx(2 / math.sqrt(2 / 3))
    assert separation(-5 * d).value == pytest.approx(2 / math.sqrt(2 / 3))
    held = separation(noise(200, 64))
    assert held.low < 0 < held.high  # in-sample it would be about sqrt(64 / 200)
    with pytest.raises(ValueError, match="four or more"):
        separation(noise(3))


def test_pairs_of_an_item_are_averaged():
    values = torch.tensor([[1.0], [5.0], [2.0]])
    assert by_item(values, ["a", "b", "a"]).tolist() == [[1.5], [5.0]]


# ---- on a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "neox"])
def test_the_lens_at_the_last_block_is_the_model(tiny, tokenizer, store, name):
    """Blocks' states come before the final norm, the last one's, too: one norm, not two. A tied head and
    an own one; post-norms within the blocks (gemma3) make no difference."""
    model = tiny(name)
    encoded = encode(random_pairs(8, items=6), tokenizer)
    last = models.n_layers(model) - 1
    margins, said = lens_margins(model, encoded, (0, last, "final"), store=store)
    assert said == ""
    expected: dict[str, list[float]] = {}
    for row in encoded.rows:
        for c, r in row.pairs:
            a, b = row.answers[c], row.answers[r]
            k = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*row.prompt, *a[:k]]])).logits[0, -1]
            expected.setdefault(row.item, []).append(float(logits[a[k]] - logits[b[k]]))
    means = [sum(v) / len(v) for v in expected.values()]
    assert margins[last].tolist() == pytest.approx(means, abs=2e-4)
    assert margins["final"].tolist() == pytest.approx(means, abs=2e-4)
    assert margins[0].tolist() != pytest.approx(means, abs=1e-2)


def test_both_ties_are_there(tiny):
    tied = {n: bool(models.text_config(tiny(n)).tie_word_embeddings) for n in ("llama", "gemma3")}
    assert set(tied.values()) == {True, False}


def test_a_second_norm_is_found(tiny, tokenizer, store, monkeypatch):
    """What follows the last block is tried on the states themselves: normed twice, nothing is said of it."""
    model = tiny("llama")
    with torch.no_grad():  # as trained: not all ones, for which a second norm is no change
        models.final_norm(model).weight.copy_(torch.linspace(0.2, 3, 32))
    encoded = encode(random_pairs(6), tokenizer)
    once = screens_module._norm_of(model)
    assert once is not None
    try:
        assert lens_margins(model, encoded, (1,), store=store)[0]
        monkeypatch.setattr(screens_module, "_norm_of", lambda _: lambda h: once(once(h)))
        margins, said = lens_margins(model, encoded, (1,), store=store)
    finally:
        with torch.no_grad():
            models.final_norm(model).weight.fill_(1.0)
    assert (margins, said) == (
        {},
        "no logit lens: between the last block and the head is more than a norm",
    )


def test_screens_of_a_data_set(tiny, tokenizer, store, few_pairs):
    model = tiny("llama")
    screens, said = screened(model, encode(few_pairs, tokenizer), store=store)
    assert [s.site for s in screens] == list(range(models.n_layers(model)))
    assert said == ""
    best = best_site(screens)
    assert max(s.separation.value for s in screens) == screens[int(best)].separation.value
    assert all(s.lens and 0 <= s.lens.value <= 1 for s in screens)
    dial = fit(DirectionRecipe(sites="auto"), model, tokenizer, few_pairs, store=store)
    assert dial.places() == [best]
    assert dial.info.config["sites"] == "auto"
    train = TrainSettings(pairs_per_step=4, max_steps=1)
    trained = Recipe(DPO(), VectorSettings(sites="auto"), train)
    assert fit(trained, model, tokenizer, few_pairs, store=store).places() == [best]
    with pytest.raises(DataError, match="four or more"):
        screened(model, encode(few_pairs.limit(3), tokenizer), store=store)


def test_whole_sequences_have_no_lens(tiny, tokenizer, store):
    from trimtab.batching import make_contrast

    suffixes = ["The sky is very blue", "My cat sat down", "It rains a lot", "We ate all bread"]
    contrast = make_contrast("Be {persona}.", ["good"], ["bad"], suffixes, tokenizer)
    screens, said = screened(tiny("llama"), contrast, store=store)
    assert all(s.lens is None for s in screens)
    assert "no logit lens" in said


def test_pairs_that_do_not_agree_are_told():
    items = [str(n) for n in range(40)]
    assert "do not agree" in disagreement(noise(40), items)
    assert disagreement(noise(40) + 2 * torch.eye(16)[0], items) == ""
    assert disagreement(noise(5), items[:5]) == ""  # too few to say
    # two orders of a question whose letter alone is seen: in each item it cancels
    letter = 3 * torch.eye(16)[1]
    both = torch.cat([noise(40) + letter, noise(40, seed=1) - letter])
    assert "do not agree" in disagreement(both, items * 2)


def test_inspect_screens_every_block(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    page = tmp_path / "screens.html"
    words = [
        "inspect",
        "facts:dev[:6 items]",
        "--model",
        str(tmp_path / "model"),
        "--dtype",
        "float32",
    ]
    done = trimtab(*words, "--quiet", "--layers", "--page", page)
    assert done.code == 0, done.err
    for part in ("agreement", "largest d′: block", "nats a token of neutral text"):
        assert part in " ".join(done.out.split())
    assert page.read_text().count("<svg") >= 3
    for wrong in (["--page", str(page)], ["--layers", "--pool", "first"]):
        assert trimtab(*words, *wrong).code == 2


def test_one_pair_an_item_of_letters(tiny, tokenizer, store):
    """Lettered questions part at the letter: what both say before it is common."""
    question = "Which?\n (A) {}\n (B) {}\n\nAnswer:"
    pairs = PairSet(
        [Pair(question.format(f"up{n}", n), " (A", " (B", str(n), open=True) for n in range(4)],
        "ab",
    )
    model = tiny("llama")
    encoded = encode(pairs, tokenizer)
    margins, said = lens_margins(model, encoded, (0,), store=store)
    assert len(margins[0]) == 4
    assert said == ""
