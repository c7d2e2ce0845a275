"""`docs/compatibility.md` from the results: what each architecture is, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
OUTCOMES = {
    "works": "every check is right",
    "works row by row": "right, one sequence at a time: rows that share a batch are not, on this model",
    "refused": "trimtab says why, in one line",
    "wrong upstream": "transformers itself does not build the kind this small, or not run it on text alone",
}
FAULTS = ("silently wrong", "not judged")


def outcome(found: dict[str, Any]) -> tuple[str, str]:
    """What a kind is, and the reason where it is not plainly right."""
    checks: dict[str, dict[str, Any]] = found["checks"]
    if "died" in found or not checks:
        return "not judged", f"its checks did not end {found.get('died', '')}".strip()
    if "right" not in checks.get("upstream", {}):
        return "wrong upstream", _words(checks["upstream"])
    for name, result in checks.items():
        if "wrong" in result:
            return "silently wrong", f"{name}: off by {result['wrong']:.2g}"
    for name, result in checks.items():
        if "fault" in result:
            return "not judged", f"{name}: {result['fault']}"
    for name in ("load", "layers", "scores", "dpo"):
        if name in checks and "refused" in checks[name]:
            return "refused", checks[name]["refused"]
    refused = [f"{n}: {r['refused']}" for n, r in checks.items() if "refused" in r]
    alone = found.get("layout") == "alone"
    return ("works row by row" if alone else "works"), "; ".join(dict.fromkeys(refused))


def _words(result: dict[str, Any]) -> str:
    return str(next(iter(result.values())))


def write(results: Sequence[dict[str, Any]]) -> None:
    """The page."""
    causal = [r for r in results if ":" not in r["kind"] and " +" not in r["kind"]]
    variants = [r for r in results if " +" in r["kind"]]
    images = [r for r in results if ":" in r["kind"]]
    versions = Counter(tuple(sorted(r.get("versions", {}).items())) for r in results)
    used = dict(versions.most_common(1)[0][0]) if versions else {}
    text = [
        "# Compatibility",
        "",
        "Which architectures trimtab is right on. A tiny random model of every kind that transformers "
        "has is saved, loaded and put through loading, layers, a mean direction, two steps of DPO, "
        "strength 0 to the bit, log-probs against plain passes of single sequences (on both sides of "
        "every window, chunk and RoPE length), strengths a row, a compiled model, saving, merging, and "
        "greedy text against plain single passes. `make sweep` does it again and writes this page from "
        f"`sweep/results.jsonl` (transformers {used.get('transformers', '?')}, torch "
        f"{used.get('torch', '?')}). Quantised bases have [a page of their own](quantised.md).",
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in OUTCOMES.items()),
        "",
    ]
    for title, found in (
        ("Causal language models", causal),
        ("Settings that change lengths", variants),
        ("Image-text models, used for their text", images),
    ):
        text += _section(title, found)
    text += _trunks(results)
    PAGE.write_text("\n".join(text).rstrip() + "\n")


def _section(title: str, results: Sequence[dict[str, Any]]) -> list[str]:
    judged = {r["kind"].partition(":")[0]: outcome(r) for r in results}
    counts = Counter(name for name, _ in judged.values())
    lines = [f"## {title}", "", f"| outcome | kinds, of {len(judged)} |", "|---|---|"]
    lines += [
        f"| {n} | {counts[n]} |" for n in (*OUTCOMES, *FAULTS) if counts[n] or n in FAULTS[:1]
    ]
    for name in (*OUTCOMES, *FAULTS):
        kinds = {k: why for k, (n, why) in sorted(judged.items()) if n == name}
        plain = [f"`{k}`" for k, why in kinds.items() if not why]
        reasons = [(k, why) for k, why in kinds.items() if why]
        if not kinds:
            continue
        lines += ["", f"### {name[0].upper()}{name[1:]}", ""]
        if plain:
            lines += [", ".join(plain) + ".", ""]
        if reasons:
            lines += ["| kind | what is refused, or why |", "|---|---|"]
            lines += [f"| `{k}` | {_cell(why)} |" for k, why in reasons]
    return [*lines, ""]


def _trunks(results: Sequence[dict[str, Any]]) -> list[str]:
    """Kinds on which what is below a dial is computed at every pass."""
    tried = [r for r in results if "trunk" in r]
    left = {r["kind"]: r["trunk"] for r in tried if r["trunk"]}
    lines = [
        "## Passes from stored states",
        "",
        "What the blocks below a dial give is kept, and passes start there (`--trunk auto`), "
        "where log-probs, a step after the block and its gradient come out as the whole model's; "
        f"each model is tried before it is used so. Of the {len(tried)} kinds above that could be "
        "tried it holds after every block but these, where each pass runs the whole model: "
        "several residual streams, keys and values of lower blocks that upper ones read, states "
        "handed on beside the stream, rotations by the length of the whole sequence.",
        "",
        "| kind | after blocks | why |",
        "|---|---|---|",
    ]
    for kind, why in sorted(left.items()):
        lines.append(f"| `{kind}` | {', '.join(why)} | {_cell(next(iter(why.values())))} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= 240 else text[:237] + "…"
