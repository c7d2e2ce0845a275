"""Preference heads: aggregates and losses by hand, TRL's where they meet, candidates as drawn."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import TINY, random_rows
from helpers_fit import adapter, files_of, random_pairs
from trimtab import models
from trimtab.batching import answer_spans, encode
from trimtab.dials import Dial, LogitsDial, RewardDial, VectorDial
from trimtab.errors import ConfigError, DataError, DialError
from trimtab.evaluation import Sampling, score
from trimtab.evaluation.rewards import (
    Drawing,
    draw,
    expected_kl,
    pick,
    reward_scores,
    rewards_of,
    score_candidates,
    token_rewards,
)
from trimtab.objectives.heads import DPH
from trimtab.pairs import Pair, PairSet
from trimtab.progress import Progress
from trimtab.readings import features
from trimtab.readout import Readout
from trimtab.store import Store
from trimtab.training import fit
from trimtab.training.recipes import AdapterSettings, DPHRecipe, RewardSettings, TrainSettings
from trimtab.training.reward_head import moments, tied_at_the_end

os.environ["CI"] = "1"  # TRL then reports to nobody
AGGREGATES = ("marker", "last", "mean", "max", "weighted", "attention")
POOLINGS = (
    ("identity", False),
    ("bert", False),
    ("t5", False),
    ("swiglu", False),
    ("swiglu", True),
)
IDS = torch.randint(2, 320, (3, 14), generator=torch.Generator().manual_seed(7))


def drawn(width: int = 32, seed: int = 0, **options: Any) -> RewardDial:
    """A dial all of whose weights are drawn."""
    g = torch.Generator().manual_seed(seed)
    dial = RewardDial(width, **options)
    for p in dial.weights.values():
        p.data = 0.3 * torch.randn(p.shape, generator=g)
    return dial.eval()


def sigmoid(x: Any) -> Tensor:
    return F.logsigmoid(torch.as_tensor(x, dtype=torch.double))


# ---- aggregation and pooling --------------------------------------------------------------------


def test_aggregates_by_hand() -> None:
    h = torch.tensor([[1.0, -4.0], [3.0, 8.0], [2.0, 0.0], [7.0, 7.0]])  # the last is the EOS
    states = torch.stack([h, torch.full_like(h, 50.0)])[:, :, None]  # a second, shorter sequence
    states[1, :2, 0] = h[1:3]
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    marker = torch.tensor([[False, False, False, True], [False] * 4])
    for aggregate, first, second in (
        ("marker", [7, 7], [2, 0]),  # without a marker, the last token
        ("last", [2, 0], [2, 0]),
        ("mean", [2, 4 / 3], [2.5, 4]),
        ("max", [3, 8], [3, 8]),
        ("weighted", [(1 + 6 + 6) / 6, (-4 + 16) / 6], [(3 + 4) / 3, 8 / 3]),
        ("attention", [2, 4 / 3], [2.5, 4]),  # queries of 0: the mean
    ):
        dial = RewardDial(2, aggregate=aggregate, attention_heads=1)  # type: ignore[arg-type]
        found = dial.aggregated(states, mask, marker)
        torch.testing.assert_close(found, torch.tensor([first, second], dtype=torch.float))
        if aggregate == "marker":
            with pytest.raises(DialError, match="no reward a token"):
                dial.aggregated(states, mask, marker, every=True)
            continue
        # At every token, what the text up to there gives: correct at the point where it is read.
        every = dial.aggregated(states, mask, marker, every=True)
        for n in (1, 2, 3):
            shorter = mask.clone()
            shorter[0, n:] = False
            part = dial.aggregated(states, shorter, torch.zeros_like(marker))
            torch.testing.assert_close(every[0, n - 1], part[0])


def test_attention_by_hand() -> None:
    """Softmax over tokens of query . key, a head a slice of the state."""
    dial = drawn(8, aggregate="attention", attention_heads=2)
    g = torch.Generator().manual_seed(1)
    states = torch.randn(1, 5, 1, 8, generator=g)
    mask = torch.tensor([[True, True, True, True, False]])
    found = dial.aggregated(states, mask, torch.zeros_like(mask))[0]
    h = states[0, :4, 0]
    keys = h @ dial.weights["key"].T
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weight = (keys[:, part] @ dial.weights["query"][part] / 2).softmax(0)
        torch.testing.assert_close(found[part], weight @ h[:, part])


def test_poolings_by_hand() -> None:
    h = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for pooling, norm in POOLINGS:
        dial = drawn(6, pooling=pooling, norm=norm, inner=5, attention_heads=1)
        w = dial.weights
        x = h
        if pooling == "swiglu":
            if norm:
                x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["norm"]
            x = x @ w["up"].T + w["up_bias"]
            x = x[:, :5] * (x[:, 5:] * torch.sigmoid(x[:, 5:]))
        if pooling != "identity":
            x = torch.tanh(x @ w["pool"].T + w["pool_bias"])
        torch.testing.assert_close(dial.rewards(h), x @ w["reward"].T)
        count = sum(p.numel() for p in dial.parameters())
        assert (
            count
            == {"identity": 6, "bert": 48, "t5": 48, "swiglu": 10 * 6 + 10 + 30 + 6 + 6}[pooling]
            + 6 * norm
        )
    dial = drawn(6, pooling="t5", dropout=0.5, attention_heads=1).train()
    torch.manual_seed(0)
    assert not torch.equal(dial.rewards(h), dial.rewards(h))


def test_sites_are_mixed() -> None:
    states = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    mean = RewardDial(4, sites=(0, 1))
    torch.testing.assert_close(mean.mixed(states), states.mean(2))
    learned = RewardDial(4, sites=(0, 1), mix="softmax")
    torch.testing.assert_close(learned.mixed(states), states.mean(2))  # at first alike
    learned.weights["mix"].data = torch.tensor([math.log(3.0), 0.0])
    torch.testing.assert_close(
        learned.mixed(states), 0.75 * states[:, :, 0] + 0.25 * states[:, :, 1]
    )
    learned.standardise(torch.ones(2, 4), torch.full((2, 4), 2.0))
    torch.testing.assert_close(
        learned.mixed(states), 0.375 * (states[:, :, 0] - 1) + 0.125 * (states[:, :, 1] - 1)
    )


# ---- losses -------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    w = torch.tensor([1.2, 1.2, -0.3], dtype=torch.double)
    r = torch.tensor([0.4, -2.0, 0.9], dtype=torch.double)
    group = torch.tensor([4, 4, 7])
    loss = lambda **o: DPH(**o)(w, r, group)[0]  # noqa: E731
    s = 0.1
    torch.testing.assert_close(
        loss(),
        -((1 - s) * sigmoid(w) + s * sigmoid(-w)) - (s * sigmoid(r) + (1 - s) * sigmoid(-r)),
    )
    con = -(1 - s) * sigmoid(w - r) - s * sigmoid(r - w)
    torch.testing.assert_close(loss(loss="contrastive"), con)
    torch.testing.assert_close(
        loss(loss="contrastive", weight_centre=0.5), con + 0.5 * (w + r) ** 2
    )
    lists = [torch.tensor([1.2, 0.4, -2.0]).double(), torch.tensor([-0.3, 0.9]).double()]
    ce = [-values.log_softmax(0)[0] for values in lists]
    torch.testing.assert_close(
        loss(loss="listwise", label_smoothing=0), torch.stack([ce[0], ce[0], ce[1]])
    )
    target = [torch.tensor([0.8, 0.1, 0.1]).double(), torch.tensor([0.8, 0.2]).double()]
    soft = [-(t * v.log_softmax(0)).sum() for t, v in zip(target, lists, strict=True)]
    torch.testing.assert_close(
        loss(loss="listwise", label_smoothing=0.2), torch.stack([soft[0], soft[0], soft[1]])
    )
    # The separable loss is least at +-log((1 - s) / s), as the paper has it.
    best = math.log(0.9 / 0.1)
    for step in (-0.01, 0.01):
        there = torch.tensor([best], dtype=torch.double)
        away = DPH()(there + step, -there, torch.zeros(1).long())[0]
        assert away > DPH()(there, -there, torch.zeros(1).long())[0]
    policy = Readout(
        chosen_logps=torch.tensor([-3.0, -4.0, -5.0]),
        rejected_logps=torch.tensor([-4.0, -4.0, -1.0]),
        chosen_tokens=torch.tensor([2, 2, 5]),
    )
    before = Readout(chosen_logps=torch.zeros(3), rejected_logps=torch.tensor([1.0, 0.0, 0.0]))
    rho = torch.tensor([1 + 1, 0.0, -4.0])
    joint = DPH(weight_dpo=2, weight_sft=0.5, beta=0.3)(w, r, group, policy, before)[0]
    dpo = -(1 - s) * sigmoid(0.3 * rho) - s * sigmoid(-0.3 * rho)
    sft = torch.tensor([1.5, 2.0, 1.0])
    torch.testing.assert_close(joint, loss() + 2 * dpo + 0.5 * sft.double(), check_dtype=False)


def test_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    w, r = (torch.randn(5, generator=g, dtype=torch.double, requires_grad=True) for _ in range(2))
    group = torch.tensor([0, 0, 1, 2, 2])
    for loss in ("separable", "contrastive", "listwise"):
        objective = DPH(loss=loss, weight_centre=0.3)  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(lambda a, b, o=objective: o(a, b, group)[0], (w, r))


def test_as_trl(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The reward of the EOS behind a linear head, contrastive without smoothing, and centring: TRL's
    RewardTrainer on the same backbone and weights gives the same loss and the same gradient."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification

    model = tiny("llama")
    config = type(model.config)(**{**model.config.to_dict(), "num_labels": 1})
    other = LlamaForSequenceClassification(config).eval()
    other.model.load_state_dict(model.model.state_dict())
    dial = drawn()
    other.score.weight.data = dial.weights["reward"].data.clone()
    pairs = random_pairs(6)
    args = trl.RewardConfig(
        output_dir=str(tmp_path),
        report_to="none",
        max_length=None,
        center_rewards_coefficient=0.2,
        per_device_train_batch_size=len(pairs),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    trainer = trl.RewardTrainer(
        model=other, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))
    theirs.backward()
    encoded = encode(pairs, tokenizer)
    from trimtab.batching import collate
    from trimtab.states import read_tokens

    whole = collate(encoded, list(range(len(encoded.rows))), "packed")
    states, counts, _ = read_tokens(model, whole, dial.sites, dial.where)
    h = dial.from_tokens(states, counts, answer_spans(encoded), whole.answer_ids)
    r = dial.rewards(h)[:, 0]
    objective = DPH(loss="contrastive", label_smoothing=0, weight_centre=0.2)
    ours = objective(r[whole.pair_chosen], r[whole.pair_rejected], whole.pair_chosen)[0].mean()
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        dial.weights["reward"].grad, other.score.weight.grad, rtol=1e-3, atol=1e-5
    )


# ---- training -----------------------------------------------------------------------------------


def small(objective: DPH | None = None, epochs: int = 8, **dial: Any) -> DPHRecipe:
    return DPHRecipe(
        objective=objective or DPH(),
        dial=RewardSettings(**dial),
        train=TrainSettings(pairs_per_step=4, epochs=epochs, learning_rate=3e-2),
    )


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregate": "mean", "over": "all", "pooling": "bert", "sites": "1,final"},
        {"aggregate": "attention", "mix": "softmax", "sites": "0..1", "pooling": "swiglu"},
        {"aggregate": "max", "over": "last_turn", "features": "live", "pooling": "t5"},
    ],
)
def test_fit(options: Any, tiny: Any, tokenizer: Any, cached: Path) -> None:
    """It learns its pairs; the model is as it was; what is saved gives the same rewards, which are
    those that training saw."""
    model, pairs = tiny("llama"), random_pairs(12)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logits = model(input_ids=IDS).logits
    dial: Any = fit(small(**options), model, tokenizer, pairs, out=cached / "dial")
    lines = (cached / "dial" / "training.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert history[0]["loss"] == pytest.approx(2 * math.log(2), abs=1e-5)  # rewards start at 0
    assert sum(h["accuracy"] for h in history[-3:]) / 3 > 0.9
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    encoded = encode(pairs, tokenizer)
    r, read = rewards_of(model, dial, encoded, logps=True)
    assert reward_scores(encoded, r).accuracy.mean() > 0.9
    assert read.logps is not None
    assert score(model, encoded, dial).accuracy.mean() > 0.9
    assert score(model, encoded, dial, -1.0).accuracy.mean() < 0.1
    loaded: Any = Dial.from_pretrained(cached / "dial")
    assert torch.equal(rewards_of(model, loaded, encoded)[0], r)
    with loaded(model, 1.0):  # a frozen backbone's logits are the same to the bit
        assert torch.equal(model(input_ids=IDS).logits, logits)
    if dial.causal:
        every = token_rewards(model, dial, encoded)
        where = answer_spans(encoded, dial.over)
        last = torch.stack(
            [v[-1 if dial.over == "all" else int(where.end[i]) - 2] for i, v in enumerate(every)]
        )
        torch.testing.assert_close(last, r, rtol=1e-3, atol=1e-3)


def test_fit_jointly_with_an_adapter(tiny: Any, tokenizer: Any, cached: Path) -> None:
    """LoRA, reward head and DPO in one loss; at alpha 0 the model is untouched, the reward is read
    with the adapter on."""
    model, pairs = tiny("llama"), random_pairs(12)
    recipe = small(
        DPH(weight_dpo=1.0, weight_sft=0.1),
        epochs=3,
        adapter="lora",
        lora=AdapterSettings(rank=2, lora_alpha=4),
        aggregate="mean",
    )
    bare = model(input_ids=IDS).logits
    dial: Any = fit(recipe, model, tokenizer, pairs, out=cached / "dial")
    history = [json.loads(x) for x in (cached / "dial" / "training.jsonl").read_text().splitlines()]
    assert history[0]["dpo_margin"] == pytest.approx(0, abs=1e-4)
    assert history[-1]["dpo_margin"] > 0.05
    loaded: Any = Dial.from_pretrained(cached / "dial")
    with loaded(model, 0):
        assert torch.equal(model(input_ids=IDS).logits, bare)
    with loaded(model, 1), dial.adapter(model, 0):
        assert not torch.equal(model(input_ids=IDS).logits, bare)
    encoded = encode(pairs, tokenizer)
    assert torch.equal(rewards_of(model, loaded, encoded)[0], rewards_of(model, dial, encoded)[0])
    with pytest.raises(ConfigError, match=r"add --dial\.adapter lora"):
        small(DPH(weight_dpo=1.0))


def test_named_heads(tiny: Any, tokenizer: Any, cached: Path) -> None:
    """A pair trains the head of its concept alone: opposite preferences, opposite rewards."""
    model = tiny("llama")
    plain = random_pairs(10)
    pairs = PairSet(
        [dataclasses.replace(p, concept="kind") for p in plain]
        + [Pair(p.prompt, p.rejected, p.chosen, p.item + "'", concept="unkind") for p in plain],
        "both",
    )
    dial: Any = fit(small(heads=("kind", "unkind")), model, tokenizer, pairs)
    encoded = encode(plain, tokenizer)
    kind, unkind = (rewards_of(model, dial, encoded, head=h)[0] for h in ("kind", "unkind"))
    assert reward_scores(encoded, kind).accuracy.mean() > 0.9
    assert reward_scores(encoded, unkind).accuracy.mean() < 0.1
    with pytest.raises(ConfigError, match="the dial has kind, unkind"):
        rewards_of(model, dial, encoded, head="calm")
    with pytest.raises(DataError, match="expected one of kind, other"):
        fit(small(heads=("kind", "other")), model, tokenizer, pairs)


def test_prior_holds_weights_where_they_started(tiny: Any, tokenizer: Any, cached: Path) -> None:
    model, pairs = tiny("llama"), random_pairs(12)
    free: Any = fit(small(), model, tokenizer, pairs)
    held: Any = fit(small(DPH(weight_prior=10.0)), model, tokenizer, pairs)
    assert held.weights["reward"].norm() < 0.3 * free.weights["reward"].norm()


def test_a_head_without_rewards_is_told(
    tiny: Any, tokenizer: Any, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each pair is there the other way round too, nothing can be learned."""
    said: list[str] = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "say", said.append)
    pairs = random_pairs(12)
    swapped = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs]
    for data, alike in ((pairs, False), (PairSet([*pairs, *swapped], "both"), True)):
        said.clear()
        fit(small(pooling="swiglu"), tiny("llama"), tokenizer, data, progress=progress)
        assert any("the same reward" in line for line in said) == alike


def test_rewards_are_tied_at_the_end() -> None:
    metrics = DPH()(
        torch.tensor([2.0, 2.0, 0.0, 1e-9]), torch.tensor([1.9999, 1.9997, 0, 0]), torch.arange(4)
    )[1]
    assert metrics["tied"].tolist() == [1, 0, 1, 0]
    for tied, told in (
        ([1.0] * 8, False),  # too few steps to say
        ([1.0] * 18 + [0.4, 0.4], False),
        ([0.0] * 18 + [0.4, 0.8], True),
    ):
        assert tied_at_the_end([{"tied": t} for t in tied]) == told


def test_stopped_and_gone_on(tiny: Any, tokenizer: Any, cached: Path, monkeypatch: Any) -> None:
    """The same bytes as of a run that was never stopped."""
    import trimtab.training.trainer as trainer

    recipe = small(DPH(weight_prior=0.1), epochs=3, dropout=0.2)
    recipe = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, checkpoint_seconds=0)
    )
    arguments: Any = (recipe, tiny("llama"), tokenizer, random_pairs(12))
    fit(*arguments, out=cached / "whole")
    real = trainer.DialTrainer.compute_loss

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise RuntimeError("killed")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.DialTrainer, "compute_loss", stop)
        with pytest.raises(RuntimeError, match="killed"):
            fit(*arguments, out=cached / "dial")
    fit(*arguments, out=cached / "dial")
    assert files_of(cached / "dial") == files_of(cached / "whole")


def test_moments(tiny: Any, store: Store) -> None:
    model, rows = tiny("llama"), random_rows()
    kept = features(model, rows, (1,), "answer", store=store)
    mean, deviation = moments(kept, answer_spans(rows))
    states = kept.take(torch.arange(rows.n_answers))[0].double()
    torch.testing.assert_close(mean, states.mean(0))
    torch.testing.assert_close(deviation, states.std(0, correction=0))


# ---- scoring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("over", ["answer", "all"])
def test_score_is_that_of_each_candidate_alone(
    name: str, over: Any, tiny: Any, tokenizer: Any
) -> None:
    """Eight candidates in one packed pass; the order and the company of candidates are nothing."""
    model = tiny(name)
    dial = drawn(aggregate="weighted", over=over, sites=(1, "final"), pooling="bert")
    prompt, answers = (
        "The sky is",
        [" blue.", " Rome.", " four, no.", " blue.", " the", " a a", " b", " c"],
    )
    r = score_candidates(model, tokenizer, dial, prompt, answers)
    assert r[0] == pytest.approx(float(r[3]), abs=1e-5)
    alone = torch.cat([score_candidates(model, tokenizer, dial, prompt, [a]) for a in answers])
    torch.testing.assert_close(r, alone, rtol=1e-4, atol=1e-4)
    assert r.std() > 1e-3


def test_candidates_that_cannot_be_scored(tiny: Any, tokenizer: Any) -> None:
    model, dial = tiny("llama"), drawn()
    for answers, message in (
        ([], "no answers to score"),
        ([" a", ""], "answer 2 is empty"),
        ([" a", "  "], "answer 2 is empty"),
        ([" a" * 300], "tokens, over 100"),
    ):
        with pytest.raises(DataError, match=message):
            score_candidates(model, tokenizer, dial, "The", answers, max_length=100)
    with pytest.raises(DialError, match="width 16, the model's have 32"):
        score_candidates(model, tokenizer, drawn(16), "The", [" a"])
    dial.info.base_model, dial.info.base_digest = "other", "0" * 64
    models.source_of(model)
    with pytest.raises(DialError, match="made for other"):
        score_candidates(model, tokenizer, dial, "The", [" a"])


@pytest.mark.parametrize(
    "options",
    [
        {"aggregate": "median"},
        {"over": "turn"},
        {"pooling": "max"},
        {"mix": "sum"},
        {"heads": ()},
        {"heads": ("a", "a")},
        {"sites": ()},
        {"attention_heads": 3},
        {"dropout": 1.0},
    ],
)
def test_settings_that_make_no_sense(options: Any) -> None:
    with pytest.raises(ConfigError):
        RewardDial(8, **options)


# ---- candidates ---------------------------------------------------------------------------------

SAMPLING = Sampling(max_new_tokens=8, temperature=1.0, seed=3)


@pytest.mark.parametrize("aggregate", ["marker", "mean"])
@pytest.mark.parametrize("over", ["answer", "all"])
@pytest.mark.parametrize("lean", [None, "head", "vector"])
def test_rewards_of_drawn_candidates(
    aggregate: Any, over: Any, lean: str | None, tiny: Any, tokenizer: Any
) -> None:
    """Read while drawing, or in a pass of their own where the dial moves states: either way those of
    the finished texts, the end marker's state included, by the bare model."""
    from trimtab.batching import Encoded, Row
    from trimtab.rendering import end_ids, prompt_ids

    model = tiny("llama")
    reward = drawn(aggregate=aggregate, over=over, sites=(2, "final"))
    dial: Any = None
    if lean == "head":
        dial = LogitsDial.for_model(model, rank=4)
        dial.B.data = 0.3 * torch.randn(dial.B.shape, generator=torch.Generator().manual_seed(0))
    elif lean == "vector":
        dial = VectorDial({1: torch.ones(32)}, {1: 5.0})
    found = draw(model, tokenizer, "The sky", reward, Drawing(n=6), dial=dial, sampling=SAMPLING)
    assert len(found) == 6
    assert len({c.tokens for c in found}) > 1
    (eos,) = end_ids(tokenizer)  # the template's end of turn, which its answers end with
    assert eos != tokenizer.eos_token_id
    for c in found:
        assert c.tokens[-1] == eos
        assert eos not in c.tokens[:-1]
        assert len(c.tokens) <= 9
        assert c.finished is (len(c.tokens) <= 8)
    prompt = tuple(prompt_ids("The sky", tokenizer))
    rows = [Row("a", prompt, (c.tokens,), (), ()) for c in found]
    alone = torch.cat([rewards_of(model, reward, Encoded((row,), 0, eos, "a"))[0] for row in rows])
    torch.testing.assert_close(torch.tensor([c.reward for c in found]), alone, rtol=1e-3, atol=1e-3)


def test_best_of_n_and_sampling() -> None:
    from trimtab.evaluation.rewards import Candidate

    found = [Candidate(str(i), (i,), r, True, False) for i, r in enumerate((0.0, 1.0, 3.0))]
    found.append(Candidate("given up", (9,), 9.0, False, True))
    g = torch.Generator().manual_seed(0)
    assert pick(found, Drawing(), g).reward == 3
    for alpha in (0.0, 1.0, -1.0):
        taken = [pick(found, Drawing(pick="sample", alpha=alpha), g).reward for _ in range(3000)]
        wanted = (alpha * torch.tensor([0.0, 1.0, 3.0])).softmax(0)
        share = torch.tensor([taken.count(r) / 3000 for r in (0.0, 1.0, 3.0)])
        assert (share - wanted).abs().max() < 0.04
    assert expected_kl(1) == 0
    assert expected_kl(8) == pytest.approx(math.log(8) - 7 / 8)


def test_early_rejection(tiny: Any, tokenizer: Any) -> None:
    """Halved every two tokens; those that go on draw as they would have, with the same rewards."""
    model, reward = tiny("llama"), drawn(aggregate="mean")
    drawing = Drawing(n=8, reject_every=2, keep=0.5)
    found = draw(model, tokenizer, "The sky", reward, drawing, sampling=SAMPLING)
    assert len(found) == 8
    assert [c.rejected for c in found].count(False) == 1
    early = [c for c in found if c.rejected and len(c.tokens) == 2 and c.tokens[1] != 3]
    assert 1 <= len(early) <= 4
    alive = next(c for c in found if not c.rejected)
    assert alive.tokens[-1] == 3
    with pytest.raises(ConfigError, match="read at the end alone"):
        draw(model, tokenizer, "The", drawn(), drawing, sampling=SAMPLING)
    lean = adapter(model)
    with pytest.raises(ConfigError, match="takes a pass of its own"):
        draw(model, tokenizer, "The", reward, drawing, dial=lean, sampling=SAMPLING)
    with pytest.raises(ConfigError, match="all be the same"):
        draw(model, tokenizer, "The", reward, sampling=Sampling())


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"pick": "worst"}, {"alpha": math.inf}, {"keep": 0}, {"reject_every": -1}]
)
def test_drawings_that_make_no_sense(options: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Drawing(**options)
