"""The base class of all dials: applying, composing, saving, loading."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from trimtab import models
from trimtab.dials import hub, saved
from trimtab.dials.attach import Alpha, Edit, as_alpha, attach
from trimtab.dials.base import check, same_base
from trimtab.dials.contexts import check_bare
from trimtab.dials.experts import Swap
from trimtab.dials.linear import dense_weight
from trimtab.dials.merging import refuse_shared, verify
from trimtab.dials.numbers import STRONGEST
from trimtab.dials.saved import DialInfo
from trimtab.errors import ConfigError, DialError
from trimtab.sites import Site
from trimtab.states import depth


class Dial(nn.Module):
    """A small module that owns its parameters and says which edits it makes to a model.

    `with dial(model, alpha): ...` applies it; leaving the context restores the model, also after
    an exception. `a + 0.5 * b` composes: at alpha, a acts at alpha and b at half of it.
    """

    kind: ClassVar[str]
    weights_file: ClassVar[str] = "dial.safetensors"

    def __init_subclass__(cls) -> None:
        """A kind with a name of its own can be loaded by it."""
        super().__init_subclass__()
        if "kind" in vars(cls):
            saved.KINDS[cls.kind] = cls

    def __init__(self) -> None:
        super().__init__()
        self.info = DialInfo()

    def edits(self, model: nn.Module) -> Sequence[Edit | Swap]:
        """The edits that make up the dial, for this model."""
        raise NotImplementedError

    def places(self) -> list[Site]:
        """The sites it edits."""
        raise NotImplementedError

    def lowest(self, model: nn.Module) -> int:
        """The lowest decoder block that runs otherwise with the dial on (-1: the embedding); those
        below it stay as they are."""
        return min(depth(model, site) for site in self.places())

    def rates(self) -> list[tuple[nn.Parameter, float]]:
        """Parameters with a learning rate of their own, as a factor of the run's."""
        return []

    def parts(self, model: nn.Module) -> list[tuple[Sequence[Edit | Swap], float]]:
        """Edits with their weights: one group, unless the dial is composed of several."""
        return [(self.edits(model), 1.0)]

    def forward(
        self, model: nn.Module, alpha: Alpha, *, training: bool = False, force: bool = False
    ) -> AbstractContextManager[None]:
        """A context in which the model runs with the dial at `alpha`.

        Args:
            alpha: a number, `[B]` or `[B, T]`; at 0 nothing is attached.
            training: the context spans forward and backward (see `attach`).
            force: go on although the dial was made for another base model.

        Raises:
            DialError: the dial was made for another base model.
            ConfigError: alpha is not finite, or its shape does not fit.
        """
        model = models.unwrapped(model)
        if not force:
            self.check_base(model)
        context = attach(model, self.parts(model), alpha, training=training)
        return context if training else self._reading(context)

    @contextmanager
    def _reading(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Without the dial's own dropout in what is read."""
        with models.reading(self), context:
            yield

    def check_base(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Raise DialError where the model is another than the dial was made for, in its weights as
        they are now or its config. Another tokenizer, template or quantisation is said, once."""
        check(self, models.source_of(model, tokenizer), lambda: models.old_digest_of(model))

    def low_rank(self, model: nn.Module, alpha: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """The dial at `alpha` as W + B A: A `[r, in]` and B `[out, r]` by module path.

        Raises:
            DialError: it is no such change of weights.
        """
        raise DialError(f"a {self.kind} dial is no low-rank change of the model's weights")

    def weights_at(self, model: nn.Module, alpha: float = 1.0) -> dict[str, Tensor]:
        """The model's parameters, by name, with the dial at `alpha` in them (`[out, in]`, float32).

        Raises:
            DialError: the edit cannot be expressed in the model's weights.
        """
        return self.low_rank_weights(model, self.low_rank(model, alpha))

    @staticmethod
    def low_rank_weights(
        model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """W + B A by the weights' names, of A `[r, in]` and B `[out, r]` by module path."""
        changed = {}
        for path, (A, B) in factors.items():
            weight = dense_weight(model.get_submodule(path))
            changed[f"{path}.weight"] = weight + (B.double() @ A.double()).float().to(weight.device)
        return changed

    def merged(self, model: nn.Module, alpha: float = 1.0, *, force: bool = False) -> nn.Module:
        """A copy of the model with the dial at `alpha` in its weights, where the maths allows.

        Args:
            force: go on although the dial was made for another base model.

        Raises:
            DialError: the edit cannot be expressed in the model's weights.
            ConfigError: alpha is no finite number.
        """
        model = models.unwrapped(model)
        if not force:
            self.check_base(model)
        check_bare(model, "merging")
        self.parts(model)  # refuses a model that it does not fit
        if not isinstance(strength := as_alpha(alpha), float):
            raise ConfigError("a model is merged at one alpha: expected a number")
        result = models.plain_copy(model)
        weights = self.weights_at(result, strength)
        refuse_shared(result, weights)
        for name, value in weights.items():
            path, _, leaf = name.rpartition(".")
            module: Any = result.get_submodule(path)
            old = getattr(module, leaf)
            if old is None:
                like = module.weight
                setattr(module, leaf, nn.Parameter(value.to(like), requires_grad=False))
                continue
            value = value.T if leaf == "weight" and type(module).__name__ == "Conv1D" else value
            old.data = value.to(old)
        verify(model, self(model, strength, force=True), result, f"the {self.kind} dial")
        return result

    def __mul__(self, weight: float) -> Composed:
        return Composed([(self, float(weight))])

    __rmul__ = __mul__

    def __neg__(self) -> Composed:
        return self * -1.0

    def __add__(self, other: Dial) -> Composed:
        return Composed([*members(self), *members(other)])

    def __sub__(self, other: Dial) -> Composed:
        return self + -1.0 * other

    # ---- saving ----

    def settings(self) -> dict[str, Any]:
        """JSON values that `build` needs beside the tensors."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The weights as they are saved."""
        raise NotImplementedError

    @classmethod
    def build(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`."""
        raise NotImplementedError

    def save_pretrained(
        self, folder: str | Path, extra: dict[str, str | bytes] | None = None
    ) -> Path:
        """Save as a folder: weights (safetensors), `dial.json`, a model card. All or nothing: the
        folder is written aside and renamed. A dial that lies there is replaced, with all else in
        its folder. `extra` are further files by name.

        Raises:
            DialError: the folder cannot be written, or holds something that is no dial.
        """
        return saved.save(self, folder, extra or {})

    def _write(self, folder: Path) -> None:
        saved.write(self, folder)

    def save_measured(self, folder: str | Path) -> None:
        """Write what was measured into the dial that is saved in `folder`, and its card; all else
        there stays as it is.

        Raises:
            DialError: no saved dial lies there, another one does, or it cannot be written.
        """
        saved.save_measured(self, folder)

    def push_to_hub(self, repo_id: str, **how: Any) -> Any:
        """Upload the dial as a model repository, with a full card; see `hub.push`."""
        return hub.push(self, repo_id, **how)

    @staticmethod
    def from_pretrained(name: str | Path, *, force: bool = False) -> Dial:
        """Load a dial from a folder or a Hub id. A plain PEFT folder loads as an adapter dial.

        Args:
            force: go on although its digest was taken out, by which a change would be seen.

        Raises:
            DialError: nothing is there, a file is missing or damaged, or the kind is unknown.
        """
        return saved.load(name, force=force)

    @staticmethod
    def from_folder(folder: Path) -> Dial | None:
        """The dial in a folder of another tool's format, where it is one that this kind reads."""
        return None


class Composed(Dial):
    """Several dials at once, each at its weight times alpha. Not saved: save its members."""

    kind = "composed"

    def __init__(self, members: Sequence[tuple[Dial, float]]):
        super().__init__()
        dials = [dial for dial, _ in members]
        self.members = nn.ModuleList(dials)
        self.weights = [weight for _, weight in members]
        if not all(abs(w) <= STRONGEST for w in self.weights):
            raise ConfigError(
                f"weights {self.weights} of a composed dial: expected finite numbers, at most "
                f"{STRONGEST:g}"
            )
        bases = {d.info.base_digest: d.info.base_model for d, _ in members if d.info.base_digest}
        if not all(same_base(a.info, b.info) for a, b in itertools.combinations(dials, 2)):
            raise DialError(
                "dials of different base models do not compose: "
                + ", ".join(f"{name} ({digest[:12]})" for digest, name in bases.items())
            )

    def parts(self, model: nn.Module) -> list[tuple[Sequence[Edit | Swap], float]]:
        """The members' edits at their weights."""
        return [
            (edits, weight * inner)
            for dial, weight in members(self)
            for edits, inner in dial.parts(model)
        ]

    def places(self) -> list[Site]:
        """The sites that any member edits."""
        return list(dict.fromkeys(site for dial, _ in members(self) for site in dial.places()))

    def check_base(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Check every member."""
        for dial, _ in members(self):
            dial.check_base(model, tokenizer)

    def merged(self, model: nn.Module, alpha: float = 1.0, *, force: bool = False) -> nn.Module:
        """The members merged one after the other."""
        if not force:
            self.check_base(model)
        for dial, weight in members(self):
            model = dial.merged(model, weight * alpha, force=True)  # no base of its own any more
        return model

    def __mul__(self, weight: float) -> Composed:
        return Composed([(dial, weight * w) for dial, w in members(self)])

    __rmul__ = __mul__

    def save_pretrained(
        self, folder: str | Path, extra: dict[str, str | bytes] | None = None
    ) -> Path:
        """Refused: a composed dial is a way of using its members."""
        raise DialError("a composed dial is not saved: save its members and compose them again")


def members(dial: Dial) -> list[tuple[Dial, float]]:
    """The parts of a composed dial with their weights; any other dial, whole."""
    if isinstance(dial, Composed):
        return list(zip(dial.members, dial.weights, strict=True))  # type: ignore[arg-type]
    return [(dial, 1.0)]
