"""Whether a model is the one that a dial was made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trimtab import models
from trimtab.errors import DialError
from trimtab.progress import warn

if TYPE_CHECKING:
    from trimtab.dials.dial import Dial
    from trimtab.dials.saved import DialInfo

FORCE = "use --force to go on (force=True)"


def check(dial: Dial, source: models.Source, old_digest: Callable[[], str] | None = None) -> None:
    """Raise DialError where a model's weights or config are not those that a dial was made for. Of
    another tokenizer, template or quantisation, and of what is not known, a line is said once.

    Args:
        source: the model's identity.
        old_digest: gives the model's digest as earlier versions took it of a model in memory. Without
            it nothing is said against a dial that may have such a one, by the name of its base.
    """
    info = dial.info
    if not info.base_digest:
        _say(
            dial,
            f"the {info.method or dial.kind} dial does not say which model it was made for: nobody "
            f"checks that it is {source.name}",
        )
        return
    found = models.differences(info.base_digest, info.base, source)
    refused = found.refused
    if refused and not info.base:
        named = info.base_model in (source.name, "unnamed")
        if named if old_digest is None else old_digest() == info.base_digest:
            refused = []
    if refused:
        raise DialError(
            f"this dial was made for {info.base_model} ({info.base_digest[:12]}), not for "
            f"{source.name} ({source.digest[:12]}): another {', another '.join(refused)}; {FORCE}"
        )
    if found.warned:
        _say(
            dial,
            f"the {info.method or dial.kind} dial was made for {info.base_model} with another "
            f"{', another '.join(found.warned)} than {source.name} has here",
        )
    if found.missing:
        _say(
            dial,
            f"the {info.method or dial.kind} dial does not say with which "
            f"{', '.join(found.missing)} it was made: compared without",
        )


def same_base(a: DialInfo, b: DialInfo) -> bool:
    """Whether two dials may be for one model: of one weights and config, as far as they say."""
    if not a.base_digest or not b.base_digest:
        return True
    values = a.base.get("values")
    same = a.base_digest == b.base_digest or (values and values == b.base.get("values"))
    configs = [info.base["config"] for info in (a, b) if "config" in info.base]
    return bool(same) and (len(configs) < 2 or configs[0] == configs[1])


def _say(dial: Any, text: str) -> None:
    """Say a line once a dial."""
    said: set[str] = dial.__dict__.setdefault("_said", set())
    if text not in said:
        said.add(text)
        warn(text)
