"""`python -m sweep [KIND ...] [--limit SECONDS] [--again] [--page]`: one forked process a kind."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from sweep import page

RESULTS = Path(__file__).parent / "results.jsonl"


def main() -> None:
    """Sweep what the result file does not have yet, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m sweep", description=__doc__)
    parser.add_argument(
        "kinds", nargs="*", help="model types (all); `qwen3_vl:image`, `llama +ntk`"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds a kind may take (300)")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--page", action="store_true", help="only write docs/compatibility.md")
    given = parser.parse_args()
    done = {} if given.again and not given.kinds else results()
    if not given.page:
        import torch
        from transformers.utils import logging

        import sweep.checks  # noqa: F401  the children have it all imported

        torch.set_num_threads(1)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        for name in given.kinds or every_kind():
            if name in done and not given.again:
                continue
            found = {**in_a_child(name, given.limit), "versions": versions()}
            done[name] = found
            write(done)
            print(f"{name}: {page.outcome(found)[0]} ({found.get('seconds', 0):.0f} s)", flush=True)
    page.write(list(done.values()))


def every_kind() -> list[str]:
    """All causal language models, variants of some, and image-text models that are no causal ones."""
    from transformers.models.auto import modeling_auto as auto

    from sweep.sizes import VARIANTS

    causal = list(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    images = [k for k in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if k not in causal]
    return [*causal, *VARIANTS, *(f"{kind}:image" for kind in images)]


def in_a_child(name: str, limit: float) -> dict[str, Any]:
    """What the checks find, in a process that may hang or die."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            _check(name, folder)
        os._exit(0)
    start = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - start > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.05)
    seconds = round(time.monotonic() - start, 1)
    try:
        found = json.loads((folder / "found.json").read_text().replace(f"{folder}/", ""))
    except (OSError, ValueError):
        found = {"kind": name, "checks": {}, "died": f"within {limit:.0f} s"}
    shutil.rmtree(folder, ignore_errors=True)
    return {**found, "kind": name, "seconds": seconds}


def _check(name: str, folder: Path) -> None:
    from sweep.checks import Kind

    os.environ["TRIMTAB_CACHE"] = str(folder / "cache")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    kind, _, image = name.partition(":")
    under_test = Kind(kind, bool(image), folder)
    try:
        under_test.run()
    finally:
        (folder / "found.json").write_text(json.dumps(under_test.found))


def versions() -> dict[str, str]:
    """What a result holds for."""
    return {name: version(name).partition("+")[0] for name in ("trimtab", "transformers", "torch")}


def results() -> dict[str, dict[str, Any]]:
    """Committed results by kind."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    found = [json.loads(line) for line in lines]
    return {result["kind"]: result for result in found}


def write(done: dict[str, dict[str, Any]]) -> None:
    """The result file, written aside and renamed."""
    aside = RESULTS.with_suffix(".writing")
    aside.write_text("".join(json.dumps(done[k], sort_keys=True) + "\n" for k in sorted(done)))
    os.replace(aside, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
