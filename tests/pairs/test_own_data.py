"""Data of one's own on the command line: what is held out, what is wrong with it, personas, conditions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers_study import rows, trimtab, write_lines
from trimtab.dials import Dial, RotationDial, VectorDial
from trimtab.dials.conditions import SavedCondition, load_condition, save_condition
from trimtab.dials.where import Condition
from trimtab.errors import ConfigError, DialError
from trimtab.pairs import Pair, PairSet, read_pairs
from trimtab.pairs.inspect import ceiling, inspect_pairs, render


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A tiny model and a file of pairs under other names, one row of it bad."""
    folder = tmp_path_factory.mktemp("own")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    own = [
        {"Frage": r["prompt"], "Gut": r["chosen"], "Schlecht": r["rejected"]}
        for r in rows(20, "own")
    ]
    write_lines(folder / "own.jsonl", [*own, {"Frage": "x", "Gut": "", "Schlecht": "y"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield folder


COLUMNS = ("--columns", "prompt=Frage,chosen=Gut,rejected=Schlecht", "--skip-bad")


def test_fit_holds_out_by_item_and_says_where_to_measure(here: Path) -> None:
    words = ("fit", "mean", "--model", here / "model", "--out", here / "mean")
    own = ("--pairs", here / "own.jsonl", *COLUMNS, "--holdout", 0.25)
    done = trimtab(*words, *own)
    assert done.code == 0, done.err
    assert "own.jsonl:21: column 'chosen' is an empty answer" in done.err
    assert "1 bad rows left out" in done.err
    (spec,) = Dial.from_pretrained(here / "mean").info.data
    assert spec.endswith("skip-bad}[without 0.25]")
    assert len(read_pairs(spec)) == 15
    held = done.out.partition("--pairs 'test=")[2].partition("'")[0]
    assert held.endswith("[holdout 0.25]")
    assert not set(read_pairs(held).items()) & set(read_pairs(spec).items())
    assert trimtab(*words, *own).code == 0, "the same command again"
    assert "another run" in trimtab(*words, "--pairs", here / "own.jsonl", *COLUMNS).err
    done = trimtab(
        *("evaluate", "--model", here / "model", "--dial", here / "mean"),
        *("--pairs", f"test={held}", "--out", here / "evaluated"),
    )
    assert done.code == 0, done.err
    splits = json.loads((here / "evaluated" / "study.json").read_text())["splits"]
    assert splits["test"]["items"] == 5


@pytest.mark.parametrize("share", ["0", "1", "-0.5", "nan"])
def test_shares_that_are_none(here: Path, share: str) -> None:
    words = ("--model", here / "model", "--pairs", here / "own.jsonl", f"--holdout={share}")
    for verb in (("fit", "mean"), ("compare",)):
        done = trimtab(*verb, *words, "--out", here / "none")
        assert (done.code, "between 0 and 1" in done.err) == (2, True), done.err
    assert not (here / "none").exists()


def test_compare_on_pairs_of_ones_own(here: Path, tmp_path: Path) -> None:
    from trimtab.progress import SILENT
    from trimtab.studies.compare.grid import Comparison, plan_studies

    grid = Comparison(
        model=str(here / "model"),
        pairs=str(here / "own.jsonl"),
        holdout=0.3,
        columns="prompt=Frage,chosen=Gut,rejected=Schlecht",
        skip_bad=True,
    )
    (study,), _ = plan_studies(grid, tmp_path, [], False, SILENT)
    data = study.setting.data
    assert (len(data.train), {k: len(v) for k, v in data.splits.items()}) == (14, {"test": 6})
    assert study.suite.name == "own"
    assert not set(data.train.items()) & set(data.splits["test"].items())
    for wrong in (Comparison(columns="prompt=x"), Comparison(pairs="a.jsonl", suite="truthful-qa")):
        with pytest.raises(ConfigError, match="--pairs"):
            plan_studies(wrong, tmp_path, [], False, SILENT)


def test_columns_and_shapes_in_other_verbs(here: Path) -> None:
    done = trimtab("inspect", here / "own.jsonl", *COLUMNS, "--model", here / "model", "--bare")
    assert done.code == 0, done.err
    for part in ("20 in 20 items", "1 bad rows", "the bare model", "of 20 items right"):
        assert part in done.out.replace("\n", " ")
    done = trimtab("inspect", here / "own.jsonl", "--model", here / "model")
    assert (done.code, "'chosen' and 'rejected' are missing" in done.err) == (2, True)
    done = trimtab("inspect", "facts:dev", "--columns", "prompt=x", "--model", here / "model")
    assert "go with tables" in done.err


# ---- what is wrong with pairs ---------------------------------------------------------------------


def pairs(*triples: tuple[str, str, str]) -> PairSet:
    return PairSet([Pair(p, c, r, p) for p, c, r in triples], "toy")


@pytest.mark.parametrize(
    ("triples", "reversed_", "circle"),
    [
        ([("p", "a", "b"), ("p", "c", "d")], 0, 0),
        ([("p", "a", "b"), ("p", "b", "a")], 1, 2),
        ([("p", "a", "b"), ("q", "b", "a")], 0, 0),
        ([("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b")], 2, 3),
        ([("p", "a", "b"), ("p", "b", "c"), ("p", "a", "c")], 0, 0),
        ([("p", "a", "b"), ("p", "b", "c"), ("p", "c", "a"), ("p", "a", "d")], 0, 3),
        ([("p", "a", "b"), ("p", "b", "a"), ("p", "b", "a")], 2, 3),
    ],
)
def test_reversed_and_contradictory_pairs(triples: Any, reversed_: int, circle: int) -> None:
    report = inspect_pairs(pairs(*triples))
    assert (report["reversed"], report["contradictory"]) == (reversed_, circle)
    console = Console(width=200)
    with console.capture() as said:
        console.print(render(report))
    assert ("prefer in a circle" in said.get()) is bool(circle)


def test_a_set_that_is_too_small_and_a_ceiling() -> None:
    for items, parts in ((20, "too few to measure on"), (200, "hold out more"), (1000, "")):
        report = inspect_pairs(pairs(*((f"{i}", "a", "b") for i in range(items))))
        assert report["precision"]["all"] == pytest.approx(0.98 / items**0.5)
        console = Console(width=200)
        with console.capture() as said:
            console.print(render(report))
        assert parts in said.get()
        assert parts or "hold out more" not in said.get()
    assert "ceiling" in ceiling(0.98, 10)
    assert "right way round" in ceiling(0.02, 10)
    assert ceiling(0.7, 1000) == "has 70.0% of 1,000 items right"


# ---- personas and conditions ----------------------------------------------------------------------


def test_personas_without_python(here: Path) -> None:
    words = ("fit", "mean", "--model", here / "model", "--limit", 4, "--out", here / "pirate")
    done = trimtab(*words, "--persona-positive", "a pirate", "--persona-negative", "a clerk")
    assert done.code == 0, done.err
    dial = Dial.from_pretrained(here / "pirate")
    assert isinstance(dial, VectorDial)
    assert list(dial.info.data) == ["personas: Act as if you were {persona}. a pirate | a clerk"]
    wrong = [
        (("--persona-positive", "a pirate"), "expected couples"),
        (
            ("--persona-positive", "x", "--persona-negative", "y", "--pairs", "facts:dev"),
            "or --pers",
        ),
        (
            ("--persona-positive", "x", "--persona-negative", "y", "--holdout", "0.2"),
            "go with --pairs",
        ),
        (
            ("--persona-positive", "x", "--persona-negative", "y", "--persona-template", "Hi"),
            "expected {persona}",
        ),
        ((), "give --pairs SPEC"),
    ]
    for more, part in wrong:
        done = trimtab("fit", "mean", "--model", here / "model", "--out", here / "no", *more)
        assert done.code == 2, more
        assert part in done.err, done.err


def test_a_condition_from_files_acts_in_its_prompts_alone(here: Path) -> None:
    acting = [f"Number {i} plus {i + 1} is" for i in range(8)]
    resting = [f"the quick fox {'runs ' * (i + 1)}away" for i in range(8)]
    (here / "acting.txt").write_text("\n".join(acting) + "\n")
    chats = [{"messages": [{"role": "user", "content": text}]} for text in resting]
    write_lines(here / "resting.jsonl", [{"prompt": text} for text in resting])
    words = ("fit-condition", "--model", here / "model", "--prompt-style", "plain")
    files = ("--acting", here / "acting.txt", "--resting", here / "resting.jsonl")
    done = trimtab(*words, *files, "--sites", "0,1", "--out", here / "condition")
    assert done.code == 0, done.err
    assert "balanced accuracy 1.00" in done.out
    saved = load_condition(here / "condition")
    assert saved.balanced_accuracy == 1.0
    assert saved.info.base_model == str(here / "model")
    # Chats, with the template that the condition is then read with, too.
    write_lines(here / "chats.jsonl", chats)
    files = ("--acting", here / "acting.txt", "--resting", here / "chats.jsonl")
    done = trimtab(*words[:3], *files, "--sites", "0,1", "--out", here / "chat-condition")
    assert done.code == 0, done.err
    assert load_condition(here / "chat-condition").condition.prompt_style == "chat"

    own = ("--pairs", here / "own.jsonl", *COLUMNS, "--sites", "2")
    fit = ("fit", "mean", "--model", here / "model", *own)
    with_it = ("--condition", here / "condition")
    for out, more in ((here / "free", ()), (here / "bound", with_it), (here / "bound", with_it)):
        done = trimtab(*fit, "--out", out, *more)
        assert done.code == 0, done.err
    generate = ("generate", "--model", here / "model", "--max-new-tokens", 6, "--alpha", 0, 8)
    prompts = ("--prompt", acting[0], "--prompt", resting[0])

    def texts(*more: Any) -> list[str]:
        done = trimtab(*generate, *prompts, "--prompt-style", "plain", *more)
        assert done.code == 0, done.err
        return [line.partition(": ")[2] for line in done.out.splitlines() if "alpha " in line]

    bound = texts("--dial", here / "bound")
    assert bound == texts("--dial", here / "free", *with_it)
    assert bound[0] != bound[1], "it acts"
    assert bound[2] == bound[3], "and rests"
    free = texts("--dial", here / "free")
    assert free[2] != free[3]
    again = ("--dial", here / "bound", *with_it)
    assert "has one of its own" in trimtab(*generate, *prompts, *again).err
    done = trimtab(*generate, *prompts, "--dial", here / "free", "--condition", here / "free")
    assert "not a condition" in done.err


def test_conditions_of_other_models_and_damaged_ones(here: Path, tmp_path: Path) -> None:
    import torch

    from trimtab.cli.ready import read_condition, under

    condition = Condition(1, torch.ones(32), 0.5, prompt_style="plain")
    saved = SavedCondition(condition, balanced_accuracy=0.9)
    saved.info.base_model, saved.info.base_digest = "another", "0" * 64
    folder = save_condition(tmp_path / "c", saved)
    back = load_condition(folder)
    assert (back.condition.threshold, back.condition.site, back.info.base_model) == (
        0.5,
        1,
        "another",
    )
    with pytest.raises(DialError, match="made for another"):
        read_condition(folder, str(here / "model"), False)
    assert read_condition(folder, str(here / "model"), True).threshold == 0.5
    note = json.loads((folder / "condition.json").read_text())
    for change in ({"threshold": 3}, {"over": "all"}, {"site": None, "threshold": "x"}):
        (folder / "condition.json").write_text(json.dumps({**note, **change}))
        with pytest.raises(DialError, match="damaged condition"):
            load_condition(folder)
    (tmp_path / "else").mkdir()
    with pytest.raises(DialError, match="no saved condition"):
        save_condition(tmp_path / "else", saved)
    adapter = RotationDial.__new__(RotationDial)
    with pytest.raises(ConfigError, match="takes none"):
        under([adapter], condition)
