"""Training a dial on `transformers.Trainer`: planned batches, atomic checkpoints, exact resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trimtab.batching import Encoded, Layout, Schedule, blocks, collate
from trimtab.errors import ConfigError, TrainingError
from trimtab.progress import SILENT, Progress, Update, figures
from trimtab.training.fit_module import FitModule, recomputing
from trimtab.training.plan import HISTORY, Run
from trimtab.training.projection import Projection
from trimtab.training.spaces import Spaces

WEIGHTS = "dial.safetensors"
SPACE = "space:"
"""Before the names of a space's weights in a checkpoint."""
STATE = "trainer_state.json"
OPTIMIZER, SCHEDULE = "optimizer.pt", "scheduler.pt"


class DialTrainer(Trainer):
    """A Trainer whose batches are decided beforehand and whose checkpoints are all or nothing.

    The loss returned by `compute_loss` is scaled so that the gradient of a step is that of the sum
    over its pairs divided by `pairs_per_step`, whatever the microbatches and processes.
    """

    def __init__(
        self,
        module: FitModule,
        args: TrainingArguments,
        schedule: Schedule,
        encoded: Encoded,
        layout: Layout,
    ):
        self.schedule, self.encoded = schedule, encoded
        self.layout: Layout = layout
        self.lines = blocks.lines(module.model)
        self.values: dict[str, list[Tensor]] = {}
        self.writing: Path | None = None
        super().__init__(
            model=module,
            args=args,
            train_dataset=list(range(len(schedule.microbatches))),  # type: ignore[arg-type]
            data_collator=self.batch,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "fit runs in one process or under DDP; FSDP and DeepSpeed shard what it reads"
            )
        # True for causal LMs, and then a custom loss under accumulation is not divided: off.
        self.model_accepts_loss_kwargs = False

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """The planned microbatch of an index, and the step that it belongs to."""
        (index,) = indices
        rows = self.schedule.microbatches[index]
        return {
            "batch": collate(self.encoded, rows, self.layout, **self.lines),
            "step": index // self.schedule.per_step,
        }

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """Scaled loss of a microbatch. Raises TrainingError where it is not finite."""
        batch = inputs["batch"].to(self.args.device)
        loss, metrics = model(batch, inputs["step"])
        if not torch.isfinite(loss).all():
            first = int((~torch.isfinite(loss)).nonzero()[0, 0])
            item = batch.items[int(batch.pair_chosen[first])]
            self._refuse(f"the loss is {loss[first].item()}", f"item {item}")
        for name, values in {"loss": loss, **metrics}.items():
            self.values.setdefault(name, []).append(values.detach().float())
        # DDP averages over processes, the Trainer divides by accumulation steps: undo both.
        undo = self.args.world_size * self.current_gradient_accumulation_steps
        return loss.sum() * (undo / self.schedule.pairs_per_step)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Forward and backward of a microbatch. Raises TrainingError where a gradient is not
        finite: a step with it would spoil the weights, and a checkpoint keep them."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]  # type: ignore[union-attr]
        if gradients and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            items = dict.fromkeys(inputs["batch"].items)
            self._refuse("a gradient is not finite", f"items {', '.join(items)}")
        return loss

    def _refuse(self, what: str, where: str) -> None:
        raise TrainingError(
            f"{what} at step {self.state.global_step + 1}, {where}; stopped before the step was "
            "made, the last checkpoint is kept. Try a lower --train.learning_rate"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss and the objective's metrics, averaged over the pairs of all processes since
        the last log."""
        if "loss" in logs:
            parts = {name: torch.cat(values) for name, values in self.values.items()}
            sums: Any = self.accelerator.reduce(
                {k: torch.stack([v.sum(), v.new_tensor(len(v))]) for k, v in parts.items()}, "sum"
            )
            logs |= {name: (total / count).item() for name, (total, count) in sums.items()}
            self.values.clear()
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's own, with the parameters of spaces in a group of theirs, and those of a dial that
        have a rate of their own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        spaces: Spaces | None = self.model.spaces  # type: ignore[union-attr,assignment]
        usual = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
        groups = [
            {**usual, "params": [p], "lr": factor * usual["lr"]}
            for p, factor in self.model.dial.rates()  # type: ignore[union-attr,operator]
        ]
        if spaces is not None and (mine := list(spaces.parameters())):
            rate = spaces.settings.learning_rate or usual["lr"]
            groups.append({"params": mine, "lr": rate, "weight_decay": 0.0})
        own = {id(p) for group in groups for p in group["params"]}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    # ---- checkpoints ----

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = _weights(self.model.dial)  # type: ignore[union-attr,arg-type]
        if self.model.spaces is not None:  # type: ignore[union-attr]
            weights |= {SPACE + k: v for k, v in _weights(self.model.spaces).items()}  # type: ignore[union-attr,arg-type]
        save_file(weights, folder / WEIGHTS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        spaces = {k.removeprefix(SPACE): weights.pop(k) for k in [*weights] if k.startswith(SPACE)}
        self.model.dial.load_state_dict(weights)  # type: ignore[union-attr,operator]
        if spaces:
            self.model.spaces.load_state_dict(spaces)  # type: ignore[union-attr,operator]

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self.writing or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write aside, then rename: a folder named checkpoint-N is complete."""
        run = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        self.writing = run / ".writing"
        if self.args.should_save:
            shutil.rmtree(self.writing, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                shutil.rmtree(run / name, ignore_errors=True)
                os.replace(self.writing / name, run / name)
                for old in checkpoints(run, self.args.world_size)[:-2]:
                    shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError
            raise TrainingError(
                f"{run}: cannot write a checkpoint ({error}); the last one is kept. "
                "Free some space and run the same command again"
            ) from error
        finally:
            self.writing = None
            if self.args.should_save:
                shutil.rmtree(run / ".writing", ignore_errors=True)


def checkpoints(run: Path, processes: int = 1) -> list[Path]:
    """Checkpoints of a run, oldest first, that hold all that exact resumption in so many processes
    needs: the Trainer itself goes on without optimizer or random state, to other weights."""
    states = (
        ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    )
    wanted = (WEIGHTS, STATE, OPTIMIZER, SCHEDULE, *states)
    found = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in run.glob("checkpoint-[0-9]*")
        if folder.name.rpartition("-")[2].isdigit() and all((folder / w).is_file() for w in wanted)
    }
    return [found[step] for step in sorted(found)]


def _weights(dial: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in dial.state_dict().items()}


class Watch(TrainerCallback):
    """Checkpoints by the clock, a graceful stop on Ctrl-C, and progress."""

    def __init__(self, seconds: float, progress: Progress):
        self.seconds, self.progress = seconds, progress
        self.last = time.monotonic()
        self.interrupted = False
        self.update: Update | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """After each optimizer step."""
        due = time.monotonic() - self.last >= self.seconds
        if args.world_size > 1:  # all processes save and stop together
            flags = torch.tensor([self.interrupted, due], dtype=torch.int32, device=args.device)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            self.interrupted, due = map(bool, flags.tolist())
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True
        if control.should_save:
            self.last = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """After each optimizer step, with what it gave."""
        if self.update and "loss" in (logs or {}):
            self.update.said = figures(logs or {})
            self.update(state.global_step, state.max_steps)

    @contextmanager
    def watching(self, label: str, steps: int) -> Iterator[None]:
        """Progress, and the first Ctrl-C asks to stop after the step; a second stops at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.progress.say("stopping after this step (Ctrl-C again to stop at once)")

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, stop) if main else None
        try:
            with self.progress.bar(label, steps, "steps") as self.update:
                yield
        finally:
            if main:
                signal.signal(signal.SIGINT, before)


def train(
    module: FitModule,
    encoded: Encoded,
    schedule: Schedule,
    args: TrainingArguments,
    *,
    layout: Layout,
    checkpoint_seconds: float = 60.0,
    progress: Progress = SILENT,
    label: str = "training",
    board: Path | None = None,
    projection: Projection | None = None,
    kind: type[DialTrainer] | None = None,
) -> list[dict[str, float]]:
    """Train `module.dial` to the end of the schedule, going on from the newest complete checkpoint
    in `args.output_dir`.

    Args:
        board: TensorBoard's folder, where it reports (`args.output_dir` does not outlive the run).
        projection: what of the gradients is let through.
        kind: what makes the microbatches, where it is not `DialTrainer`.

    Returns:
        A record a step: `step`, `loss` (mean a pair), `grad_norm`, `learning_rate`, and metrics.

    Raises:
        TrainingError: a loss or gradient is not finite, or a checkpoint cannot be written.
        KeyboardInterrupt: Ctrl-C, after the step in hand was finished and a checkpoint written.
    """
    trainer = (kind or DialTrainer)(module, args, schedule, encoded, layout)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(board or "runs")
    watch = Watch(checkpoint_seconds, progress)
    trainer.add_callback(watch)
    if projection is not None:
        trainer.add_callback(projection)
    done = checkpoints(Path(str(args.output_dir)), args.world_size)
    if done:
        progress.say(f"going on from {done[-1].name} of {schedule.steps} steps")
    # The dial stays attached through every forward and backward, as activation checkpointing needs.
    with (
        watch.watching(label, schedule.steps),
        module.dial(module.model, module.alpha, training=True, force=True),
        nullcontext() if projection is None else projection.attached(module.model),
    ):
        trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
    if watch.interrupted:
        raise KeyboardInterrupt
    # Sorted, as a checkpoint's are: the same bytes whether or not the run was ever stopped.
    return [
        dict(sorted(record.items())) for record in trainer.state.log_history if "loss" in record
    ]


def train_run(
    run: Run,
    module: Any,
    schedule: Schedule,
    args: TrainingArguments,
    layout: Layout,
    *,
    said: object,
    through: bool = True,
    projection: Projection | None = None,
    kind: Any = None,
) -> tuple[list[dict[str, float]], dict[str, str | bytes]]:
    """Train a module's dial to the end (`trainer.train`): its curve, and the curve as a file.

    Args:
        said: what else is to be said of the run before it starts.
        through: gradients run through the model's layers.
    """
    settings, count = run.recipe.train, sum(p.numel() for p in module.dial.parameters())
    run.progress.say(
        f"{run.named.name}: {run.encoded.n_pairs} pairs of {run.encoded.n_items} items, "
        f"{schedule.steps} steps of {schedule.pairs_per_step} pairs, {count:,} parameters; {said}"
    )
    again = settings.activation_checkpointing and through
    with recomputing(run.model) if again else nullcontext():
        history = train(
            module,
            run.encoded,
            schedule,
            args,
            layout=layout,
            checkpoint_seconds=settings.checkpoint_seconds,
            progress=run.progress,
            label=f"training {run.named.name}",
            board=run.out.parent / "tensorboard" / run.out.name if run.out else None,
            projection=projection,
            kind=kind,
        )
    return history, {HISTORY: "".join(json.dumps(record) + "\n" for record in history)}
