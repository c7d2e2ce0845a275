"""Where results are kept, what is aimed at, and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.lane import ROOT

RESULTS = ROOT / "bench" / "results"
RATIOS, DETAILS, TUNING = (RESULTS / f"{n}.json" for n in ("ratios", "details", "tuning"))
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


Found = dict[str, tuple[float, dict[str, Any]]]
"""Ratios by name, each with its details."""


@dataclass(frozen=True)
class Subject:
    """A line of the table.

    Attributes:
        what: what is compared with what.
        target: what the ratio should be; None where it is only reported.
        at_most: the target is an upper limit, not a lower one.
    """

    what: str
    target: float | None
    at_most: bool = False


SUBJECTS: dict[str, Subject] = {
    "dpo_vs_trl_truthful_qa": Subject("DPO step, 32 short pairs, float32, against TRL", 5.0),
    "dpo_vs_trl_truthful_qa_bf16": Subject("the same in bfloat16", 5.0),
    "dpo_vs_trl_truthful_qa_items": Subject(
        "DPO step, 16 whole items of 4 answers, float32, against TRL on their 48 pairs", 7.0
    ),
    "dpo_vs_trl_change_my_view": Subject(
        "DPO step, 8 pairs of long prompts and answers, float32, against TRL", 3.8
    ),
    "memory_vs_trl": Subject(
        "peak memory of a step of the first line above what its process holds anyway, TRL's over ours",
        1.33,
    ),
    "states_only_vs_dpo": Subject(
        "InnerDPO on states up to 0.6 N without log-probs, against our own DPO step, float32", 1.6
    ),
    "upper_half_vs_all": Subject(
        "DPO step of an adapter on the upper half from the trunk, against our step on all layers",
        1.7,
    ),
    "upper_half_vs_all_bf16": Subject("the same in bfloat16", 1.6),
    "upper_half_vs_trl": Subject("the same in float32, against TRL's on the same layers", 5.5),
    "trained_vector_vs_trl": Subject(
        "DPO step of a vector after the middle block from the trunk, float32, against TRL's on a model whose "
        "only trained parameter is that vector",
        5.5,
    ),
    "five_alphas_vs_today": Subject(
        "log-probs of a split at five alphas of a vector after the middle block, from a trunk that is "
        "there, against five whole passes",
        1.6,
    ),
    "five_alphas_cold_vs_today": Subject("the same, the trunk read first", 1.35),
    "step_ipo_vs_dpo": Subject("IPO step, 32 short pairs, float32, against our own DPO step", None),
    "step_simpo_vs_dpo": Subject("SimPO, likewise", None),
    "step_orpo_vs_dpo": Subject("ORPO, likewise", None),
    "step_mse_vs_dpo": Subject("MSE on states up to 0.9 N, without log-probs, likewise", 1.0),
    "step_rank_vs_dpo": Subject("Rank on states up to 0.9 N, without log-probs, likewise", 1.0),
    "step_prefvec_vs_dpo": Subject("PrefVec with its coherence margin, likewise", None),
    "step_innerdpo_vs_dpo": Subject("InnerDPO with its DPO term, likewise", None),
    "sites_18_over_1": Subject(
        "InnerDPO on states without log-probs at 18 sites over the deepest of them alone", None
    ),
    "length_per_position": Subject(
        "a position of a DPO step on 8 pairs of long prompts over one on 32 short pairs", None
    ),
    "directions_vs_repeng_unrelated": Subject(
        "directions of 256 unrelated contrast pairs, float32, against repeng: "
        "the lesser of mean and PCA",
        1.6,
    ),
    "directions_honesty_vs_repeng": Subject(
        "PCA directions of an honesty set, every suffix cut after each of its tokens, float32, "
        "against repeng",
        15.0,
    ),
    "directions_honesty_vs_steering_vectors": Subject(
        "the same set, mean directions, against steering-vectors", 15.0
    ),
    "directions_chat_vs_repeng": Subject(
        "PCA directions of 256 pairs in one chat template, float32, against repeng", 3.0
    ),
    "directions_chat_vs_steering_vectors": Subject(
        "the same pairs, mean directions, against steering-vectors", 3.0
    ),
    "fisher_vs_dense": Subject(
        "a Fisher direction of 880 gradients of 2560 entries, against the dense matrix", 50.0
    ),
    "decoding_with_vector": Subject(
        "tokens a second with a vector after every block, over the bare model's", 0.98
    ),
    "decoding_with_rotation": Subject(
        "the same with a rotation of rank 64 on o_proj and down_proj of the middle half", 0.95
    ),
    "generate_vs_transformers_1": Subject(
        "`generate`, greedy, one row, against transformers' on the same tokens", 1.0
    ),
    "generate_vs_transformers_8": Subject("the same, eight rows of several lengths", 1.0),
    "rotation_step_vs_naive": Subject(
        "a training step of a rotation on 8 pairs, against three padded passes", None
    ),
    "packed_positions_over_tokens": Subject(
        "positions computed over real tokens, a DPO run on truthful_qa (counted)", 1.2, True
    ),
    "second_method_reference_forwards": Subject(
        "reference forwards of a second method on the same data (counted)", 0.0, True
    ),
    "anchor_60_seeds_over_20_s": Subject(
        "60 seeds of the colour experiment 2.9.1 on one thread, over 20 seconds", 1.0, True
    ),
    "anchor_mixing_over_90_s": Subject(
        "a run of the mixing transformer on two threads, over 90 seconds", 1.0, True
    ),
    "anchor_callback_over_step": Subject(
        "a training step of smollm2-135m with anchoring terms at three blocks over one without",
        1.05,
        True,
    ),
    "head_low_rank_of_base": Subject(
        "decoding with a low-rank alignment head, in tokens a second of the bare model", 0.98
    ),
    "head_merged_of_base": Subject("the same merged into the LM head", 0.98),
    "head_full_of_base": Subject("the same with a full head", None),
    "head_over_genarm": Subject(
        "decoding with a low-rank alignment head, against GenARM's two models", 1.9
    ),
    "iav_epoch_from_store": Subject(
        "an epoch of a low-rank alignment head from stored states, float32, against the packed "
        "backbone in the loop",
        5.0,
    ),
    "dph_epoch_from_store": Subject("the same for a preference head", 500.0),
    "store_and_2_epochs_over_live": Subject(
        "storing states and two epochs from them, over two epochs with the backbone in the loop",
        1.0,
        True,
    ),
    "store_bytes_over_2d": Subject("bytes of a stored token state over 2 d (counted)", 1.01, True),
    "candidates_packed": Subject(
        "rewards of 8 candidates in one packed pass, against one by one", None
    ),
}


def load(path: Path) -> dict[str, Any]:
    """A results file; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def record(path: Path, new: dict[str, Any]) -> None:
    """Put entries into a results file, beside those that are there."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    merged = load(path) | new
    order = list(SUBJECTS)
    keys = sorted(merged, key=lambda k: (order.index(k) if k in order else len(order), k))
    path.write_text(json.dumps({k: merged[k] for k in keys}, indent=1) + "\n")


def rows(ratios: dict[str, float], details: dict[str, Any]) -> list[list[str]]:
    """The table's cells, header first."""
    table = [
        ["name", "ratio", "target", "ours", "theirs", "floor", "of floor", "predicted", "what"]
    ]
    for name, subject in SUBJECTS.items():
        if name not in ratios:
            continue
        found = details.get(name, {})
        seconds = {k: median(found[k]) if found.get(k) else None for k in ("ours_s", "theirs_s")}
        unit = " s"
        if "ours_bytes" in found:
            seconds = {f"{k}_s": found[f"{k}_bytes"] / 2**30 for k in ("ours", "theirs")}
            unit = " GiB"
        value = ratios[name]
        aim = "reported"
        if subject.target is not None:
            met = value <= subject.target if subject.at_most else value >= subject.target
            sign = "≤" if subject.at_most else "≥"
            aim = f"{sign} {subject.target:g}{'' if met else ' (missed)'}"
        exact = subject.at_most
        table.append(
            [
                name,
                f"{value:.3g}" if exact else f"{value:.2f}×",
                aim,
                _cell(seconds["ours_s"], unit),
                _cell(seconds["theirs_s"], unit),
                _cell(found.get("floor_s"), " s"),
                f"{found['floor_share']:.0%}" if "floor_share" in found else "",
                f"{found['predicted_ratio']:.2f}×" if "predicted_ratio" in found else "",
                subject.what,
            ]
        )
    return table


def _cell(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g}{unit}"


def text(table: list[list[str]]) -> str:
    """For a terminal: columns aligned."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def markdown(table: list[list[str]]) -> str:
    """For the docs page."""
    head, *body = table
    lines = [head, ["---"] * len(head), *([f"`{row[0]}`", *row[1:]] for row in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(page: Path = PAGE) -> None:
    """Write the table of the committed results into the docs page, between its markers."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: expected the lines {BEGIN} and {END}")
    made = section(load(RATIOS), load(DETAILS))
    page.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


def section(ratios: dict[str, float], details: dict[str, Any]) -> str:
    """The table and what is beside it, as Markdown."""
    if not ratios:
        return "Not measured yet: `make bench`."
    parts = [markdown(rows(ratios, details))]
    said = notes(ratios, details)
    if machine := details.get("machine"):
        said.append("- " + "; ".join(f"{k} {v}" for k, v in machine.items()))
    return "\n\n".join([*parts, "\n".join(said)] if said else parts)


def notes(ratios: dict[str, float], details: dict[str, Any]) -> list[str]:
    """What is said beside the ratios, a line each."""
    said = [
        f"- `{name}`: {note}" for name in ratios for note in details.get(name, {}).get("notes", ())
    ]
    if single := [name for name in ratios if details.get(name, {}).get("cores") == 1]:
        said.append(f"- on one core: {', '.join(f'`{name}`' for name in single)}")
    return said
