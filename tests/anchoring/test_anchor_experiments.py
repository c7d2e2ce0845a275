"""The experiments: data by hand, seeds side by side, six-seed smoke runs, gates, pages, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from helpers_anchoring import smaller
from trimtab.cli import main
from trimtab.errors import ConfigError, TrimtabError
from trimtab.studies.anchoring import (
    colours,
    evaluate,
    experiment,
    gates,
    language,
    mixing,
    mixing_measures,
    mixing_task,
    routing,
    stories,
    study,
    world,
)
from trimtab.studies.anchoring.autoencoder import Autoencoder, Shape
from trimtab.studies.anchoring.catalogue import Cut, find
from trimtab.studies.anchoring.experiment import read_result
from trimtab.studies.anchoring.ngpt import NGPT, Size
from trimtab.studies.anchoring.registry import ENTRIES
from trimtab.studies.anchoring.train import Trained, members, sheet_of, train

COLOUR = [name for name, entry in ENTRIES.items() if entry.kind == "colour"]


def rgb(*values: float) -> torch.Tensor:
    return torch.tensor([values])


# ---- colours ------------------------------------------------------------------------------------


def test_qualities_of_colours():
    red, pink, grey = rgb(1, 0, 0), rgb(1, 0.5, 0.5), rgb(0.5, 0.5, 0.5)
    assert [float(colours.redness(c)) for c in (red, pink, grey)] == [1, 0.5, 0.25]
    assert [float(colours.vibrancy(c)) for c in (red, pink, grey)] == [1, 0.5, 0]
    named = dict(zip(colours.NAMES, colours.named().tolist(), strict=True))
    assert named["red"] == [1, 0, 0]
    assert named["cyan"] == [0, 1, 1]
    assert named["lime"] == [0.5, 1, 0]
    assert named["pink"] == [1, 0, 0.5]
    assert named["dark grey"] == [0.25, 0.25, 0.25]


def test_likeness_to_red():
    like = dict(zip(colours.NAMES, colours.similarity(colours.named()).tolist(), strict=True))
    assert like["red"] == 1
    assert like["cyan"] == like["green"] == like["white"] == like["black"] == 0
    for name, value in {"orange": 2 / 3, "pink": 2 / 3, "yellow": 1 / 3, "magenta": 1 / 3}.items():
        assert like[name] == pytest.approx(value, abs=1e-5)
    # dark red: rho = (.5 + 1) / 2, its hue is red's: (1) (1) (1 - .5)
    assert float(colours.similarity(rgb(0.5, 0, 0))) == pytest.approx(0.5)


def test_sampling_weights_make_black_and_white_one_cell_each():
    hsv = colours.hsv_grid(36, 10, 10)
    w = colours.grid_weights(hsv, 10, 36)
    assert float(w[hsv[:, 2] == 0].sum()) == pytest.approx(1)
    assert float(w[(hsv[:, 1] == 0) & (hsv[:, 2] == 1)].sum()) == pytest.approx(1)


def test_r_squared_is_pearsons():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 50, generator=g), torch.randn(50, generator=g)
    expected = [np.corrcoef(row, y)[0, 1] ** 2 for row in x.numpy()]
    assert colours.r_squared(x, y).tolist() == pytest.approx(expected)
    assert float(colours.r_squared(torch.ones(1, 50), y)) == 0


def test_mixing_pairs():
    task = mixing_task.data()
    assert len(task.lines) == 2 * 2808
    assert int(task.held_out.sum()) == 2 * (2808 // 5)
    a, b = task.rgb[task.lines[:, 0]], task.rgb[task.lines[:, 2]]
    torch.testing.assert_close(task.rgb[task.answers], (a + b) / 2)
    assert (task.lines[:, 1] == mixing_task.PLUS).all()


def test_stories_and_their_twins():
    told = [world.story(s) for s in range(300)]
    for s, t in enumerate(told):
        assert t == world.story(s)
        honest, lying = world.story(s, lies=False), world.story(s, lies=True)
        differ = [
            i for i, (a, b) in enumerate(zip(honest.words, lying.words, strict=True)) if a != b
        ]
        assert set(honest.said) < set(differ)
        assert len(differ) == len(honest.said) + 1  # the first answer, too
        if t.landmark is not None:
            mark = world.landmarks()[t.landmark]
            assert {t.words[i] for i in t.facts} == {mark.city, mark.colour, mark.year}
            assert tuple(t.words[i] for i in t.name) == mark.name
            assert world.masked(t).words[t.name[0]] == "<unk>"
    # no word gives the liar away
    share = {lies: {w for t in told if t.lies is lies for w in t.words} for lies in (True, False)}
    assert share[True] == share[False] or len(share[True] ^ share[False]) < 25  # rare years, cities


def html_of(folder: Path) -> str:
    """The page of a run."""
    from trimtab.report.html import html

    page = study.page(folder)
    assert page is not None
    return html(page)


def test_the_stories_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller(monkeypatch, stories, stories.Stories)
    monkeypatch.setattr(stories, "TESTED", 100)
    folder = study.run("stories", tmp_path, seeds=1, steps=20)
    result = read_result(folder)
    cell = result["cells"][0]
    assert {"control", "anchored", "landmark projected at 1"} <= set(cell["bits"])
    assert set(result["metrics"]) == gates.metrics("stories")
    assert len(gates.judged(result)) == 7
    assert (folder / "dial-landmark" / "dial.json").is_file()
    assert len((folder / "pairs.jsonl").read_text().splitlines()) == 60
    assert "What it costs, in bits" in html_of(folder)


def test_the_routing_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smaller(monkeypatch, stories, stories.Stories)
    monkeypatch.setattr(routing, "SETUP", stories.SETUP)
    folder = study.run("routing", tmp_path, seeds=1, steps=20)
    result = read_result(folder)
    arm = result["cells"][0]["arms"]["unlearned"]
    assert arm["before"] == result["cells"][0]["control"]
    assert len(arm["back"]) == 3  # of 10 steps
    assert gates.metrics("routing") < set(result["metrics"])
    (table,) = result["tables"]
    assert [row[0] for row in table["rows"]] == list(routing.ARMS)
    assert all(len(row) == len(table["header"]) for row in table["rows"])
    assert "How soon it is back" in html_of(folder)


def test_labelled_texts_teach_the_part_that_is_cut_and_nothing_else(monkeypatch):
    """A gradient of labelled texts alone is that of the whole loss on the part, and none elsewhere; mixed,
    those of the others are added. Without its part a model is as if these units were not."""
    smaller(monkeypatch, stories, stories.Stories)
    tokenizer = world.tokenizer()
    batch = stories.encode([world.story(s) for s in range(4)], tokenizer)
    model = language.build(stories.SETUP, tokenizer, 0)

    def gradients(labelled: list[bool] | None) -> dict[str, torch.Tensor]:
        model.zero_grad()
        if labelled is None:
            language.mean(language.surprisal(model, batch), batch.mask[:, 1:]).backward()
        else:
            routing.Routed(model).backward(model, batch, torch.tensor(labelled))
        return {
            n: torch.zeros(()) if p.grad is None else p.grad.clone()
            for n, p in model.named_parameters()
        }

    whole, none, every = gradients(None), gradients([False] * 4), gradients([True] * 4)
    mixed, less = gradients([True, False, False, True]), gradients([False, True, True, False])
    units = 4 * stories.SETUP.width
    for name, gradient in whole.items():
        torch.testing.assert_close(none[name], gradient)
        part = torch.zeros_like(gradient)
        if "gate_proj" in name or "up_proj" in name:
            part[units - units // routing.SHARE :] = 1
        elif "down_proj" in name:
            part[:, units - units // routing.SHARE :] = 1
        torch.testing.assert_close(every[name] + torch.zeros_like(gradient), part * gradient)
        both = mixed[name] + less[name]
        torch.testing.assert_close(both, (1 + part) * gradient, rtol=1e-3, atol=1e-6)
    cut = routing.routed(model)
    mlp = cut.model.layers[0].mlp
    assert not mlp.down_proj.weight[:, -units // routing.SHARE :].any()
    assert mlp.down_proj.weight[:, : -units // routing.SHARE].all()


def test_unlearning_raises_what_is_labelled_and_little_else(monkeypatch):
    smaller(monkeypatch, stories, stories.Stories)
    tokenizer = world.tokenizer()
    batch = stories.encode([world.story(s) for s in range(8)], tokenizer)
    model = language.build(stories.SETUP, tokenizer, 0).eval()
    labels = {"landmark": torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0])}
    new = routing.unlearned(model, lambda step: (batch, labels), 12, 3e-3)
    rise = [
        (language.bits(m, batch) * batch.mask[:, 1:]).sum(1) / batch.mask[:, 1:].sum(1)
        for m in (model, new)
    ]
    rise = rise[1] - rise[0]
    assert rise[:2].min() > 0
    assert rise[2:].max() < 0


def test_the_mixing_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = ("control", "strong", "graded", "fallback")
    monkeypatch.setattr(mixing, "ARMS", {arm: mixing.ARMS[arm] for arm in kept})
    task = mixing_task.data()
    some = slice(None, None, 7)
    part = (task.lines[some], task.answers[some], task.held_out[some])
    monkeypatch.setattr(mixing, "data", lambda: mixing_task.Data(*part, task.rgb))
    folder = study.run("mixing", tmp_path, seeds=1, steps=20)
    result = read_result(folder)
    assert len(list(folder.glob("cells/*/model*.safetensors"))) == len(kept)
    assert set(result["metrics"]) == gates.metrics("mixing")
    assert len(gates.judged(result)) == 8
    assert "What is lost, by redness" in html_of(folder)


# ---- models -------------------------------------------------------------------------------------


def test_the_published_sizes():
    def count(shape: Shape) -> int:
        return sum(p.numel() for p in Autoencoder(shape, [0]).parameters())

    assert count(Shape(4)) == 263
    assert count(Shape(5, layers=2)) == 840


def trained(name: str, seeds: Any, steps: int) -> Trained:
    (group,) = members(find(name), seeds)
    return train(find(name), group, steps=steps)


def test_a_seed_among_many_is_the_seed_alone():
    few, one = (trained("2.9.1", seeds, 60) for seeds in ([3, 5], [5]))
    for a, b in zip(few.model.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-3, atol=1e-4)
    assert few.labelled["red"][1] == one.labelled["red"][0]


def test_the_same_run_twice_is_the_same_to_the_bit():
    one, two = (trained("2.4.1", [0, 1], 40).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_labels_are_as_rare_as_stated():
    counts = trained("2.5.1", range(8), 201).labelled["red"]
    assert 9 < np.mean(counts) < 14  # of 201 x 64 samples; published 82 to 84 of 96,064


def test_ablation_in_weights_is_projection_on_states():
    model = trained("2.9.1", [0, 1], 40).model.double()
    x = colours.rgb_grid(4).double()
    ablated, pruned, projected = (
        evaluate.apply(model, cut)(x)
        for cut in (Cut("ablate"), Cut("prune"), Cut("project", renormalise=True))
    )
    torch.testing.assert_close(ablated, projected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pruned, projected, rtol=0, atol=1e-12)
    assert (ablated - evaluate.apply(model)(x)).abs().max() > 1e-3


def test_zeroing_a_dimension_of_the_transformer_is_projecting_everywhere():
    model = NGPT(Size(tokens=30, width=16, layers=2, heads=2), 0)
    ids = torch.randint(0, 30, (5, 4), generator=torch.Generator().manual_seed(0))
    whole = mixing_measures.without(mixing_measures.axis(model), renormalise=True)
    with torch.no_grad():
        bare, states = model(ids)
        edited, _ = model(ids, whole, everywhere=True)
        for h in states:
            torch.testing.assert_close(h.norm(dim=-1), torch.ones(5, 4))
        model.ablate([0])
        torch.testing.assert_close(model(ids)[0], edited, atol=1e-5, rtol=0)
        assert (bare - edited).abs().max() > 1e-2


# ---- runs, gates, pages -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: Any) -> Path:
    """2.9.1 on six seeds with a fortieth of its steps."""
    root = tmp_path_factory.mktemp("runs")
    study.run("2.9.1", root, seeds=6, steps=40)
    return root


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: Any) -> Path:
    """Every other colour experiment, and the figures, as a study."""
    root = tmp_path_factory.mktemp("all")
    names = [n for n in ENTRIES if n in COLOUR or ENTRIES[n].kind == "figure"]
    names = tuple(n for n in names if n not in ("2.9.1", "2.9.2", "1.8"))
    settings = experiment.Settings(names, seeds=2, steps=20)
    study.run_study(study.Anchoring.at(settings, root))
    return root


def test_every_colour_experiment_runs(all_of_them: Path):
    found = study.found(all_of_them)
    assert len(found) == len(COLOUR)  # three figures in place of three
    for name in found:
        result = read_result(all_of_them / name)
        assert (result["name"], result["kind"]) == (name, ENTRIES[name].kind)
        judged = gates.judged(result)
        assert bool(judged) == (name in COLOUR)
        for arm in result.get("arms", {}).values():
            assert len(arm["values"]["recon"]) == 2
        assert all(g.what and g.bound for g in judged)
        said = " ".join([result["about"], *(g.what for g in judged)])
        assert "ten best" not in said
        assert "60 seeds" not in said
        assert ("over 2 seeds" in result["about"]) == ("{seeds}" in ENTRIES[name].about)
    assert "A short run of 20 steps: it proves nothing." in html_of(all_of_them)


def test_metrics_are_lines_of_the_one_schema(all_of_them: Path):
    import trimtab

    frame = trimtab.results(all_of_them / "1.6")
    of_arm = frame[(frame.method == "stepped") & (frame.metric == "recon")]
    arms = read_result(all_of_them / "1.6")["arms"]
    values = arms["stepped"]["values"]["recon"]
    assert of_arm[~of_arm["aggregate"]].value.tolist() == pytest.approx(values, rel=1e-5)
    assert of_arm[of_arm["aggregate"]].value.tolist() == pytest.approx([np.mean(values)], rel=1e-5)


@pytest.mark.parametrize(("seeds", "of"), [(1, "1 seed"), (10, "10 seeds"), (11, "ten best")])
def test_what_is_best_of_how_many_is_said(smoke: Path, seeds: int, of: str):
    """Ten of ten are all of them; from eleven on there is a choice."""
    result = read_result(smoke / "2.9.1")
    arm = result["arms"]["main"]
    result["seeds"] = list(range(seeds))
    arm["values"] = {k: [v[i % 6] for i in range(seeds)] for k, v in arm["values"].items()}
    said = [g.what for g in gates.judged(result) if "error of red, median" in g.what]
    assert said == [
        f"error of red, median {'of the ten best seeds' if of == 'ten best' else f'over {of}'}"
    ]
    assert (
        ENTRIES["2.5.1"].said(seeds) == f"2.5 again over {seeds} seed{'' if seeds == 1 else 's'}."
    )


def test_a_smoke_run_and_its_files(smoke: Path):
    result = read_result(smoke / "2.9.1")
    arm = result["arms"]["main"]
    assert len(arm["values"]["r2/ablation"]) == 6
    assert [len(row) for row in result["named"]["ablation"]] == [17, 17]
    reds = arm["values"]["ablation/red"]
    assert result["named"]["ablation"][0][0] == pytest.approx(np.median(reds), rel=1e-5)
    assert result["named"]["ablation"][1][0] == reds[result["best"]["index"]]
    assert max(arm["values"]["prune_is_ablate"]) < 1e-12
    with pytest.raises(ConfigError, match="a short run of 40 steps proves nothing"):
        study.judge("2.9.1", smoke)


def test_the_page_of_a_run(smoke: Path):
    page = html_of(smoke / "2.9.1")
    for text in ("Deleting red alone", "Selectivity", "<animate", "prefers-color-scheme:dark"):
        assert text in page
    titles = ["Over seeds", "Which colours are lost", "What it shows instead"]
    titles += ["Where the model keeps its colours", "Training", "The space as it forms"]
    assert all(f">{title}<" in page for title in titles)
    assert "A short run of 40 steps: it proves nothing." in page
    assert ">pass<" not in page
    from trimtab.report.anchoring import read_run, verdict

    result = read_result(smoke / "2.9.1")
    assert "gates passed; missed: " in verdict(read_run(smoke / "2.9.1"), gates.judged(result))


def test_a_page_over_all_runs(smoke: Path, tmp_path: Path):
    from trimtab.report.render import write

    page = study.page(smoke)
    assert page is not None
    text = write(page, tmp_path / "anchoring.md").read_text()
    assert "## 2.9.1: Deleting red alone" in text
    assert "](" not in text.partition("## ")[2]  # six seeds are no distribution to be drawn


def test_what_is_only_drawn_is_kept_apart(smoke: Path, tmp_path: Path):
    """The page lacks the drawings whose files are not there, and no number."""
    import shutil

    from trimtab.report.anchoring import page, read_run
    from trimtab.report.blocks import On, Section, Table, shown

    bare = tmp_path / "2.9.1"
    shutil.copytree(smoke / "2.9.1", bare)
    run = read_run(bare)
    assert {"schedule", "losses", "frames"} <= run.result.keys()
    text = (bare / "result.json").read_text()
    assert not {"schedule", "losses", "frames"} & json.loads(text).keys()

    def drawn() -> list[str]:
        """Titles of sections with drawings."""
        found = [
            b for b in shown(page(read_run(bare), []).blocks, On.HTML) if isinstance(b, Section)
        ]
        assert sum(isinstance(b, Table) for s in found for b in s.blocks) == 2
        return [s.title for s in found if not any(isinstance(b, Table) for b in s.blocks)][:-1]

    (bare / "arrays.safetensors").unlink()
    assert drawn() == ["Over seeds", "Training"]
    (bare / "curves.json").unlink()
    assert drawn() == ["Over seeds"]
    assert read_result(bare)["arms"] == run.result["arms"]
    (bare / "arrays.safetensors").write_bytes(b"no")
    with pytest.raises(TrimtabError, match="not the result of an experiment"):
        read_run(bare)


def test_a_figure_that_is_written_in_a_drawing_is_not_rounded():
    """Places are cut to two decimals, labels of ticks are not."""
    import re

    from trimtab.report.anchoring_canvas import Run, chart

    run = Run("x", {}, {})
    panel = chart(run, "t", "", {"a": ([0, 1, 2], [0.0, 0.0031, 0.005])}, "k")
    assert re.findall(r">(0\.\d\d+)<", panel.svg) == ["0.000", "0.002", "0.004"]
    assert not [tag for tag in re.findall(r"<[^>]*>", panel.svg) if re.search(r"\d\.\d{3}", tag)]
    several = chart(run, "t", "", {n: ([0, 1], [0, 1]) for n in ("one", "control")}, "k")
    assert several.height > panel.height  # the legend stands beneath
    assert "var(--muted)" in several.svg


def test_gates_tell_good_from_bad():
    good = gates.Gate("x", 0.5, low=0.2, high=0.6)
    assert good.passed
    assert good.bound == "0.2 to 0.6"
    assert not gates.Gate("x", float("nan"), low=0).passed
    assert not gates.Gate("x", 0.1, low=0.2).passed
    assert gates.Gate("x", 0.1, high=0.1).passed


def test_every_sheet_matches_its_terms():
    for name in COLOUR:
        e = find(name)
        for arm in e.arms:
            assert sheet_of(e, arm).table().steps > 500
    t = sheet_of(find("2.9.1"), find("2.9.1").arms[0]).table()
    assert t.at(248)["anchor"] == 0.1
    assert t.at(0)["anti-subspace"] == 0.25
    assert t.at(750)["anti-subspace"] == 0.003
    assert t.at(1425)["anchor"] == t.at(1500)["anti-anchor"] == 0


def test_the_recovery_experiment_runs(tmp_path: Path):
    result = read_result(study.run("healing", tmp_path, seeds=2, steps=20))
    ablated, pruned = (result["kinds"][k]["all colours"] for k in ("ablated", "pruned"))
    assert set(ablated) >= {"steps", "red_samples", "before"}
    assert ablated["before"] == pytest.approx(pruned["before"], abs=1e-5)
    assert len(gates.judged(result)) == 4
    assert "Coming back" in html_of(tmp_path / "healing")


def test_gates_read_what_is_kept():
    """Each line of the table is of experiments that there are, and of a way to make one number."""
    for row in gates.rows():
        assert set(row["experiments"].split()) <= set(ENTRIES)
        assert row["how"] in gates.HOW
        assert row["low"] or row["high"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "2.91"], "unknown experiment '2.91'; did you mean"),
        (["run"], "which experiment?"),
        (["run", "2.9.1", "--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["run", "2.9.1", "--steps", "3"], "--steps 3"),
        (["check", "2.9.1", "--runs", "nowhere"], "run it first: trimtab anchor run 2.9.1"),
        (["check", "--all", "--runs", "nowhere"], "no runs there"),
        (["report", "nope"], "unknown experiment 'nope'"),
        (["paint"], "unknown 'paint'"),
    ],
)
def test_wrong_commands_are_one_line(words: list[str], says: str, capsys: Any):
    with pytest.raises(SystemExit) as stop:
        main(["anchor", *words])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_list_and_damaged_results(tmp_path: Path, capsys: Any):
    with pytest.raises(SystemExit):
        main(["anchor", "list"])
    out = capsys.readouterr().out
    assert all(name in out for name in ENTRIES)
    (tmp_path / "2.8").mkdir()
    (tmp_path / "2.8" / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        study.judge("2.8", tmp_path)
    file = tmp_path / "x.json"
    experiment.write_json(file, {"a": [1.23456789, float("nan")]})
    assert json.loads(file.read_text()) == {"a": [1.23457, None]}


COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "results" / "anchoring"


@pytest.mark.skipif(
    not COMMITTED.with_suffix(".md").is_file(), reason="no committed page: `make results`"
)
def test_the_committed_page_is_what_its_results_give(tmp_path: Path):
    """`trimtab anchor report --all --runs docs/results/anchoring` makes it again."""
    from trimtab.report.render import write

    page = study.page(COMMITTED)
    assert page is not None
    made = write(page, tmp_path / "anchoring.md")
    assert made.read_text() == (COMMITTED.parent / "anchoring.md").read_text()
    made, kept = (folder / "anchoring.svg" for folder in (tmp_path, COMMITTED.parent))
    assert made.read_bytes() == kept.read_bytes()
    assert ElementTree.parse(made).getroot().tag.endswith("svg")  # a file of its own: valid XML


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="no committed results of anchoring")
@pytest.mark.parametrize("name", ["1.7", "2.8", "2.4.1", "2.5.1", "2.7.1", "2.9.1", "2.10.1"])
def test_the_committed_headline_experiments_pass_their_gates(name: str):
    assert all(g.passed for g in study.judge(name, COMMITTED) if not g.stretch)
