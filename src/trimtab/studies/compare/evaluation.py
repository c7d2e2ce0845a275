"""`evaluate`: dials that exist, on pairs, at several alphas; the files and page of a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from trimtab import models
from trimtab.batching import PromptStyle, encode
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.evaluation import NeutralText, score
from trimtab.evaluation.items import check_alphas
from trimtab.files import write_text
from trimtab.holding import holding
from trimtab.pairs import PairSet, read_pairs
from trimtab.pairs.neutral import NEUTRAL
from trimtab.panel import Arm, Panel, PanelOn
from trimtab.panel.run import KL, of_any_base, random_like
from trimtab.progress import SILENT, Progress, warn
from trimtab.provenance import commit, versions
from trimtab.rendering import USUAL, Rendering
from trimtab.store import Store
from trimtab.studies.compare import tables
from trimtab.studies.compare.measure import damage_rows, score_rows, sizes
from trimtab.studies.panel import lines as side_effects
from trimtab.study.files import Rows, free_folder, write_rows
from trimtab.study.made import made_with
from trimtab.study.results import BASE, RUN, About, Row, Run, Split, random_for, row_of, write
from trimtab.training import fit

RANDOM = "random"
"""The control of a panel."""


@holding("out")
def evaluate(
    model: nn.Module,
    tokenizer: Any,
    dials: Dial | Mapping[str, Dial] | None,
    pairs: PairSet | str | Mapping[str, PairSet | str],
    *,
    alphas: Sequence[float] = (1.0,),
    out: str | Path | None = None,
    suite: str = "",
    suite_digest: str = "",
    limit: int | None = None,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
    passages: int = 12,
    panel: Panel | None = None,
    panel_kl: float = KL,
    data_root: str | Path | None = None,
    command: str = "",
    force: bool = False,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> list[Row]:
    """Preference accuracy and damage of dials, each on its own, beside the bare model; with a panel also
    what else each changes, and beside them what a random direction does: as long as the first vector among
    the dials, or of equal damage.

    Args:
        dials: one dial, or several by name.
        pairs: a spec or pair set, or several by split name; with a panel perhaps none.
        alphas: strengths; 0 is the bare model and always measured.
        out: folder for the result files, from which `trimtab report` makes a page: with verdicts against
            the bare model, and against a dial called `dpo` where there is one.
        limit: the first so many items of every split.
        rendering: how the chat template is run.
        passages: neutral passages on which damage is measured.
        panel: properties with their items (`trimtab.panel.read_items`), measured at alpha 1 and at
        panel_kl: where the mean KL on neutral text is this, in nats a token.
        force: go on although a dial was made for another base model.

    Returns:
        Lines as in `results.jsonl`: `model`, `method`, `split`, `seed`, `aggregate`, `alpha`, `metric`,
        `value`, `low`, `high`, `items`, `pairs`, …

    Raises:
        ConfigError: a name that is taken, an alpha that is not finite, an `out` that is not free.
        DataError: pairs that cannot be read.
        DialError: a dial of another base model.
    """
    folder = None if out is None else free_folder(out, *RUN)
    if folder is not None and (folder / "cells").exists():
        raise ConfigError(f"{folder}: holds a comparison; choose another --out")
    named = {"dial": dials} if isinstance(dials, Dial) else dict(dials or {})
    if BASE in named:
        raise ConfigError(f"a dial cannot be called {BASE!r}: that is the bare model")
    given = {"pairs": pairs} if isinstance(pairs, (PairSet, str)) else dict(pairs)
    sets = {
        name: (read_pairs(p, data_root) if isinstance(p, str) else p).limit(limit)
        for name, p in given.items()
    }
    if sets or panel is None:
        check_names(sets)
    if panel and (not named or RANDOM in named):
        raise ConfigError(
            f"a panel takes dials, none of which is called {RANDOM!r}: its control is"
        )
    check_alphas(alphas)
    model = models.unwrapped(model)
    strengths = [a for a in dict.fromkeys(float(a) for a in alphas) if a != 0]
    for dial in named.values():
        if not force:
            dial.check_base(model, tokenizer)
    encoded = {}
    for name, p in sets.items():
        e = encoded[name] = encode(
            p, tokenizer, max_length=max_length, prompt_style=prompt_style, rendering=rendering
        )
        progress.left_out(p.name, p.left_out, p.notes)
        progress.rendered(p.name, len(p), e, max_length, models.context(model))
    trunk = store is None or store.trunk
    neutral = NeutralText(model, tokenizer, NEUTRAL[:passages], trunk=trunk)
    rows: Rows = []
    controls: Rows = []
    first = next(
        iter(named.values()), None
    )  # its states below are kept when the bare model is read
    for method, dial in {BASE: None, **named}.items():
        for alpha in strengths if dial else [0.0]:
            at = "alpha_1" if alpha in (0.0, 1.0) else "other"
            for name, e in encoded.items():
                label = f"{method} at alpha {alpha:g}: scoring {name}"
                with progress.bar(label, e.n_answers, "answers") as update:
                    which = dial or first
                    found = score(model, e, which, alpha, force=force, store=store, progress=update)
                rows += score_rows(method, None, name, at, alpha, found)
                if name == next(iter(encoded)) and len(strengths) > 1:
                    rows += score_rows(method, None, "dose", "dose", alpha, found)
                    if dial is not None and (twin := random_like(dial)) is not None:
                        control = random_for(method)
                        with progress.bar(f"{label}, {control}", e.n_answers, "answers") as update:
                            found = score(
                                model, e, twin, alpha, force=force, store=store, progress=update
                            )
                        controls += score_rows(control, None, "dose", "dose", alpha, found)
            if dial:
                damage = neutral.damage(dial, alpha, force=force)
                rows += damage_rows(
                    method, None, "dose" if len(strengths) > 1 else at, alpha, damage
                )
    trained = {name: list(dial.info.data) for name, dial in named.items()}
    more, sides, told = {}, [], []
    source = models.source_of(model)
    if panel:
        free = {name: of_any_base(dial) if force else dial for name, dial in named.items()}
        on = PanelOn(model, tokenizer, panel, max_length=max_length, store=store, progress=progress)
        control = next(filter(None, map(random_like, free.values())), None)
        free[RANDOM] = control or fit(RANDOM, model, tokenizer, "facts:train", limit=24)
        (bare,) = side_effects.read_arms(on, [Arm(BASE)])
        arms = [arm for name, dial in free.items() for arm in on.arms(name, dial, panel_kl)]
        reads = side_effects.read_arms(on, arms)
        own = {"model": source.name, "suite": suite}
        sides, told = side_effects.lines(bare, reads, own)
        more["panel"] = side_effects.about(panel.properties, bare, reads, trained, panel_kl)
        if folder is not None:
            content = [read.as_json() for read in (bare, *reads)]
            write_text(folder / "panel.json", json.dumps(content, ensure_ascii=False))
    ours = versions()
    made = [(name, dial.info.versions) for name, dial in named.items()]
    mixed = made_with(
        [("this run", ours), *((n, {k: v[k] for k in ours if k in v}) for n, v in made)]
    )[1]
    for line in mixed:
        progress.say(line)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    common = {"model": source.name, "suite": suite}
    lines = [*tables.results(rows, common), *sides]
    bare = [r for r in rows if r["split"] == "dose" and r["method"] == BASE]
    lines += tables.dose_summaries(bare + controls, common)
    if folder is not None:
        where = suite or ", ".join(sets) or "a panel of side effects"
        about = About(
            study="evaluate" if sets else "panel",
            title=f"{', '.join(named) or 'the bare model'} on {where}",
            model=source.name,
            model_digest=source.digest,
            suite=suite,
            suite_digest=suite_digest or None,
            train="; ".join(dict.fromkeys(spec for of in trained.values() for spec in of)),
            splits={name: Split(sets[name].name, **sizes(e)) for name, e in encoded.items()},
            methods={name: f"a {d.kind} dial, {d.info.method}" for name, d in named.items()},
            seeds=(),
            dtype=dtype,
            device=str(next(model.parameters()).device),
            versions=ours,
            commit=commit(),
            command=command,
            limit=limit,
            notes=tuple(mixed),
            more=more,
        )
        told = [*tables.verdicts(rows, list(named), list(sets), common, strengths), *told]
        write(folder, Run(about, tuple(lines), tuple(told)))
        write_rows(folder / "items.parquet", rows + controls)
    return [OldRow(row_of(line)) for line in lines]


class OldRow(dict[str, Any]):
    """A line that answers to its keys of earlier versions, too, and says so."""

    def __missing__(self, key: str) -> Any:
        if key not in OLD_KEYS:
            raise KeyError(key)
        warn(f"the key {key!r} of a result line is now {OLD_KEYS[key]!r}")
        return self[OLD_KEYS[key]]


OLD_KEYS = {"ci_low": "low", "ci_high": "high"}


def check_names(splits: Iterable[str]) -> None:
    """Raise ConfigError unless there is at least one split and no name has another meaning."""
    names = list(splits)
    if not names:
        raise ConfigError("no pairs to evaluate on")
    if taken := sorted({"dose", "neutral"}.intersection(names)):
        raise ConfigError(f"a split cannot be called {taken[0]!r}: results use that name")
