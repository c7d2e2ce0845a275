"""Ranges of settings: what each type of field takes, over every dataclass of settings that there is."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest

import trimtab
from helpers_study import trimtab as command
from trimtab.bounds import MOST, MOST_INT, Bounded, Count, Positive, Share, Within, check, hints
from trimtab.errors import ConfigError

# ---- the mechanism, on settings of its own ------------------------------------------------------


@dataclass(frozen=True)
class Some(Bounded, group="some"):
    """One field of each kind."""

    rate: Positive = 0.1
    share: Share = 0.5
    angle: Annotated[float, Within(0, 180, "()", "degrees")] = 45.0
    plain: float = 0.0
    rank: Count | None = None
    kind: Literal["mean", "pca"] = "mean"
    on: bool = False
    name: str | tuple[int, ...] = "x"
    many: tuple[Share, ...] = (0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0}, "some.rate is 0; expected a number above 0"),
        ({"rate": math.nan}, "some.rate is nan; expected a number above 0"),
        ({"rate": 1e38}, r"some.rate is 1e\+38; expected a number above 0, at most 1e\+06"),
        ({"rate": True}, "some.rate is True; expected a finite number"),
        ({"rate": "0.1"}, "some.rate is '0.1'; expected a finite number"),
        ({"share": 1.1}, "some.share is 1.1; expected 0 to 1"),
        ({"angle": 180}, "some.angle is 180; expected degrees between 0 and 180"),
        ({"plain": math.inf}, "some.plain is inf; expected a finite number"),
        ({"rank": 0}, "some.rank is 0; expected 1 or more or none"),
        ({"rank": 2.0}, "some.rank is 2.0; expected a whole number or none"),
        ({"rank": 10**30}, ".*expected 1 or more, at most 1e"),
        ({"kind": "maen"}, "some.kind is 'maen'; did you mean 'mean'.*expected one of mean, pca"),
        ({"kind": None}, "some.kind is None; expected one of mean, pca"),
        ({"on": 1}, "some.on is 1; expected true or false"),
        ({"name": 3}, "some.name is 3; expected text or whole numbers"),
        (
            {"many": (0.5, math.nan)},
            "some.many: expected finite numbers, each 0 to 1, given 0.5 nan",
        ),
        ({"many": 0.5}, "some.many is 0.5; expected finite numbers, each 0 to 1"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        Some(**given)
    with pytest.raises(ConfigError):  # a copy with other values, too
        dataclasses.replace(Some(), **given)


def test_what_makes_sense_is_taken() -> None:
    Some(rate=1, share=0, angle=179.9, rank=None, name=(1, 2), many=[])  # type: ignore[arg-type]
    Some(rate=np.float32(0.5), rank=np.int64(3))  # type: ignore[arg-type]
    Some(rate=MOST, rank=MOST_INT, share=1)


# ---- every dataclass of settings ----------------------------------------------------------------

RESULTS = {
    *("Contrast", "Row", "Encoded", "Schedule", "Proof", "Line", "Batch", "Spec", "Source", "Load"),
    *(
        "Readout",
        "Readings",
        "Reference",
        "DialInfo",
        "Needs",
        "Edit",
        "Condition",
        "Conflict",
        "Format",
    ),
}
"""What programs make, not people: not held to ranges."""


OF_INSPECT = ("trimtab.inspect_provider", "trimtab.serve.provider")
"""What can be imported where Inspect is installed alone."""


def settings() -> dict[str, type]:
    """Dataclasses with numbers that are settings: bounded, flags, or with a default for every field
    (what is measured has none)."""
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(trimtab.__path__, "trimtab."):
        if module.name.endswith("__main__") or (
            module.name in OF_INSPECT and not importlib.util.find_spec("inspect_ai")
        ):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
                continue
            if kind.__module__ != module.name or name in RESULTS or not numbers(kind):
                continue
            bare = all(
                f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
                for f in dataclasses.fields(kind)
            )
            flags = module.name.startswith("trimtab.cli.")
            if issubclass(kind, Bounded) or flags or (bare and not name.startswith("_")):
                found[f"{module.name.removeprefix('trimtab.')}.{name}"] = kind
    return found


def numbers(kind: type) -> list[str]:
    """Fields that hold a number, or several."""

    def any_number(hint: Any) -> bool:
        if get_origin(hint) in (None, Literal):
            return hint in (int, float)
        return any(any_number(part) for part in get_args(hint))

    try:
        known = hints(kind)
    except (NameError, TypeError):  # a type that is imported for the type checker alone
        return []
    return [n for n, hint in known.items() if any_number(hint) and "dict" not in str(hint).lower()]


def takes_list(kind: type, name: str) -> bool:
    """Whether a field's numbers come in a list."""
    return get_origin(hints(kind)[name]) is tuple


KINDS = settings()

NONSENSE = (math.nan, -math.inf, 1e38, -1e38, 10**30, -(10**30), True, "3", "", b"3", [[1]], {})
SIGNED = {"alpha", "alphas", "generate_alphas", "site", "top", "end", "slope_start", "slope_end"}
SIGNED |= {"reach", "enough", "axes", "axis", "sign", "target", "sites", "seeds", "head_seeds"}
SIGNED |= {"random_seeds", "layer", "with_alpha"}
ABOVE_ZERO = {"beta", "beta_inner", "rank", "lora_alpha", "learning_rate", "pairs_per_step"}
ABOVE_ZERO |= {"epochs", "max_steps", "tau", "kl", "trials", "n", "microbatch_tokens", "top_p"}
ABOVE_ZERO |= {"attention_heads", "inner", "limit", "max_length", "threads", "max_new_tokens"}
ABOVE_ZERO |= {"num_beams", "batch_size", "repetition_penalty", "max_angle", "dose_items"}
ENDLESS = {"max_grad_norm", "checkpoint_seconds", "learning_rate", "seed"}
BELOW_FIVE = {"dropout", "warmup", "label_smoothing", "share", "keep", "top_p", "start"}


def test_the_settings_are_found() -> None:
    """The walk sees them all; none is without ranges."""
    assert len(KINDS) > 40
    for name in (
        "TrainSettings",
        "AdapterSettings",
        "DPO",
        "IAV",
        "Sampling",
        "Measuring",
        "Search",
    ):
        assert any(key.endswith(f".{name}") for key in KINDS)
    loose = [k for k, kind in KINDS.items() if not issubclass(kind, Bounded) and "cli." not in k]
    assert loose == []


def made(kind: type, name: str, value: Any) -> Any:
    """A dataclass with one field set, the required ones filled in; flags as the verb checks them."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            hint = hints(kind)[field.name]
            while get_origin(hint) is Annotated:
                hint = get_args(hint)[0]
            options = {str: "x", Path: Path("x"), int: 1, float: 1.0, bool: False}
            given[field.name] = (
                get_args(hint)[0] if get_origin(hint) is Literal else options.get(hint, ())
            )
    found = kind(**{**given, name: value})
    if not isinstance(found, Bounded):
        check(found, "--{}")
    return found


def taken(kind: type, name: str, value: Any) -> Any:
    """What a field makes of a value; None where it is refused, in one line."""
    try:
        return getattr(made(kind, name, value), name)
    except ConfigError as error:
        if "\n" in str(error) or len(str(error)) > 400:
            raise AssertionError(f"not one line: {error}") from error
        return None


@pytest.mark.parametrize("key", KINDS)
def test_no_field_takes_nonsense(key: str) -> None:
    """Each is refused in one line that names the field, or is a number that makes sense."""
    kind = KINDS[key]
    for name in numbers(kind):
        for value in (*NONSENSE, -1, 0, 1, 5, math.inf):
            tried = (value,) if takes_list(kind, name) else value
            found = taken(kind, name, tried)
            if found is None or isinstance(found, str):  # `sites: str | int`
                continue
            found = found[0] if isinstance(found, tuple | list) and found else found
            assert type(found) in (int, float), (key, name, value)
            assert not math.isnan(found), (key, name)
            assert abs(found) <= MOST_INT or name in ENDLESS, (key, name, value)
            assert found >= 0 or name in SIGNED, (key, name, value)
            assert found > 0 or name not in ABOVE_ZERO, (key, name)
            assert found < 5 or name not in BELOW_FIVE, (key, name, value)


def test_defaults_are_within_their_ranges() -> None:
    """The published settings among them: every method, and what `published` stands for."""
    from trimtab.training import METHODS

    for method in METHODS.values():
        again: Any = dataclasses.replace(method.recipe)
        for field in dataclasses.fields(again):
            part = getattr(again, field.name)
            if dataclasses.is_dataclass(part) and not isinstance(part, type):
                assert dataclasses.replace(part) == part
                if hasattr(part, "variant"):
                    dataclasses.replace(part, variant="published")


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective.beta", "0"], "objective.beta is 0.0; expected a number above 0"),
        (["--objective.beta", "nan"], "objective.beta is nan"),
        (["--dial.dropout", "1"], "dial.dropout is 1.0; expected 0 up to below 1"),
        (["--dial.lora_alpha", "inf"], "dial.lora_alpha is inf"),
        (["--dial.rank", "0"], "dial.rank is 0; expected 1 or more"),
        (["--train.warmup", "5"], "train.warmup is 5.0; expected 0 to 1"),
        (["--train.learning_rate", "-1e-3"], "train.learning_rate is -0.001"),
        (["--train.max_steps", "0"], "train.max_steps is 0"),
        (["--objective.weight_nll", "nan"], "objective.weight_nll is nan; expected 0 or more"),
        (["--limit", "-1"], "--limit -1: expected 1 or more or none"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--seed", str(2**32)], "--seed 4294967296: expected 0 or more, at most"),
        (["--max_length", "0"], "--max-length 0: expected 1 or more"),
    ],
)
def test_flags_are_refused_before_anything_is_read(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    """Neither the model nor the pairs are there."""
    nowhere = ["--model", tmp_path / "none", "--pairs", "jsonl:none", "--out", tmp_path / "out"]
    done = command("fit", "dpo", *nowhere, *flags)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def test_the_help_shows_ranges() -> None:
    text = " ".join(command("fit", "dpo", "--help").out.split())
    assert "strongly the policy is held to the reference. (above 0) (default: 0.1)" in text
    assert "over which the rate rises. (0 to 1) (default: 0.1)" in text
    assert "--limit INT The first so many items. (1 or more)" in text
