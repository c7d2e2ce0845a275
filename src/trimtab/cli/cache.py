"""`trimtab cache`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.bounds import Count
from trimtab.cli.parse import parse
from trimtab.cli.ready import AS_IT_IS, OwnTable, check_model, read_pairs
from trimtab.rendering.settings import USUAL, Rendering


@dataclass(frozen=True)
class Args:
    """Flags."""

    pairs: str
    """Spec of the pairs."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    out: Path | None = None
    """Folder of the store, for `fit --store` (default: where `fit` looks by itself, in
    TRIMTAB_CACHE). The same command goes on where it was stopped."""
    sites: str = "head"
    """Where states are read; `head` is what the LM head reads, which `fit iav` needs. `fit dph`
    needs `final`."""
    where: Literal["predicting", "answer", "all"] = "predicting"
    """Which tokens: those that predict the answer's (`fit iav`), the answer's own (`fit dph`), or
    the prompt's too."""
    limit: Count | None = None
    """The first so many items."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    table: Annotated[OwnTable, tyro.conf.arg(name="")] = AS_IT_IS
    max_length: Count = 1024
    """Pairs longer than this many tokens are dropped and counted."""
    prompt_style: Literal["plain", "chat"] = "plain"
    """`chat` wraps plain prompts in the model's chat template."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    quiet: bool = False
    """No progress."""


def main(words: list[str]) -> None:
    """Store hidden states of pairs and say what it took."""
    about = "Store hidden states of pairs, so that training heads never runs the model."
    args = parse(Args, words, verb="cache", about=about)
    from trimtab import models
    from trimtab.batching import encode
    from trimtab.models.heads import head_site
    from trimtab.progress import Progress
    from trimtab.readings import features
    from trimtab.sites import parse_sites
    from trimtab.store import Store

    progress = Progress(args.quiet)
    check_model(args.model, args.dtype, args.device, args.load_in)
    data = read_pairs(args.pairs, args.data_root, args.limit, args.table)
    progress.left_out(data.name, data.left_out, data.notes)
    command = " ".join(["trimtab cache", *words])
    store = Store(args.out)
    if args.out is not None:
        store.check(command)
    progress.say(f"loading {args.model}")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    encoded = encode(
        data,
        tokenizer,
        max_length=args.max_length,
        prompt_style=args.prompt_style,
        rendering=args.rendering,
    )
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
