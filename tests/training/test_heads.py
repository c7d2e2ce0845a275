"""Alignment heads: untouched at 0, exact losses, trained from the store as with the backbone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY, count_calls, random_rows
from helpers_fit import files_of, random_pairs
from helpers_zygote import Zygote
from trimtab import models
from trimtab.batching import collate, encode, layout_of
from trimtab.dials import Dial, LogitsDial, VectorDial
from trimtab.dials.attach import PRESETS
from trimtab.errors import ConfigError, DialError
from trimtab.evaluation import Sampling, generate
from trimtab.evaluation.explain import explain
from trimtab.models.heads import after_head
from trimtab.objectives import DPO
from trimtab.objectives.heads import ARM, IAV, HeadReadout, head_readout
from trimtab.readings import collect, features
from trimtab.readout import Readout
from trimtab.states import pair_up, read
from trimtab.store import Store
from trimtab.training import fit
from trimtab.training.alignment_head import IAVModule
from trimtab.training.head import head_batch
from trimtab.training.recipes import IAVRecipe, LogitsSettings, TrainSettings
from trimtab.training.trainer import checkpoints

IDS = torch.randint(2, 320, (3, 14), generator=torch.Generator().manual_seed(7))
SHAPES = ("low_rank", "full", "hidden", "mlp")
POST = ("gemma2", "granite", "cohere")


def head(model: Any, shape: str = "low_rank", seed: int = 0, **options: Any) -> LogitsDial:
    """A head whose output side is drawn, too."""
    g = torch.Generator().manual_seed(seed)
    dial = LogitsDial.for_model(model, shape=shape, rank=4, generator=g, **options)
    for p in (dial.B, dial.b, dial.D):
        if p is not None:
            scale = 0.03 if shape == "hidden" or p is dial.D else 0.3
            p.data = scale * torch.randn(p.shape, generator=g)
    return dial.eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def small(features_: str = "store", objective: IAV | None = None, **dial: Any) -> IAVRecipe:
    return IAVRecipe(
        objective=objective or IAV(),
        dial=LogitsSettings(rank=4, features=features_, **dial),  # type: ignore[arg-type]
        train=TrainSettings(pairs_per_step=4, epochs=2, learning_rate=1e-2),
    )


# ---- alpha --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_at_0_the_model_is_untouched_to_the_last_bit(name: str, tiny: Any) -> None:
    model = tiny(name)
    bare = logits(model)
    for shape in SHAPES:
        for options in ({}, {"sites": "0,2"}, {"base_head": "trainable"}):
            dial = head(model, shape, **options)
            with dial(model, 1.0):
                assert (logits(model) - bare).abs().max() > 0.01
            for zero in (0, "none", torch.zeros(3), torch.zeros(3, 14)):
                with dial(model, zero):
                    assert torch.equal(logits(model), bare)
            with dial(model, [1.0, 0.0, -1.0]):
                mixed = logits(model)
            if name != "qwen3moe":
                assert torch.equal(mixed[1], bare[1])
            assert (mixed[0] - bare[0]).abs().max() > 0.01
            assert torch.equal(logits(model), bare)


def test_a_new_head_changes_nothing(tiny: Any) -> None:
    """Zero on the output side: at alpha 1, too."""
    model = tiny("llama")
    for shape in SHAPES:
        dial = LogitsDial.for_model(model, shape=shape, base_head="trainable")
        with dial(model, 1.0):
            assert torch.allclose(logits(model), logits(model), atol=1e-6)
        assert any(p.requires_grad for p in dial.parameters())


def test_the_sum_is_linear_in_alpha_and_several_heads_add(tiny: Any) -> None:
    model = tiny("llama")
    a, b = head(model, "low_rank", 1), head(model, "mlp", 2, sites="1")
    bare = logits(model)

    def shift(dial: Dial, alpha: Any) -> Tensor:
        with dial(model, alpha):
            return logits(model) - bare

    torch.testing.assert_close(shift(a, 2.0), 2 * shift(a, 1.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        shift(a + 0.5 * b, 1.0), shift(a, 1.0) + shift(b, 0.5), rtol=1e-4, atol=1e-4
    )
    mixed = torch.tensor([0.5, 0.0, -1.0])
    for row, alpha in enumerate(mixed.tolist()):
        torch.testing.assert_close(shift(b, mixed)[row], shift(b, alpha)[row], rtol=1e-4, atol=1e-4)
    assert torch.equal(shift(a, "strong"), shift(a, 1.5))
    assert [PRESETS[k] for k in ("none", "light", "standard", "strong", "maximum")] == [
        0,
        0.5,
        1,
        1.5,
        2,
    ]
    with pytest.raises(ConfigError, match="expected a number, or none, light"):
        a(model, "huge").__enter__()


@pytest.mark.parametrize("options", [{}, {"sites": "0,2"}])
def test_generation_equals_one_whole_pass_at_a_time(
    options: Any, tiny: Any, tokenizer: Any
) -> None:
    """With the cache, greedy decoding takes the tokens that uncached passes find; beams and draws
    run, per-row alpha too."""
    model, prompts = tiny("llama"), ["The sky is", "Is Rome blue?"]
    dial = head(model, **options)
    sampling = Sampling(max_new_tokens=6)
    mixed = generate(model, tokenizer, prompts, dial, (0.0, 1.0), sampling=sampling)
    for g in mixed:
        alone = generate(model, tokenizer, g.prompt, dial, (g.alpha,), sampling=sampling)
        assert alone[0].text == g.text
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": g.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        n = len(ids)
        for _ in range(6):
            with dial(model, g.alpha):
                ids = [*ids, int(logits(model, torch.tensor([ids]))[0, -1].argmax())]
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(ids[n:], skip_special_tokens=True) == g.text
    for other in (
        Sampling(max_new_tokens=4, num_beams=3),
        Sampling(max_new_tokens=4, temperature=1.0, top_p=0.9),
    ):
        assert len(generate(model, tokenizer, prompts, dial, (0.0, 1.0), sampling=other)) == 4


def test_log_probs_at_scored_positions(tiny: Any) -> None:
    """A head over several sites, where the LM head sees gathered positions alone."""
    model, rows = tiny("llama"), random_rows()
    dial = head(model, "mlp", sites="0,2")
    with dial(model, 1.0):
        found = collect(model, rows, logps=True).logps
    assert found is not None
    place = 0
    for row in rows.rows:
        for answer in row.answers:
            ids = torch.tensor([[*row.prompt, *answer]])
            with dial(model, 1.0):
                logp = logits(model, ids)[0].log_softmax(-1)
            n = len(row.prompt)
            wanted = logp[n - 1 : -1].gather(-1, ids[0, n:, None]).sum()
            torch.testing.assert_close(found[place], wanted, rtol=1e-4, atol=1e-3)
            place += 1


# ---- losses -------------------------------------------------------------------------------------


def test_terms_by_hand() -> None:
    """Values from their definitions, gradients from finite differences in float64."""
    g = torch.Generator().manual_seed(0)
    z, a = (torch.randn(5, 7, generator=g, dtype=torch.double) for _ in range(2))
    ids = torch.tensor([0, 6, 3, 3, 1])
    found = head_readout(z, a, a, ids, arm=True)
    p, q = (z + a).log_softmax(-1), z.log_softmax(-1)
    rows = torch.arange(5)
    torch.testing.assert_close(found["logps"], p[rows, ids])
    torch.testing.assert_close(found["reference_logps"], q[rows, ids])
    torch.testing.assert_close(found["kl"], (p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(found["l2"], (a - a.mean(-1, keepdim=True)).square().mean(-1))
    torch.testing.assert_close(found["arm_logps"], a.log_softmax(-1)[rows, ids])
    torch.testing.assert_close(head_readout(z, a, a, ids, norm=True)["l2"], a.norm(dim=-1))
    a.requires_grad_(True)

    def values(a: Tensor) -> tuple[Tensor, ...]:
        found = head_readout(z, a, a, ids, after=lambda x: 3 * torch.tanh(x / 3), arm=True)
        return tuple(v for k, v in found.items() if k != "reference_logps")

    assert torch.autograd.gradcheck(values, (a,))
    shifted = head_readout(z, a + 5, a + 5, ids)  # a constant is none
    torch.testing.assert_close(shifted["kl"], found["kl"])
    torch.testing.assert_close(shifted["l2"], found["l2"])


def readout(*, seed: int, n: int = 4, arm: bool = False) -> HeadReadout:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, generator=g, dtype=torch.double)  # noqa: E731
    return HeadReadout(
        tokens=torch.tensor([3, 5, 2, 9])[:n],
        logps=draw(),
        reference_logps=draw(),
        kl=draw().abs(),
        l2=draw().abs(),
        arm_logps=draw() if arm else None,
    )


def test_losses_by_hand() -> None:
    c, r = readout(seed=1, arm=True), readout(seed=2, arm=True)
    sigmoid = torch.nn.functional.logsigmoid
    kl = (c.kl / c.tokens + r.kl / r.tokens) / 2
    l2 = (c.l2 / c.tokens + r.l2 / r.tokens) / 2
    mean = c.logps / c.tokens - r.logps / r.tokens
    rho = c.logps - c.reference_logps - r.logps + r.reference_logps
    assert c.arm_logps is not None
    assert r.arm_logps is not None
    arm = c.arm_logps - r.arm_logps
    for objective, wanted in (
        (IAV(weight_kl=0, weight_l2=0), -sigmoid(0.1 * rho)),
        (IAV(), -sigmoid(0.1 * rho) + 0.1 * kl + 0.01 * l2),
        (
            IAV(beta=2.0, label_smoothing=0.2, weight_kl=0, weight_l2=0),
            -0.8 * sigmoid(2 * rho) - 0.2 * sigmoid(-2 * rho),
        ),
        (IAV("simpo", weight_kl=0, weight_l2=0), -sigmoid(2 * mean - 1)),
        (IAV("arm", weight_kl=0, weight_l2=0), -sigmoid(0.05 * arm)),
        (
            IAV(variant="published"),
            -sigmoid(0.1 * mean) + 0.1 * kl + 0.01 * c.l2 / c.tokens,
        ),
    ):
        torch.testing.assert_close(objective(c, r)[0], wanted)
    # Where the head says nothing, DPO is log 2 exactly, and swapping negates its margin.
    same = (
        dataclasses.replace(c, reference_logps=c.logps),
        dataclasses.replace(r, reference_logps=r.logps),
    )
    assert IAV(weight_kl=0, weight_l2=0)(*same)[0].sub(math.log(2)).abs().max() < 1e-12
    assert torch.equal(IAV()(c, r)[1]["margin"], -IAV()(r, c)[1]["margin"])
    with pytest.raises(ValueError, match="arm needs"):
        IAV("arm")(readout(seed=1), readout(seed=2))


def test_dpo_of_a_head_is_dpo(tiny: Any, store: Store) -> None:
    """The head's own DPO term, from stored states, equals DPO on log-probs read with the dial on,
    also where the model does something to its logits."""
    for name in ("llama", "gpt2", *POST):
        model = tiny(name, "eager") if name == "gemma2" else tiny(name)
        rows = random_rows()
        dial = head(model, "mlp", sites="1") if name == "llama" else head(model)
        module = IAVModule(model, dial, IAV(beta=1.0, weight_kl=0, weight_l2=0), rows)
        whole = collate(rows, [0, 2], layout_of(model))
        with torch.no_grad():
            with dial(model, 1.0):
                policy = pair_up(read(model, whole, logps=True), whole)
            before = pair_up(read(model, whole, logps=True), whole)
        wanted, also = DPO(beta=1.0)(policy, before)
        assert also["margin"].abs().max() > 0.1
        for stored, tolerance in (
            (None, 1e-4),
            (features(model, rows, module.sites, module.where, store=store), 5e-3),
        ):
            module.stored = stored
            with torch.no_grad():
                batch = head_batch(rows, [0, 2], layout_of(model), stored is None)
                loss, metrics = module(batch)
            order, same = batch.pair_ids.argsort(), whole.pair_ids.argsort()
            for mine, theirs in ((loss, wanted), (metrics["margin"], also["margin"])):
                torch.testing.assert_close(mine[order], theirs[same], rtol=0, atol=tolerance)
            assert metrics["kl"].min() > 0


def test_after_head_leaves_the_model_as_it_was(tiny: Any) -> None:
    for name, wanted in (("gemma2", lambda z: 3 * torch.tanh(z / 3)), ("granite", lambda z: z / 2)):
        model = tiny(name, "eager")
        before, parts = logits(model), [id(m) for m in model.modules()]
        run = after_head(model)
        assert run is not None
        z = 5 * torch.randn(4, 320)
        torch.testing.assert_close(run(z), wanted(z))
        assert [id(m) for m in model.modules()] == parts
        assert torch.equal(logits(model), before)
    assert after_head(tiny("llama")) is None


def test_chunks_change_no_gradient(
    tiny: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of a few tokens at a time, kept or computed again in the backward pass."""
    import trimtab.training.alignment_head as heads

    model, rows = tiny("llama"), random_rows()
    found = []
    for chunk, kept in ((1 << 26, 1 << 26), (320 * 7, 1 << 26), (320 * 7, 0)):
        monkeypatch.setattr(heads, "CHUNK", chunk)
        monkeypatch.setattr(heads, "KEPT", kept)
        dial = head(model, base_head="trainable")
        module = IAVModule(model, dial, IAV(), rows)
        module.stored = features(model, rows, module.sites, module.where, store=store)
        loss, _ = module(head_batch(rows, [0, 1, 2], "packed", False))
        loss.sum().backward()
        found.append([p.grad.clone() for p in dial.parameters() if p.grad is not None])
    assert len(found[0]) == 3
    for whole, kept, again in zip(*found, strict=True):
        torch.testing.assert_close(whole, kept, rtol=1e-4, atol=1e-6)
        assert torch.equal(kept, again)


def test_arm_objective() -> None:
    """GenARM's second model: summed, no reference."""
    c, r = torch.tensor([-3.0, -8.0]), torch.tensor([-5.0, -1.0])
    loss, metrics = ARM()(Readout(chosen_logps=c, rejected_logps=r), None)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(0.05 * (c - r)))
    assert metrics["accuracy"].tolist() == [1, 0]


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_fit_from_the_store(
    tied: bool, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns; the backbone runs once for any number of runs; the model, also one whose head is
    its embedding, is as it was; the saved dial gives the same logits."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model = tiny("gpt2" if tied else "llama")
    assert (models.head(model).weight is models.embed(model).weight) is tied
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pairs = random_pairs(12)
    encode(pairs, tokenizer)
    dial = fit(small(), model, tokenizer, pairs, out=tmp_path / "dial")
    runs, done = count_calls(models.layers(model)[0])
    fit(small(objective=IAV("simpo")), model, tokenizer, pairs)
    fit(small(objective=IAV("arm", variant="sound")), model, tokenizer, pairs)
    fit(small(objective=IAV(variant="published"), shape="full"), model, tokenizer, pairs)
    done()
    assert runs == [0]
    history = [
        json.loads(x) for x in (tmp_path / "dial" / "training.jsonl").read_text().split("\n") if x
    ]
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert history[-1]["margin"] > history[0]["margin"]
    assert dial.info.measured["alphas"] == [0.0, 2.0]
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k]), k
    loaded = Dial.from_pretrained(tmp_path / "dial")
    bare = logits(model)
    with dial(model, 1.0):
        wanted = logits(model)
    with loaded(model, 1.0):
        assert torch.equal(logits(model), wanted)
    with loaded(model, 0):
        assert torch.equal(logits(model), bare)
    assert not torch.equal(wanted, bare)


def test_store_and_backbone_agree(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same head, whether states are looked up or the backbone runs at every step."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model, pairs = tiny("llama"), random_pairs(12)
    stored = fit(small(sites="1"), model, tokenizer, pairs)
    live = fit(small("live", sites="1"), model, tokenizer, pairs)
    for a, b in zip(stored.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2 * float(b.detach().abs().max()))


def test_stopped_and_gone_on(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by Ctrl-C in the middle, and by an exception: the same bytes in the end."""
    import trimtab.training.trainer as trainer

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    recipe = dataclasses.replace(
        small(), train=dataclasses.replace(small().train, checkpoint_seconds=0)
    )
    arguments: Any = (recipe, tiny("llama"), tokenizer, random_pairs(12))
    fit(*arguments, out=tmp_path / "whole")
    real = trainer.DialTrainer.compute_loss

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise RuntimeError("killed")
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.DialTrainer, "compute_loss", stop)
        with pytest.raises(RuntimeError, match="killed"):
            fit(*arguments, out=tmp_path / "dial")
    assert [p.name for p in checkpoints(tmp_path / ".dial.training")][-1] == "checkpoint-3"
    fit(*arguments, out=tmp_path / "dial")
    assert files_of(tmp_path / "dial") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("method", ["iav", "dph"])
def test_killed(method: str, tmp_path: Path) -> None:
    """kill -9 at random moments, while states are stored or weights are trained: the same command
    goes on, and ends with the same bytes."""
    zygote = Zygote()
    job: dict[str, Any] = {"method": method, "log": str(tmp_path / "log"), "train": {"epochs": 3.0}}
    try:
        start = time.monotonic()
        assert zygote.run(out=str(tmp_path / "whole"), cache=str(tmp_path / "c0"), **job) == 0
        length = time.monotonic() - start
        rng, killed, out = random.Random(0), 0, tmp_path / "dial"
        while killed < 5:
            pid = zygote.start(out=str(out), cache=str(tmp_path / "c1"), **job)
            time.sleep(rng.uniform(0.2, 0.9) * length)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if zygote.wait() == 0:
                shutil.rmtree(out)
            killed += 1
        assert zygote.run(out=str(out), cache=str(tmp_path / "c1"), **job) == 0
    finally:
        zygote.close()
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not (tmp_path / ".dial.training").exists()


def test_a_trained_base_head_is_bypassed_at_0(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    model = tiny("gpt2")  # tied
    embedding = models.embed(model).weight.clone()
    dial: Any = fit(small(base_head="trainable"), model, tokenizer, random_pairs(12))
    assert dial.D is not None
    assert dial.D.abs().max() > 0
    assert torch.equal(models.embed(model).weight, embedding)
    bare = logits(model)
    with dial(model, 0.0):
        assert torch.equal(logits(model), bare)
    with dial(model, 1e-6):  # not continuous there
        assert (logits(model) - bare).abs().max() > 1e-3


# ---- merged, explained, refused -----------------------------------------------------------------


@pytest.mark.parametrize("shape", ["low_rank", "full", "hidden"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "granite"])
def test_merged(shape: str, name: str, tiny: Any) -> None:
    """At one alpha, as plain weights; the embedding of a tied model stays as it is."""
    model = tiny(name)
    dial = head(model, shape, base_head="trainable" if name == "llama" else "frozen")
    for alpha in (1.0, -0.5):
        merged = dial.merged(model, alpha)
        with dial(model, alpha):
            wanted = logits(model)
        torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(models.embed(merged).weight, models.embed(model).weight)
    assert torch.equal(logits(dial.merged(model, 0.0)), logits(model))


def test_what_cannot_be_merged(tiny: Any) -> None:
    model = tiny("llama")
    with pytest.raises(DialError, match="an mlp cannot be written"):
        head(model, "mlp").merged(model)
    with pytest.raises(DialError, match="a head over several sites"):
        head(model, sites="1").merged(model)


def test_a_head_for_another_model(tiny: Any) -> None:
    model = tiny("llama")
    for width, vocabulary in ((16, 320), (32, 100)):
        dial = LogitsDial(width, vocabulary)
        with pytest.raises(DialError, match="the model's LM head 32 to 320"):
            dial(model, 1.0).__enter__()
    dial = head(model)
    dial.info.base_model, dial.info.base_digest = "other", "0" * 64
    models.source_of(model)
    with pytest.raises(DialError, match="made for other"):
        dial(model, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "wide"}, "expected low_rank, full, hidden or mlp"),
        ({"base_head": "thawed"}, "expected frozen or trainable"),
        ({"rank": 0}, "expected 1 or more"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogitsDial(8, 20, **options)


def test_explain(tiny: Any, tokenizer: Any) -> None:
    """Steps are the dial's own continuation; what it says of tokens is what passes find."""
    model = tiny("llama")
    dial = head(model)
    prompt = "The sky is"
    steps = explain(model, tokenizer, dial, prompt, 1.0, steps=4, top=3)
    (g,) = generate(model, tokenizer, prompt, dial, (1.0,), sampling=Sampling(max_new_tokens=4))
    assert "".join(s.token for s in steps).replace("<eos>", "") == g.text
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    old = logits(model, torch.tensor([ids]))[0, -1].log_softmax(-1)
    with dial(model, 1.0):
        new = logits(model, torch.tensor([ids]))[0, -1].log_softmax(-1)
    first = steps[0]
    assert first.kl == pytest.approx(float((new.exp() * (new - old)).sum()), abs=1e-4)
    assert [s.change for s in first.promoted] == sorted(
        (s.change for s in first.promoted), reverse=True
    )
    best = first.promoted[0]
    match = [i for i in range(320) if tokenizer.decode([i]) == best.token]
    assert any(float(new[i] - old[i]) == pytest.approx(best.change, abs=1e-3) for i in match)
    assert all(s.change < 0 for s in first.demoted)
    vector = VectorDial({1: torch.ones(32)}, {1: 5.0})  # any kind
    assert explain(model, tokenizer, vector, prompt, steps=1)[0].kl > 0
    with pytest.raises(ConfigError, match="1 or more"):
        explain(model, tokenizer, dial, prompt, steps=0)
