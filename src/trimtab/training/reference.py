"""What training needs of the reference model (the dial at 0), read once and before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import models
from trimtab.batching import Encoded, Schedule
from trimtab.dials.trial import axes_at, is_one_state
from trimtab.errors import ConfigError
from trimtab.models.places import before
from trimtab.objectives.inner import Inner
from trimtab.progress import SILENT, Progress
from trimtab.readings import reference
from trimtab.readout import Needs
from trimtab.sites import Site, parse_sites
from trimtab.states import Readings
from trimtab.store import Store
from trimtab.training.spaces import Spaces

ALONG_BYTES = 1 << 28
"""States are read along with log-probs up to this size."""
FLOOR_QUANTILE = 0.1
"""Differences shorter than this share of the data set's are not divided by (InnerPO's floor)."""


@dataclass
class Reference:
    """The reference's readings of a whole data set.

    Attributes:
        readings: log-probs and pooled states, an entry an answer.
        floor: the 10th percentile of ||chosen - rejected|| at each site, in the run's space as it
            is at the start.
        deltas: the mean of chosen - rejected at each site: none for a direction of each pair, one
            for the whole data set, or one for every optimizer step.
    """

    readings: Readings = field(default_factory=Readings)
    floor: dict[Site, float] = field(default_factory=dict)
    deltas: list[dict[Site, Tensor]] = field(default_factory=list)

    def delta(self, step: int) -> dict[Site, Tensor]:
        """The mean difference that holds at a step; empty for a direction of each pair."""
        return self.deltas[min(step, len(self.deltas) - 1)] if self.deltas else {}


def is_tokenwise(needs: Needs, spaces: Spaces | None) -> bool:
    """Whether a space has to be applied to each token, before a map that is not linear. What the
    reference is there changes as the space is trained: it is read live."""
    return spaces is not None and needs.token_map != "none"


def read_reference(
    model: nn.Module,
    encoded: Encoded,
    needs: Needs,
    store: Store | None,
    progress: Progress = SILENT,
    *,
    spaces: Spaces | None = None,
    schedule: Schedule | None = None,
    block: int = -1,
) -> Reference:
    """What an objective needs of the reference, from the store where it has been read before.

    Always read in batches of the same size: the microbatches of a run, which memory decides, must
    not reach its result through what it leaves in the store.

    Args:
        spaces: those of the run.
        schedule: the run's, for a direction of each step.
        block: after which the run starts from stored states (`readings.reference`).

    Raises:
        ConfigError: a direction of more than a pair in a space that acts on single tokens.
    """
    live = is_tokenwise(needs, spaces)
    if live and needs.direction != "pair":
        raise ConfigError(
            f"objective.direction={needs.direction} with a space and a map of single tokens "
            "(variant=published): expected direction pair, or space none"
        )
    sites = needs.sites if needs.reference_states and not live else ()
    if not (needs.reference_logps or sites):
        return Reference()
    extra = () if sites or not needs.reference_logps else _along(model, encoded)
    extra = tuple(site for site in extra if before(model, [site]) >= block)
    with progress.bar("reading the reference", encoded.n_answers, "answers") as update:
        asked = replace(
            needs, logps=needs.reference_logps, sites=(*sites, *extra), confidence=False
        )
        how: Any = {"store": store, "progress": update, "block": block}
        found = reference(model, encoded, **how, **asked.asked())
    found.states = {site: found.states[site] for site in sites}
    chosen, rejected = encoded.pair_answers()
    differences = {site: h[chosen] - h[rejected] for site, h in found.states.items()}
    return Reference(
        found, floors(differences, spaces), _deltas(differences, encoded, needs, schedule)
    )


@torch.no_grad()
def floors(differences: dict[Site, Tensor], spaces: Spaces | None = None) -> dict[Site, float]:
    """The length at each site by less than which none is divided, of differences `[pair, d]`."""
    if spaces is not None:
        device = next(spaces.buffers(), next(spaces.parameters(), torch.empty(0))).device
        differences = spaces({site: d.to(device) for site, d in differences.items()})
    return {
        site: torch.quantile(d.norm(dim=-1), FLOOR_QUANTILE).item()
        for site, d in differences.items()
    }


def _deltas(
    differences: dict[Site, Tensor], encoded: Encoded, needs: Needs, schedule: Schedule | None
) -> list[dict[Site, Tensor]]:
    """Mean differences over the data set, or over the pairs of each step."""
    if needs.direction == "pair" or not differences:
        return []
    if needs.direction == "data":
        return [{site: d.mean(0) for site, d in differences.items()}]
    if schedule is None:
        raise ValueError("a direction of each step needs the schedule of the run")
    ends = torch.tensor([0, *(len(row.pairs) for row in encoded.rows)]).cumsum(0).tolist()
    found = []
    for step in range(schedule.steps):
        rows = schedule.rows_of(step)
        pairs = torch.tensor([p for row in rows for p in range(ends[row], ends[row + 1])])
        found.append({site: d[pairs].mean(0) for site, d in differences.items()})
    return found


def _along(model: nn.Module, encoded: Encoded) -> tuple[Site, ...]:
    """Sites read along with log-probs, which run every block anyway: where other methods read by
    default, so that the next one on this data finds them in the store. None where they are large, or
    where a token has more states than one."""
    sites = parse_sites(Inner.sites, models.n_layers(model))
    if not all(is_one_state(axes_at(model, site)) for site in sites):
        return ()
    size = 4 * len(sites) * encoded.n_answers * models.text_config(model).hidden_size
    return sites if size <= ALONG_BYTES else ()
