"""`panel`: dials, saved ones or made from pairs, on a panel of side effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trimtab import models
from trimtab.bounds import Bounded, Count, Positive, Seed
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.files import sha256
from trimtab.pairs import read_pairs
from trimtab.panel import Arm, PanelOn, read_items, read_panel
from trimtab.panel.run import KL
from trimtab.studies.panel.lines import Read, about, lines, read_arms, read_of
from trimtab.study.cells import Cell, Host
from trimtab.study.forecast import Load
from trimtab.study.on_model import OnModel
from trimtab.study.results import BASE, Run, Split
from trimtab.study.settings import read_settings
from trimtab.training.run import recipe_digest


@dataclass(frozen=True)
class Panelled(Bounded):
    """Which dials, on which panel."""

    model: str = models.DEFAULT_MODEL
    """Hub id, folder, .gguf file, or smollm2-135m."""
    dials: tuple[str, ...] = ()
    """Saved dials, as NAME=DIR."""
    methods: tuple[str, ...] = ()
    """Methods (see trimtab methods) whose dials are made first, from --train."""
    train: str = "facts:train"
    """Pairs that methods learn from."""
    limit: Count | None = None
    """The first so many items of them."""
    recipes: tuple[str, ...] = ()
    """YAML files with other settings of methods, or other names."""
    random: bool = True
    """A random direction as well: what any dial of that damage does."""
    panel: str = ""
    """A YAML file of properties (default: the built-in panel)."""
    panel_items: Count = 300
    """At most so many items of a property."""
    kl: Positive = KL
    """Damage at which dials are compared, beside α = 1: mean KL on neutral text, in nats a token."""
    seed: Seed = 0
    """Of what is trained."""
    max_length: Count = 1024
    """Items longer than this many tokens are left out."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    device: str = "auto"
    """A torch device, or auto."""
    threads: Count = 1
    """CPU threads; the last bits of the figures depend on them."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""


class SideEffects(OnModel[Panelled]):
    """The bare model and every dial on the panel, a cell each."""

    name, title, Settings = "panel", "What else the dials change", Panelled

    def __init__(self, settings: Panelled, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        s = settings
        self.saved = {name: Path(place) for name, _, place in (d.partition("=") for d in s.dials)}
        if bad := [d for d in self.saved.items() if not (d[1] / "dial.json").is_file()]:
            raise ConfigError(f"dials: {bad[0][0]}={bad[0][1]}: expected NAME=DIR, a saved dial")
        chosen = read_settings(s.recipes)
        added = ("random",) if s.random and "random" not in s.methods else ()
        self.methods = {name: chosen.method(name) for name in (*s.methods, *added)}
        if not self.saved and not s.methods:
            raise ConfigError("panel: nothing to measure; give --dials NAME=DIR or --methods")
        if twice := set(self.saved) & {BASE, *self.methods}:
            raise ConfigError(f"dials, methods: {min(twice)!r} is taken; give another name")
        panel = read_panel(Path(s.panel) if s.panel else None)
        self.panel = read_items(panel, s.panel_items, s.data_root)
        self.train = read_pairs(s.train, s.data_root).limit(s.limit) if self.methods else None
        self.common |= {"panel": self.panel.digest, "kl": s.kl}

    def plan(self) -> Iterator[list[Cell]]:
        """All at once."""
        s, dials = self.settings, {n: Dial.from_pretrained(d) for n, d in self.saved.items()}
        files = {name: sha256(self.saved[name] / dial.weights_file) for name, dial in dials.items()}
        made = {n: [recipe_digest(m.recipe), s.seed] for n, m in self.methods.items()}
        data = self.train.digest if self.train else None
        yield [
            self.cell(BASE, {}, name=BASE),
            *(self.cell(name, {"dial": file}, name=name) for name, file in files.items()),
            *(self.cell(n, {"made": m, "train": data}, name=n) for n, m in made.items()),
        ]

    def load(self, cell: Cell) -> Load:
        """What a cell fits and reads."""
        name = cell.own["name"]
        fits = [(self.methods[name], self.train)] if name in self.methods else []
        return self.load_of(fits, [(self.panel.pairs, 1 if name == BASE else 2)])  # type: ignore[list-item]

    def measure(self, folder: Path, name: str) -> Any:
        """The bare model, or a dial at both strengths."""
        if name == BASE:
            return [r.as_json() for r in read_arms(self.on, [Arm(BASE)])]
        seed = self.settings.seed
        if name in self.saved:
            dial = Dial.from_pretrained(self.saved[name])
        else:
            assert self.train is not None
            dial = self.fit(self.methods[name], self.train, seed, folder / "dial")
        dial.check_base(*self.loaded)
        dial.to(next(self.model.parameters()).device)
        return [r.as_json() for r in read_arms(self.on, self.on.arms(name, dial, self.settings.kl))]

    @cached_property
    def on(self) -> PanelOn:
        """The panel on the model."""
        how: Any = {"store": self.store, "progress": self.progress}
        return PanelOn(*self.loaded, self.panel, max_length=self.settings.max_length, **how)

    def trained(self) -> dict[str, list[str]]:
        """By dial, the specs of pairs that it was trained on."""
        saved = {n: list(Dial.from_pretrained(d).info.data) for n, d in self.saved.items()}
        made = {n: [self.settings.train] for n in self.methods if n != "random"}
        return saved | made

    def compared(self, command: str, title: str) -> Run:
        """The result files."""
        found = {label: [read_of(r) for r in cell.read()] for label, cell in self.cells.items()}
        (bare,) = found.pop(BASE)
        dialled: list[Read] = [r for reads in found.values() for r in reads]
        trained, kl = self.trained(), self.settings.kl
        known = {n: f"saved; trained on {', '.join(trained[n]) or '?'}" for n in self.saved}
        known |= {n: f"{m.where}; {m.what}" for n, m in self.methods.items()}
        splits = {
            f"panel.{name}": Split(name, len(items), 0, 0)
            for name, items in self.panel.items.items()
        }
        said = self.about(
            title=title,
            command=command,
            train="; ".join(dict.fromkeys(spec for of in trained.values() for spec in of)),
            methods=known,
            splits=splits,
            equal_kl=kl,
            more={"panel": about(self.panel.properties, bare, dialled, trained, kl)},
        )
        figures, told = lines(bare, dialled, {"model": said.model, "suite": ""})
        return Run(said, tuple(figures), tuple(told))
