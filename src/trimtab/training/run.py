"""`fit`: pairs in, a dial out, resumable from wherever it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab import models
from trimtab.batching import Contrast, Encoded, PromptStyle, encode, is_contrast
from trimtab.damage import first_range, in_kl, neutral
from trimtab.dials import Dial, DialInfo
from trimtab.dials.base import same_base
from trimtab.dials.contexts import check_bare, staying
from trimtab.dials.saved import digest_of
from trimtab.errors import ConfigError, DataError, TrainingError
from trimtab.files import write_text
from trimtab.holding import holding
from trimtab.objectives import PlackettLuce
from trimtab.pairs import PairSet, read_pairs
from trimtab.progress import SILENT, Progress
from trimtab.provenance import digest, versions
from trimtab.rendering import USUAL, Rendering, record_of
from trimtab.store import Store
from trimtab.training.adapters import fit_adapter
from trimtab.training.closed_form import fit_direction
from trimtab.training.fits import check_fits
from trimtab.training.methods import METHODS, method
from trimtab.training.plan import Made, Run
from trimtab.training.recipes import AnyRecipe, Method, Recipe, alike
from trimtab.training.rotation import QUICK_PAIRS
from trimtab.training.settings import LogitsSettings, RewardSettings, plain
from trimtab.training.steering import PUBLISHED, SteeringRecipe, encode_poles


@holding("out")
def fit(
    recipe: str | AnyRecipe | Method,
    model: nn.Module,
    tokenizer: Any,
    pairs: PairSet | Contrast | str | Iterable[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    max_length: int = 1024,
    prompt_style: PromptStyle = "plain",
    rendering: Rendering = USUAL,
    data_root: str | Path | None = None,
    overwrite: bool = False,
    held: Dial | None = None,
    held_alpha: float = 1.0,
    measure: bool = False,
    store: Store | None = None,
    progress: Progress = SILENT,
) -> Dial:
    """Make a dial for a model from preference pairs.

    Args:
        recipe: a method's name (`trimtab methods` lists them), a method, or a recipe with other
            settings.
        pairs: what `read_pairs` takes (a pair set, a spec string, a list of dicts, …), or, for methods
            without training, a contrast.
        out: folder to save the dial in; what a run needs to be resumed lies beside it, under the
            same name with a dot before and `.training` behind it, until the dial is saved.
        seed: initialisation, data order and dropout; closed-form methods have none.
        limit: the first so many items.
        max_length: longer pairs are dropped and counted.
        prompt_style: `chat` wraps plain prompts in the model's chat template.
        rendering: how the chat template is run.
        overwrite: replace what lies in `out`.
        held: a dial that is on at `held_alpha` while another is trained, for policy and reference alike:
            what it does already need not be learned (preventative steering; Chen et al. 2025, persona
            vectors). It is no part of the dial that is made.
        measure: end with what it does to neutral text at alpha = -1 and 1 (seconds), kept as the dial's
            first measured range; the command line does.

    Returns:
        The dial. With `out` it has been saved, with the training curve in `training.jsonl`.

    Raises:
        ConfigError: unknown method, or `out` holds another run.
        DataError: the pairs cannot be used.
        TrainingError: the loss is not finite, gradients through the base are wrong, or no checkpoint
            can be written.
        KeyboardInterrupt: stopped; the same call goes on from there.
    """
    named = _named(recipe)
    if getattr(named.recipe, "quick", False):
        limit = min(limit or QUICK_PAIRS, QUICK_PAIRS)
    model = models.unwrapped(model)
    check_bare(model, "fitting")
    check_fits(named.recipe, models.n_layers(model))
    models.settle(model)
    data = (pairs if isinstance(pairs, Contrast) else read_pairs(pairs, data_root)).limit(limit)
    check_pairs(named, data)
    if isinstance(data, PairSet):
        progress.left_out(data.name, {}, data.notes)
    source = models.source_of(model, tokenizer)
    chat = prompt_style == "chat" or _has_chat(data)
    record = record_of(tokenizer, rendering) if chat else rendering.record()
    info = DialInfo(
        method=named.name,
        base_model=source.name,
        base_digest=source.digest,
        base=source.parts,
        data={data.name: data.digest},
        seed=seed if named.seeded else None,
        config={
            **plain(named.recipe),
            "limit": limit,
            "max_length": max_length,
            "prompt_style": prompt_style,
            "read_as": _read_as(data, prompt_style),
            **({"rendering": record} if record else {}),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            **(
                {"held": {"dial": digest_of(held), "alpha": held_alpha}} if held is not None else {}
            ),
        },
        versions=versions(),
    )
    folder = None if out is None else Path(os.path.realpath(out))  # a link stays one
    if folder is not None and (done := _finished(folder, info, overwrite, model)):
        progress.say(f"{folder} holds this very run already: nothing to do")
        if _main_process() and _note(_work(folder)) in (None, _own_note(info)):
            shutil.rmtree(_work(folder), ignore_errors=True)  # it was stopped while it cleaned up
        return done
    how = named.recipe
    extra: dict[str, str | bytes] = {}
    reading: Any = {
        "max_length": max_length,
        "prompt_style": prompt_style,
        "rendering": rendering,
    }
    encoded: Encoded | Contrast
    if isinstance(how, SteeringRecipe):
        encoded = encode_poles(how, data, tokenizer, **reading)
    else:
        assert isinstance(data, PairSet)
        encoded = encode(data, tokenizer, **reading)
    given = len(data) if isinstance(data, PairSet) else None
    progress.rendered(data.name, given, encoded, max_length, models.context(model))
    if folder is not None:  # what was refused so far leaves nothing
        _claim(_work(folder), info, overwrite)
    beside: Any = nullcontext()
    if held is not None:
        name = f"{digest_of(held)} {held_alpha:g}"
        beside = staying(held(model, held_alpha, training=True), name)
    if isinstance(how, SteeringRecipe):
        with beside:
            vector = fit_direction(how, model, encoded, seed=seed, store=store, progress=progress)
        dial: Dial = in_kl(vector, neutral(model, tokenizer)) if how.dial.unit == "kl" else vector
    else:
        assert isinstance(encoded, Encoded)
        assert isinstance(data, PairSet)
        with (
            beside,
            models.reading(model),  # training puts the model in eval mode
            tempfile.TemporaryDirectory() if folder is None else nullcontext(_work(folder)) as work,
        ):
            run = Run(named, model, encoded, seed, Path(work), data, folder, store, progress)
            dial, extra = _trainer_of(how)(run)
    dial.info = dataclasses.replace(info, measured=dial.info.measured, dose=dial.info.dose)
    dial.eval()
    if measure and dial.kind != "reward" and _main_process():
        first_range(dial, neutral(model, tokenizer), progress)
    if folder is not None:
        if _main_process():
            _publish(dial, folder, extra)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # whoever returns finds the dial saved
    return dial


def check_pairs(named: Method, data: PairSet | Contrast) -> None:
    """Raise ConfigError where a method compares answers to a prompt, and there is none: whole sequences
    that differ in what is asked would be scored as if they answered the same; DataError where rankings
    go in a circle."""
    if named.trained and isinstance(named.recipe.objective, PlackettLuce):
        from trimtab.pairs.inspect import contradictions  # with scipy's solvers, half a second

        circular = contradictions(data)["contradictory"] if isinstance(data, PairSet) else 0
        if circular:
            raise DataError(
                f"{data.name}: {circular} pairs are part of a circle of preferences (A over B, B over A), "
                f"which no ranking has; take them out, or train with dpo, pair by pair"
            )
    contrast = isinstance(data, Contrast)
    whole = contrast or is_contrast(data)
    if not named.trained or not (contrast or (whole and named.recipe.on_answers)):
        return
    name = data.name.partition("[")[0].removesuffix("/all")
    own = f" (`{name}/answers` has the personas as answers)" if name.startswith("personas:") else ""
    raise ConfigError(
        f"{named.name} trains on answers to prompts, and {data.name} has whole sequences without a "
        f"prompt; give pairs with one{own}, or a method that reads states, such as mean or contrastive"
    )


def _trainer_of(recipe: Recipe[Any, Any]) -> Callable[[Run], Made]:
    """What trains a recipe's dial; the Trainer is imported by nobody who trains nothing."""
    if isinstance(recipe.dial, LogitsSettings):
        from trimtab.training.alignment_head import fit_alignment_head as trainer
    elif isinstance(recipe.dial, RewardSettings):
        from trimtab.training.reward_head import fit_reward_head as trainer
    else:
        trainer = fit_adapter
    return trainer


def _has_chat(data: PairSet | Contrast) -> bool:
    return isinstance(data, PairSet) and any(pair.conversational for pair in data)


def _read_as(data: PairSet | Contrast, prompt_style: PromptStyle) -> str:
    """In which format the dial's texts are read: chat messages go through the template in any case."""
    if isinstance(data, Contrast):
        return data.read_as
    return "chat" if all(pair.conversational for pair in data) else prompt_style


# ---- the folder ---------------------------------------------------------------------------------


def _work(folder: Path) -> Path:
    """Where a run that ends in `folder` keeps its checkpoints until then."""
    return folder.with_name(f".{folder.name}.training")


def _finished(folder: Path, info: DialInfo, overwrite: bool, model: nn.Module) -> Dial | None:
    """The dial that `folder` holds, if it is this run's; None where there is none, or it may go."""
    if not folder.exists():
        return None
    if not (folder / "dial.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ConfigError(
                f"{folder}: there is something, and it is no dial; choose another --out"
            )
        return None
    if overwrite:
        return None
    dial = Dial.from_pretrained(folder)
    later = {"read_as": info.config["read_as"]}  # from before it was written down
    saved = dataclasses.replace(dial.info, config={**later, **dial.info.config})
    if differs := _another(saved, info, model):
        raise ConfigError(
            f"{folder}: holds a dial of another run ({differs}); choose another --out, or --overwrite"
        )
    dial.check_base(model)  # says what a dial of an earlier version does not name
    return dial


def _another(found: DialInfo, info: DialInfo, model: nn.Module) -> str:
    """In what a saved dial's run differs from one; empty where it is the same. What evaluation adds to
    a saved dial does not make it another run, nor another name of the same model."""
    if not found.base and found.base_digest == models.old_digest_of(model):
        found = dataclasses.replace(found, base_digest=info.base_digest)
    if not same_base(found, info):
        return "another model"
    for part in ("quantisation", "tokenizer", "template"):
        if part in found.base and found.base[part] != info.base.get(part):
            return f"another {part}"
    same: Any = {"base_model": "", "base_digest": "", "base": {}, "measured": {}, "dose": {}}
    a, b = dataclasses.replace(found, **same), dataclasses.replace(info, **same)
    names = [f.name for f in dataclasses.fields(DialInfo)]
    return ", ".join(n for n in names if getattr(a, n) != getattr(b, n))


def _claim(work: Path, info: DialInfo, overwrite: bool) -> None:
    """Make the work folder ours, or go on in it if it is this run's."""
    if not _main_process():
        return
    found, mine = _note(work), _own_note(info)
    if found == mine:
        return
    begun = found is not None and any(file.name != "run.json" for file in work.iterdir())
    if begun and not overwrite:
        raise ConfigError(
            f"{work}: left by another run; delete it, choose another --out, or --overwrite"
        )
    try:
        if work.exists():  # without a note nobody knows whose checkpoints lie there
            shutil.rmtree(work)
        work.mkdir(parents=True)
        write_text(work / "run.json", mine)
    except OSError as error:
        raise TrainingError(f"{work}: cannot be written ({error})") from error


def _publish(dial: Dial, folder: Path, extra: dict[str, str | bytes]) -> None:
    """Save the dial within the work folder, move it to its place, drop all else. Stopped at any
    moment, it leaves nothing that the next run would not go on from or clear away."""
    work = _work(folder)
    saved = dial.save_pretrained(work / "dial", extra)
    try:
        if folder.exists():
            shutil.rmtree(work / "old", ignore_errors=True)
            folder.rename(work / "old")
        saved.rename(folder)
    except OSError as error:
        raise TrainingError(
            f"{folder}: the dial cannot be moved there ({error}); it lies in {saved}"
        ) from error
    shutil.rmtree(work, ignore_errors=True)


def _note(work: Path) -> str | None:
    """Which run a work folder belongs to."""
    file = work / "run.json"
    return file.read_text() if file.is_file() else None


def _own_note(info: DialInfo) -> str:
    """A run's own line: all of it but the names of the model."""
    base = {k: v for k, v in info.base.items() if k != "metadata"}
    digest = "" if "values" in base else info.base_digest
    named = dataclasses.replace(info, base_model="", base_digest=digest, base=base)
    return json.dumps(dataclasses.asdict(named), sort_keys=True)


def _main_process() -> bool:
    # RANK is set by every launcher, before the process group exists.
    return int(os.environ.get("RANK", 0)) == 0


def _named(recipe: str | AnyRecipe | Method) -> Method:
    """The method of a name; a recipe with other settings gets that of the method it varies, one that
    combines what no method does the name of its objective."""
    if isinstance(recipe, str):
        return method(recipe)
    if isinstance(recipe, Method):
        return recipe
    if name := next((n for n, same in PUBLISHED.items() if same == recipe), None):
        return method(name)
    like = [m for m in METHODS.values() if alike(m.recipe, recipe)]
    if not like and isinstance(recipe, Recipe):
        return Method(type(recipe.objective).__name__.lower(), recipe, "", "")
    if not like:
        raise ConfigError(
            f"{type(recipe).__name__} is no recipe: expected a Recipe, or a method's name"
        )
    same = [m for m in like if m.varies(recipe)] or like
    return dataclasses.replace(same[0], recipe=recipe)


def recipe_digest(recipe: AnyRecipe) -> str:
    """sha256 of a recipe's settings."""
    return digest(plain(recipe))
