"""`python -m kill [NAME ...] [KILLS A VERB]`: each verb, killed before each of its writes and run again.

A write is a file opened for writing, renamed or removed, a folder made or removed, in the folder of the run:
out, what lies beside it, the cache. A killed run that is started again has to end with the same files of the
same bytes as one that nobody stopped, and with nothing else. What two undisturbed runs do not have in common
(times) is compared by name alone. Finished verbs are kept in `runs/kill.json` and not done again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers_study import Commands, rows, write_lines, write_suite

SMALL = ("--device", "cpu", "--dtype", "float32", "--quiet")
DONE = Path(__file__).resolve().parents[2] / "runs" / "kill.json"


def verbs(here: Path) -> dict[str, list[object]]:
    """What is run, by name; OUT is where."""
    model = ("--model", here / "model")
    fit = (*model, "--pairs", f"jsonl:{here}/train.jsonl", "--out", "OUT", *SMALL)
    export = (*model, "--dial", here / "dial", "--out", "OUT", "--device", "cpu")
    return {
        "fit-mean": ["fit", "mean", *fit],
        "fit-dpo": ["fit", "dpo", *fit, "--train.pairs-per-step", "2"],
        "fit-iav": ["fit", "iav", *fit],
        "fit-over": ["fit", "mean", *fit, "--overwrite", "--sites", "1"],
        "calibrate": [
            "calibrate",
            *model,
            "--dial",
            "OUT",
            "--budget",
            "kl=0.1",
            "--passages",
            "2",
            "--device",
            "cpu",
        ],
        "evaluate": [
            "evaluate",
            *model,
            "--dial",
            here / "dial",
            "--pairs",
            f"t=jsonl:{here}/test.jsonl",
            "--out",
            "OUT",
            *SMALL,
        ],
        "export-gguf": ["export", *export, "--to", "gguf"],
        "export-merged": ["export", *export, "--to", "merged"],
        "import": ["import", here / "v.npy", *model, "--out", "OUT", "--device", "cpu"],
        "tune": [
            "tune",
            "mean",
            *model,
            "--suite",
            here / "suite.yaml",
            "--trials",
            "2",
            "--parameters",
            "sites=0.3,0.6",
            "--out",
            "OUT",
            *SMALL,
        ],
    }


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those of the cache, without the numbers that Optuna gives trials: it counts those that
    were killed."""
    return {
        str(f.relative_to(folder)): re.sub(rb'"optuna": \d+, ?', b"", f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file() and "cache" not in f.relative_to(folder).parts
    }


def main(chosen: list[str], most: int) -> int:
    done: dict[str, Any] = json.loads(DONE.read_text()) if DONE.is_file() else {}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        prepare(here)
        os.environ["TRIMTAB_CACHE"] = str(here / "work" / "cache")
        commands = Commands(here / "work" / "cache")
        print("| verb | writes | killed | same bytes | left behind |\n|---|--:|--:|--:|--:|")
        for verb, words in verbs(here).items():
            if (chosen and verb not in chosen) or (not chosen and verb in done):
                continue
            row = kill(verb, words, here, commands, most)
            bad += len(row["bad"])
            print(
                f"| {verb} | {row['writes']} | {row['killed']} | {row['same']} | {row['left']} |",
                *(f"\n    {text}" for text in row["bad"]),
                flush=True,
            )
            done[verb] = row
            DONE.parent.mkdir(exist_ok=True)
            DONE.write_text(json.dumps(done, indent=1))
        commands.close()
    print(f"\n{sum(row['killed'] for row in done.values())} kills, {bad} bad")
    return int(bad > 0)


def prepare(here: Path) -> None:
    """A tiny model, pairs, a suite, a dial, directions."""
    import numpy as np

    from conftest import _tokenizer, build

    build("llama").save_pretrained(here / "model")
    _tokenizer().save_pretrained(here / "model")
    for name in ("train", "test"):
        write_lines(here / f"{name}.jsonl", rows(6, name))
    write_suite(here)
    np.save(here / "v.npy", np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32))


def kill(
    verb: str, words: list[object], here: Path, commands: Commands, most: int
) -> dict[str, Any]:
    """Count the writes of a verb, kill it before each of them (at most so many), compare."""
    work, err, count = here / "work", here / "err", here / "count"
    texts = [str(work / "out") if w == "OUT" else w for w in words]

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if not (here / "dial").is_dir():
            first = verbs(here)["fit-mean"]
            made = [str(here / "dial") if w == "OUT" else w for w in first]
            assert commands.run(*made, err=err) == 0, err.read_text()
        if verb in ("calibrate", "fit-over"):
            shutil.copytree(here / "dial", work / "out")

    def run(**how: Any) -> int:
        return commands.run(*texts, err=err, under=work, **how)

    whole = []
    for _ in range(2):
        fresh()
        assert run(count=count) == 0, err.read_text()
        whole.append(files(work))
    first, second = whole
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    same = {name for name in first if first[name] == second[name]}
    writes = int(count.read_text())
    places = range(1, writes + 1)
    if writes > most:
        places = sorted({1 + round(i * (writes - 1) / (most - 1)) for i in range(most)})
    row: dict[str, Any] = {"writes": writes, "killed": 0, "same": 0, "left": 0, "bad": []}
    for at in places:
        fresh()
        code = run(signal_at=(signal.SIGKILL, at, 0.0))
        row["killed"] += code == -signal.SIGKILL
        code = run()
        found = files(work)
        differ = [n for n in sorted(same) if found.get(n) != first[n]]
        more = sorted(found.keys() - first.keys())
        row["same"] += not differ and code == 0
        row["left"] += bool(more)
        if differ or more or code:
            said = err.read_text()[-200:] if code else ""
            row["bad"].append(f"write {at}: exit {code} {said} differ {differ} left {more}")
    return row


if __name__ == "__main__":
    numbers = [int(w) for w in sys.argv[1:] if w.isdigit()]
    raise SystemExit(main([w for w in sys.argv[1:] if not w.isdigit()], *(numbers or [1000])))
