"""`python -m fuzz [INPUTS A READER] [SEED]`: the readers on many documents, with counts.

What ends in a traceback, takes more than ten seconds or 300 MiB, is told with its reader and first line;
the exit status is then 1.
"""

from __future__ import annotations

import collections
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.readers import READERS, outcome

SLOW, LARGE = 10.0, 300 * 1024  # seconds of processor time; KiB


def main(each: int, start: int) -> int:
    warnings.simplefilter("ignore")
    bad: collections.Counter[str] = collections.Counter()
    print("| reader | inputs | read | refused | tracebacks | slowest s | rise MiB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    total = 0
    for name, reader in READERS.items():
        counts: collections.Counter[str] = collections.Counter()
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
                content = data.draw(reader.contents)  # noqa: B023
                began = time.process_time()
                try:
                    counts[outcome(reader, folder, content)] += 1  # noqa: B023
                except Exception as error:  # what is looked for
                    counts["tracebacks"] += 1  # noqa: B023
                    frames = traceback.extract_tb(error.__traceback__)
                    ours = [f for f in frames if "/src/trimtab/" in f.filename]
                    at = ours[-1] if ours else frames[-1]
                    place = f"{Path(at.filename).name}:{at.lineno}"
                    bad[f"{name}: {type(error).__name__}: {str(error)[:90]!r} at {place}"] += 1  # noqa: B023
                slowest = max(slowest, time.process_time() - began)
                if sum(counts.values()) == 20:  # noqa: B023
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

            run()
        rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if slowest > SLOW:
            bad[f"{name}: {slowest:.0f} s for one input"] += 1
        if rise > LARGE:
            bad[f"{name}: {rise / 1024:.0f} MiB more"] += 1
        n = sum(counts.values())
        total += n
        shown = [name, n, *(counts[k] for k in ("read", "refused", "tracebacks"))]
        print(f"| {' | '.join(map(str, shown))} | {slowest:.2f} | {rise / 1024:.0f} |", flush=True)
    print(f"\n{total} inputs, {sum(bad.values())} bad")
    for text, n in bad.most_common():
        print(f"{n:5d} {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    random.seed(0)
    words = [int(w) for w in sys.argv[1:]] or [2100]
    raise SystemExit(main(words[0], words[1] if len(words) > 1 else 0))
