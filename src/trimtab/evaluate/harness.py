"""lm-evaluation-harness, with log-prob, reward, or their sum as what ranks the choices."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trimtab.batching import Encoded, Row
from trimtab.dials import Dial, RewardDial
from trimtab.errors import ConfigError, near
from trimtab.evaluate.rewards import rewards_of

ReadOut = Literal["logprob", "reward", "sum"]

TASKS = Path(__file__).parent / "tasks"
"""Tasks that the harness lacks."""
SHORT = {"glue": ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")}
"""Names for several tasks at once: GLUE as it was, STS-B included, WNLI left out."""


def require() -> None:
    """Raise ConfigError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "bench-tasks: install lm-evaluation-harness (pip install 'trimtab[eval]')"
        )


def check_tasks(names: Sequence[str], root: str | None = None) -> list[str | dict[str, Any]]:
    """Tasks by the harness's names, ours, or `choices:NAME/SPLIT` for local files.

    Raises:
        ConfigError: unknown names, with near ones; a local file that is not there.
    """
    require()
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=str(TASKS))
    found: list[str | dict[str, Any]] = []
    for name in (n for part in names for n in SHORT.get(part, (part,))):
        if name.startswith("choices:"):
            found.append(_local(name, root))
        elif name in manager.all_tasks:
            found.append(name)
        else:
            known = [*manager.all_subtasks, *SHORT]
            raise ConfigError(f"unknown task {name!r}{near(name, known)} (also: choices:FILE)")
    if not found:
        raise ConfigError("bench-tasks: no tasks")
    return found


def _local(name: str, root: str | None) -> dict[str, Any]:
    """A task of a file with `question`, `choices` and `label` a line."""
    where = name.removeprefix("choices:")
    task, _, split = where.rpartition("/")
    named = root or os.environ.get("TRIMTAB_DATA")
    folder = Path(named) if named else None
    tried = [Path(where)]
    if folder is not None and task:
        tried += [folder / "choices" / f"{task}.{split}.jsonl{gz}" for gz in (".gz", "")]
    file = next((f for f in tried if f.is_file()), None)
    if file is None:
        raise ConfigError(f"{name}: no such file (looked for {', '.join(map(str, tried))})")
    return {
        "task": file.stem if file == tried[0] else name.replace("/", "_").replace(":", "_"),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.absolute())}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def bench_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    dial: Dial | None = None,
    alpha: float = 1.0,
    reward: RewardDial | None = None,
    read_out: ReadOut = "logprob",
    limit: int | None = None,
    root: str | None = None,
    force: bool = False,
) -> dict[str, dict[str, float]]:
    """Metrics by task. Only metrics that rank choices make sense of rewards: `acc_norm`, which
    divides by characters, is left out unless the read-out is the log-prob.

    Args:
        dial: leans the model, at `alpha`.
        reward: what ranks the choices, alone or with the log-prob.
        limit: the first so many documents of each task.

    Raises:
        ConfigError: unknown tasks, a read-out without its dial, no harness.
    """
    known = check_tasks(tasks, root)
    if read_out not in ("logprob", "reward", "sum"):
        raise ConfigError(f"read-out {read_out!r}: expected logprob, reward or sum")
    if (reward is None) != (read_out == "logprob"):
        raise ConfigError("read-outs reward and sum take a reward dial, logprob takes none")
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    lm = _model_class()(model, tokenizer, reward, read_out, force)
    with dial(model, alpha, force=force) if dial is not None else nullcontext():
        out: Any = lm_eval.simple_evaluate(
            model=lm,
            tasks=known,  # type: ignore[arg-type]
            task_manager=TaskManager(include_path=str(TASKS)),
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
            confirm_run_unsafe_code=False,
        )
    found: dict[str, dict[str, float]] = {}
    for task, metrics in out["results"].items():
        kept = {
            key.partition(",")[0]: float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and "stderr" not in key and key != "sample_len"
        }
        if read_out != "logprob":
            kept = {k: v for k, v in kept.items() if not k.startswith(("acc_norm", "acc_bytes"))}
        found[task] = kept
    return found


def _model_class() -> Any:
    """The harness's model class over ours; made here, since the harness is an extra."""
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    class TrimtabLM(TemplateLM):
        """Choices of one context are answers of one packed row; log-prob and reward come from the
        same pass."""

        def __init__(
            self,
            model: nn.Module,
            tokenizer: Any,
            reward: RewardDial | None,
            read_out: ReadOut,
            force: bool,
        ):
            super().__init__()
            self.model, self.tokenizer = model, tokenizer
            self.reward, self.read_out, self.force = reward, read_out, force

        @property
        def eot_token_id(self) -> int:
            return self.tokenizer.eos_token_id

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return self.tokenizer(string, **extra)["input_ids"]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            groups: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
            for number, (_, context, continuation) in enumerate(requests):
                groups.setdefault(tuple(context), []).append((number, tuple(continuation)))
            end = (self.eot_token_id,)
            rows, order = [], []
            for context, members in groups.items():
                answers = tuple((*c, *end) for _, c in members)
                rows.append(Row(str(len(rows)), context, answers, (), ()))
                order += [number for number, _ in members]
            encoded = Encoded(tuple(rows), 0, self.eot_token_id, "requests")
            rewards, read = rewards_of(
                self.model,
                self.reward,
                encoded,
                logps=self.read_out != "reward",
                count_end=False,
                force=self.force,
            )
            assert read.logps is not None
            total = {"logprob": read.logps, "reward": rewards, "sum": rewards + read.logps}
            found: list[tuple[float, bool]] = [(0.0, False)] * len(order)
            for number, value in zip(order, total[self.read_out].tolist(), strict=True):
                found[number] = (value, False)
            return found

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            raise ConfigError("bench-tasks ranks choices; perplexity tasks are not supported")

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            raise ConfigError("bench-tasks ranks choices; generation tasks are not supported")

    return TrimtabLM
