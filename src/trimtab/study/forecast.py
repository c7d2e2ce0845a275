"""What a study would take, without running it: `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.batching import Contrast, Encoded
from trimtab.readout import Needs
from trimtab.training import Method
from trimtab.training.estimate import matmul_rate
from trimtab.training.forecast import forecast, passes

if TYPE_CHECKING:
    from trimtab.study.study import Study


@dataclass(frozen=True)
class Load:
    """What a cell takes on this machine."""

    steps: int = 0
    """Optimizer steps."""
    seconds: float = 0.0
    memory: float = 0.0
    """Bytes at the peak, the model among them."""
    disk: float = 0.0
    """Bytes at most, while it runs."""


def load_of(
    model: Any,
    fits: Iterable[tuple[Method, Encoded | Contrast]] = (),
    reads: Iterable[tuple[Encoded, float]] = (),
    tokens: int = 0,
) -> Load:
    """What a cell takes that fits and reads.

    Args:
        fits: methods, and the pairs that each is fitted to.
        reads: pairs whose log-probs are read, and how often.
        tokens: that are generated one after the other.
    """
    steps, seconds, memory, disk = 0, 0.0, 0.0, 0.0
    for method, encoded in fits:
        found = forecast(method, model, encoded)
        steps, seconds = steps + found.steps, seconds + found.expected.seconds
        memory, disk = max(memory, found.expected.bytes), disk + found.disk
    for encoded, times in reads:
        once = passes(model, encoded, Needs(logps=True), backward=False)
        seconds, memory = seconds + times * once.seconds, max(memory, once.bytes)
    if tokens:
        weights, like = sum(p.numel() for p in model.parameters()), next(model.parameters())
        seconds += tokens * 2 * weights / matmul_rate(like.device, like.dtype, 2048, 1)
    return Load(steps, seconds, memory, disk)


def forecast_of(study: Study[Any], jobs: int = 1) -> str:
    """What the cells of a study that are not done would take, in words."""
    cells = list({c.result: c for wave in study.plan() for c in wave}.values())
    todo = [cell for cell in cells if not cell.done]
    loads: Sequence[Load] = [study.load(cell) for cell in todo]
    jobs = min(jobs, len(todo)) or 1
    seconds = sum(x.seconds for x in loads) / jobs
    memory = sum(sorted((x.memory for x in loads), reverse=True)[:jobs])
    several = f" with {jobs} at once" if jobs > 1 else ""
    return (
        f"{study.name}: {len(cells)} cells, {len(cells) - len(todo)} of them done already; "
        f"{sum(x.steps for x in loads):,} training steps\n"
        f"  minutes  about {seconds / 60:.2g}{several} (operations counted, at a rate measured just now)\n"
        f"  memory   about {memory / 2**30:.2g} GiB at the peak, models among them\n"
        f"  disk     at most {sum(x.disk for x in loads) / 2**20:.3g} MiB while it runs"
    )
