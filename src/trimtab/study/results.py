"""The result files of every study: their lines, and how they are written; no torch.

    study.json         About           what was run
    results.jsonl      Measurement     a figure a line
    verdicts.jsonl     Difference      a paired difference a line
    curves.jsonl       Curve           training metrics over steps
    generations.jsonl  Generation      texts
    costs.json                         seconds, parameters, … by method: what differs from run to run

`reading` reads them. `python -m trimtab.study.reference` prints
docs/results.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.files import write_json, write_lines

Row = dict[str, Any]

BASE = "base"
"""The bare model, as results name it."""
INSTRUCTION = "instruction"
"""The control that leaves the model alone and leads every prompt with the suite's instruction."""
PERSONA = "persona"
"""The control that leaves the model alone and makes a persona its system message."""
ALPHA_1, EQUAL_KL = "alpha_1", "equal_kl"
PANEL = "panel."
"""How splits of a panel begin, its properties' names following."""
ABOUT, COSTS, GRID = "study.json", "costs.json", "grid.json"


def random_for(method: str) -> str:
    """What lines call the random vector beside a vector of that name."""
    return f"random for {method}"


@dataclass(frozen=True)
class Measurement:
    """A figure of one method, or of the bare model, with its 95 % interval.

    Attributes:
        model: the model's name.
        method: what was done to it; `base` is the bare model, `instruction` the bare model with the
            suite's instruction before every prompt, `persona` the bare model with a persona as its
            system message, `random` a direction that means nothing.
        suite: the suite or the trait; empty where there is none.
        split: what it was measured on: a split of the suite, `train` (training items), `dose` (items of
            the dose-response curve), `neutral` (passages on which damage is measured), `panel.NAME` (a
            property of a panel of side effects).
        seed: null where nothing is drawn, and for a figure over several seeds.
        aggregate: whether the figure is over several seeds, each of which has a line of its own where
            `seeds` is not given.
        alpha: the strength; null for a summary over strengths.
        at: `alpha_1` or `equal_kl` (where the damage is that of the baseline, in a study of steering that
            of the persona); null elsewhere.
        metric: `accuracy` (share of items whose preferred answer has the larger mean log-prob),
            `accuracy_sum`, `accuracy_choice`, `margin`, `kl` and `nll_rise` (nats a token), `slope`,
            `r2`, `monotone`, `rising`, `steerability` and `wrong_way` (slope over alpha of the summed
            log-ratio in nats; share of items with a slope below 0), …; of a panel those that `more` in
            `study.json` lists.
        value: the figure; shares are of 1. Null where it is not finite.
        low: lower end of the interval; null where there is none.
        high: upper end of the interval; null where there is none.
        items: how many items, or passages, it is the mean of.
        pairs: how many pairs.
        seeds: how many seeds, where a study says so.
        read_out: what ranked the answers, `logprob` or `reward`, where that differs.
    """

    model: str
    method: str
    suite: str
    split: str
    seed: int | None
    aggregate: bool
    alpha: float | None
    at: Literal["alpha_1", "equal_kl"] | None
    metric: str
    value: float
    low: float
    high: float
    items: int | None
    pairs: int | None = None
    seeds: int | None = None
    read_out: str | None = None


@dataclass(frozen=True)
class Difference:
    """A method less another on the same items, with its 95 % interval and, where it was judged, what it
    lets one say.

    Attributes:
        model: the model's name.
        method: what is compared.
        against: what it is compared with.
        suite: the suite or the trait; empty where there is none.
        split: what both were measured on.
        seed: null for a difference over several seeds, or where nothing is drawn.
        aggregate: whether it is over several seeds.
        alpha: the strength of the method.
        at: `alpha_1` or `equal_kl`; null elsewhere.
        metric: of what; `margin` is the mean margin, in nats a token.
        value: the difference; shares are of 1.
        low: lower end of the interval, which is not adjusted.
        high: upper end of the interval, which is not adjusted.
        items: how many items both have.
        seeds: how many seeds.
        p: of a test that there is none; null where nothing was tested.
        p_holm: the same, adjusted over the table: all lines of a metric at one place, or all of the file; of
            a panel those of one dial at one place.
        verdict: `better` or `worse` where the adjusted p is below 0.05, else `cannot tell`; `not judged`
            where that is so. Of a panel, `worse` is what nobody wants: less knowledge, or more bias.
        in_this_run: fewer than 5 seeds: the verdict says nothing of others.
        mde: the smallest difference that would have been seen with 80 % power.
        underpowered: 5 points (of a margin 0.05 nats a token) would not have been seen.
        read_out: of the method, where read-outs differ.
        against_read_out: of what it is compared with.
    """

    model: str
    method: str
    against: str
    suite: str
    split: str
    seed: int | None
    aggregate: bool
    alpha: float | None
    at: Literal["alpha_1", "equal_kl"] | None
    metric: str
    value: float
    low: float
    high: float
    items: int | None
    seeds: int
    p: float
    p_holm: float
    verdict: Literal["better", "worse", "cannot tell", "not judged"]
    in_this_run: bool
    mde: float
    underpowered: bool
    read_out: str | None = None
    against_read_out: str | None = None

    @property
    def told(self) -> bool:
        """Whether the verdict is "better" or "worse"."""
        return self.verdict in ("better", "worse")


@dataclass(frozen=True)
class Curve:
    """A training metric at an optimiser step.

    Attributes:
        model: the model's name.
        method: what was trained.
        seed: null where nothing is drawn.
        step: counted from 1.
        metric: `loss`, `accuracy`, `margin`, …
        value: the figure; null where it was not finite.
    """

    model: str
    method: str
    seed: int | None
    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Generation:
    """What a model answered.

    Attributes:
        model: the model's name.
        method: what was done to it.
        seed: null where nothing is drawn.
        alpha: the strength.
        prompt: what was asked, without what leads it.
        text: the answer.
    """

    model: str
    method: str
    seed: int | None
    alpha: float
    prompt: str
    text: str


@dataclass(frozen=True)
class Split:
    """What was measured on.

    Attributes:
        spec: where the pairs came from.
        items: how many items were scored.
        pairs: how many pairs.
        dropped: over-long pairs that were left out.
    """

    spec: str
    items: int
    pairs: int
    dropped: int


@dataclass(frozen=True)
class Published:
    """Figures of an earlier publication on the same splits.

    Attributes:
        note: what they are, and why they are not comparable number by number.
        rows: accuracy as a share of 1 by method, then by split.
    """

    note: str
    rows: dict[str, dict[str, float]]


@dataclass(frozen=True)
class About:
    """What was run: `study.json`.

    Attributes:
        study: `compare`, `evaluate`, `heads`, `panel`, `rewards`, `screens`, `steering`.
        title: heading of the page.
        model: the model's name.
        model_digest: of its weights.
        suite: the suite or the trait; empty where there is none.
        suite_digest: of the suite's specs.
        train: where the training pairs came from.
        train_items: how many items were trained on.
        train_pairs: how many pairs.
        splits: what was measured on, by name.
        methods: what each method is, by name.
        seeds: of the methods that have one.
        dtype: of the model's weights.
        device: where it ran.
        threads: of torch on a CPU; the last bits of the figures depend on them.
        versions: of packages, several of one joined.
        commit: of the code.
        command: what was typed.
        limit: the first so many items of every split.
        notes: caveats.
        published: figures of an earlier publication.
        trials: how many trials chose each trained method's settings.
        equivalent: methods that were not run, being provably another one that was.
        description: what the suite is.
        equal_kl: the damage at which methods are compared, in nats a token.
        settings: of the study, as its flags have them.
        more: what one study alone has to say.
    """

    study: str
    title: str
    model: str
    model_digest: str
    suite: str
    train: str
    splits: dict[str, Split]
    methods: dict[str, str]
    seeds: tuple[int, ...]
    dtype: str
    device: str
    versions: dict[str, str]
    command: str
    suite_digest: str | None = None
    train_items: int | None = None
    train_pairs: int | None = None
    threads: int | None = None
    commit: str | None = None
    limit: int | None = None
    notes: tuple[str, ...] = ()
    published: Published | None = None
    trials: dict[str, int] = field(default_factory=dict)
    equivalent: dict[str, str] = field(default_factory=dict)
    description: str = ""
    equal_kl: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All result files of a folder."""

    about: About
    measurements: tuple[Measurement, ...]
    differences: tuple[Difference, ...] = ()
    curves: tuple[Curve, ...] = ()
    generations: tuple[Generation, ...] = ()
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Several models and suites that were compared together: `grid.json`, beside a folder for each.

    Attributes:
        title: heading of the page.
        command: what was typed.
        notes: caveats.
        studies: names of the folders.
    """

    title: str
    command: str
    notes: tuple[str, ...]
    studies: tuple[str, ...]


FILES: dict[str, type] = {
    "results.jsonl": Measurement,
    "verdicts.jsonl": Difference,
    "curves.jsonl": Curve,
    "generations.jsonl": Generation,
}
RUN = (ABOUT, *FILES, "items.parquet", "panel.json")
"""What `evaluate` writes into its folder, in another order: where any is, an earlier run was."""
PARTS = dict(zip(FILES, ("measurements", "differences", "curves", "generations"), strict=True))
STALE = (
    *("gains.jsonl", "heads.json", "dose.json"),
    *("comparisons.jsonl", "ablation.jsonl", "rates.jsonl"),
)
"""Files of earlier versions, which `write` removes."""


# ---- writing ------------------------------------------------------------------------------------


def write(folder: Path, run: Run) -> Path:
    """Write the result files; `study.json`, which makes the folder a run, last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        write_lines(folder / name, map(row_of, getattr(run, part)))
    if run.costs:
        write_json(folder / COSTS, run.costs)
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / ABOUT, row_of(run.about))
    return folder


def write_grid(folder: Path, grid: Grid) -> Path:
    """Write `grid.json`."""
    return write_json(folder / GRID, row_of(grid))


def row_of(value: Any) -> Row:
    """A line as JSON values: fields without a default always, others where they say something; what is
    not finite is null."""
    found = {}
    for f in dataclasses.fields(value):
        v = getattr(value, f.name)
        usual = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if usual is dataclasses.MISSING or not _same(v, usual):
            found[f.name] = _plain(v)
    return found


def _same(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return row_of(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
