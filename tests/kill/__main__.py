"""`python -m kill [VERB ...] [KILLS]`: each verb, killed in its windows and run again.

A window is a step of a write in the folder of the run (out, what lies beside it, the cache): see
`kill.windows`. Windows of one step, file and function have one name, whichever verb comes by; each is killed
in where it is met first (of moves in the last of the verb, too), and in each verb so many (12) of those that
others had. A killed run that is started again has to end with the same files of the same bytes as one that
nobody stopped, and with nothing else; every tenth also when it is started once more. What two undisturbed
runs do not have in common (times) is compared by name alone. Then it meets a disk that is full at one size of
a file and another: it says so, and the next run ends as if nothing had been. `together` for a verb: two and
four processes at once. Finished verbs are kept in `runs/kill.json` and not done again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers_study import Commands
from kill.verbs import BEFORE, MADE, VERBS, prepare, words

DONE = Path(__file__).resolve().parents[2] / "runs" / "kill.json"
COLD = ("fit mean", "a model in GGUF", "cache")
"""Verbs that begin without what a cache knows of a model; the others have its digests and proofs already, so
that these writes are killed in thrice and not in every verb."""
FULL = (1500, 20_000)
"""Bytes beyond which no file can grow, as on a full disk: those of a dial's note, of a model."""
TRIALS = 50
"""Of several processes at once."""
AT_ONCE = ("fit mean", "fit dpo", "fit iav, from a store", "cache", "calibrate", "export gguf")
AT_ONCE = (*AT_ONCE, "export merged", "import", "tune", "evaluate", "a model in GGUF", "compare")
BUSY = re.compile(r"is being written by process \d+ on ")


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those of the cache, without the numbers that Optuna gives trials: it counts those that
    were killed."""
    return {
        str(f.relative_to(folder)): re.sub(rb'"optuna": \d+, ?', b"", f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "journal.log" and not _kept(f.relative_to(folder))
    }


def _kept(file: Path) -> bool:
    """Whether it is one of the cache, whose notes of what was read stay, and nothing half written."""
    return "cache" in file.parts and not re.search(r"writing|converting|making", str(file))


class Bench:
    """A folder with all that verbs need, and the process that they are children of."""

    def __init__(self, here: Path, ready: str = "kill.verbs"):
        self.here, self.work, self.err = here, here / "place", here / "err"
        self.warm = here / "warm"
        prepare(here, gguf=bool(ready))
        self.commands = Commands(self.work / "cache", ready)

    def fresh(self, verb: str) -> None:
        """The folder as it is before a verb, what it needs being made."""
        typed = words(verb, self.here)
        for name, maker in MADE.items():
            needs = BEFORE.get(verb) == name or any(
                w.endswith(f"{self.here / name}") for w in typed
            )
            if needs and not (self.here / name).is_dir():
                self.fresh(maker)
                assert self.run(maker) == 0, self.err.read_text()
                shutil.copytree(self.work / "out", self.here / name)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if verb in BEFORE:
            shutil.copytree(self.here / BEFORE[verb], self.work / "out")
        if self.warm.is_dir():
            shutil.copytree(self.warm, self.work / "cache")

    def run(self, verb: str, **how: Any) -> int:
        """Run a verb."""
        return self.commands.run(*words(verb, self.here), err=self.err, under=self.work, **how)

    def whole(self, verb: str) -> tuple[dict[str, bytes], set[str], list[str]]:
        """The files of an undisturbed run, which of them are the same in each, and its windows."""
        found, count = [], self.here / "count"
        shutil.rmtree(self.warm, ignore_errors=True)
        if verb not in COLD:
            self.fresh(verb)
            assert self.run(verb) == 0, self.err.read_text()
            for name in ("digests", "proofs"):
                if (made := self.work / "cache" / name).is_dir():
                    shutil.copytree(made, self.warm / name)
        for _ in range(2):
            self.fresh(verb)
            assert self.run(verb, count=count, window=0) == 0, self.err.read_text()
            found.append(files(self.work))
        one, two = found
        assert one.keys() == two.keys(), one.keys() ^ two.keys()
        return one, {n for n in one if one[n] == two[n]}, json.loads(count.read_text())

    def wrong(self, first: dict[str, bytes], same: set[str], verb: str) -> str:
        """What is not as in an undisturbed run, after the verb was run once more; empty where all is."""
        code = self.run(verb)
        found = files(self.work)
        differ = [n for n in sorted(same) if found.get(n) != first[n]]
        more = sorted(found.keys() - first.keys())
        said = self.err.read_text()[-300:] if code else ""
        return f"exit {code} {said} differ {differ} left {more}" if code or differ or more else ""


def kill(bench: Bench, verb: str, most: int, known: set[str]) -> dict[str, Any]:
    """Kill a verb in its windows, of those that are known at most so many, run it again, compare."""
    began = time.monotonic()
    first, same, windows = bench.whole(verb)
    places = chosen(windows, most, known)
    row: dict[str, Any] = {"windows": len(windows), "kinds": len(set(windows)), "killed": 0}
    row |= {"same": 0, "files": len(same), "bad": [], "names": sorted(set(windows) - known)}
    for at in places:
        bench.fresh(verb)
        row["killed"] += bench.run(verb, window=at) == -signal.SIGKILL
        wrong = bench.wrong(first, same, verb)
        again = "" if wrong or row["killed"] % 10 else bench.wrong(first, same, verb)
        row["same"] += not wrong and not again
        if wrong or again:
            row["bad"].append(f"{windows[at - 1]}: {wrong or f'once more: {again}'}")
    for limit in FULL:
        bench.fresh(verb)
        code = bench.run(verb, file_limit=limit)
        said = bench.err.read_text()
        told = code == 0 or (code == 2 and "Traceback" not in said)
        wrong = "" if told else f"exit {code} {said[-300:]}"
        row["full disk"] = row.get("full disk", 0) + (code == 2)
        if wrong := wrong or bench.wrong(first, same, verb):
            row["bad"].append(f"no file over {limit} bytes: {wrong}")
    return {**row, "seconds": round(time.monotonic() - began)}


def chosen(windows: list[str], most: int, known: set[str]) -> list[int]:
    """The first window of each kind that is not known, and the last of those in which something is moved to
    its place; of the known ones so many, spread over all."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(windows, 1):
        places.setdefault(name, []).append(at)
    found = {of_one[0] for name, of_one in places.items() if name not in known}
    found |= {of_one[-1] for n, of_one in places.items() if n not in known and "rename" in n}
    rest = sorted(of_one[0] for name, of_one in places.items() if name in known)
    if len(rest) > most:
        rest = [rest[round(i * (len(rest) - 1) / max(1, most - 1))] for i in range(most)]
    return sorted(found | set(rest))


def together(bench: Bench, trials: int) -> dict[str, Any]:
    """Two and four processes on one out, cache and store: each ends right, or says who has it; what the
    last of them leaves is what one alone does."""
    row: dict[str, Any] = {"trials": 0, "processes": 0, "right": 0, "told who": 0, "bad": []}
    known: dict[str, Any] = {}
    for trial in range(trials):
        verb = AT_ONCE[trial % len(AT_ONCE)]
        if verb not in known:
            known[verb] = bench.whole(verb)
        many = (2, 4)[trial // len(AT_ONCE) % 2]
        apart = trial % 3 == 2  # each its own out, all one cache
        bench.fresh(verb)
        errs = [bench.here / f"err{n}" for n in range(many)]
        typed = [words(verb, bench.here) for _ in range(many)]
        out = str(bench.work / "out")
        if apart and verb not in BEFORE:
            typed[1:] = [[f"{out}{n}" if w == out else w for w in typed[0]] for n in range(1, many)]
        codes = bench.commands.together(typed, errs)
        row["trials"] += 1
        row["processes"] += many
        for code, err in zip(codes, errs, strict=True):
            said = err.read_text()
            row["right"] += code == 0
            row["told who"] += code == 2 and BUSY.search(said) is not None
            if code != 0 and not (code == 2 and BUSY.search(said)):
                row["bad"].append(f"{verb}, {many} at once: exit {code} {said[-300:]}")
        if 0 not in codes:
            row["bad"].append(f"{verb}, {many} at once: none ended")
        first, same, _ = known[verb]
        for n in range(1, many):
            if (own := bench.work / f"out{n}").exists():
                one = {  # what tells its own place is said of the other
                    f"out/{f.relative_to(own)}": f.read_bytes().replace(
                        str(own).encode(), out.encode()
                    )
                    for f in own.rglob("*")
                    if f.is_file()
                }
                wrong = [
                    k for k in same if k.startswith("out/") and k in one and one[k] != first[k]
                ]
                row["bad"] += [f"{verb}, {many} at once: {wrong} differ"] if wrong else []
                shutil.rmtree(own)
        if wrong := bench.wrong(first, same, verb):
            row["bad"].append(f"{verb}, {many} at once, then once more: {wrong}")
    return row


def main(named: list[str], most: int) -> int:
    done: dict[str, Any] = json.loads(DONE.read_text()) if DONE.is_file() else {}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        os.environ["TRIMTAB_CACHE"] = str(Path(name) / "place" / "cache")
        bench = Bench(Path(name))
        for verb in [*VERBS, "together"]:
            if (named and verb not in named) or (not named and verb in done):
                continue
            killed = {name for row in done.values() for name in row.get("names", ())}
            many = verb == "together"
            row = together(bench, TRIALS) if many else kill(bench, verb, most, killed)
            bad += len(row["bad"])
            counts = ", ".join(f"{v} {k}" for k, v in row.items() if k not in ("bad", "names"))
            print(
                f"{verb}: {counts}", *(f"    {text}" for text in row["bad"]), sep="\n", flush=True
            )
            done[verb] = row
            DONE.parent.mkdir(exist_ok=True)
            DONE.write_text(json.dumps(done, indent=1))
        bench.commands.close()
    kills = sum(row.get("killed", 0) for row in done.values())
    names = {name for row in done.values() for name in row.get("names", ())}
    print(f"\n{kills} kills in {len(names)} kinds of windows, {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    numbers = [int(w) for w in sys.argv[1:] if w.isdigit()]
    raise SystemExit(main([w for w in sys.argv[1:] if not w.isdigit()], *(numbers or [12])))
