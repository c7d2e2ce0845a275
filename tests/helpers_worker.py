"""What `torchrun` and `accelerate launch` start in `test_distributed.py`: two processes on the CPU.

helpers_worker.py FOLDER [short]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from transformers import TrainingArguments

import trimtab.training.trainer as trainer
from helpers_fit import job


def main(folder: Path, short: bool) -> None:
    assert os.environ["WORLD_SIZE"] == "2"
    rank = int(os.environ["RANK"])
    seen: list[int] = []
    real = trainer.DialTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        arguments: TrainingArguments = self.args
        assert arguments.world_size == 2
        assert torch.distributed.get_world_size() == 2
        assert type(model).__name__ == "DistributedDataParallel"
        seen.append(len(inputs["batch"].pair_ids))
        return real(self, model, inputs, *args, **kwargs)

    trainer.DialTrainer.compute_loss = watched  # type: ignore[method-assign]
    two = {"cache": str(folder / f"cache{int(short)}"), "dropout": 0.0}
    job(str(folder / "two"), **two, train=TRAIN)
    assert seen
    assert (folder / "two" / "dial.json").is_file()  # on every process, once fit has returned
    if short:
        return

    # Dropout: the random state of each process is saved and restored. Interrupted in one process
    # alone, both stop after the same step, and go on to the same bytes.
    job(str(folder / "whole"), cache=two["cache"], train=TRAIN)
    watch = trainer.Watch.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if rank == 1 and state.global_step == 3:
            self.interrupted = True
        watch(self, args, state, control, **kwargs)

    trainer.Watch.on_step_end = press  # type: ignore[method-assign]
    try:
        job(str(folder / "stopped"), cache=two["cache"], train=TRAIN)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("nobody stopped")
    trainer.Watch.on_step_end = watch  # type: ignore[method-assign]
    torch.distributed.barrier()
    work = folder / ".stopped.training"
    assert [p.name for p in trainer.checkpoints(work, 2)][-1] == "checkpoint-3"
    job(str(folder / "stopped"), cache=two["cache"], train=TRAIN)


TRAIN = {"epochs": 2.0, "microbatch_tokens": 60, "learning_rate": 1e-3}
"""Eight steps of several microbatches."""

if __name__ == "__main__":
    main(Path(sys.argv[1]), "short" in sys.argv)
