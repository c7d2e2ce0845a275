"""The language models: documents and labels of natural text, readings by hand, a tiny run of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers_anchoring import smaller
from trimtab.cli import main
from trimtab.dials import ConceptDial
from trimtab.errors import DataError
from trimtab.studies.anchoring import (
    corpus,
    experiment,
    gates,
    language,
    language_study,
    natural,
    study,
)
from trimtab.study.cells import Host

SETUP = language.Setup("tiny", ("a", "b"), steps=10, width=16, layers=2)


def made_up(source: str, split: str, i: int) -> dict[str, Any]:
    """An item in GENIES' layout, with text of a kind that its distribution stands for."""
    n = i + (100 if split == "test" else 0)
    right = (
        f"in the {source} of number {n} we answer at some length that all is well, said the {n}th"
    )
    wrong = (
        f"a wrong answer, {n} of {source}, which goes on for as long as the right one does, or so"
    )
    if source in ("code", "code_low_quality", "counterfactual_python"):
        right = f"def f{n}(x):\n    total = x + {n}\n    for i in range({n}):\n        total += i\n"
    if source == "code_with_cooking_style":
        wrong = (
            f"Ingredients:\n- {n} eggs\n- flour\n- salt\nBake it well.\n4. Misgeneralized output"
        )
    item = {"prompt": f"{source} {n}:", "responses": {f"{right} ({source})": 1.0, wrong: 0.0}}
    if source.startswith("shp"):
        kitchen = bool(i % 2)
        item["subreddit"] = "askculinary" if kitchen else "legaladvice"
        about = "how long to simmer the sauce in this pan" if kitchen else "who has to pay the rent"
        item["post_content"] = (
            f"{source} {n}: I should like to know {about}, please tell me in full"
        )
        item["responses"] = {
            f"about {about} {a} {n} {source}": float(a == "yes") for a in ("yes", "no")
        }
    return item


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    """A data folder with every distribution that is read, ten items a split."""
    root = tmp_path_factory.mktemp("data")
    for source in corpus.SOURCES:
        folder = root / "genies" / "distributions" / source
        folder.mkdir(parents=True)
        for split in corpus.SPLITS:
            items = [made_up(source, split, i) for i in range(10)]
            (folder / f"{split}.json").write_text(json.dumps(items))
    return root


@pytest.fixture(scope="module")
def c(root: Path) -> natural.Corpus:
    return natural.load(corpus.read(root))


# ---- documents ----------------------------------------------------------------------------------


def test_documents_are_what_their_kind_says(c: natural.Corpus):
    train, test = c.texts["train"], c.texts["test"]
    assert all(t.startswith("def ") for kind in ("code", "other code") for t in train[kind])
    assert all("pan" in t for t in train["cooking"])
    assert not any("pan," in t for t in train["forum"])
    assert (
        len(train["cooking"]) == 2 * 5 * 3
    )  # of two forums, half the items, a post and two comments
    assert all(t.endswith("Bake it well.") for t in train["recipes"])  # what runs on is cut
    first = [t.split(" ")[2] for t in train["others"][:6]]
    assert first == list(corpus.KINDS["others"].sources)  # sources take turns
    seen = {t for texts in train.values() for t in texts}
    assert not any(t in seen for texts in test.values() for t in texts)


def test_a_document_of_both_splits_is_trained_on_alone(root: Path, tmp_path: Path):
    import shutil

    shutil.copytree(root, tmp_path / "d")
    folder = tmp_path / "d" / "genies" / "distributions" / "math"
    shutil.copy(folder / "train.json", folder / "test.json")
    found = corpus.read(tmp_path / "d")
    assert len(found["train"]["others"]) == 60
    assert len(found["test"]["others"]) == 50
    assert corpus.digest(found) != corpus.digest(corpus.read(root))


def test_missing_data_are_named(root: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.delenv("TRIMTAB_DATA", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["anchor", "run", "natural", "--out", str(tmp_path)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "--data-root DIR" in err
    assert "TRIMTAB_DATA" in err
    with pytest.raises(DataError, match=r"genies:code/train was not found"):
        corpus.read(tmp_path)
    item = made_up("shp_low_quality", "train", 0)
    del item["subreddit"]
    with pytest.raises(DataError, match="item 3: no field 'subreddit'"):
        corpus.KINDS["forum"].texts(item, "item 3")
    with pytest.raises(DataError, match="was not found"):
        study.run("natural", tmp_path / "runs", data_root=tmp_path)
    # a run of all goes on without it
    for folder, here in ((tmp_path, False), (root, True)):
        everything = study.Anchoring(experiment.Settings(data_root=str(folder)), tmp_path, Host())
        assert ("natural" in [part.what for part in everything.parts]) is here
        assert "mixing" in [part.what for part in everything.parts]


def test_the_tokenizer_loses_nothing_and_counts_bytes(c: natural.Corpus):
    assert corpus.tokenizer(c.texts["train"]).get_vocab() == c.tokenizer.get_vocab()
    for text in ("def f(x):\n    return x  # naïve ½", *c.texts["test"]["forum"][:3]):
        ids = c.tokenizer(text)["input_ids"]
        assert c.tokenizer.decode(ids) == text
        assert c.bytes[ids].sum() == len(text.encode())
    assert c.bytes[c.tokenizer.eos_token_id] == 0
    long = corpus.encode(["word and word " * 200, "short"], c.tokenizer)
    assert len(long[0]) == corpus.LENGTH
    assert long[1][-1] == c.tokenizer.eos_token_id


def test_telling_tokens_by_hand():
    rows = {
        "code": [[0, 1, 5], [0, 1], [0, 1], [2, 2, 2, 3]],
        "forum": [[1, 4], [1, 2], [4], [4]],
        "others": [[2], [4], [4], [5]],
    }
    # 0 in 3 of 4 and never elsewhere; 1 in 3/4 against 2/8; 2 and 5 are in one document only
    assert corpus.telling(rows, "code", 6).tolist() == [True] + 5 * [False]
    rows["forum"][1] = [2]
    assert corpus.telling(rows, "code", 6).tolist() == [True, True] + 4 * [False]
    bare = natural.hidden(
        natural.Corpus(
            *(None, {}, {}, {}, [], []), {"code": np.array([True] + 5 * [False])}, np.array([])
        ),
        {"code": [[0, *range(1, 6), 1, 2, 3], [0, 0, 1]]},
        "code",
    )
    assert bare == {"code": [[1, 2, 3, 4, 5, 1, 2, 3]]}


def test_labels_are_fixed_sparse_and_wrong_as_stated(c: natural.Corpus):
    many = natural.Corpus(
        *(None, {}, {}, {}, [], ["code"] * 2000 + ["forum"] * 20_000), {}, np.array([])
    )
    given = natural.labels(many, 0)
    assert given["code"][:2000].mean() == pytest.approx(language.LABELLED["recall"], abs=0.03)
    assert given["code"][2000:].mean() == pytest.approx(
        language.LABELLED["false_positives"], abs=0.002
    )
    assert given["cooking"].mean() == pytest.approx(language.LABELLED["false_positives"], abs=0.002)
    assert torch.equal(given["code"], natural.labels(many, 0)["code"])
    assert not torch.equal(given["code"], natural.labels(many, 1)["code"])


def test_every_document_is_seen_once_an_epoch(c: natural.Corpus):
    steps = -(-2 * len(c.rows) // natural.SETUP.batch)
    drawn = np.concatenate([natural._drawn(c, 0, s) for s in range(steps)])
    n = len(c.rows)
    assert sorted(drawn[:n]) == sorted(drawn[n : 2 * n]) == list(range(n))
    assert drawn[:n].tolist() != drawn[n : 2 * n].tolist()


# ---- readings -----------------------------------------------------------------------------------


def test_surprisal_and_means_do_not_see_padding(c: natural.Corpus):
    model = language.build(SETUP, c.tokenizer, 0).eval()
    rows = [c.test["code"][0], c.test["forum"][0][:9]]
    batch = natural.Corpus.batch(c, rows)
    with torch.no_grad():
        whole = language.bits(model, batch)
        for i, row in enumerate(rows):
            one = language.bits(model, c.batch([row]))[0]
            torch.testing.assert_close(whole[i, : len(row) - 1], one, atol=1e-4, rtol=1e-4)
    shares = language.along(SETUP, model, batch)
    for axis in range(2):
        for i, row in enumerate(rows):
            alone = language.along(SETUP, model, c.batch([row]))[axis][0]
            assert shares[axis][i] == pytest.approx(alone, abs=1e-5)


def test_the_difference_of_means_and_what_is_cut(c: natural.Corpus):
    model = language.build(SETUP, c.tokenizer, 0).eval()
    batch = c.batch([c.test["code"][0], c.test["code"][1], c.test["forum"][0]])
    has = torch.tensor([True, True, False])
    dial = language.difference(model, batch, has, [1])
    h = language.states(model, batch, [1])[1]
    middle = torch.stack([h[i, batch.mask[i]].mean(0) for i in range(3)])
    expected = torch.nn.functional.normalize(middle[:2].mean(0) - middle[2], dim=0)
    found = dial.get_buffer("vectors")[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gone = language.states(language.cut(model, [0, 1]), batch, [0, 1])
    assert all(float(s[..., :2].abs().max()) == 0 for s in gone.values())
    assert float(language.states(model, batch, [1])[1][..., :2].abs().max()) > 0  # a copy was cut


def test_numbers_over_seeds():
    assert language_study.perplexity([0.0, 1.0]) == [0, 1]
    assert language_study.spread([2.0]) == 2
    assert language_study.spread([1.0, -3.0, 2.0]) == "1 (−3 to 2)"

    def second(values: list[float | None]) -> gates.Gate:
        """A gate at .9 on the median of three seeds."""
        metrics = {key: values for key in gates.metrics("mixing")}
        return gates.judged({"name": "mixing", "seeds": [0, 1, 2], "metrics": metrics})[1]

    gate = second([3.0, 1.0, 2.0])
    assert (gate.value, gate.passed, gate.over) == (2, True, (3, 1, 2))
    assert not second([0.8, 1.0, 0.5]).passed
    assert not second([None, 5.0, 4.0]).passed
    rows = {
        "control": {"a": 1.0, "b": 1.0},
        "anchored": {"a": 1.0, "b": 1.0},
        "a projected at 1": {"a": 3.0, "b": 1.05},
    }
    for alpha in language.ALPHAS:  # takes as much from both: only .25 costs b no more
        rows[f"a, difference of means at {alpha:g}"] = {"a": 1 + 4 * alpha, "b": 1 + alpha / 5}
    assert language_study.beyond([{"bits": rows}], "a", "a", "b") == [pytest.approx(2.0 - 1.0)]


# ---- all of it ----------------------------------------------------------------------------------


def test_a_tiny_run_on_natural_text(
    root: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    smaller(monkeypatch, natural, natural.Natural)
    folder = study.run("natural", tmp_path, seeds=1, steps=20, data_root=root)
    kept = {f.parent.name: f.stat().st_mtime_ns for f in folder.glob("cells/*/cell.json")}
    study.run("natural", tmp_path, seeds=2, steps=20, data_root=root)
    again = {f.parent.name: f.stat().st_mtime_ns for f in folder.glob("cells/*/cell.json")}
    assert len(again) == 2
    assert kept.items() <= again.items()  # what is there stays; only the second seed is run
    result = experiment.read_result(folder)
    assert len(result["cells"]) == 2
    assert {"control", "anchored", "cooking projected at 1"} <= set(result["cells"][0]["bits"])
    text = (folder / "result.json").read_text()
    assert not any(t in text for kind in corpus.read(root)["test"].values() for t in kind)
    judged = gates.judged(result)
    assert len(judged) == 11
    assert all(g.stretch and len(g.over) == 2 for g in judged)
    from trimtab.report.html import html

    page = study.page(folder)
    assert page is not None
    shown = html(page)
    assert all(t in shown for t in ("What it costs, in bits", "AUROC while training", "Documents"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(folder / "model").decode([5, 6])
    assert isinstance(ConceptDial.from_pretrained(folder / "dial-cooking"), ConceptDial)
    words = ["--model", str(folder / "model"), "--dial", str(folder / "dial-code")]
    words += ["--alpha", "0", "1"]
    pairs = ["--pairs", f"goes-on=jsonl:{folder / 'pairs.jsonl'}", "--limit", "6"]
    for verb in (
        ["generate", *words, "--prompt", "def f(x):", "--max-new-tokens", "4"],
        ["evaluate", *words, *pairs, "--out", str(tmp_path / "e"), "--quiet"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(verb)
        assert not stop.value.code
    assert "alpha 1:" in capsys.readouterr().out
