"""The comparisons of heads on tiny models: what they write, that figures are those of the parts they
are made of, and that cells are resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers_study import rows, trimtab, write_lines
from trimtab import models
from trimtab.batching import encode
from trimtab.dials import Dial
from trimtab.errors import ConfigError, StudyError
from trimtab.evaluation.items import item_scores
from trimtab.evaluation.scores import score
from trimtab.pairs import read_pairs
from trimtab.readings import collect
from trimtab.report.heads_figures import ABLATED
from trimtab.studies.heads import study as compare_heads
from trimtab.studies.heads.settings import HeadComparison
from trimtab.studies.rewards import study as compare_rewards
from trimtab.studies.rewards.settings import RewardComparison
from trimtab.studies.rewards.study import HELD_OUT, IN_DOMAIN
from trimtab.study import on_model
from trimtab.study.lines import averaged, compared, judged, measured
from trimtab.study.reading import read

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WORDS = ("Rome", "Paris", "blue", "four", "nothing", "water", "three", "sky")


def questions(name: str, n: int) -> list[dict[str, Any]]:
    rng = random.Random(name)
    return [
        {
            "question": f"What is {name} {i}?",
            "choices": rng.sample(WORDS, 3),
            "label": rng.randrange(3),
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, tasks and pairs."""
    folder = tmp_path_factory.mktemp("studies")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for task in ("a", "b", "c"):
        for split, n in (("train", 6), ("test", 5)):
            write_lines(folder / "choices" / f"{task}.{split}.jsonl", questions(task + split, n))
    write_lines(folder / "train.jsonl", rows(6, "train"))
    write_lines(folder / "test.jsonl", rows(5, "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setattr(compare_rewards, "POOLINGS", ("identity",))
        patch.setattr(compare_rewards, "LOSSES", ("separable", "listwise"))
        yield folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---- rewards ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranked(here: Path) -> Path:
    """A finished comparison of rewards."""
    out = here / "rewards"
    words = ["compare-rewards", "--model", here / "model", "--data-root", here, "--out", out]
    words += ["--tasks", "a", "b", "--held-out", "c", "--train-limit", "8", "--test-limit", "5"]
    words += ["--head-seeds", "0", "1", "--more-items", "12", "--quiet"]
    done = trimtab(*words)
    assert done.code == 0, done.err
    return out


def test_rewards_compared(here: Path, ranked: Path) -> None:
    """Arms, splits, averages and verdicts; the bare model's share is that of its own log-probs."""
    done = read(ranked)
    assert (done.about.study, done.about.train_items) == ("rewards", 8)
    assert done.about.more["largest_logit_change_by_a_frozen_head"] == 0
    found = [m for m in done.measurements if not m.method.startswith(ABLATED)]
    arms = {(line.method, line.read_out) for line in found}
    assert arms == {
        ("base", "logprob"),
        ("sft", "logprob"),
        ("dpo", "logprob"),
        ("dph joint", "logprob"),
        ("dph joint", "reward"),
        ("dph frozen", "reward"),
        ("dph frozen, more data", "reward"),
    }
    assert len(found) == len(arms) * 5
    model, tokenizer = models.load(str(here / "model"), dtype="float32")
    encoded = encode(read_pairs("choices:a/test", here), tokenizer)
    base = item_scores(encoded, collect(model, encoded, logps=True)).accuracy_choice
    (line,) = [x for x in found if (x.method, x.split) == ("base", "a")]
    assert line.value == pytest.approx(base.mean())
    for arm in ("base", "dph frozen"):
        by = {x.split: x.value for x in found if x.method == arm}
        assert by[IN_DOMAIN] == pytest.approx((by["a"] + by["b"]) / 2)
        assert by[HELD_OUT] == pytest.approx(by["c"])
    verdicts = [d for d in done.differences if not d.method.startswith(ABLATED)]
    assert len(verdicts) == 20
    assert all(v.p_holm >= v.p for v in done.differences)
    values = {(x.method, x.read_out, x.split): x.value for x in done.measurements}
    for v in done.differences:
        mine = values[v.method, v.read_out, v.split]
        theirs = values[v.against, v.against_read_out, v.split]
        assert v.value == pytest.approx(mine - theirs)
    ablation = [m for m in done.measurements if m.method.startswith(ABLATED)]
    assert {x.method for x in ablation} == {
        f"dph, identity × {x}" for x in ("separable", "listwise")
    }
    assert {x.seeds for x in ablation} == {2}
    assert len(done.differences) == 22


def test_a_frozen_head_is_scored_as_anywhere_else(here: Path, ranked: Path) -> None:
    """From stored states as by `score`, which runs the model."""
    (cell,) = ranked.glob("cells/dph-frozen-s1-*")
    dial = Dial.from_pretrained(cell / "dial")
    model, tokenizer = models.load(str(here / "model"), dtype="float32")
    for task in ("a", "c"):
        encoded = encode(read_pairs(f"choices:{task}/test", here), tokenizer)
        wanted = score(model, encoded, dial).accuracy_choice
        found = json.loads((cell / "cell.json").read_text())["found"][task]
        assert found == wanted.tolist()


def reward_settings(here: Path) -> RewardComparison:
    return RewardComparison(
        model=str(here / "model"),
        data_root=str(here),
        tasks=("a", "b"),
        held_out=("c",),
        train_items=8,
        test_items=5,
        more_items=12,
        head_seeds=(0, 1),
    )


def test_nothing_is_run_twice(here: Path, ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished cells are read; one that is missing is made again, to the same figures."""
    settings = reward_settings(here)
    before = {name: (ranked / name).read_bytes() for name in ("results.jsonl", "verdicts.jsonl")}
    (gone,) = ranked.glob("cells/sft-s0-*")
    (gone / "cell.json").unlink()
    made: list[str] = []
    fit = on_model.fit
    monkeypatch.setattr(on_model, "fit", lambda m, *a, **k: made.append(m.name) or fit(m, *a, **k))
    compare_rewards.compare_rewards(settings, ranked)
    assert made == ["sft"]
    assert before == {name: (ranked / name).read_bytes() for name in before}


# ---- alignment heads ----------------------------------------------------------------------------


def head_settings(here: Path, **changes: Any) -> HeadComparison:
    given: dict[str, Any] = {
        "model": str(here / "model"),
        "train": f"jsonl:{here}/train.jsonl",
        "tests": (f"jsonl:{here}/test.jsonl",),
        "alphas": (1.0, 2.0),
        "kl_items": 3,
        "args_answers": 2,
        "k": 4,
        "head_seeds": (0, 1),
        "new_tokens": 3,
        "rounds": 2,
        "head_epochs": 2.0,
        "dtype": "float32",
    }
    return HeadComparison(**{**given, **changes})


@pytest.fixture(scope="module")
def leaned(here: Path) -> Path:
    """A finished comparison of heads."""
    return compare_heads.compare_heads(head_settings(here), here / "heads")


def test_heads_compared(here: Path, leaned: Path) -> None:
    done = read(leaned)
    assert done.about.more["alpha_0_is_the_bare_model"] is True
    took = {arm for arm, x in done.costs.items() if "fit_seconds" in x}
    assert took == {"iav", "dpo", "genarm", "args"}
    found = done.measurements
    assert len(found) == 1 + 4 * 2 * 2
    assert all(x.value >= 0 for x in found)
    kl = {(x.method, x.alpha): x.value for x in found if x.metric == "kl"}
    for arm in ("iav", "genarm"):
        assert 0 < kl[arm, 1.0] < kl[arm, 2.0]
    assert set(done.costs) == {*("base", "iav", "iav merged", "dpo", "genarm", "args")}
    assert done.costs["base"]["of_base"] == 1
    assert all(x["of_base_low"] <= x["of_base"] <= x["of_base_high"] for x in done.costs.values())
    assert len(done.differences) == 5


@pytest.mark.parametrize("arm", ["iav", "dpo", "genarm"])
def test_log_probs_and_kl_are_those_of_whole_passes(arm: str, here: Path, leaned: Path) -> None:
    """From states at the head as from the model with its dial, or from two models."""
    (cell,) = leaned.glob(f"cells/{arm}-s0-*")
    dial = Dial.from_pretrained(cell / "dial")
    model, tokenizer = models.load(str(here / "model"), dtype="float32")
    encoded = encode(read_pairs(f"jsonl:{here}/test.jsonl"), tokenizer)
    alpha = 2.0
    stored = json.loads((cell / "cell.json").read_text())["found"]["tests"]
    found = next(iter(stored.values()))["2"]
    kl, means = [], []
    for row in encoded.rows:
        total = tokens = 0.0
        for answer in row.answers:
            ids = torch.tensor([[*row.prompt, *answer]])
            at = slice(len(row.prompt) - 1, -1)
            with torch.no_grad():
                base = model(input_ids=ids).logits[0, at].log_softmax(-1)
                with dial(model, 1.0 if arm == "genarm" else alpha):
                    own = model(input_ids=ids).logits[0, at].log_softmax(-1)
            if arm == "genarm":
                own = (base + alpha * own).log_softmax(-1)
            total += float((own.exp() * (own - base)).sum())
            tokens += len(answer)
            means.append(float(own[range(len(answer)), list(answer)].mean()))
        kl.append(total / tokens)
    assert found["kl"] == pytest.approx(kl[:3], rel=2e-3, abs=1e-5)
    right = []
    for row, offset in zip(encoded.rows, encoded.answer_offsets, strict=False):
        ((c, r),) = row.pairs
        right.append(float(means[offset + c] > means[offset + r]))
    assert found["accuracy"] == right


def test_heads_resumed(here: Path, leaned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in leaned.glob("*.jsonl")}
    monkeypatch.setattr(on_model, "fit", None)
    compare_heads.compare_heads(head_settings(here), leaned)
    assert before == {p.name: p.read_bytes() for p in leaned.glob("*.jsonl")}


# ---- the page -----------------------------------------------------------------------------------


def test_the_page(here: Path, ranked: Path, leaned: Path, tmp_path: Path) -> None:
    """`report` makes the page and its figures from result files alone, the same bytes each time, and
    its last words are those of the verdicts."""
    root = tmp_path / "results" / "heads"
    for name, run in (("dph", ranked), ("iav", leaned)):
        (root / name).mkdir(parents=True)
        for file in (p for p in run.iterdir() if p.is_file()):
            (root / name / file.name).write_bytes(file.read_bytes())
    done = trimtab("report", root.parent)
    assert done.code == 0, done.err
    page = tmp_path / "results" / "heads.md"
    text = page.read_text()
    assert text.index("Held out: tasks") < text.index("What holds of the published claims")
    for v in lines(leaned / "verdicts.jsonl"):
        if v["method"] == "iav" and v["against"] == "dpo":
            sentence = {"cannot tell": "IAV cannot be told from DPO"}.get(
                v["verdict"], f"IAV is {v['verdict']} than DPO in this run"
            )
            assert sentence in text
    assert "no logit changes by a bit" in text
    assert "the logits are the bare model's to the last bit" in text
    assert text.count("](heads.svg)") == text.count("![") == 1
    drawn = page.with_suffix(".svg").read_text()
    assert "prefers-color-scheme:dark" in drawn
    assert "Held out" in drawn
    assert "KL over alpha" in drawn
    before = {p: p.read_bytes() for p in (page, page.with_suffix(".svg"))}
    assert trimtab("report", root / "dph").code == 0
    assert before == {p: p.read_bytes() for p in before}
    (root / "iav" / "results.jsonl").unlink()
    said = trimtab("report", root.parent)
    assert said.code == 2
    assert "results.jsonl: missing" in said.err
    assert page.read_bytes() == before[page]


# ---- parts, and what is refused -----------------------------------------------------------------


def test_averages_and_differences() -> None:
    """Tasks count alike whatever their sizes; a side without seeds is set against every seed."""
    scores, weights = averaged([{0: [1.0, 1.0, 1.0, 1.0]}, {0: [0.0, 0.0]}])
    own = {"model": "tiny", "suite": "", "split": "test", "metric": "accuracy", "method": "x"}
    own |= {"alpha": None, "at": "alpha_1"}
    assert measured(scores, weights, **own).value == pytest.approx(0.5)
    whole = measured(
        *averaged([{0: [1.0] * 10, 1: [1.0] * 10}, {0: [1.0] * 2, 1: [0.5] * 2}]), **own
    )
    assert 0 <= whole.low < whole.value < whole.high <= 1
    own["against"] = "base"
    line = compared({0: [1.0, 0.0], 1: [1.0, 1.0]}, {None: [0.0, 0.0]}, **own)
    assert (line.value, line.seeds, line.items) == (0.75, 2, 2)
    paired = compared({0: [1.0, 1.0], 2: [0.0, 1.0]}, {2: [0.0, 0.0], 1: [1.0, 1.0]}, **own)
    assert paired.value == 0.5
    assert judged([]) == []


def test_what_is_refused(here: Path, tmp_path: Path) -> None:
    for wrong in (
        {"alphas": (0.0, 1.0)},
        {"alphas": (2.0,)},
        {"k": 1},
        {"tests": ()},
        {"head_seeds": (1, 1)},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            HeadComparison(**wrong)
    for wrong in ({"train_items": 0}, {"held_out": ("boolq",)}, {"seeds": (-1,)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            RewardComparison(**wrong)
    (tmp_path / "other").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        compare_heads.compare_heads(head_settings(here), tmp_path)
    words = ["--model", here / "model", "--data-root", tmp_path, "--out", tmp_path / "out"]
    done = trimtab("compare-rewards", *words)
    assert done.code == 2
    assert "choices:ARC-Easy/train was not found" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", sorted(RECIPES.glob("heads-*.yaml")), ids=lambda f: f.stem)
def test_recipes_say_what_the_verbs_understand(file: Path, tmp_path: Path) -> None:
    """Every flag is one of the verb's; it fails at the model, which is not there."""
    recipe = yaml.safe_load(file.read_text())
    assert Path(recipe["out"]).parent == Path("docs/results/heads")
    flags = tmp_path / "flags.yaml"
    flags.write_text(yaml.safe_dump({**recipe["flags"], "model": "./nowhere"}))
    done = trimtab(recipe["run"], "--config", flags, "--out", tmp_path / "out")
    assert done.code == 2
    assert "nowhere" in done.err
    assert not (tmp_path / "out").exists()


# ---- several at once, and stopped ---------------------------------------------------------------


def test_a_cell_that_fails_loses_no_other(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = on_model.fit

    def broken(named: Any, *rest: Any, **options: Any) -> Any:
        if named.name == "genarm":
            raise ConfigError("no second model")
        return fit(named, *rest, **options)

    monkeypatch.setattr(on_model, "fit", broken)
    settings = head_settings(here, new_tokens=0, head_seeds=(0,), head_epochs=1.0, epochs=1.0)
    with pytest.raises(StudyError, match=r"genarm-s0: no second model"):
        compare_heads.compare_heads(settings, tmp_path / "run")
    done = {f.parent.name.rpartition("-")[0] for f in tmp_path.glob("run/cells/*/cell.json")}
    assert {"states", "base", "iav-s0", "dpo-s0", "args-s0"} <= done
    assert not (tmp_path / "run" / "results.jsonl").exists()
