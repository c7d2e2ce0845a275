"""Colours, markers and lines of the figures: what belongs to a method, and what must not be cut."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from test_report import edit, make_run

from trimtab.report import read_results
from trimtab.report.figures import accuracy
from trimtab.report.looks import MARKERS, TABLE, looks_of
from trimtab.report.tables import looks
from trimtab.report.wording import NAMES
from trimtab.training import METHODS


def test_a_method_looks_the_same_on_every_page(tmp_path):
    """Whatever stands beside it: other methods, another order, names of the user's own."""
    apart = TABLE.keys() - {"persona"}  # as `instruction`: the bare model, told something
    assert len({TABLE[m] for m in apart}) == len(apart)
    assert {look.marker for look in TABLE.values()} <= MARKERS.keys()
    pages = (["dpo", "mean"], ["mean", "random", "dpo"], ["a-dpo", "dpo", "my.own", "mean"])
    for methods in pages:
        found = looks_of(methods)
        assert (found["dpo"], found["mean"]) == (TABLE["dpo"], TABLE["mean"])
        assert len({found[m] for m in methods}) == len(methods)
    assert looks_of(["my.own"])["my.own"] == looks_of(["zebra", "my.own", "apple"])["my.own"]
    many = [f"name-{i}" for i in range(32)]
    assert len({looks_of(many)[m] for m in many}) == 32
    both = [
        make_run(tmp_path / str(i), methods=m, dose=False)
        for i, m in enumerate((("dpo", "mean"), ("mean", "dpo")))
    ]
    one, two = (looks(r.methods) for r in map(read_results, both))
    assert one == two


def test_every_method_has_a_place_in_the_table():
    """Those of `trimtab methods`, and the arms of comparisons of heads."""
    assert METHODS.keys() <= TABLE.keys()
    assert {re.sub("[^a-z0-9]+", "-", arm) for arm in NAMES} <= TABLE.keys()


def test_markers_at_100_percent_are_whole(tmp_path):
    run = make_run(tmp_path / "run", methods=("dpo", "mean"), dose=False)
    for number, line in enumerate((run / "results.jsonl").read_text().splitlines(), 1):
        if json.loads(line)["metric"] == "accuracy":
            edit(run / "results.jsonl", number, value=1.0, low=0.9, high=1.0)
    for panel in accuracy(read_results(run)):
        tree = ElementTree.fromstring(panel.svg)
        markers = [u for u in tree.iter("use") if "fill:var(--m" in u.get("style", "")]
        cut = {u for g in tree.iter() if g.get("clip-path") for u in g.iter("use")}
        assert markers
        assert not cut & set(markers)


def test_damage_at_0_is_exactly_none(tmp_path):
    """Alphas -1 and 1 alone: the figure's line goes through 0, not over it."""
    run = make_run(tmp_path / "run", methods=("dpo", "mean"))
    kept = [
        line
        for line in (run / "results.jsonl").read_text().splitlines()
        if (r := json.loads(line))["split"] != "neutral" or r["alpha"] in (-1.0, 1.0)
    ]
    (run / "results.jsonl").write_text("\n".join(kept) + "\n")
    results = read_results(run)
    for metric in ("kl", "nll_rise"):
        points = [
            (p.alpha, p.value, p.low, p.high) for p in results.curve("dpo", "neutral", metric)
        ]
        assert [p[0] for p in points] == [-1, 0, 1]
        assert points[1] == (0, 0, 0, 0)
    # a single strength is no curve, and other splits have no such zero
    assert [p.alpha for p in results.curve("dpo", "oos", "accuracy")] == [0, 1]  # measured
