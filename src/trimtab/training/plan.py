"""One run of a trained method: what is fitted on what, and how the Trainer is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trimtab import models
from trimtab.batching import Encoded, Layout, Schedule, plan_training, unshared
from trimtab.errors import ConfigError
from trimtab.files import write_text
from trimtab.pairs import PairSet
from trimtab.progress import SILENT, Progress
from trimtab.store import Store
from trimtab.training.recipes import Method, Recipe

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from trimtab.dials import Dial

MICROBATCH = "microbatch"
"""In the work folder: positions of a microbatch, as this run began with."""
HISTORY, SPACE = "training.jsonl", "space.safetensors"
"""Files of a trained run beside its dial: the training curve, and the spaces it was trained in."""

Made = tuple["Dial", dict[str, str | bytes]]
"""The trained dial, and the files that are saved beside it."""


@dataclass(frozen=True)
class Run:
    """What is fitted, on what.

    Attributes:
        encoded: the pairs as tokens.
        work: where checkpoints lie while it is trained.
        data: the pairs, for heads that are told apart by their concepts.
        out: where the dial will be saved, for names alone.
    """

    named: Method
    model: nn.Module
    encoded: Encoded
    seed: int
    work: Path
    data: PairSet | None = None
    out: Path | None = None
    store: Store | None = None
    progress: Progress = SILENT

    @property
    def recipe(self) -> Recipe[Any, Any]:
        """The method's, with what it abbreviates written out."""
        settled = getattr(self.named.recipe, "settled", None)
        return settled() if settled else self.named.recipe

    def arguments(self) -> TrainingArguments:
        """The Trainer's arguments; the model goes to the run's device."""
        from transformers import TrainingArguments

        settings = self.recipe.train
        args = TrainingArguments(
            output_dir=str(self.work),
            per_device_train_batch_size=1,
            max_steps=1,  # set below, once the number of processes is known
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            logging_steps=1,
            save_strategy="steps",
            save_steps=10**9,  # by the clock instead, see Watch
            save_total_limit=2,
            report_to=settings.report_to,
            run_name=self.out.name if self.out else self.named.name,
            seed=self.seed,
            remove_unused_columns=False,
            use_cpu=next(self.model.parameters()).device.type == "cpu",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            log_level="error",
        )
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs take several processes, never DataParallel
        self.model.to(args.device)
        return args

    def layout(self, layout: Layout) -> Layout:
        """The layout of its microbatches. Layers that run again would add to a shared prefix's keys
        and values again; rows at alphas of their own have to be lines of their own."""
        apart = self.recipe.train.activation_checkpointing or self.recipe.by_row
        if getattr(self.recipe, "by_answer", False):
            return "alone" if layout == "alone" else "padded"
        return unshared(layout) if apart else layout

    def microbatch(self) -> int:
        """Padded positions of a microbatch: the setting, or, where a GPU has room and the setting is the
        usual one, as many as fit, or as this run began with."""
        usual = self.recipe.train.microbatch_tokens
        device = next(self.model.parameters()).device
        if device.type != "cuda" or usual != type(self.recipe.train)().microbatch_tokens:
            return usual

        def fits() -> int:
            found = room(self.model, torch.cuda.mem_get_info(device)[0], usual)
            if torch.distributed.is_initialized():  # all cut the same microbatches
                least = torch.tensor(found, device=device)
                torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
                found = int(least)
            return found

        return self.begun_with(fits)

    def begun_with(self, choose: Callable[[], int]) -> int:
        """Positions of a microbatch as this run began with, kept with the checkpoints; chosen where there is
        nothing yet."""
        note = self.work / MICROBATCH
        if note.is_file():
            return int(note.read_text())
        chosen = choose()
        if self.work.is_dir():
            write_text(note, str(chosen))
        return chosen

    def schedule(
        self, layout: Layout, args: TrainingArguments, budget: int | None = None
    ) -> Schedule:
        """The microbatches, and what the Trainer is to know of them.

        Args:
            budget: padded positions of one, where `--train.memory` has chosen.

        Raises:
            ConfigError: it would have to, and this method's steps are not measured.
        """
        settings = self.recipe.train
        if settings.memory is not None and budget is None:
            raise ConfigError(
                f"train.memory is {settings.memory}: the steps of {self.named.name} are not measured; "
                "expected train.microbatch_tokens"
            )
        schedule = plan_training(
            self.encoded,
            pairs_per_step=settings.pairs_per_step,
            epochs=settings.epochs,
            seed=self.seed,
            budget=budget or self.microbatch(),
            layout=layout,
            multiple_of=args.world_size,
            max_steps=settings.max_steps,
        )
        args.max_steps = schedule.steps
        args.gradient_accumulation_steps = schedule.per_step // args.world_size
        args.warmup_steps = round(settings.warmup * schedule.steps)
        return schedule


MOST = 65_536
"""Positions of a microbatch above which a GPU gains nothing."""


def room(model: nn.Module, free: int, least: int) -> int:
    """Positions whose activations fit into seven tenths of `free` bytes, in whole thousands (1,024) and at
    most `MOST`; never below `least`. A block keeps about twelve states and five of the gate's width for
    the backward pass of a position."""
    config = models.text_config(model)
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    size = next(p.element_size() for p in model.parameters() if p.is_floating_point())
    each = models.n_layers(model) * (12 * hidden + 5 * inner) * size
    return max(least, min(MOST, free * 7 // 10 // each // 1024 * 1024))
