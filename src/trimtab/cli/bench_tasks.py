"""`trimtab bench-tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import UseAppendAction

from trimtab.bounds import Count, Whole
from trimtab.cli.parse import parse
from trimtab.cli.ready import alpha_of, check_model, read_dials
from trimtab.errors import ConfigError
from trimtab.rendering.settings import USUAL, Rendering


@dataclass(frozen=True)
class Args:
    """Flags."""

    tasks: tuple[str, ...]
    """The harness's names, `glue`, `race_middle`, choices:NAME/SPLIT for a local file, or a task's own
    .yaml file; several words, or one with commas."""
    model: str = "smollm2-135m"
    """Hub id, folder, .gguf file, or smollm2-135m."""
    dial: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A dial's folder or Hub id that leans the model; repeat to use several at once."""
    alpha: str = "1"
    """Strength: a number, or none, light, standard, strong, maximum."""
    reward: str | None = None
    """A reward dial's folder."""
    read_out: Literal["logprob", "reward", "sum"] | None = None
    """What ranks the choices (default: reward with --reward, else logprob)."""
    limit: Count | None = None
    """The first so many documents of each task."""
    fewshot: Whole | None = None
    """Examples before each question (default: each task's own number)."""
    apply_chat_template: bool = False
    """Put prompts into the tokenizer's chat template."""
    fewshot_as_multiturn: bool | None = None
    """Examples as turns of the chat (default: where --apply-chat-template is given)."""
    system_instruction: str | None = None
    """Text before every prompt; of a chat its system message."""
    rendering: Annotated[Rendering, tyro.conf.arg(name="")] = USUAL
    batch_size: Count = 1
    """Rows of a batch. At 1, the harness's default, no row depends on others."""
    out: Path | None = None
    """A JSON file for the metrics."""
    dtype: str = "auto"
    """float32, bfloat16, float16, or auto."""
    load_in: Literal["4bit", "8bit"] | None = None
    """Quantise the model with bitsandbytes as it is loaded (extra `quant`)."""
    device: str = "auto"
    """A torch device, or auto."""
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""
    force: bool = False
    """Go on although a dial was made for another base model."""


def main(words: list[str]) -> None:
    """Run the tasks and print a table."""
    about = "Tasks of lm-evaluation-harness with its own figures; multiple choice by reward, too."
    args = parse(Args, words, verb="bench-tasks", about=about)
    from trimtab.evaluation.benchmarks import ReadOut, check_tasks, load_tasks
    from trimtab.evaluation.harness import bench_tasks

    tasks = [name.strip() for word in args.tasks for name in word.split(",") if name.strip()]
    alpha = alpha_of(args.alpha)
    read_out: ReadOut = args.read_out or ("logprob" if args.reward is None else "reward")
    if (args.reward is None) != (read_out == "logprob"):
        raise ConfigError("--read-out reward and sum take --reward DIR, logprob takes none")
    known = check_tasks(tasks, args.data_root)
    check_model(args.model, args.dtype, args.device, args.load_in)
    dials = read_dials(args.dial, args.model, args.force)
    reward = read_dials([args.reward], args.model, args.force)[0] if args.reward else None
    load_tasks(known, read_out)
    import json

    from rich.console import Console
    from rich.table import Table

    from trimtab import models
    from trimtab.dials import RewardDial
    from trimtab.dials.dial import Composed
    from trimtab.files import write_text
    from trimtab.progress import Progress
    from trimtab.rendering import record_of

    if reward is not None and not isinstance(reward, RewardDial):
        raise ConfigError(f"--reward {args.reward}: a {reward.kind} dial; expected a reward dial")
    model, tokenizer = models.load(
        args.model, dtype=args.dtype, device=args.device, load_in=args.load_in
    )
    dial = None
    if dials:
        dial = dials[0] if len(dials) == 1 else Composed([(d, 1.0) for d in dials])
    for part in (dial, reward):
        if part is not None:
            part.to(next(model.parameters()).device)
    notes: list[str] = []

    def say(line: str) -> None:
        notes.append(line)
        Progress().say(line)

    found = bench_tasks(
        model,
        tokenizer,
        known,
        dial=dial,
        alpha=alpha,
        reward=reward,
        read_out=read_out,
        limit=args.limit,
        fewshot=args.fewshot,
        apply_chat_template=args.apply_chat_template,
        fewshot_as_multiturn=args.fewshot_as_multiturn,
        system_instruction=args.system_instruction,
        rendering=args.rendering,
        batch_size=args.batch_size,
        force=args.force,
        say=say,
    )
    table = Table(title=f"read-out: {read_out}", title_justify="left", box=None)
    for column in ("task", "metric", "value"):
        table.add_column(column)
    for task, metrics in found.items():
        for metric, value in metrics.items():
            share = metric.startswith(("acc", "exact_match", "f1"))
            table.add_row(task, metric, f"{100 * value:.1f} %" if share else f"{value:.4f}")
    Console().print(table)
    if args.out is not None:
        note = {
            "model": args.model,
            "read_out": read_out,
            "alpha": alpha,
            "fewshot": args.fewshot,
            "apply_chat_template": args.apply_chat_template,
            **({"rendering": record} if (record := record_of(tokenizer, args.rendering)) else {}),
            "batch_size": args.batch_size,
            "results": found,
            "notes": notes,
        }
        write_text(args.out, json.dumps(note, indent=1) + "\n")
