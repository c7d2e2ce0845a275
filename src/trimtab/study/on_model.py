"""A study on a model: loads it, turns pairs into tokens for it, fits methods, says what was run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimtab import models
from trimtab.batching import Encoded, encode
from trimtab.dials import Dial
from trimtab.pairs import PairSet
from trimtab.provenance import commit
from trimtab.readings import Features, features
from trimtab.store import Store
from trimtab.study.cells import Host, values_of
from trimtab.study.forecast import Load, load_of
from trimtab.study.made import VERSIONS, made_with
from trimtab.study.records import read_json
from trimtab.study.results import About, Split
from trimtab.study.study import Study
from trimtab.training import Method, fit

S = TypeVar("S")


class OnModel(Study[S]):
    """A study whose settings name a `model`, a `dtype`, a `device` and `threads`, and may have a `rendering`
    and a `max_length`. Nothing is loaded before a cell needs it.

    Raises:
        ConfigError: no such model, dtype or device.
    """

    tests: Mapping[str, PairSet] = {}
    """What is judged on, by name."""

    def __init__(self, settings: S, out: Path, host: Host) -> None:
        super().__init__(settings, out, host)
        given = self.settings
        models.check(given.model)
        self.device = models.resolve_device(given.device)
        models.resolve_dtype(given.dtype, self.device)
        self.options = {
            k: getattr(given, k) for k in ("max_length", "rendering") if hasattr(given, k)
        }
        self.store = Store(out / "cells" / "states")
        self.common = {
            "format": 1,
            "model": models.identify(given.model).whole,
            "dtype": given.dtype,
            "device": self.device.type,
            "threads": given.threads,
        }
        for name, value in self.options.items():
            value = value.record() if name == "rendering" else value
            self.common |= {name: value} if value else {}

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return self.host.load(self.settings)

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.loaded[1]

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """The tests as tokens."""
        return {name: self.encode(pairs) for name, pairs in self.tests.items()}

    def encode(self, pairs: PairSet) -> Encoded:
        """Pairs as tokens; says what is left out."""
        found = encode(pairs, self.tokenizer, **self.options)
        most = self.options.get("max_length", 0)
        self.progress.rendered(pairs.name, len(pairs), found, most, models.context(self.model))
        return found

    def fit(self, method: Method, pairs: PairSet, seed: int, out: Path | None, **own: Any) -> Dial:
        """The dial of a method, fitted or found in its folder."""
        given = {**self.options, "store": self.store, **own}
        return fit(method, *self.loaded, pairs, out=out, seed=seed, progress=self.progress, **given)

    def features(self, encoded: Encoded, site: Any, pool: Any) -> Features:
        """States of all tokens at a site, stored beside the cells."""
        label = f"storing states of {encoded.name}"
        with self.progress.bar(label, encoded.n_answers, "answers") as update:
            return features(self.model, encoded, (site,), pool, store=self.store, progress=update)

    @torch.no_grad()
    def logits(self, dial: Dial, alpha: float) -> tuple[Tensor, Tensor]:
        """Logits of the first answer of the first test: the bare model's, and with a dial attached."""
        row = next(iter(self.encoded.values())).rows[0]
        ids = torch.tensor([[*row.prompt, *row.answers[0]]]).to(
            next(self.model.parameters()).device
        )
        bare = self.model(input_ids=ids).logits
        with dial(self.model, alpha):
            return bare, self.model(input_ids=ids).logits

    def load_of(
        self,
        fits: Iterable[tuple[Method, PairSet]] = (),
        reads: Iterable[tuple[PairSet, float]] = (),
        tokens: int = 0,
    ) -> Load:
        """What a cell takes that fits methods to pairs, reads others so often, and writes tokens."""

        def tokened(pairs: PairSet) -> Encoded:
            return self._tokens.setdefault(
                pairs.digest, encode(pairs, self.tokenizer, **self.options)
            )

        given = [(method, tokened(pairs)) for method, pairs in fits]
        return load_of(self.model, given, [(tokened(p), n) for p, n in reads], tokens)

    @cached_property
    def _tokens(self) -> dict[str, Encoded]:
        return {}

    def about(self, *, more: dict[str, Any], **own: Any) -> About:
        """`study.json`, all cells being done.

        Args:
            more: what this study alone has to say; the cells' processor time is added.
            own: fields of `About`.
        """
        settings, source = self.settings, models.identify(self.settings.model)
        splits = {name: split_of(name, e) for name, e in self.encoded.items()}
        content = {c.label: read_json(c.result) for c in self.cells.values()}
        made, mixed = made_with((label, c.get(VERSIONS, {})) for label, c in content.items())
        for line in mixed:
            self.progress.say(line)
        return About(
            **{
                "suite": "",
                "methods": {},
                "study": self.name,
                "seeds": (),
                "splits": splits,
                **own,
            },
            model=source.name,
            model_digest=source.digest,
            dtype=str(models.resolve_dtype(settings.dtype, self.device)).removeprefix("torch."),
            device=self.device.type,
            threads=settings.threads,
            versions=made,
            notes=tuple(mixed),
            commit=commit(),
            settings=values_of(settings),
            more={**more, "cpu_seconds": sum(c["seconds"] for c in content.values())},
        )


def split_of(name: str, encoded: Encoded) -> Split:
    """What was measured on: items, pairs and dropped pairs."""
    return Split(name, encoded.n_items, encoded.n_pairs, encoded.dropped_pairs)
