"""`trimtab cache`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.cli.flags import OnModel, WithPairs
from trimtab.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class Args(WithPairs, OnModel):
    """Flags."""

    pairs: str
    """Spec of the pairs."""
    out: Path | None = None
    """Folder of the store, for `fit --store` (default: where `fit` looks by itself, in
    TRIMTAB_CACHE). The same command goes on where it was stopped."""
    sites: str = "head"
    """Where states are read; `head` is what the LM head reads, which `fit iav` needs. `fit dph`
    needs `final`."""
    where: Literal["predicting", "answer", "all"] = "predicting"
    """Which tokens: those that predict the answer's (`fit iav`), the answer's own (`fit dph`), or
    the prompt's too."""


def main(words: list[str]) -> None:
    """Store hidden states of pairs and say what it took."""
    about = "Store hidden states of pairs, so that training heads never runs the model."
    args = parse(Args, words, verb="cache", about=about)
    from trimtab import models
    from trimtab.batching import encode
    from trimtab.models.heads import head_site
    from trimtab.readings import features
    from trimtab.sites import parse_sites
    from trimtab.store import Store

    progress = args.progress
    args.check_model()
    data = args.read_pairs(args.pairs, args.limit)
    progress.left_out(data.name, data.left_out, data.notes)
    command = " ".join(["trimtab cache", *words])
    store = Store(args.out)
    if args.out is not None:
        store.check(command)
    model, tokenizer = args.load()
    encoded = encode(data, tokenizer, **args.how)
    progress.rendered(data.name, len(data), encoded, args.max_length, models.context(model))
    named = [head_site(model) if s.strip() == "head" else s for s in args.sites.split(",")]
    sites = parse_sites(",".join(named), models.n_layers(model))
    with progress.bar("storing hidden states", encoded.n_answers, "answers") as update:
        found = features(
            model,
            encoded,
            sites,
            args.where,
            store=store,
            command=command,
            progress=update,
            say=progress.say,
        )
    tokens = int(found.counts.sum())
    print(
        f"stored: {tokens:,} token states of {encoded.n_answers:,} answers, "
        f"{found.nbytes / tokens:.0f} bytes a token, in {store.root}"
    )
