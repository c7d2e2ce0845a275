"""A process that has imported everything and forks one child a job, so that a start costs a
fraction of a second.

Reads a JSON object a line: `{"log": FILE, **arguments of helpers_fit.job}`. Answers with the
child's process id (`pid N`), and with its exit status (`code N`) once it has ended. The child writes
`{"error", "text"}` to the log where the job raised. It ends by SIGALRM after a minute at the latest,
so nothing hangs.

No autograd may run here: its threads do not survive a fork.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

CHILD_SECONDS = 60


class Zygote:
    """The side of the tests."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._line(120) == "ready"

    def start(self, **job: Any) -> int:
        """Fork a child that runs a job; its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        return self._number("pid", CHILD_SECONDS + 10)

    def wait(self) -> int:
        """The child's exit code; minus the signal that ended it."""
        return self._number("code", CHILD_SECONDS + 10)

    def run(self, **job: Any) -> int:
        """Start and wait."""
        self.start(**job)
        return self.wait()

    def _number(self, kind: str, seconds: float) -> int:
        while True:  # the end of a child that nobody waited for is passed over
            found, _, number = self._line(seconds).partition(" ")
            if found == kind:
                return int(number)
            assert found in ("pid", "code"), f"the zygote said {found!r}"

    def _line(self, seconds: float) -> str:
        stream: Any = self.process.stdout
        if not select.select([stream], [], [], seconds)[0]:
            self.process.kill()
            raise TimeoutError(f"no answer from the zygote in {seconds} s")
        return stream.readline().strip()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def _child(log: str, job: dict[str, Any]) -> None:
    code = 3
    try:
        signal.alarm(CHILD_SECONDS)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from helpers_fit import job as run

        try:
            run(**job)
            code = 0
        except BaseException as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            Path(log).write_text(
                json.dumps(
                    {
                        "error": type(error).__name__,
                        "text": str(error),
                        "trace": traceback.format_exc(),
                    }
                )
            )
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        os._exit(code)


def _serve() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import transformers.trainer  # noqa: F401

    import helpers_fit

    helpers_fit._tokenizer()
    gc.collect()
    gc.freeze()  # the Trainer collects garbage in every run, and would look at all of this
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(job.pop("log"), job)
        print("pid", pid, flush=True)
        print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
