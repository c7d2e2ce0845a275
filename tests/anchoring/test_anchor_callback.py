"""Anchoring any model: a plain loop, the Trainer, captures by hooks, labels, the monitor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from trimtab import Anchors
from trimtab.anchoring.callback import Monitor, monitor_scores
from trimtab.anchoring.labels import BagOfWords, Keywords, auroc, error_rate, from_metadata, noisy
from trimtab.anchoring.timeline import Row, Sheet, parse_sheet
from trimtab.errors import ConfigError, DataError
from trimtab.objectives.anchoring import Anchor, AngularAnchor, AntiSubspace, Term, Unitarity

PULL = Term("pull", AngularAnchor(0), 1, {"even": 1.0})
SHEET = Sheet((Row(0, {"pull": 1.0}), Row(20, {"pull": 1.0})))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 4))
        self.decoder = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def test_three_lines_in_a_plain_loop_bring_a_concept_to_its_axis():
    model = Small()
    terms = [
        Term("pull", Anchor(0), "z", {"red": 1.0}),
        Term("unit", Unitarity(), "z"),
    ]
    sheet = parse_sheet("STEP,lr,pull,unit\n0,0.02,1,0.1\n150,0.02,1,0.1\n")
    anchors = Anchors(terms, sheet, layers={"z": "encoder:out"}).attach(model)
    adam = torch.optim.Adam(model.parameters())
    g = torch.Generator().manual_seed(0)
    for _ in range(151):
        x = torch.rand(32, 3, generator=g)
        red = (x[:, 0] > 0.8).float()
        adam.param_groups[0]["lr"] = anchors.lr
        loss = ((model(x) - x) ** 2).mean() + anchors.loss({"red": red})
        adam.zero_grad()
        loss.backward()
        adam.step()
        anchors.step()
    z = model.encoder(torch.tensor([[1.0, 0.2, 0.2]]))[0]
    assert float((z[0] / z.norm()).detach()) > 0.9
    assert [h["step"] for h in anchors.history] == [0, 50, 100, 150]
    assert anchors.history[-1]["pull"] < anchors.history[0]["pull"]
    anchors.detach()
    assert not any(m._forward_hooks for m in model.modules())


def test_states_of_blocks_and_queries_are_captured(tiny):
    model = tiny("llama", fresh=True).requires_grad_(True)
    query = "model.layers.2.self_attn.q_proj:out"
    terms = [PULL, Term("off", AntiSubspace((0,)), query)]
    sheet = Sheet((Row(0, {"pull": 1.0, "off": 0.5}), Row(9, {"pull": 1.0, "off": 0.5})))
    anchors = Anchors(terms, sheet).attach(model)
    ids = torch.randint(2, 300, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    found = anchors.loss({"even": torch.tensor([1.0, 0.0])}, mask)
    cosine = states[0, :4, 0] / states[0, :4].norm(dim=-1)
    queries = anchors._captured[query]
    off = torch.stack([(queries[0, :4, 0] ** 2).mean(), (queries[1, :, 0] ** 2).mean()]).mean()
    torch.testing.assert_close(found, (1 - cosine).mean() + 0.5 * off)
    found.backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.abs().max() > 0


class Rows(torch.utils.data.Dataset):
    """Random token rows; even first tokens carry the concept."""

    def __init__(self, n: int = 16) -> None:
        self.ids = torch.randint(2, 300, (n, 8), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def even(inputs: Any) -> dict[str, torch.Tensor]:
    return {"even": (inputs["input_ids"][:, 0] % 2 == 0).float()}


def trained(tiny: Any, tmp_path: Any, callbacks: list[Any], **options: Any) -> Any:
    model = tiny("llama", fresh=True).requires_grad_(True)
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=options.pop("batch", 8),
        learning_rate=options.pop("rate", 1e-2),
        report_to=[],
        use_cpu=True,
        logging_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = transformers.Trainer(
        model=model, args=args, train_dataset=Rows(), callbacks=callbacks
    )
    trainer.train()
    return trainer


def aligned(model: Any) -> float:
    ids = Rows().ids
    ids = ids[ids[:, 0] % 2 == 0]
    with torch.no_grad():
        h = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    return float((h[..., 0] / h.norm(dim=-1)).mean())


def test_the_trainer_adds_the_terms_to_the_loss(tiny, tmp_path):
    batch = {"input_ids": Rows().ids, "concepts": even({"input_ids": Rows().ids})}
    monitor = Monitor(1, 0, [batch], every=3)
    sheet = Sheet((Row(0, {"pull": 20.0}), Row(1, {"pull": 20.0})))
    anchors = Anchors([PULL], sheet, labels=even, monitor=monitor, log_every=2)
    with_it = trained(tiny, tmp_path / "a", [anchors])
    without = trained(tiny, tmp_path / "b", [])
    assert aligned(with_it.model) > aligned(without.model) + 0.05
    logged = [entry for entry in with_it.state.log_history if "anchor/pull" in entry]
    assert logged
    assert any("anchor/auroc/even" in entry for entry in with_it.state.log_history)
    assert anchors.at == 6
    assert not anchors._captured  # detached (transformers keeps hooks of its own)


def test_accumulated_batches_weigh_as_one(tiny, tmp_path):
    whole, parts = (
        trained(
            tiny,
            tmp_path / name,
            [Anchors([PULL], SHEET, labels=even)],
            batch=batch,
            gradient_accumulation_steps=steps,
            rate=0.0,
            max_grad_norm=0.0,
        )
        for name, batch, steps in (("a", 8, 1), ("b", 4, 2))
    )
    # At rate 0 all steps see one model, so the logged losses are sums over the same rows. The term
    # is a mean over labelled samples of a microbatch, so it agrees only roughly.
    a, b = (next(e["loss"] for e in t.state.log_history if "loss" in e) for t in (whole, parts))
    assert a == pytest.approx(b, rel=0.05)


def test_what_cannot_be_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(ConfigError, match="the Trainer would drop the column `concepts`"):
        trained(tiny, tmp_path, [Anchors([PULL], SHEET)])
    with_rate = parse_sheet("STEP,lr,pull\n0,1,1\n9,1,1\n", "mine.csv")
    with pytest.raises(ConfigError, match=r"mine\.csv: column 'lr': the Trainer has a schedule"):
        trained(tiny, tmp_path, [Anchors([PULL], with_rate, labels=even)])
    with pytest.raises(ConfigError, match="column 'pull' matches no term"):
        Anchors([Term("push", Anchor(0), 1)], SHEET)
    with pytest.raises(ConfigError, match="each name once"):
        Anchors([PULL, PULL], SHEET)
    with pytest.raises(ConfigError, match="no term reads 'zz'"):
        Anchors([PULL], SHEET, layers={"zz": 1})
    model = tiny("llama", fresh=True)
    for layer, says in ((9, "the model has blocks 0 to 3"), ("model.nope:out", "no module")):
        term = Term("pull", Anchor(0), layer)
        with pytest.raises(ConfigError, match=says):
            Anchors([term], SHEET).attach(model)
    anchors = Anchors([Term("pull", Anchor(0), 1)], SHEET).attach(model)
    with pytest.raises(ConfigError, match="run the model first"):
        anchors.loss()
    model(input_ids=Rows().ids)  # frozen
    with pytest.raises(ConfigError, match="carry no gradient"):
        anchors.loss()


def test_the_monitor_tells_a_planted_concept(tiny):
    model = tiny("llama", fresh=True)
    even_rows = Rows().ids[:, 0] % 2 == 0
    model.model.embed_tokens.weight.data[:, 0] = 0.0
    model.model.embed_tokens.weight.data[::2, 0] = 30.0
    ids = Rows().ids[:, :1]
    batch = {"input_ids": ids, "concepts": {"even": even_rows, "noise": torch.arange(16) % 3 == 0}}
    found = monitor_scores(model, Monitor("embed", 0, [batch]))
    assert auroc(*found["even"]) == 1.0
    assert 0.2 < auroc(*found["noise"]) < 0.8


# ---- labels -------------------------------------------------------------------------------------


def test_auroc_by_hand():
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert auroc([1, 2, 3, 4], [1, 1, 0, 0]) == 0
    assert auroc([1, 3, 2, 4], [0, 0, 1, 1]) == 0.75
    assert auroc([1, 1, 1], [0, 1, 0]) == 0.5
    assert math.isnan(auroc([1, 2], [1, 1]))


def test_labellers_and_their_stated_errors():
    texts = ["The bridge is red.", "A Bridge!", "bridges", "the sea"]
    labels = [Keywords(("bridge",))(t) for t in texts]
    assert labels == [1, 1, 0, 0]
    rate = error_rate(labels, [1, 0, 1, 0])
    assert (rate.recall, rate.false_positives, rate.texts) == (0.5, 0.5, 4)
    assert str(rate) == "recall 50.0%, false positives 50.00% on 4 texts"
    assert from_metadata([{"kind": "a"}, {"kind": "b"}], "kind", "b") == [0, 1]
    with pytest.raises(DataError, match="row 2: no field 'kind'"):
        from_metadata([{"kind": "a"}, {"sort": "b"}], "kind", "b")
    with pytest.raises(ConfigError, match="at least one word"):
        Keywords(())
    with pytest.raises(DataError, match="texts with the concept and texts without"):
        error_rate([1, 0], [1, 1])


def test_a_bag_of_words_learns_a_mood():
    good = [f"what a lovely {w} day" for w in ("sunny", "warm", "long", "calm")]
    bad = [f"what a dreadful {w} day" for w in ("sunny", "warm", "long", "calm")]
    mood = BagOfWords.fit([*good, *bad], [1.0] * 4 + [0.0] * 4)
    assert mood("a lovely evening") == 1
    assert mood("a dreadful evening") == 0
    assert 0.4 < mood.score("an evening") < 0.6
    with pytest.raises(DataError, match="texts without"):
        BagOfWords.fit(good, [1.0] * 4)


def test_noise_has_the_stated_rates():
    truth = [1.0] * 4000 + [0.0] * 4000
    rate = error_rate(noisy(truth, recall=0.3, false_positives=0.01, seed=1), truth)
    assert rate.recall == pytest.approx(0.3, abs=0.03)
    assert rate.false_positives == pytest.approx(0.01, abs=0.006)
    assert noisy(truth, recall=0.3, false_positives=0.01, seed=1) == noisy(
        truth, recall=0.3, false_positives=0.01, seed=1
    )
    with pytest.raises(ConfigError, match="recall 2"):
        noisy(truth, recall=2, false_positives=0)
