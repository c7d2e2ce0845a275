"""The first minute: what help, imports and a load take against torch and transformers alone.

Ratios of processor time; processes take turns, the best of each side counts, a busy machine gets more turns.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

HEAVY = {"transformers", "pandas", "datasets", "peft", "accelerate", "scipy.optimize", "trl", "ray"}
TELLS = "import sys, resource, json; r = resource.getrusage(resource.RUSAGE_SELF)\n"
TELLS += "print(json.dumps([r.ru_utime + r.ru_stime, sorted(sys.modules)]))"


def run(code: str) -> tuple[float, set[str]]:
    """Seconds of processor time that a process with this code takes, and the modules that it ends with."""
    words = [sys.executable, "-c", f"{code}\n{TELLS}"]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ), timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(modules)


def within(bound: float, ours: Callable[[], float], theirs: Callable[[], float], turns: int = 4):
    """Fail unless the least of ours is at most `bound` times the least of theirs."""
    ratio = least = most = float("inf")
    for _ in range(turns):
        least, most = min(least, ours()), min(most, theirs())
        if (ratio := least / most) <= bound:
            return
    raise AssertionError(f"{least:.2f} s against {most:.2f} s: {ratio:.2f} times, of {bound}")


def test_help_is_there_long_before_torch():
    calls = [["fit", "--help"], ["methods"], ["compare", "--help"]]
    code = "from trimtab.cli import main\ntry: main({})\nexcept SystemExit as stop: assert not stop.code"
    within(
        0.4,
        lambda: max(run(code.format(words))[0] for words in calls),
        lambda: run("import torch")[0],
    )


def test_rooms_bring_torch_alone():
    """Whoever makes a dial in closed form, scores or generates waits for no Trainer, whoever mistypes a
    flag for no transformers."""
    _, modules = run("import trimtab.training, trimtab.evaluation, trimtab.export, trimtab.damage")
    assert "torch" in modules
    assert not modules & HEAVY


def test_a_load_is_that_of_transformers(saved_model):
    folder = str(saved_model())
    plain = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
    plain += f"M.from_pretrained({folder!r}); T.from_pretrained({folder!r})"
    found: dict[str, set[str]] = {}

    def side(code: str) -> Callable[[], float]:
        def timed() -> float:
            seconds, found[code] = run(code)
            return seconds

        return timed

    ours = f"import trimtab; trimtab.load({folder!r})"
    within(1.1, side(ours), side(plain))
    more = {m.partition(".")[0] for m in found[ours] - found[plain]} - {"trimtab"}
    assert not more & {m.partition(".")[0] for m in HEAVY}, more
