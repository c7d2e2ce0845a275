"""`python -m fuzz [READER ...] [INPUTS A READER] [SEED]`: the readers on many documents, with counts.

What ends in a traceback, takes more than ten seconds or 300 MiB, is told with its reader and first line;
the exit status is then 1. Finished readers are kept in `runs/fuzz.json` and not done again, unless named.
"""

from __future__ import annotations

import collections
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(folder) for folder in TESTS.iterdir() if folder.is_dir()]  # as pytest has it

from fuzz.readers import READERS, Reader, outcome  # noqa: E402

SLOW, LARGE = 10.0, 300 * 1024  # seconds of processor time; KiB
DONE = TESTS.parent / "runs" / "fuzz.json"
COLUMNS = ("inputs", "read", "refused", "tracebacks", "slowest s", "rise MiB")


def fuzz(name: str, reader: Reader, each: int, start: int) -> dict[str, Any]:
    """Counts of one reader, and what is bad."""
    counts: collections.Counter[str] = collections.Counter()
    bad: collections.Counter[str] = collections.Counter()
    slowest, before = 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "d"

        @seed(start)
        @settings(
            max_examples=each,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck.__members__.values()],
        )
        @given(st.data())
        def run(data: st.DataObject) -> None:
            nonlocal slowest, before
            content = data.draw(reader.contents)
            began = time.process_time()
            try:
                counts[outcome(reader, folder, content)] += 1
            except Exception as error:  # what is looked for
                counts["tracebacks"] += 1
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f for f in frames if "/src/trimtab/" in f.filename]
                at = ours[-1] if ours else frames[-1]
                place = f"{Path(at.filename).name}:{at.lineno}"
                bad[f"{name}: {type(error).__name__}: {str(error)[:90]!r} at {place}"] += 1
            slowest = max(slowest, time.process_time() - began)
            if sum(counts.values()) == 20:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        run()
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if slowest > SLOW:
        bad[f"{name}: {slowest:.0f} s for one input"] += 1
    if rise > LARGE:
        bad[f"{name}: {rise / 1024:.0f} MiB more"] += 1
    row = {"inputs": sum(counts.values()), **{k: counts[k] for k in COLUMNS[1:4]}}
    return {**row, "slowest s": round(slowest, 2), "rise MiB": rise // 1024, "bad": dict(bad)}


def main(named: list[str], each: int, start: int) -> int:
    warnings.simplefilter("ignore")
    done: dict[str, Any] = json.loads(DONE.read_text()) if DONE.is_file() and not named else {}
    print(f"| reader | {' | '.join(COLUMNS)} |\n|---|{'--:|' * len(COLUMNS)}")
    for name, reader in READERS.items():
        if (named and name not in named) or name in done:
            continue
        done[name] = row = fuzz(name, reader, each, start)
        print(f"| {name} | {' | '.join(str(row[k]) for k in COLUMNS)} |", flush=True)
        for text, n in row["bad"].items():
            print(f"{n:5d} {text}", flush=True)
        if not named:
            DONE.parent.mkdir(exist_ok=True)
            DONE.write_text(json.dumps(done, indent=1))
    bad = sum(sum(row["bad"].values()) for row in done.values())
    print(f"\n{sum(row['inputs'] for row in done.values())} inputs, {len(done)} readers, {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    random.seed(0)
    numbers = [int(w) for w in sys.argv[1:] if w.isdigit()]
    words = [w for w in sys.argv[1:] if not w.isdigit()]
    each, start = [*numbers, *(2000, 0)[len(numbers) :]][:2]
    raise SystemExit(main(words, each, start))
