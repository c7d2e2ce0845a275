"""What the tests of comparisons and of the command line share: a tiny model in a folder, a tiny
suite of JSONL files, the command line run in this process, and in children of a process that has
imported everything (so that a start costs a fraction of a second and a child can be killed)."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULT_FILES = (
    "results.jsonl",
    "verdicts.jsonl",
    "items.parquet",
    "curves.jsonl",
    "generations.jsonl",
)
"""Files of a run that are the same bytes whenever the same is run."""

SMALL = (
    *("--measuring.alpha", "-1", "0", "1", "--measuring.dose-items", "4"),
    *("--measuring.train-items", "4", "--measuring.passages", "1", "--measuring.prompts", "1"),
    *("--measuring.generate-alphas", "0", "1", "--measuring.max-new-tokens", "4"),
    "--controls",
)
"""Flags that measure a comparison on very little, without controls."""

ANSWERS = ("Paris", "Rome", "blue", "four", "three sides", "nothing", "everything", "one hundred")


def rows(n: int, name: str, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words, one an item."""
    rng = random.Random(f"{name} {seed}")
    made = []
    for i in range(n):
        chosen, rejected = rng.sample(ANSWERS, 2)
        prompt = f"The {name} of {i} is"
        made.append(
            {
                "prompt": prompt,
                "chosen": f" {chosen}.",
                "rejected": f" {rejected}.",
                "item": f"{name}{i}",
            }
        )
    return made


def write_lines(file: Path, lines: Sequence[Any]) -> Path:
    """Values as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def write_suite(folder: Path, **sizes: int) -> Path:
    """`suite.yaml` and its files: 10 training items, 8 and 6 to be judged on."""
    sizes = {"train": 10, "test": 8, "oos": 6, **sizes}
    for name, n in sizes.items():
        write_lines(folder / f"{name}.jsonl", rows(n, name))
    specs = "".join(f"  {name}: jsonl:{folder}/{name}.jsonl\n" for name in list(sizes)[1:])
    file = folder / "suite.yaml"
    file.write_text(f"description: tiny\ntrain: jsonl:{folder}/train.jsonl\nevaluate:\n{specs}")
    return file


@contextlib.contextmanager
def at_home(folder: Path, model: Any, tokenizer: Any) -> Iterator[Any]:
    """A model and a suite in a folder, which keeps the cache, too, as long as the context is open.
    Gives the patch of the environment."""
    import pytest  # not where this file is a process of its own

    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_suite(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield patch


class Said(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def trimtab(*words: object) -> Said:
    """Run a command in this process."""
    from trimtab.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def result_bytes(run: Path) -> dict[str, bytes]:
    """The files of a run that must not differ, the weights of its dials among them."""
    files = [run / name for name in RESULT_FILES] + sorted(run.glob("cells/*/dial/*.safetensors"))
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


class Commands:
    """Commands run in children of a process that has imported everything."""

    LONGEST = 90

    def __init__(self, cache: Path, prepare: str = ""):
        """`prepare`: a module whose `ready()` the process calls before the first command."""
        environment = {**os.environ, "TRIMTAB_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment,
        )
        assert self._line(120) == "ready"

    def run(
        self,
        *words: object,
        err: Path | None = None,
        signal_at: tuple[int, int, float] | None = None,
        count: Path | None = None,
        file_limit: int | None = None,
        under: Path | None = None,
        window: int | None = None,
    ) -> int:
        """Run a command; its exit code, or minus the signal that ended it.

        Args:
            err: file for what it says.
            signal_at: (signal, n, seconds): it sends itself a signal so long after its n-th write
                (a file opened for writing, renamed or removed) under its `--out`.
            count: file for the number of such writes.
            under: writes in this folder count, in place of those under `--out`.
            file_limit: no file may grow beyond so many bytes (a full disk, to those who write).
            window: it is killed in so many-th of its windows under that folder (`kill.windows`), 0 for none
                of them; `count` is then a list of them.
        """
        texts = [str(word) for word in words]
        job = {
            "words": texts,
            "err": str(err or os.devnull),
            "signal_at": signal_at,
            "count": str(count or ""),
            "file_limit": file_limit,
            "under": str(under or (texts[texts.index("--out") + 1] if "--out" in texts else "")),
            "window": window,
        }
        return self._ran([job])[0]

    def together(self, commands: Sequence[Sequence[object]], errs: Sequence[Path]) -> list[int]:
        """Run commands at once; what each says goes to a file of its own."""
        jobs = [
            {"words": list(map(str, words)), "err": str(err)}
            for words, err in zip(commands, errs, strict=True)
        ]
        return self._ran(jobs)

    def _ran(self, jobs: Sequence[dict[str, Any]]) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(jobs) + "\n")
        return json.loads(self._line(self.LONGEST + 10))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _line(self, seconds: float) -> str:
        stream: Any = self.process.stdout
        if not select.select([stream], [], [], seconds)[0]:
            self.process.kill()
            raise TimeoutError(f"no answer in {seconds} s")
        return stream.readline().strip()


def _child(job: dict[str, Any]) -> None:
    code = 3
    try:
        signal.alarm(Commands.LONGEST)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(job["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if job.get("file_limit") is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limits = (job["file_limit"], resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        under = job.get("under", "")
        if job.get("window") is None:
            writes = _count_writes(under, job.get("signal_at"))
        else:
            from kill.windows import watch

            writes = watch(under, job["window"])
        from trimtab.cli import main

        main(job["words"])
    except SystemExit as stop:
        code = int(stop.code or 0)
        if job.get("count"):
            listed = json.dumps(writes) if job["window"] is not None else str(len(writes))
            Path(job["count"]).write_text(listed)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _count_writes(under: str, signal_at: Sequence[float] | None) -> list[str]:
    """Watch what the interpreter writes under a folder, and send the signal at its time."""
    writes: list[str] = []

    def send() -> None:
        os.kill(os.getpid(), int(signal_at[0]))  # type: ignore[index]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            wanted = flags & (os.O_WRONLY | os.O_RDWR)
        else:
            wanted = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if not wanted or under not in str(args[0]):
            return
        writes.append(event)
        if signal_at and len(writes) == signal_at[1]:
            if signal_at[2]:
                threading.Timer(signal_at[2], send).start()
            else:
                send()

    if under:
        sys.addaudithook(hook)
    return writes


def _serve(prepare: str) -> None:
    # No autograd may run here: its threads do not survive a fork.
    import transformers.trainer  # noqa: F401

    import trimtab.report
    import trimtab.studies.compare.comparison
    import trimtab.study  # noqa: F401

    if prepare:
        importlib.import_module(prepare).ready()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        pids = []
        for job in json.loads(line):
            pids.append(os.fork())
            if pids[-1] == 0:
                _child(job)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:] or [""])
