"""The flags that verbs share, each spelled once, and what is made of them before the model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec

from trimtab.bounds import Count, Strength
from trimtab.cli.ready import check_model, read_condition, read_dials, under
from trimtab.errors import ConfigError, near
from trimtab.progress import Progress
from trimtab.rendering.settings import USUAL, Rendering

if TYPE_CHECKING:
    from trimtab.dials import Dial
    from trimtab.evaluation.formats import Format


def alpha_of(text: str) -> float:
    """A strength by number or name.

    Raises:
        ConfigError: neither.
    """
    try:
        value = float(text)
    except ValueError:
        from trimtab.dials.attach import PRESETS

        value = PRESETS.get(text, math.nan)
        if value != value:
            raise ConfigError(
                f"--alpha: expected finite numbers, or {', '.join(PRESETS)}, given {text}"
                f"{near(text, PRESETS)}"
            ) from None
    return value


Alpha = Annotated[
    Strength,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="ALPHA",
        instance_from_str=lambda texts: alpha_of(texts[0]),
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
"""A strength: a number, or none, light, standard, strong, maximum."""


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """How much is said."""

    quiet: bool = False
    """No progress."""

    @property
    def progress(self) -> Progress:
        """Where long work reports to."""
        return Progress(self.quiet)


@dataclass(frozen=True, kw_only=True)
class InFloat32(Quiet):
    """A model, in float32 and by default on the CPU."""

    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "cpu"
    """A torch device, or auto: the first GPU, else the CPU."""

    @property
    def precision(self) -> str:
        """The dtype that it is loaded in."""
        return "float32"

    def check_model(self) -> None:
        """Raise ModelError where it cannot be loaded as asked, before minutes go by."""
        check_model(self.model, self.precision, self.device, self.load_in)

    def load(self, *dials: Dial | None) -> tuple[Any, Any]:
        """The model and its tokenizer; dials go to its device."""
        from trimtab import models

        self.progress.say(f"loading {self.model}")
        model, tokenizer = models.load(
            self.model, dtype=self.precision, device=self.device, load_in=self.load_in
        )
        for dial in dials:
            if dial is not None:
                dial.to(next(model.parameters()).device)
        return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class OnModel(InFloat32):
    """A model."""

    dtype: str = "auto"
    """float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 on a GPU."""
    device: str = "auto"
    """A torch device, or auto: the first GPU, else the CPU."""

    @property
    def precision(self) -> str:
        return self.dtype


@dataclass(frozen=True, kw_only=True)
class FromTrunk:
    """Where passes start."""

    trunk: Literal["auto", "off"] = "auto"
    """auto: states below a dial are kept where that pays, and passes start from there; off: each pass runs
    the whole model."""


@dataclass(frozen=True, kw_only=True)
class Forced:
    """Dials of a model, whose flags stand beside."""

    force: bool = False
    """Go on although a dial was made for another base model."""

    def read_dials(self: Any, *names: str) -> list[Dial]:
        """Dials by folder or Hub id, each made for the model (see `ready.read_dials`)."""
        return read_dials(names, self.model, self.force)

    def read_reward(self: Any, name: str | None) -> Any:
        """The reward dial of `--reward`; None without one.

        Raises:
            ConfigError: a dial of another kind.
        """
        if name is None:
            return None
        (reward,) = self.read_dials(name)
        if reward.kind != "reward":
            raise ConfigError(f"--reward {name}: a {reward.kind} dial; expected a reward dial")
        return reward


@dataclass(frozen=True, kw_only=True)
class WithDials(Forced):
    """Several dials."""

    dial: Annotated[tuple[str, ...], UseAppendAction] = ()
    """DIR or NAME=DIR: a dial's folder or Hub id, and what it is called; repeat for several."""

    def named_dials(self) -> dict[str, Dial]:
        """The dials of `--dial` by name: the one that is given, else the last part of the place.

        Raises:
            ConfigError: two of one name.
        """
        places = [place_of(text) for text in self.dial]
        names = [name for name, _ in places]
        if again := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"--dial: two are called {again[0]}; give names, as in NAME=DIR")
        return dict(zip(names, self.read_dials(*(place for _, place in places)), strict=True))


@dataclass(frozen=True, kw_only=True)
class WithCondition(WithDials):
    """Several dials, and where they act."""

    condition: Path | None = None
    """A condition (`fit-condition`), in whose prompts alone the vector dials are to act."""

    def conditioned(self: Any) -> list[Dial]:
        """The dials of `--dial`, under `--condition` where one is given."""
        dials = self.read_dials(*(place_of(text)[1] for text in self.dial))
        under(dials, read_condition(self.condition, self.model, self.force))
        return dials


def together(dials: list[Dial]) -> Any:
    """Several dials as one; None for none."""
    from trimtab.dials.dial import Composed

    return Composed([(d, 1.0) for d in dials]) if len(dials) > 1 else next(iter(dials), None)


def place_of(text: str) -> tuple[str, str]:
    """Name and place of `NAME=DIR`, or of `DIR`, which is called by its last part."""
    name, equals, place = text.partition("=")
    if not equals or Path(text).exists():
        return last_part(text), text
    return name, place


def last_part(place: str) -> str:
    """The last part of a path or Hub id."""
    return place.rstrip("/").rpartition("/")[2].removesuffix(".gguf")


@dataclass(frozen=True, kw_only=True)
class WithTable:
    """How sources of pairs are read."""

    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    columns: str = ""
    """Of a table of your own, which columns are meant: prompt=COLUMN,chosen=COLUMN,…"""
    skip_bad: bool = False
    """Leave out rows of it that cannot be read, count and list them."""

    def spec(self, spec: str) -> str:
        """A spec of pairs that says how its table is read."""
        from trimtab.pairs.spec import spec_with

        if Path(spec).is_dir():
            raise ConfigError(f"{spec}: a folder; expected a spec of pairs, such as facts:train")
        return spec_with(spec, self.columns, self.skip_bad)

    def read_pairs(self, spec: str, limit: int | None = None) -> Any:
        """The pairs of a spec."""
        from trimtab import pairs

        return pairs.read_pairs(self.spec(spec), self.data_root, limit=limit)


@dataclass(frozen=True, kw_only=True)
class WithPairs(WithTable):
    """Pairs, and how they become tokens."""

    limit: Count | None = None
    """The first so many items."""
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL

    @property
    def how(self) -> dict[str, Any]:
        """What `encode` and its callers are told."""
        return {
            "max_length": self.max_length,
            "prompt_style": self.prompt_style,
            "rendering": self.rendering,
        }


@dataclass(frozen=True, kw_only=True)
class WithPrompts:
    """Prompts that are continued."""

    system: str | None = None
    """A system text before prompts that have none of their own."""
    prompt_style: Literal["auto", "plain", "chat"] | None = None
    """`chat`: in the model's chat template; `auto`: where there is one. By default as the dial was
    fitted, `auto` where it does not say."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = field(default_factory=Rendering)

    @property
    def asked(self) -> Rendering | None:
        """The rendering that was asked for; None: as the dial was fitted."""
        return self.rendering if self.rendering != USUAL else None

    def form(self, dials: list[Any], progress: Progress) -> Format:
        """The format of the prompts, which is said where a dial decides it."""
        from trimtab.evaluation.formats import format_for

        form = format_for(dials, self.prompt_style, self.asked)
        if form.said:
            progress.say(form.said)
        return form


@dataclass(frozen=True, kw_only=True)
class WithCells(Quiet):
    """A study, which runs cell by cell."""

    jobs: Count = 1
    """Cells at once, each in a process of its own."""
    ray: bool = False
    """Spread the cells over a Ray cluster (RAY_ADDRESS, or one on this machine)."""
    dry_run: bool = False
    """Say how many cells and steps, minutes, memory and disk it would take, and stop."""
