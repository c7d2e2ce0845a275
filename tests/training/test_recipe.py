"""`trimtab recipe`: files are checked before anything runs, run in order, and their pages made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers_study import at_home, trimtab
from trimtab.cli import recipe as verb
from trimtab.cli.recipe import Recipe

MEASURING = {
    "alpha": [0, 1],
    "dose_items": 2,
    "train_items": 2,
    "passages": 1,
    "prompts": 0,
    "equal_kl": ["oos"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer):
    folder = tmp_path_factory.mktemp("recipes")
    with at_home(folder, tiny("llama"), tokenizer):
        yield folder


def write(file: Path, **values: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values))
    return file


def comparing(here: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The keys of a recipe that runs a tiny comparison."""
    flags = {
        "model": str(here / "model"),
        "suite": str(here / "suite.yaml"),
        "methods": ["mean"],
        "controls": ["dpo"],
        "seeds": [0],
        "device": "cpu",
        "measuring": MEASURING,
    }
    return {"run": "compare", "out": str(out), "flags": flags | changes}


def test_recipes_run_in_order_and_their_page_is_made(here, tmp_path):
    results = tmp_path / "results"
    changes: dict[str, dict[str, Any]] = {"one": {}, "two": {"methods": ["pca"], "controls": []}}
    files = [
        write(tmp_path / f"innerpo-{n}.yaml", **comparing(here, results / "innerpo" / n, **some))
        for n, some in changes.items()
    ]
    done = trimtab("recipe", *files, "--quiet")
    assert (done.code, done.err) == (0, "")
    page = results / "innerpo.md"
    assert done.out.split()[-1] == str(page)
    assert "## What this says about the claim" in page.read_text()
    assert page.with_suffix(".svg").is_file()
    lines = (results / "innerpo" / "one" / "verdicts.jsonl").read_text().splitlines()
    assert {(w["split"], w["at"]) for w in map(yaml.safe_load, lines)} == {
        ("test", "alpha_1"),
        ("oos", "alpha_1"),
        ("oos", "equal_kl"),
        ("dose", None),
    }

    # A finished cell is not run again, and the page comes from the committed files alone.
    cells = {f: f.stat().st_mtime_ns for f in results.rglob("summary.json")}
    before = page.read_bytes()
    page.unlink()
    assert trimtab("recipe", *files, "--quiet").code == 0
    assert cells == {f: f.stat().st_mtime_ns for f in results.rglob("summary.json")}
    assert page.read_bytes() == before
    for how in (("recipe", *files, "--render-only"), ("report", results)):
        page.unlink()
        done = trimtab(*how)
        assert (done.code, done.out.split()) == (0, [str(page)])
        assert page.read_bytes() == before


def test_a_recipe_is_a_file_of_flags_too(here, tmp_path):
    file = write(tmp_path / "x.yaml", **comparing(here, tmp_path / "run"))
    done = trimtab("compare", "--config", file, "--methods", "pca", "--controls", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "run" / "results.jsonl").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "compair"}, "run: no verb 'compair'; did you mean 'compare'"),
        ({"run": "methods"}, "no verb 'methods'"),
        ({"run": None}, "the key 'run' is None"),
        ({"out": ...}, "the key 'out' is missing; expected the keys run (a verb), out (a folder)"),
        ({"flag": {}}, "unknown key 'flag'; did you mean 'flags'"),
        ({"flags": [1]}, "flags: expected flags with their values"),
        ({"flags": {"methodz": ["dpo"]}}, "unknown key 'methodz'; did you mean 'methods'"),
        ({"flags": {"seeds": ["x"]}}, "bad.yaml: "),
        ({"run": "fit dpoo", "flags": {"pairs": "facts:train"}}, "unknown method 'dpoo'"),
        ({"run": "fit dpo", "flags": {}}, "pairs"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(here, tmp_path, changes, message):
    good = write(tmp_path / "good.yaml", **comparing(here, tmp_path / "run"))
    values = comparing(here, tmp_path / "other") | changes
    bad = write(tmp_path / "bad.yaml", **{k: v for k, v in values.items() if v is not ...})
    done = trimtab("recipe", good, bad)
    assert done.code == 2
    assert message in done.err
    assert "bad.yaml" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_recipes(tmp_path):
    assert "No such file" in trimtab("recipe", tmp_path / "none.yaml").err
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "expected the keys run" in trimtab("recipe", tmp_path / "list.yaml").err
    assert trimtab("recipe").code == 2


def test_one_folder_is_not_for_two(here, tmp_path):
    files = [write(tmp_path / f"{n}.yaml", **comparing(here, tmp_path / "run")) for n in "ab"]
    assert "is given by two recipes" in trimtab("recipe", *files).err


def test_words_after_two_dashes_go_to_the_verb(here, tmp_path, monkeypatch):
    file = write(tmp_path / "x.yaml", **comparing(here, tmp_path / "run"))
    seen = []
    load = verb.main_of

    def spy(name):
        def run(words):
            seen.append(words)
            if len(seen) == 1:  # the check
                load(name)(words)

        return run

    monkeypatch.setattr(verb, "main_of", spy)
    assert trimtab("recipe", file, "--quiet", "--", "--jobs", "2").code == 0
    assert seen == [["--config", str(file), "--jobs", "2", "--quiet"]] * 2


@pytest.mark.parametrize(
    ("file", "out", "page"),
    [
        ("innerpo-facts", "docs/results/innerpo/facts", "docs/results/innerpo"),
        ("heads", "docs/results/heads", "docs/results/heads"),
        ("mine", "runs/x", "runs/x"),
    ],
)
def test_the_page_is_that_of_the_folder_that_the_file_is_named_for(file, out, page):
    recipe = Recipe(Path(f"recipes/{file}.yaml"), "compare", (), Path(out))
    assert recipe.page == Path(page)
