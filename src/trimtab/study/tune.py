"""`tune`: a method's settings by trials, judged on training items that were held out.

The evaluation splits of the suite are never read here: whatever chooses settings may not see what
they will be judged on. The held-out items are the suite's `validation`, of the distribution that is
trained on, or else a quarter of the training items, by item; the same for every method and trial.

Trials are proposed by Optuna's TPE sampler (Bergstra et al. 2011, *Algorithms for Hyper-Parameter
Optimization*, section 4), the first one being the method as it stands, and kept in a journal file,
so that a search goes on where it was stopped: the n-th proposal depends on the finished trials and
on n alone.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from trimtab import models
from trimtab.batching import PromptStyle, encode
from trimtab.bounds import Bounded, Count, Seed, Several
from trimtab.errors import ConfigError, TrainingError
from trimtab.evaluation import score
from trimtab.files import write_json, write_lines, write_text
from trimtab.holding import holding
from trimtab.pairs import PairSet, check_disjoint, read_pairs
from trimtab.progress import SILENT, Progress, figures
from trimtab.provenance import digest
from trimtab.rendering import USUAL, Rendering
from trimtab.store import Store
from trimtab.study.cells import threads
from trimtab.study.files import free_folder
from trimtab.study.genies import genies_suites, is_genies
from trimtab.study.parameters import Parameters, Range, parameters_of, parse_parameters, value_of
from trimtab.study.records import read_json
from trimtab.study.settings import as_json, configured, read_settings
from trimtab.study.suite import Suite, read_suite
from trimtab.training import METHODS, Method, fit
from trimtab.training.settings import spelled

HELD_OUT = 0.25
"""Share of the training items that judge the trials."""

SPLIT_SEED = 0
"""Which items those are: the same for every method."""

RECIPE, FIT, TRIALS, LIST = "recipe.yaml", "fit.yaml", "trials", "trials.jsonl"
NOTE, JOURNAL = "tune.json", "journal.log"


@dataclass(frozen=True)
class Search(Bounded):
    """What is tuned, on what, how long."""

    suite: str = "facts"
    """A suite, of which only the training items are used."""
    trials: Count = 20
    """How many settings are tried; give every method of a table the same number."""
    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    parameters: tuple[str, ...] = ()
    """Searched in place of the usual ones: NAME=LOW..HIGH (log scale) or NAME=a,b,c."""
    seed: Seed = 0
    """Of the sampler and of every fit."""
    limit: Several | None = None
    """The first so many training items, those held out among them."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    recipes: tuple[str, ...] = ()
    """YAML files with other settings of methods, from which the search starts."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: PromptStyle = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL


@holding("out")
def tune(
    method: str, search: Search, out: str | Path, *, command: str = "", progress: Progress = SILENT
) -> Path:
    """Try settings of a method and keep the best.

    The value of a trial is the accuracy on the held-out items at alpha 1 (0 for a run that had to
    stop); between equals the larger mean margin is better.

    Args:
        out: folder of the search: `journal.log`, and, once the trials are done, `trials.jsonl`,
            `recipe.yaml` (for `compare --recipes`) and `fit.yaml` (for `fit --config`).

    Returns:
        The folder.

    Raises:
        ConfigError: Optuna is not installed, or a setting makes no sense, before the model loads;
            or `out` holds another search.
        DataError: the training pairs cannot be read.
    """
    if not importlib.util.find_spec("optuna"):
        raise ConfigError("tune: Optuna is not installed (pip install 'trimtab[tune]')")
    out = free_folder(out, NOTE)
    named = read_settings(search.recipes).method(method)
    if not named.trained and getattr(named.recipe, "estimator", "") == "random":
        raise ConfigError(f"{method}: a random direction has nothing to tune")
    space = parse_parameters(search.parameters, named) or parameters_of(named)
    suite = _suite(search)
    pairs = read_pairs(suite.train, search.data_root, limit=search.limit)
    if len(pairs.items()) < 8:
        raise ConfigError(f"{suite.train}: {len(pairs.items())} items; tuning needs at least 8")
    if suite.validation:
        train, held = pairs, read_pairs(suite.validation, search.data_root, limit=search.limit)
        check_disjoint(train, {"validation": held})
    else:
        train, held = pairs.split(HELD_OUT, SPLIT_SEED)
    models.resolve_dtype(search.dtype, models.resolve_device(search.device))
    models.check(search.model)
    _claim(out, search, named, space, train, held)
    _clear(out)
    study = _journal(out)
    found = _results(out)
    progress.say(
        f"{named.name}: {len(train.items())} items to train on, {len(held.items())} held out; "
        f"{min(len(found), search.trials)} of {search.trials} trials done already"
    )
    if len(found) < search.trials:
        with threads(search.threads):
            _try(out, search, named, space, study, (train, held), progress)
    chosen = _write(out, search, named, suite, command)
    progress.say(
        f"{named.name}: the best of {search.trials} trials is number {chosen['trial'] + 1}, with "
        f"{figures(chosen, ('accuracy', 'margin'))}"
    )
    return out


def _suite(search: Search) -> Suite:
    if not is_genies(search.suite):
        return read_suite(search.suite)
    suites, _ = genies_suites(search.suite, search.data_root)
    if len(suites) > 1:
        raise ConfigError(f"{search.suite}: several sources; give one, genies:SOURCE->TARGET")
    return suites[0]


def _claim(
    out: Path, search: Search, method: Method, space: Parameters, train: PairSet, held: PairSet
) -> None:
    """Make the folder this search's, or make sure that it is."""
    mine = {
        "method": method.name,
        "recipe": spelled(method.recipe),
        "model": models.identify(search.model).whole,
        "train": train.digest,
        "held_out": held.digest,
        "parameters": {name: repr(values) for name, values in space.items()},
        "seed": search.seed,
        "max_length": search.max_length,
        "prompt_style": search.prompt_style,
        **({"rendering": record} if (record := search.rendering.record()) else {}),
    }
    file = out / NOTE
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, mine)
    elif read_json(file) != mine:
        raise ConfigError(f"{out}: holds another search; choose another --out")


def _clear(out: Path) -> None:
    """Clear away what a killed search left, whose folder is ours: locks of Optuna's, all but the result of
    finished trials."""
    for lock in out.glob(f"{JOURNAL}.lock*"):
        lock.unlink(missing_ok=True)
    for result in (out / TRIALS).glob("*/result.json"):
        for left in result.parent.glob("*dial*"):
            shutil.rmtree(left, ignore_errors=True)


def _journal(out: Path) -> Any:
    """The search as Optuna keeps it. A trial that was running when it was stopped is given up,
    unless its result was written already."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    done = {r["optuna"]: r["accuracy"] for r in _results(out)}
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        value = done.get(trial.number)
        study.tell(trial.number, value, states.FAIL if value is None else None)
    return study


def _try(
    out: Path,
    search: Search,
    method: Method,
    space: Parameters,
    study: Any,
    pairs: tuple[PairSet, PairSet],
    progress: Progress,
) -> None:
    """The trials that are missing."""
    import optuna

    progress.say(f"loading {search.model}")
    model, tokenizer = models.load(search.model, dtype=search.dtype, device=search.device)
    options: dict[str, Any] = {
        "max_length": search.max_length,
        "prompt_style": search.prompt_style,
        "rendering": search.rendering,
    }
    held = encode(pairs[1], tokenizer, **options)
    store = Store()
    while len(done := _results(out)) < search.trials:
        number = len(done)
        startup = min(10, max(2, search.trials // 3))
        study.sampler = optuna.samplers.TPESampler(
            seed=1000 * search.seed + number, n_startup_trials=startup
        )
        waiting = (optuna.trial.TrialState.WAITING,)
        if number == 0 and not study.get_trials(deepcopy=False, states=waiting):
            study.enqueue_trial(_start(method, space))
        trial = study.ask()
        chosen = {name: _suggest(trial, name, values) for name, values in space.items()}
        recipe = configured(method.recipe, chosen, f"trial {number}")
        key = digest(chosen)[:12]
        folder = out / TRIALS / f"{number:03d}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"trial": number, "optuna": trial.number, "settings": chosen}
        try:
            given = (replace(method, recipe=recipe), model, tokenizer, pairs[0])
            how = {"seed": search.seed, "store": store, "progress": progress, **options}
            dial = fit(*given, out=folder / "dial", **how)
            label = f"trial {number + 1}: scoring what is held out"
            with progress.bar(label, held.n_answers, "answers") as update:
                found = score(model, held, dial, 1.0, store=store, progress=update)
            accuracy, margin = float(found.accuracy.mean()), float(found.margin.mean())
            result |= {"accuracy": accuracy, "margin": margin if math.isfinite(margin) else None}
        except TrainingError as error:
            if error.__cause__ is not None:  # the disk, not the settings
                raise
            result |= {"accuracy": 0.0, "margin": None, "error": str(error)}
        write_json(folder / "result.json", result)
        study.tell(trial, result["accuracy"])
        shutil.rmtree(folder / "dial", ignore_errors=True)
        with_ = (f"{k} {f'{v:.3g}' if isinstance(v, float) else v}" for k, v in chosen.items())
        told = f"{result['accuracy']:.3f} with {', '.join(with_)}"
        progress.say(f"trial {number + 1} of {search.trials}: {told}")


def _start(method: Method, space: Parameters) -> dict[str, Any]:
    """The method as it stands, where that lies within what is searched."""
    found = {}
    for name, values in space.items():
        value: Any = method.recipe
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(values, Range):
            found[name] = min(max(float(value), values.low), values.high)
        elif str(value) in values:
            found[name] = str(value)
    return found


def _suggest(trial: Any, name: str, values: Range | tuple[str, ...]) -> Any:
    """A value with six digits, as it is written down."""
    if isinstance(values, Range):
        return float(f"{trial.suggest_float(name, values.low, values.high, log=True):.6g}")
    return value_of(trial.suggest_categorical(name, values))


def _results(out: Path) -> list[dict[str, Any]]:
    """Finished trials in order."""
    files = sorted((out / TRIALS).glob("*/result.json"))
    return [read_json(file) for file in files]


def best(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trial with the highest accuracy, between equals the largest margin, then the first."""

    def rank(r: dict[str, Any]) -> tuple[float, float, int]:
        return r["accuracy"], -math.inf if r["margin"] is None else r["margin"], -r["trial"]

    return max(results, key=rank)


def _write(out: Path, search: Search, method: Method, suite: Suite, command: str) -> dict[str, Any]:
    """The trials as lines, and the best one's settings in the two forms that are read; the best one."""
    results = _results(out)[: search.trials]
    chosen = best(results)
    if chosen["accuracy"] == 0 and all("error" in r for r in results):
        raise TrainingError(f"{method.name}: every trial had to stop: {results[0]['error']}")
    write_lines(out / LIST, results)
    settings: dict[str, Any] = {}
    for name, value in chosen["settings"].items():
        *parts, last = name.split(".")
        inner = settings
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    entry = settings
    if method != METHODS.get(method.name):  # a name of its own, or a start of its own
        found = configured(method.recipe, chosen["settings"], method.name)
        whole = as_json(replace(method, recipe=found))
        settings = whole["settings"]
        own = {} if whole["method"] == method.name else {"method": whole["method"]}
        entry = {**own, **settings}
    on = suite.validation or f"{HELD_OUT:.0%} of the items of {suite.train}"
    tuned = {"trials": len(results), "accuracy": chosen["accuracy"], "on": on}
    tuned["model"] = search.model
    head = f"# {command}\n" if command else ""
    content = {"settings": {method.name: entry}, "tuned": {method.name: tuned}}
    write_text(out / RECIPE, head + yaml.safe_dump(content, sort_keys=False))
    write_text(out / FIT, head + yaml.safe_dump(settings, sort_keys=False))
    return chosen


__all__: Sequence[str] = ["Search", "parameters_of", "parse_parameters", "tune"]
