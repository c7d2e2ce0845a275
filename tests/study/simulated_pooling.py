"""How often the 95 % interval of a difference pooled over suites covers the truth, for the table of
docs/comparing.md.

    python tests/study/simulated_pooling.py

Suites have normal differences around the truth, with a standard deviation of their own, and standard errors
of 1.5 to 4 points, drawn anew; what is known of a standard error is an estimate with 100 degrees of freedom.
"""

from __future__ import annotations

import numpy as np

from trimtab.statistics import pooled

SUITES, BETWEEN, DRAWS = (2, 3, 4, 5), (0.0, 0.02, 0.05), 20_000
ERRORS, FREEDOM = (0.015, 0.04), 100


def coverage(suites: int, between: float, draws: int = DRAWS) -> tuple[float, float]:
    """Share of intervals that hold the truth, and half of their median width."""
    rng = np.random.default_rng([suites, int(1000 * between)])
    se = rng.uniform(*ERRORS, (draws, suites))
    found = pooled(
        rng.normal(0, between, (draws, suites)) + rng.normal(0, se),
        se * np.sqrt(rng.chisquare(FREEDOM, (draws, suites)) / FREEDOM),
    )
    inside = (found.low <= 0) & (found.high >= 0)
    return float(inside.mean()), float(np.median(found.high - found.low) / 2)


def rows(draws: int = DRAWS) -> list[list[str]]:
    """The table: a row a number of suites, columns by the spread between them; percent, and points."""
    found = []
    for k in SUITES:
        told = [coverage(k, between, draws) for between in BETWEEN]
        found.append([str(k), *(f"{100 * c:.1f} (± {100 * half:.0f})" for c, half in told)])
    return found


if __name__ == "__main__":
    for row in rows():
        print(f"| {' | '.join(row)} |")
