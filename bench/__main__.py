"""`python -m bench [NAME ...] [--repeats N] [--quick] [--tune] [--render]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench import results
from bench.lane import usable_cores


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for, write the results, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure against peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="lines of the table (all)")
    parser.add_argument("--repeats", type=int, default=3, help="timed units of each side (3)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny, to see that all runs; timings are not written"
    )
    parser.add_argument(
        "--tune", action="store_true", help="find the peers' best settings anew (else as recorded)"
    )
    parser.add_argument(
        "--render", action="store_true", help="only rewrite the table in docs/performance.md"
    )
    given = parser.parse_args(arguments)
    if given.render:
        results.render()
        return
    wanted = given.names or list(results.SUBJECTS)
    if unknown := set(wanted) - set(results.SUBJECTS):
        parser.error(
            f"unknown: {', '.join(sorted(unknown))} (known: {', '.join(results.SUBJECTS)})"
        )
    ratios: dict[str, float] = {}
    details: dict[str, Any] = {}
    cores = len(usable_cores())
    for name in wanted:
        if name in ratios:
            continue
        start = time.monotonic()
        found = measure(name, given.repeats, given.quick, given.tune)
        ratios |= {k: ratio for k, (ratio, _) in found.items()}
        details |= {k: beside | {"cores": cores} for k, (_, beside) in found.items()}
        said = ", ".join(f"{k} {v:.3g}" for k, (v, _) in found.items())
        print(f"{said}  ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
        if not given.quick:
            results.record(results.RATIOS, ratios)
            results.record(results.DETAILS, details | {"machine": machine()})
    if given.quick:
        print("A quick run on a few pairs: it shows that everything runs, no more.\n")
    print(results.text(results.rows(ratios, details)))
    print("\n" + "\n".join(results.notes(ratios, details)))
    if not given.quick:
        results.render()
        print(f"\nWritten: {results.RATIOS}, {results.DETAILS}, {results.PAGE}")


def measure(name: str, repeats: int, quick: bool, tune: bool) -> results.Found:
    """The ratios that a name stands for, and those that come with it."""
    from bench import (
        anchoring,
        directions,
        dpo,
        heads,
        objectives,
        positions,
        states_only,
        steering,
        trunk,
    )

    subjects: dict[str, Callable[[], results.Found]] = {
        "memory_vs_trl": lambda: dpo.run("dpo_vs_trl_truthful_qa", repeats, quick, tune),
        "states_only_vs_dpo": lambda: states_only.run(repeats, quick),
        **{n: partial(trunk.run_upper, n, repeats, quick) for n in trunk.UPPER},
        "five_alphas_vs_today": lambda: trunk.run_alphas(repeats, quick),
        "five_alphas_cold_vs_today": lambda: trunk.run_alphas(repeats, quick),
        **{n: partial(objectives.run, n, repeats, quick) for n in objectives.STEPS},
        "sites_18_over_1": lambda: objectives.sites(repeats, quick),
        "length_per_position": lambda: objectives.lengths(repeats, quick),
        "directions_vs_repeng_unrelated": lambda: directions.run(repeats, quick, tune),
        "fisher_vs_dense": lambda: steering.run_fisher(repeats, quick),
        "decoding_with_vector": lambda: steering.run_decoding(repeats, quick),
        "decoding_with_rotation": lambda: steering.run_decoding(repeats, quick),
        "generate_vs_transformers_1": lambda: steering.run_generating(repeats, quick),
        "generate_vs_transformers_8": lambda: steering.run_generating(repeats, quick),
        "rotation_step_vs_naive": lambda: steering.run_rotation(repeats, quick),
        "packed_positions_over_tokens": positions.run_positions,
        "second_method_reference_forwards": positions.run_forwards,
        "anchor_60_seeds_over_20_s": lambda: anchoring.run_seeds(quick),
        "anchor_mixing_over_90_s": lambda: anchoring.run_mixing(quick),
        "anchor_callback_over_step": lambda: anchoring.run_callback(repeats, quick),
        "head_low_rank_of_base": lambda: heads.run_decoding(repeats, quick),
        "head_merged_of_base": lambda: heads.run_decoding(repeats, quick),
        "head_full_of_base": lambda: heads.run_decoding(repeats, quick),
        "head_over_genarm": lambda: heads.run_decoding(repeats, quick),
        "iav_epoch_from_store": lambda: heads.run_epochs(repeats, quick),
        "dph_epoch_from_store": lambda: heads.run_epochs(repeats, quick),
        "store_and_2_epochs_over_live": lambda: heads.run_epochs(repeats, quick),
        "store_bytes_over_2d": lambda: heads.run_epochs(repeats, quick),
        "candidates_packed": lambda: heads.run_candidates(repeats, quick),
    }
    found = re.fullmatch(r"directions_(honesty|chat)_vs_(\w+)", name)
    if found:
        return steering.run_directions(found[1], found[2], repeats, quick, tune)
    if name in dpo.CASES:
        return dpo.run(name, repeats, quick, tune)
    return subjects[name]()


def machine() -> dict[str, str]:
    """What the results were taken on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        chip = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        chip = platform.processor() or platform.machine()
    packages = ("torch", "transformers", "peft", "trl")
    return {"processor": chip, "cores": str(os.cpu_count())} | {
        p: importlib.metadata.version(p) for p in packages
    }


if __name__ == "__main__":
    main()
