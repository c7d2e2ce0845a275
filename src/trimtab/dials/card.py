"""The card of a dial: what it is, what it was made from, how far it was measured, how it is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trimtab import models

if TYPE_CHECKING:
    from trimtab.dials.dial import Dial
    from trimtab.dials.saved import DialInfo

Known = tuple[str, tuple[str, ...]]
"""Licence by the Hub's name of it, and languages as ISO codes."""

OWN: Known = ("apache-2.0", ("en",))
KNOWN: dict[str, Known] = {
    **dict.fromkeys(("facts", "personas", "traits"), OWN),
    **dict.fromkeys(("hh", "ethics"), ("mit", ("en",))),
}
"""Of data that is published under a licence, by kind of spec."""
HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)")
"""Data of the Hub, by its id."""


def card(
    dial: Dial,
    place: str = "path/to/this/folder",
    licence: str = "",
    verdicts: str = "",
    known: Mapping[str, Known] | None = None,
) -> str:
    """Markdown under metadata that the Hub takes (`huggingface_hub.ModelCardData`).

    Args:
        place: what the dial is loaded by.
        licence: of the dial, by the Hub's name of it.
        verdicts: a section on comparisons.
        known: of data, by spec, beside `KNOWN`.
    """
    from huggingface_hub import ModelCardData

    info, peft = dial.info, dial.weights_file.startswith("adapter_model")
    told = {spec: KNOWN[kind] for spec in info.data if (kind := spec.partition(":")[0]) in KNOWN}
    told |= known or {}
    head = ModelCardData(
        base_model=models.on_hub(info.base_model),
        datasets=sorted({m[1] for spec in info.data if (m := HUB.match(spec))}) or None,
        language=sorted({tag for _, tags in told.values() for tag in tags}) or None,
        library_name="peft" if peft else "trimtab",
        license=licence or None,
        tags=["trimtab", "alignment", dial.kind],
    )
    data = [
        f"- `{spec}` ({digest[:12]}): " + (_terms(*told[spec]) if spec in told else UNKNOWN)
        for spec, digest in info.data.items()
    ]
    return f"""---
{head.to_yaml()}
---

# {info.method or dial.kind} dial for {info.base_model or "an unnamed model"}

A {dial.kind} dial made by trimtab: at alpha = 0 the model is untouched, turned up it leans towards
the preference of its training pairs, turned down it leans away.

- Base model: {info.base_model or "unnamed"}{f", weights {info.base_digest[:12]}" if info.base_digest else ""}
- Method: {info.method or "not recorded"}{"" if info.seed is None else f", seed {info.seed}"}
- Made with {", ".join(f"{k} {v}" for k, v in info.versions.items()) or "versions that are not recorded"}

## Loading it

{chr(10).join(_loading(dial, place, peft))}
## Made from

{chr(10).join(data) or "- not recorded"}

## Measured

{chr(10).join([*(f"- {line}" for line in dosed(dial)), *_measured(info)])}
{verdicts and chr(10) + verdicts.strip() + chr(10)}{_settings(info)}"""


UNKNOWN = "licence and language not known"


def _terms(licence: str, languages: tuple[str, ...]) -> str:
    return f"{licence or 'licence not known'}, {', '.join(languages) or 'language not known'}"


def dosed(dial: Dial) -> list[str]:
    """What alpha = 1 does to a state, in words, a line a site; none where that is not known."""
    dose, lines = dial.info.dose, []
    shares = dose.get("relative", ())
    sites = dial.places() if shares else []
    for n, (site, share) in enumerate(zip(sites, shares, strict=False)):
        turn = math.degrees(math.atan(share))
        said = (
            f"site {site}: alpha 1 moves a state by {share:.3g} of its length ({turn:.2g} degrees)"
        )
        if "trained_norm" in dose:
            said += f", trained norm {dose['trained_norm'][n]:.3g}"
        if "raw_norm" in dose:
            said += f", the mean difference by {dose['raw_norm'][n]:.3g}"
        lines.append(said)
    return lines


def _measured(info: DialInfo) -> Iterator[str]:
    if not info.measured:
        yield "Not measured yet: nobody has looked how far this dial may be turned, nor what it damages."
        return
    if info.range:
        found = info.measured.get("range")
        budget = found.get("budget") if isinstance(found, dict) else None
        within = f" (damage within {budget})" if budget else ""
        yield f"Alpha from {info.range[0]:g} to {info.range[1]:g}{within}."
    if info.damage:
        yield "\n| alpha | damage: KL from the bare model, nats a token |\n|--:|--:|"
        yield from (f"| {alpha:g} | {kl:.3g} |" for alpha, kl in info.damage)
    rest = {k: v for k, v in info.measured.items() if k not in ("alphas", "kl_nats_per_token")}
    yield "\n" + "\n".join(f"- {k}: {v}" for k, v in rest.items())


def _loading(dial: Dial, place: str, peft: bool) -> Iterator[str]:
    """In trimtab, and in what else takes its kind."""
    base = dial.info.base_model
    yield f"""\
```python
from trimtab import Dial, load

model, tokenizer = load({base!r})
dial = Dial.from_pretrained({place!r})
with dial(model, alpha=1.0):
    ...
```
"""
    if peft:
        yield f"""\
In PEFT, at alpha = 1:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({models.on_hub(base) or base!r})
model = PeftModel.from_pretrained(base, {place!r})
```
"""
    lora = dial.kind in ("adapter", "vera", "delora", "rotation", "logits")
    if lora or (dial.kind == "vector" and getattr(dial, "operator", "") == "add"):
        to = "gguf-lora --base-gguf BASE-F32.gguf --out lora" if lora else "gguf --out vector.gguf"
        flag = "lora-scaled lora/adapter.gguf" if lora else "control-vector-scaled vector.gguf"
        yield f"""\
In llama.cpp, after a conversion that is checked:

```bash
trimtab export --dial {place} --model {base or "MODEL"} --to {to}
llama-server -m BASE.gguf --{flag}:1.0
```
"""


def _settings(info: DialInfo) -> str:
    if not info.config:
        return ""
    return f"""
## Settings

```json
{json.dumps(info.config, indent=2, ensure_ascii=False, default=str)}
```
"""


def without_places(value: Any) -> Any:
    """JSON values without the folders that absolute paths name."""
    if isinstance(value, dict):
        return {without_places(k): without_places(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(v) for v in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


PLACE = re.compile(r"(?<![\w./~<])~?/(?:[^/\s]+/)+|\b[A-Z]:\\(?:[^\\\s]+\\)+")
