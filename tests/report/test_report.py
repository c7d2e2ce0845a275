"""The report from a made-up but realistic run: rendering, escaping, same bytes, bad files."""

from __future__ import annotations

import functools
import html.parser
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from rich.console import Console

from trimtab.errors import TrimtabError
from trimtab.report import (
    compare,
    console_tables,
    read_results,
    render,
    tables,
    write_markdown,
    write_page,
)
from trimtab.report.blocks import Page, Section, Table, Text, code, plain
from trimtab.report.figures import accuracy
from trimtab.report.svg import DARK, LIGHT, sheet
from trimtab.report.wording import answers, caveats, headline
from trimtab.statistics import (
    SHARE,
    dose_response,
    judged,
    mean_interval,
    paired_difference,
)
from trimtab.studies import pages
from trimtab.study.committed import thin

ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.0]
SPLITS = {"test": 60, "oos": 60, "rnd": 60}
SKILL = {  # accuracy on train, test, oos, rnd; slope of the margin; KL at 1; closed form
    "dpo": (0.97, 0.88, 0.68, 0.55, 0.42, 0.21, False),
    "innerdpo": (0.93, 0.87, 0.83, 0.57, 0.35, 0.12, False),
    "mean": (0.74, 0.71, 0.69, 0.52, 0.16, 0.05, True),
    "pca": (0.63, 0.60, 0.58, 0.40, 0.06, 0.02, True),
}
BARE = (0.61, 0.60, 0.58, 0.53)
DESCRIPTIONS = {
    "dpo": "LoRA × DPO: the reference point",
    "innerdpo": "LoRA × InnerDPO on hidden states (para_signed)",
    "mean": "difference of mean hidden states, no training",
    "pca": "first principal direction of the differences, no training",
}
MARKUP = "<script>alert('x')</script> <b>bold</b> & \u2028 \"quoted\""


def make_run(
    folder: Path,
    methods: tuple[str, ...] = ("dpo", "innerdpo", "mean", "pca"),
    seeds: tuple[int, ...] = (0,),
    dose: bool = True,
) -> Path:
    """Result files of a small comparison, drawn from fixed random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    interval_of = functools.partial(mean_interval, n=200)  # rough ones do here
    share_of = functools.partial(mean_interval, within=SHARE)
    rng = np.random.default_rng(4)
    common: dict[str, Any] = {
        "model": "smollm2-135m",
        "suite": "facts",
        "aggregate": False,
        "at": None,
    }
    study = {
        "study": "compare",
        "suite_digest": "9d1f" * 16,
        "commit": "0123abc",
        "title": "Four dials on smollm2-135m",
        "model": "smollm2-135m",
        "model_digest": "sha256:" + "5af1" * 16,
        "suite": "facts",
        "train": "facts:train[:200 items]",
        "splits": {
            name: {"spec": f"facts:{name}", "items": n, "pairs": n, "dropped": 0}
            for name, n in SPLITS.items()
        },
        "methods": {m: DESCRIPTIONS[m] for m in methods},
        "seeds": list(seeds),
        "dtype": "float32",
        "device": "cpu",
        "versions": {"trimtab": "0.1.0", "torch": "2.13.0", "transformers": "5.17.0"},
        "command": "trimtab compare --model smollm2-135m --suite facts --methods "
        f"{' '.join(methods)} --seeds {' '.join(map(str, seeds))} --out runs/demo",
        "limit": 60,
        "notes": ["Statements were written for this project and are short."],
        "train_items": 200,
        "train_pairs": 200,
    }
    (folder / "study.json").write_text(json.dumps(study))
    rows: list[dict[str, Any]] = []

    def add(method, split, seed, alpha, metric, interval, n, **more):
        value, low, high = interval
        rows.append(
            {
                "method": method,
                "split": split,
                "seed": seed,
                "alpha": alpha,
                "metric": metric,
                "value": value,
                "low": low,
                "high": high,
                "items": n,
                "pairs": n,
                **common,
                **more,
            }
        )

    sizes = {"train": 200, **SPLITS}
    luck = {name: rng.random(n) for name, n in sizes.items()}
    scores: dict[tuple[str, str, str], np.ndarray] = {}
    equal: dict[str, float | None] = {}
    if dose:
        kls = {m: SKILL[m][5] * np.square(ALPHAS) * (1 + 0.1 * np.array(ALPHAS)) for m in methods}
        target = kls[methods[0]][3]
        equal = {
            m: float(np.interp(target, kls[m][1:], ALPHAS[1:])) if kls[m][-1] >= target else None
            for m in methods
        }
    for k, (split, n) in enumerate(sizes.items()):
        bare = (luck[split] < BARE[k]).astype(float)
        add("base", split, None, 0.0, "accuracy", share_of(bare), n)
        if split != "train":
            add("base", split, None, 0.0, "margin", interval_of(bare - 0.5), n)
        for m in methods:
            runs = 1 if SKILL[m][6] else len(seeds)
            for at, shift in (
                ("alpha_1", 0.0),
                ("equal_kl", 0.04 if m != "dpo" else 0.0),
            ):
                table = np.stack(
                    [
                        (0.75 * luck[split] + 0.25 * rng.random(n) < SKILL[m][k] + shift)
                        for _ in range(runs)
                    ]
                ).astype(float)
                scores[m, split, at] = table
                alpha = 1.0 if at == "alpha_1" else equal.get(m)
                if at == "equal_kl" and (split == "train" or m == "dpo" or alpha is None):
                    continue
                for seed, row in zip(seeds, table, strict=False):
                    add(
                        m,
                        split,
                        seed,
                        alpha,
                        "accuracy",
                        share_of(row),
                        n,
                        at=at,
                    )
                add(
                    m,
                    split,
                    None,
                    alpha,
                    "accuracy",
                    share_of(table),
                    n,
                    at=at,
                    aggregate=True,
                )
                if split != "train":
                    summed = share_of(np.roll(table, 1, axis=1))
                    add(m, split, None, alpha, "accuracy_sum", summed, n, at=at)
                    add(
                        m,
                        split,
                        None,
                        alpha,
                        "margin",
                        interval_of(table - 0.5),
                        n,
                        at=at,
                    )
    if dose:
        for m in methods:
            slope = SKILL[m][4]
            margins = rng.normal(0.1, 0.4, size=(60, 1)) + np.outer(
                rng.normal(slope, 0.2, size=60), np.tanh(ALPHAS)
            )
            for i, alpha in enumerate(ALPHAS):
                if alpha == 0:
                    continue
                add(
                    m,
                    "dose",
                    None,
                    alpha,
                    "margin",
                    interval_of(margins[:, i]),
                    60,
                )
                hits = share_of(margins[:, i] > 0)
                add(m, "dose", None, alpha, "accuracy", hits, 60)
                near = rng.lognormal(0, 0.3, size=24)
                near *= kls[m][i] / near.mean()
                add(m, "neutral", None, alpha, "kl", interval_of(near), 24)
                rise = 0.7 * kls[m][i] + rng.normal(0, 0.03, size=24)
                add(m, "neutral", None, alpha, "nll_rise", interval_of(rise), 24)
            summary = dose_response(ALPHAS, margins)
            add(m, "dose", None, None, "slope", summary.slope, 60)
            add(m, "dose", None, None, "r2", (summary.r2, math.nan, math.nan), 60)
            add(
                m,
                "dose",
                None,
                None,
                "monotone",
                (summary.monotone, math.nan, math.nan),
                60,
            )
        bare = rng.normal(0.1, 0.4, size=60)
        add("base", "dose", None, 0.0, "margin", interval_of(bare), 60)
        add("base", "dose", None, 0.0, "accuracy", share_of(bare > 0), 60)
        add("base", "neutral", None, 0.0, "kl", (0.0, 0.0, 0.0), 24)
        add("base", "neutral", None, 0.0, "nll_rise", (0.0, 0.0, 0.0), 24)
    write_lines(folder / "results.jsonl", rows)

    if "dpo" in methods:
        verdicts = []
        for at in ("alpha_1", "equal_kl"):
            table = []
            for m in methods:
                if m == "dpo" or (at == "equal_kl" and equal.get(m) is None):
                    continue
                for split, n in SPLITS.items():
                    a, b = scores[m, split, at], scores["dpo", split, "alpha_1"]
                    table.append((m, split, n, paired_difference(a, b, SHARE), len(b)))
            told = judged([(row[3], row[4]) for row in table])
            for (m, split, n, d, runs), word in zip(table, told, strict=True):
                verdicts.append(
                    {
                        "method": m,
                        "suite": "facts",
                        "split": split,
                        "at": at,
                        "alpha": 1.0 if at == "alpha_1" else equal[m],
                        "against": "dpo",
                        "model": "smollm2-135m",
                        "seed": None,
                        "aggregate": runs > 1,
                        "metric": "accuracy",
                        "value": d.value,
                        "low": d.low,
                        "high": d.high,
                        "p": d.p,
                        **word._asdict(),
                        "seeds": runs,
                        "mde": d.mde,
                        "items": n,
                    }
                )
        write_lines(folder / "verdicts.jsonl", verdicts)

    trained = [m for m in methods if not SKILL[m][6]]
    curves = [
        {"method": m, "seed": s, "step": step, "metric": metric, "value": float(value)}
        for m in trained
        for s in seeds
        for metric, start, end in (("loss", 0.693, 0.1), ("accuracy", 0.5, SKILL[m][0]))
        for step in range(1, 51)
        for value in [end + (start - end) * math.exp(-step / 12) + rng.normal(0, 0.02)]
    ]
    write_lines(folder / "curves.jsonl", [{"model": "smollm2-135m", **c} for c in curves])
    answer = "Water boils at a lower temperature on a mountain, because the air presses less. "
    generations = [
        {
            "model": "smollm2-135m",
            "method": m,
            "seed": None if SKILL[m][6] else seeds[0],
            "alpha": alpha,
            "prompt": prompt,
            "text": "The bare answer." if alpha == 0 else f"({m} at {alpha}) {answer}{MARKUP}",
        }
        for prompt in (
            "At what temperature does water boil on a mountain?",
            "Is 51 a prime?",
        )
        for m in methods
        for alpha in (0.0, 0.5, 1.0)
    ]
    write_lines(folder / "generations.jsonl", generations)
    costs = {
        m: {
            "fit_seconds": 3.1 if SKILL[m][6] else 92.4,
            "parameters": 576 * (1 if m == "mean" else 8),
        }
        for m in methods
    }
    (folder / "costs.json").write_text(json.dumps(costs))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def edit(path: Path, line: int, **fields: Any) -> None:
    """Change fields of one line (from 1) of a JSON-lines file; a value of `...` drops the field."""
    lines = path.read_text().split("\n")
    row = json.loads(lines[line - 1])
    row.update(fields)
    lines[line - 1] = json.dumps({k: v for k, v in row.items() if v is not ...})
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_page(run).read_text(encoding="utf-8")


class Document(html.parser.HTMLParser):
    """Tags, attributes and visible text of a page; complains about tags left open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br", "input", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_page_holds_every_method_and_split(page):
    document = Document(page)
    assert document.open == []
    for name in ("DPO", "innerdpo", "mean", "pca", "bare model", *SPLITS):
        assert name in document.text
    for heading in (
        "Accuracy",
        "Against DPO",
        "Dose–response",
        "Answers side by side",
        "Costs",
    ):
        assert f"{heading}" in document.text
    assert document.tags.count("table") >= 7
    assert "object at 0x" not in page
    assert "nan" not in re.findall(r"[a-z]+", document.text.lower())


def test_page_begins_with_the_answer(run, page):
    results = read_results(run)
    text = Document(page).text
    assert text.index("innerdpo was better than DPO on oos") < text.index("with 95 % intervals.")
    assert headline(results).startswith("In this run, on 60 items, innerdpo was better than DPO")
    said = dict(answers(results))
    assert re.search(r"on oos by \d+ points \(95\u00a0% \d+ to \d+\)", said["innerdpo"])
    assert re.search(r"one cannot tell: differences under \d+", said["innerdpo"])
    assert "no α in the measured range" in dict(answers(results, "equal_kl"))["pca"]


def test_d4_a_pages_header_names_no_folder(run):
    results = read_results(run)
    for name, shown in (("/data/models/m", "m"), ("org/m", "m"), ("smollm2-135m",) * 2):
        made = compare.page(replace(results, study=replace(results.study, model=name)))
        assert made.kicker.rpartition(" · ")[2] == shown
        assert "/data" not in made.title


def test_page_asks_nothing_of_the_network(page):
    document = Document(page)
    assert "script" not in document.tags
    assert "link" not in document.tags
    for name, value in document.attributes:
        assert not re.search(r"https?:|//", value), (name, value)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#")
    assert not re.search(r"url\(['\"]?(?!#)|@import", page)


def test_figures_follow_the_theme(page):
    drawings = re.findall(r'<svg viewBox="0 0.*?</svg>', page, flags=re.DOTALL)
    assert len(drawings) == 3 + 3 + 4 + 2
    for svg in drawings:
        assert not re.search(r"#[0-9a-f]{6}", svg)
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert used <= {*LIGHT, "sans"}
    identifiers = [value for name, value in Document(page).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    pointed = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in pointed} <= set(identifiers)


def test_colours_are_readable_in_both_themes():
    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for theme in (LIGHT, DARK):
        ground = luminance(theme["page"])
        for name in ("ink", "muted", *(f"m{i}" for i in range(8))):
            lighter, darker = sorted((luminance(theme[name]), ground), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (name, theme[name])


def test_texts_are_escaped(run, page):
    assert "<script>" not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page
    assert MARKUP.split("\u2028")[0] in Document(page).text
    write_markdown(run, run / "page.md")
    hostile = make_run(run.parent / "hostile", methods=("mean",), dose=False)
    study = json.loads((hostile / "study.json").read_text())
    study.update(title="<img src=x onerror=y>", notes=["</style><script>z</script> | `a`"])
    (hostile / "study.json").write_text(json.dumps(study))
    written = write_page(hostile).read_text()
    assert "img" not in Document(written).tags
    assert "script" not in Document(written).tags
    markdown = write_markdown(hostile, hostile / "out.md").read_text()
    assert markdown.startswith("# \\<img src=x onerror=y\\>\n")
    assert "\\</style\\>\\<script\\>" in markdown


def test_same_results_same_bytes(run, tmp_path, monkeypatch):
    first = write_page(run, tmp_path / "a.html").read_bytes()
    markdown = write_markdown(run, tmp_path / "a.md").read_bytes()
    figure = (tmp_path / "a.svg").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert write_page(run, tmp_path / "a.html").read_bytes() == first
    assert write_markdown(run, tmp_path / "a.md").read_bytes() == markdown
    assert (tmp_path / "a.svg").read_bytes() == figure
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.md", "a.svg"]


def test_markdown_has_the_tables_and_a_figure(run, tmp_path):
    page = write_markdown(run, tmp_path / "results" / "facts.md")
    text = page.read_text()
    assert "![Accuracy per split with 95 % intervals](facts.svg)" in text
    assert re.search(r"\| bare model +\| +55\.0 \[\d\d\.\d–\d\d\.\d\] \|", text)
    assert "## Against DPO, at α = 1" in text
    assert "KL equals DPO's" in text
    assert "**better in this run**" in text
    for line in text.split("\n"):
        assert line == line.rstrip()
    figure = (tmp_path / "results" / "facts.svg").read_text()
    assert figure.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "prefers-color-scheme:dark" in figure
    assert 'fill="var(--page)"' in figure
    assert "innerdpo" in figure


def test_standalone_figure_is_well_formed(run):
    results = read_results(run)
    tree = ElementTree.fromstring(sheet(accuracy(results)))
    assert tree.get("viewBox", "").startswith("0 0")


def shown(run_dir: Path) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(console_tables(run_dir))
    return console.export_text()


def test_console_tables_fit_100_columns(run):
    text = shown(run)
    assert max(map(len, text.split("\n"))) <= 100
    assert "…" not in text
    assert re.search(r"DPO +100\.0 \[98\.\d–100\.0\] +93\.3", text)
    assert re.search(r"oos +innerdpo +1 +\+23\.3 .* better\*", text)
    assert "* in this run: fewer than 5 seeds" in text
    assert "Dose–response" in text


def test_several_seeds(tmp_path):
    run = make_run(tmp_path / "run", seeds=(0, 1, 2))
    page = write_page(run).read_text()
    assert "small dots are single seeds" in page
    results = read_results(run)
    row = results.read("dpo", "test")
    assert row is not None
    assert row.seed is None
    assert [m.seed for m in results.seeds("dpo", "test")] == [0, 1, 2]
    assert [m.seed for m in results.seeds("mean", "test")] == [0]


def test_enough_seeds_drop_the_reservation(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo", "innerdpo"), seeds=(0, 1, 2, 3, 4), dose=False)
    assert headline(read_results(run)).startswith("Over 5 seeds and 60 items, innerdpo was better")
    assert "in this run" not in shown(run)
    assert "better*" not in shown(run)
    assert re.search(r"better *\n", shown(run))


def test_many_methods_still_fit(tmp_path, monkeypatch):
    names = [f"a-method-with-a-long-name-{i}" for i in range(9)]
    for i, name in enumerate(names):
        monkeypatch.setitem(SKILL, name, (*SKILL["pca"][:5], 0.3 + i / 100, True))
        monkeypatch.setitem(DESCRIPTIONS, name, "made up")
    run = make_run(tmp_path / "run", methods=("dpo", "innerdpo", *names))
    text = shown(run)
    assert max(map(len, text.split("\n"))) <= 100
    assert re.search(r"oos +innerdpo +1 +\+\d+\.\d \[[^]…]+\] +0\.\d{3} +\d+\.\d +better\*", text)
    results = read_results(run)
    assert re.search(r"of 30 comparisons \d+ came out better", headline(results))
    looks = tables.looks(results.methods)
    assert len(set(looks.values())) == len(looks) == 12
    page = Document(write_page(run).read_text()).text
    assert all(name in page for name in names)


def test_a_run_without_baseline_or_dose(tmp_path):
    run = make_run(tmp_path / "run", methods=("mean",), dose=False)
    (run / "costs.json").unlink()
    (run / "curves.jsonl").unlink()
    (run / "generations.jsonl").unlink()
    text = Document(write_page(run).read_text()).text
    assert "compares no method with a baseline" in text
    for absent in (
        "Against",
        "Dose–response, and",
        "Training Training",
        "Costs",
        "Answers side",
    ):
        assert absent not in text
    assert "Against" not in shown(run)
    assert "Against" not in write_markdown(run, tmp_path / "out.md").read_text()


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_what_is_not_known_is_a_dash(tmp_path, nothing):
    run = make_run(tmp_path / "run")
    lines = (run / "results.jsonl").read_text().split("\n")[:-1]
    for number in range(1, len(lines) + 1):
        if number % 3:
            edit(
                run / "results.jsonl",
                number,
                value=nothing,
                low=nothing,
                high=nothing,
            )
    edit(run / "verdicts.jsonl", 1, mde=nothing, underpowered=True)
    edit(
        run / "verdicts.jsonl",
        2,
        value=nothing,
        low=nothing,
        high=nothing,
        p=nothing,
    )
    text = Document(write_page(run).read_text()).text
    assert "–" in text
    assert "no two items came out differently on test" in text
    for whole in (
        text,
        shown(run),
        write_markdown(run, tmp_path / "out.md").read_text(),
    ):
        assert "nan" not in re.findall(r"[a-z]+", whole.lower())


def test_an_interval_without_width_is_no_proof(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    assert not any("without width" in c for c in caveats(read_results(run)))
    edit(run / "verdicts.jsonl", 1, value=0.0, low=0.0, high=0.0)
    assert any("without width" in c for c in caveats(read_results(run)))


def test_a_verdict_that_tells_nothing_says_so(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    for number in range(1, 4):
        edit(run / "verdicts.jsonl", number, verdict="cannot tell", p_holm=0.3)
    results = read_results(run)
    assert "no dial can be told from DPO on any split" in headline(results)
    [(method, sentence)] = answers(results)
    assert method == "mean"
    assert sentence.startswith(": on test, oos and rnd one cannot tell: differences under ")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(TrimtabError, match="no such run directory"):
        write_page(tmp_path / "nowhere")
    run = make_run(tmp_path / "run", dose=False)
    for name in ("results.jsonl", "study.json"):
        (run / name).rename(run / "aside")
        with pytest.raises(TrimtabError, match=f"{name}: missing"):
            console_tables(run)
        (run / "aside").rename(run / name)
    (run / "results.jsonl").write_text("")
    with pytest.raises(TrimtabError, match=r"results\.jsonl: empty"):
        read_results(run)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "results.jsonl",
            {"value": "high"},
            r"results\.jsonl:3: 'value' should be a number",
        ),
        ("results.jsonl", {"value": True}, r":3: 'value' should be a number, got true"),
        ("results.jsonl", {"metric": ...}, r":3: field 'metric' is missing"),
        ("results.jsonl", {"at": "alpha_2"}, r":3: 'at' should be alpha_1 or equal_kl"),
        ("results.jsonl", {"seed": 0.5}, r":3: 'seed' should be a whole number"),
        (
            "verdicts.jsonl",
            {"verdict": "good"},
            r"verdicts\.jsonl:3: 'verdict' should be better",
        ),
        (
            "verdicts.jsonl",
            {"in_this_run": 1},
            r":3: 'in_this_run' should be true or false",
        ),
        (
            "curves.jsonl",
            {"step": None},
            r"curves\.jsonl:3: 'step' should be a whole number",
        ),
        (
            "generations.jsonl",
            {"text": 7},
            r"generations\.jsonl:3: 'text' should be text, got 7",
        ),
    ],
)
def test_malformed_lines_are_named(tmp_path, name, fields, message):
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    edit(run / name, 3, **fields)
    with pytest.raises(TrimtabError, match=message):
        read_results(run)


def test_files_cut_short_are_named(tmp_path):
    run = make_run(tmp_path / "run", methods=("mean",), dose=False)
    whole = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(whole[:-30])
    last = whole.count("\n")
    with pytest.raises(TrimtabError, match=rf"results\.jsonl:{last}: not a JSON object"):
        read_results(run)
    (run / "results.jsonl").write_text(whole)
    (run / "study.json").write_text('{"title": 1')
    with pytest.raises(TrimtabError, match=r"study\.json:1: not JSON"):
        read_results(run)
    (run / "study.json").write_text("[]")
    with pytest.raises(TrimtabError, match=r"study\.json: expected a JSON object"):
        read_results(run)
    (run / "study.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(TrimtabError, match=r"study\.json: not JSON \(not UTF-8"):
        read_results(run)


def test_seeds_without_their_mean_are_refused(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo",), seeds=(0, 1), dose=False)
    lines = (run / "results.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    kept = [row for row in rows if row["method"] == "base" or row["seed"] is not None]
    write_lines(run / "results.jsonl", kept)
    with pytest.raises(TrimtabError, match=r"2 seeds of dpo / train / accuracy but no mean"):
        read_results(run)


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrimtabError, match=r"page\.html: cannot be written \(No space left"):
        write_page(run, out)
    assert out.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_report_imports_neither_torch_nor_scipy():
    code = "import sys, trimtab.report; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0


def test_thinned_results_make_the_same_pages(tmp_path):
    """Lines of single seeds are left out where one over them says of how many; every figure stays."""
    run = make_run(tmp_path / "run", seeds=(0, 1, 2))
    before = read_results(run)
    size = (run / "results.jsonl").stat().st_size

    def pages() -> tuple[bytes, str]:
        text = write_markdown(run, tmp_path / "page.md").read_bytes()
        return text, Document(write_page(run).read_text()).text

    shown = pages()
    thin(tmp_path)
    assert pages() == shown
    after = read_results(run)
    assert (run / "results.jsonl").stat().st_size < 0.8 * size
    for m in SKILL:
        for split in SPLITS:
            old, new = before.read(m, split, "margin"), after.read(m, split, "margin")
            assert old
            assert new
            assert (new.value, new.low) == pytest.approx((old.value, old.low), rel=1e-6)
            assert new.seeds == (len(after.seeds(m, split)) if new.aggregate else old.seeds)
    thinned = (run / "results.jsonl").read_bytes()
    thin(tmp_path)
    assert (run / "results.jsonl").read_bytes() == thinned


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "..", ".", "", "a/b", "/etc", "a\\b", "..\\x", "a\0b"])
def test_a_grid_names_nothing_outside_its_folder(tmp_path, name):
    make_run(tmp_path / "outside" / "x", methods=("dpo", "mean"), dose=False)
    grid = tmp_path / "runs" / "deep"
    grid.mkdir(parents=True)
    what = {"title": "t", "command": "c", "notes": [], "studies": [name]}
    (grid / "grid.json").write_text(json.dumps(what))
    before = set(tmp_path.rglob("*"))
    for show in (write_page, console_tables, lambda run: write_markdown(run, grid / "page.md")):
        with pytest.raises(TrimtabError, match=r"grid\.json: 'studies' names .* beside the file"):
            show(grid)
    assert set(tmp_path.rglob("*")) == before


def test_a_run_names_no_code(tmp_path, monkeypatch):
    """What a file of others names is imported by nobody."""
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    about = json.loads((run / "study.json").read_text())
    (run / "study.json").write_text(json.dumps({**about, "study": "planted"}))
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text(
        "STUDY = PAGE = 'planted:no'; raise SystemExit"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert pages.write_page(run).is_file()
    assert "planted" not in sys.modules


def test_dials_that_were_evaluated_have_no_seeds_to_speak_of(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    about = json.loads((run / "study.json").read_text())
    (run / "study.json").write_text(json.dumps({**about, "seeds": [], "suite": "", "train": ""}))
    results = read_results(run)
    said = " ".join(caveats(results))
    assert "0 seeds" not in said
    assert "Dials as they were saved" in said
    text, html = render.markdown(compare.page(results), ""), write_page(run).read_text()
    assert "suite ``" not in text
    assert "- training data not known" in text
    assert "suite  ·" not in html


def test_tables_say_which_figures_are_adjusted(run, tmp_path):
    text = write_markdown(run, tmp_path / "page.md").read_text()
    assert text.count("each for itself") == 2
    assert "each for itself" in write_page(run, tmp_path / "page.html").read_text()
    assert "each for itself" in shown(run)


def test_every_committed_page_says_which_figures_are_adjusted():
    """Verdicts adjusted for their number stand beside intervals that are not."""
    pages = Path(__file__).parents[2] / "docs" / "results"
    seen = [page.name for page in pages.glob("*.md") if "95 %" in page.read_text("utf-8")]
    assert len(seen) >= 5
    for page in (pages / name for name in seen):
        text = page.read_text("utf-8")
        assert "each for itself" in text or "not adjusted" in text, page
        if "p (Holm)" in text or "is a verdict" in text:
            assert "adjusted (Holm)" in text or "adjusted by Holm" in text, page


# ---- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_figure_is_cut_on_a_narrow_console(width):
    figures = [f"{n}1.7 [{n}0.1–{n}9.9]" for n in range(1, 7)]
    table = Table(["method", *"abcdef"], [["bare model", *figures]])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render.console(Page("T", [table])))
    said = console.export_text()
    assert "…" not in said
    assert max(map(len, said.rstrip().splitlines())) <= min(width, 100)
    for text in figures:
        assert said.count(text) == 1
    assert said.count("bare model") == {60: 3, 80: 2, 100: 2, 200: 2}[width]


def test_three_renderings_of_the_same_blocks():
    table = Table(
        ["split\nunder", "method", "value"],
        [["a", "x", "**1.0** [0.5–1.5]"], ["a", "y", "better in this run"], ["b", "x", "–"]],
        (2, None),
        grouped=True,
    )
    page = Page(
        "T\\*", [Section("One", [Text("Some *words* and `code`."), table, Table(["q"], [])])]
    )
    assert render.markdown(page, "") == (
        "# T\\*\n\n## One\n\nSome *words* and `code`.\n\n"
        "| split | method |              value |\n"
        "| ----- | ------ | -----------------: |\n"
        "| a     | x      |  **1.0** [0.5–1.5] |\n"
        "| a     | y      | better in this run |\n"
        "| b     | x      |                  – |\n"
    )
    made = render.html(page)
    assert "<title>T*</title>" in made
    assert "<p>Some <em>words</em> and <code>code</code>.</p>" in made
    assert "<td><strong>1.0</strong><small>0.5–1.5</small></td>" in made
    assert '<span class="verdict better">better</span><small>in this run</small>' in made
    assert made.count("rowgroup") == 2
    assert made.count("<table") == 1
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render.console(page))
    lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == "One"
    assert [line.split() for line in lines[4:7]] == [
        ["a", "x", "1.0", "[0.5–1.5]"],
        ["y", "better*"],
        ["b", "x", "–"],
    ]


@pytest.mark.parametrize(
    "text",
    ["<b>x</b>", "a *b* _c_ `d`", "[x](https://example.com)", "![x](y)", "a | b", "\\*", "`` ` ``"],
)
def test_texts_of_others_stand_as_they_are(text):
    """In paragraphs, table cells, titles and code, on every rendering."""
    blocks = [Text(plain(text)), Text(code(text)), Table(["h"], [[plain(text)]])]
    page = Page("t", [Section(plain(text), blocks)], looks={})
    document = Document(render.html(page))
    assert document.text.count(text) == 4
    assert not {"a", "b", "em", "strong", "img"} & set(document.tags)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render.console(page))
    assert console.export_text().count(text) == 2


def test_a_link_of_ours_is_a_link():
    made = render.html(Page("t", [Text("[the guide](../heads.md)")]))
    assert '<a href="../heads.md">the guide</a>' in made
