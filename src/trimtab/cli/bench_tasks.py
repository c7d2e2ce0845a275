"""`trimtab bench-tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.bounds import Count, Whole
from trimtab.cli.flags import Alpha, OnModel, WithDials, together
from trimtab.cli.parse import parse
from trimtab.errors import ConfigError
from trimtab.rendering.settings import USUAL, Rendering


@dataclass(frozen=True, kw_only=True)
class Args(WithDials, OnModel):
    """Flags."""

    tasks: tuple[str, ...]
    """The harness's names, `glue`, `race_middle`, choices:NAME/SPLIT for a local file, or a task's own
    .yaml file; several words, or one with commas."""
    alpha: Alpha = 1.0
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
    data_root: str | None = None
    """Folder of local data sources (default: TRIMTAB_DATA)."""


def main(words: list[str]) -> None:
    """Run the tasks and print a table."""
    about = "Tasks of lm-evaluation-harness with its own figures; multiple choice by reward, too."
    args = parse(Args, words, verb="bench-tasks", about=about)
    from trimtab.evaluation.benchmarks import ReadOut, check_tasks, load_tasks
    from trimtab.evaluation.harness import bench_tasks

    tasks = [name.strip() for word in args.tasks for name in word.split(",") if name.strip()]
    read_out: ReadOut = args.read_out or ("logprob" if args.reward is None else "reward")
    if (args.reward is None) != (read_out == "logprob"):
        raise ConfigError("--read-out reward and sum take --reward DIR, logprob takes none")
    known = check_tasks(tasks, args.data_root)
    args.check_model()
    dial = together(list(args.named_dials().values()))
    reward = args.read_reward(args.reward)
    load_tasks(known, read_out)
    import json

    from rich.table import Table

    from trimtab import terminal
    from trimtab.files import write_text
    from trimtab.rendering import record_of

    model, tokenizer = args.load(dial, reward)
    notes: list[str] = []

    def say(line: str) -> None:
        notes.append(line)
        args.progress.say(line)

    found = bench_tasks(
        model,
        tokenizer,
        known,
        dial=dial,
        alpha=args.alpha,
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
    terminal.console().print(table)
    if args.out is not None:
        note = {
            "model": args.model,
            "read_out": read_out,
            "alpha": args.alpha,
            "fewshot": args.fewshot,
            "apply_chat_template": args.apply_chat_template,
            **({"rendering": record} if (record := record_of(tokenizer, args.rendering)) else {}),
            "batch_size": args.batch_size,
            "results": found,
            "notes": notes,
        }
        write_text(args.out, json.dumps(note, indent=1) + "\n")
