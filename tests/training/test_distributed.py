"""Two processes on the CPU give what one gives. Whether there are two is asserted in each: the
obvious `accelerate launch --cpu --num_processes 2` starts one in silence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers_fit import files_of, job, parameters, relative
from helpers_worker import TRAIN

BIN = Path(sys.executable).parent
WORKER = str(Path(__file__).parents[1] / "helpers_worker.py")


def launch(*command: str) -> None:
    """Run a launcher; what it printed where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dial of one process."""
    folder = tmp_path_factory.mktemp("one")
    before = os.environ.get("TRIMTAB_CACHE")
    try:
        job(str(folder / "one"), str(folder / "cache"), dropout=0.0, train=TRAIN)
    finally:
        os.environ.pop("TRIMTAB_CACHE")
        if before is not None:
            os.environ["TRIMTAB_CACHE"] = before
    return folder / "one"


def same(two: Path, one: Path) -> None:
    """The same parameters, and the same curve: metrics are those of all processes' pairs."""
    assert relative(parameters(two), parameters(one)) < 1e-6
    curves: list[list[dict[str, Any]]] = [
        [json.loads(line) for line in (folder / "training.jsonl").open()] for folder in (two, one)
    ]
    assert len(curves[0]) == len(curves[1]) == 8
    for a, b in zip(*curves, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    assert not list(two.parent.glob(".*.training"))


def test_torchrun(one: Path, tmp_path: Path) -> None:
    """Equal to one process; stopped and started again, equal to itself to the byte."""
    launch(str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", WORKER, str(tmp_path))
    same(tmp_path / "two", one)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(str(BIN / "accelerate")), reason="no accelerate command")
def test_accelerate_launch(one: Path, tmp_path: Path) -> None:
    """The launcher that the README names, as it starts two processes on a CPU."""
    command = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    launch(str(BIN / command[0]), *command[1:], *options, WORKER, str(tmp_path), "short")
    same(tmp_path / "two", one)
