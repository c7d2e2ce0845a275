"""What is asked of one kind: each check gives a figure, a refusal in words, or a fault."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trimtab
from sweep import rows, tiny
from trimtab import Dial, fit, generate, load, models
from trimtab.batching import Arrangement, encode, layout_of
from trimtab.errors import TrimtabError
from trimtab.evaluation.generation import Sampling
from trimtab.readings import collect
from trimtab.states import seeing
from trimtab.trunk import try_trunk

EXACT = 1e-3
"""Nats, or logits: what float32 rounding may leave on these models."""
TEXT = "Is the sky as blue as they say it is?"


class Kind:
    """One kind of model under test, and what was found of it."""

    def __init__(self, name: str, image_text: bool, folder: Path):
        self.name, self.image_text, self.folder = name, image_text, folder
        self.found: dict[str, Any] = {"kind": name, "image_text": image_text, "checks": {}}
        self.bare: Any = None
        self.model: Any = None
        self.tokenizer: Any = None
        self.dials: dict[str, Dial] = {}

    def run(self) -> dict[str, Any]:
        """Every check that the ones before it allow."""
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            checks = (self.upstream, self.load, self.layers, self.scores)
            if all(self.check(check.__name__, check) for check in checks):
                self.dial_checks()
        ours = (w for w in said if str(Path(trimtab.__file__).parent) in w.filename)
        self.found["said"] = sorted({str(w.message) for w in ours})
        self.found["seconds"] = round(time.monotonic() - start, 1)
        return self.found

    def check(self, name: str, run: Callable[[], Any]) -> bool:
        """Run a check and keep what it gave. Errors of trimtab are refusals, others faults."""
        try:
            value = run()
            bad = isinstance(value, float) and not value <= EXACT
            self.found["checks"][name] = {"wrong": value} if bad else {"right": value}
            return not bad
        except TrimtabError as error:
            self.found["checks"][name] = {"refused": str(error)[:300]}
        except Exception as error:
            self.found["checks"][name] = {"fault": f"{type(error).__name__}: {str(error)[:300]}"}
        return False

    # ---- the model -----------------------------------------------------------------------------

    def upstream(self) -> str:
        """Whether transformers by itself builds the kind, saves it and runs it on text alone."""
        model = tiny.build(self.name, self.image_text)
        model.save_pretrained(self.folder / "model")
        tiny.tokenizer().save_pretrained(self.folder / "model")
        self.bare = type(model).from_pretrained(self.folder / "model", dtype=torch.float32).eval()
        found = rows.logits(self.bare, list(range(3, 23)))
        assert found.shape[0] == 20, f"logits of {tuple(found.shape)} for 20 tokens"
        assert torch.isfinite(found).all(), "logits that are not finite"
        return type(model).__name__

    def load(self) -> str:
        """Loading the saved folder."""
        self.model, self.tokenizer = load(str(self.folder / "model"), dtype="float32", device="cpu")
        return type(self.model).__name__

    def layers(self) -> str:
        """The decoder's layers: each called once by text, as many as the config says."""
        calls = dict.fromkeys(range(models.n_layers(self.model)), 0)
        handles = [
            layer.register_forward_pre_hook(lambda *_, k=k: calls.update({k: calls[k] + 1}))
            for k, layer in enumerate(models.layers(self.model))
        ]
        rows.logits(self.model, list(range(3, 23)))
        for handle in handles:
            handle.remove()
        counts = set(calls.values())
        assert len(counts - {0}) == 1, f"layers called {sorted(counts)} times"
        models.head(self.model)
        return models.layer_paths(self.model)[0].rpartition(".")[0]

    def scores(self) -> float:
        """Log-probs of answers on both sides of every threshold, against plain single passes."""
        limit = models.learned_positions(self.model) or 10**6
        self.pairs = rows.pairs(limit - 30)
        self.encoded = encode(self.pairs, self.tokenizer)
        found = collect(self.model, self.encoded, logps=True).logps
        assert found is not None
        layout = layout_of(self.model, self.encoded)
        parts = dict(layout.parts).values() if isinstance(layout, Arrangement) else [layout]
        self.found["layout"] = "alone" if "alone" in parts else str(layout)
        self.found["trunk"] = self.trunk(layout)
        return float((found - rows.truth(self.bare, self.encoded)).abs().max())

    def trunk(self, layout: Any) -> dict[str, str]:
        """The blocks after which passes cannot start from stored states, and why."""
        tries = {
            k: try_trunk(self.model, self.encoded, k, layout)
            for k in range(models.n_layers(self.model))
        }
        return {str(k): tried["why"] for k, tried in tries.items() if not tried["holds"]}

    # ---- dials ---------------------------------------------------------------------------------

    def dial_checks(self) -> None:
        """A direction and an adapter, and all that is done with either."""
        self.check("mean", self.mean)
        self.check("dpo", self.dpo)
        ids = list(self.tokenizer(TEXT)["input_ids"])
        for name, dial in self.dials.items():
            for check in (self.zero, self.each_row, self.scored, self.compiled, self.generated):
                self.check(f"{name} {check.__name__}", lambda c=check, d=dial: c(d, ids))
            self.check(f"{name} reloaded", lambda n=name, d=dial: self.reloaded(n, d, ids))
        if "dpo" in self.dials:
            self.check("dpo merged", lambda: self.merged(self.dials["dpo"], ids))

    def mean(self) -> float:
        """The mean difference of states, against states taken with a hook in single passes."""
        dial = fit("mean", self.model, self.tokenizer, self.pairs, out=self.folder / "mean")
        self.dials["mean"] = dial
        site = dial.sites[0]
        states: list[torch.Tensor] = []
        differences = []
        with seeing(self.model, site, lambda h: states.append(h[0].double())):
            for row in self.encoded.rows:
                means = []
                for answer, turns in zip(row.answers, row.turns, strict=True):
                    rows.logits(self.model, row.prompt + answer)
                    body = [n for turn in turns for n in range(turn.content, turn.end)]
                    means.append(states[-1][[len(row.prompt) + n for n in body]].mean(0))
                differences += [means[c] - means[r] for c, r in row.pairs]
        mean = torch.stack(differences).mean(0)
        return float(1 - torch.cosine_similarity(mean, dial.direction(site).double(), dim=0))

    def dpo(self) -> float:
        """Two steps of DPO on a LoRA: the loss begins at log 2."""
        from dataclasses import replace

        from trimtab.training.methods import METHODS

        recipe: Any = METHODS["dpo"].recipe
        train = replace(
            recipe.train,
            max_steps=2,
            pairs_per_step=4,
            learning_rate=5e-3,
            warmup=0.0,
            scheduler="constant_with_warmup",
        )
        recipe = replace(recipe, train=train, dial=replace(recipe.dial, rank=4, lora_alpha=8))
        out = self.folder / "dpo"
        self.dials["dpo"] = fit(recipe, self.model, self.tokenizer, self.pairs, out=out)
        first = json.loads((out / "training.jsonl").read_text().splitlines()[0])
        return abs(first["loss"] - 0.6931471805599453)

    def zero(self, dial: Dial, ids: list[int]) -> str:
        """At 0 the bare model to the bit; at 1 another; after the context the bare one again."""
        bare = rows.logits(self.model, ids)
        with dial(self.model, 0.0):
            assert torch.equal(rows.logits(self.model, ids), bare), "not the bare model at 0"
        with dial(self.model, 1.0):
            assert not torch.equal(rows.logits(self.model, ids), bare), "nothing changes at 1"
        assert torch.equal(rows.logits(self.model, ids), bare), "not restored"
        return "to the bit"

    def each_row(self, dial: Dial, ids: list[int]) -> float | str:
        """Rows at strengths of their own in one batch, against the same rows one by one, where the
        model itself gives rows of one length the same in a batch."""
        batch = torch.tensor([ids, ids[::-1], ids[5:] + ids[:5]])
        with torch.no_grad():
            bare = self.model(input_ids=batch, use_cache=False).logits.double()
            alone = torch.stack([rows.logits(self.model, row) for row in batch.tolist()])
        if (bare - alone).abs().max() > EXACT:
            return "such rows are never put in one batch"
        strengths = [1.0, 0.0, -1.0]
        with torch.no_grad(), dial(self.model, torch.tensor(strengths)):
            together = self.model(input_ids=batch, use_cache=False).logits.double()
        worst = 0.0
        for n, alpha in enumerate(strengths):
            with dial(self.model, alpha):
                own = rows.logits(self.model, batch[n].tolist())
            worst = max(worst, float((together[n] - own).abs().max()))
        return worst

    def scored(self, dial: Dial, ids: list[int]) -> float:
        """Log-probs with the dial on, against plain single passes with it on."""
        with dial(self.model, 1.0):
            found = collect(self.model, self.encoded, logps=True).logps
            right = rows.truth(self.model, self.encoded)
        assert found is not None
        return float((found - right).abs().max())

    def compiled(self, dial: Dial, ids: list[int]) -> float | str:
        """A model compiled and run before the dial is entered sees it."""
        with dial(self.model, 1.0):
            right = rows.logits(self.model, ids)
        torch._dynamo.reset()
        try:
            compiled: Any = torch.compile(self.model, backend="eager")
            rows.logits(compiled, ids)
        except Exception:  # not even bare
            return "torch does not compile it"
        with dial(compiled, 1.0):
            found = rows.logits(compiled, ids)
        return float((found - right).abs().max())

    def generated(self, dial: Dial, ids: list[int]) -> str:
        """Greedy text of two prompts and two strengths in one call, against plain single passes; a
        token may differ where the two best are as good as tied."""
        prompts = [TEXT, "Why?"]
        sampling = Sampling(max_new_tokens=10)
        drawn = generate(
            self.model,
            self.tokenizer,
            prompts,
            dial,
            alphas=[0.0, 1.0],
            sampling=sampling,
            prompt_style="plain",
        )
        assert len(drawn) == 4, f"{len(drawn)} answers to two prompts at two strengths"
        for answer in drawn:
            ids = list(self.tokenizer(answer.prompt)["input_ids"])
            start = len(ids)
            with dial(self.model, answer.alpha):
                while len(ids) < start + 10 and (len(ids) == start or ids[-1] != 0):
                    best = rows.logits(self.model, ids)[-1].topk(2)
                    text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
                    tied = bool(best.values[0] - best.values[1] < EXACT)
                    if tied or not answer.text.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")):
                        break
                    ids.append(int(best.indices[0]))
            text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
            assert tied or answer.text == text, f"{answer.text!r}, not {text!r}"
        return "the same text"

    def reloaded(self, name: str, dial: Dial, ids: list[int]) -> float:
        """Saved and loaded."""
        with dial(self.model, 1.0):
            right = rows.logits(self.model, ids)
        again = Dial.from_pretrained(self.folder / name)
        with again(self.model, 1.0):
            return float((rows.logits(self.model, ids) - right).abs().max())

    def merged(self, dial: Dial, ids: list[int]) -> float:
        """Merged weights, against hooks."""
        with dial(self.model, 1.0):
            right = rows.logits(self.model, ids)
        merged = dial.merged(self.model, 1.0)
        return float((rows.logits(merged, ids) - right).abs().max())
