"""lm-evaluation-harness on dialled models: its own model class runs the requests, so that figures are
the harness's to the last digit; a reward dial may rank the choices in its place, or beside it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from trimtab.batching import Encoded, Row
from trimtab.batching.spans import are_rows_apart, prompts
from trimtab.dials import Dial, RewardDial
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.evaluation.benchmarks import Loader, ReadOut, check_tasks, hushed
from trimtab.evaluation.generation import checked_logits
from trimtab.evaluation.items import numbers
from trimtab.evaluation.rewards import rewards_of
from trimtab.progress import Progress
from trimtab.rendering import USUAL, Rendering, end_ids, template_of

OF_LOGPROBS = (
    "acc_norm",
    "acc_bytes",
    "acc_mutual_info",
    "brier_score",
    "exact_match",
    "likelihood",
)
"""Metrics of multiple choice that mean something of log-probs alone."""

_say = Progress().say


def bench_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[Any],
    *,
    dial: Dial | None = None,
    alpha: float = 1.0,
    reward: RewardDial | None = None,
    read_out: ReadOut = "logprob",
    limit: int | None = None,
    fewshot: int | None = None,
    apply_chat_template: bool | str = False,
    fewshot_as_multiturn: bool | None = None,
    system_instruction: str | None = None,
    rendering: Rendering = USUAL,
    batch_size: int = 1,
    root: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = _say,
) -> dict[str, dict[str, float]]:
    """Metrics by task, as the harness's own model class has them on the same model and batch size. A
    metric of several filters is named with its filter, as in `exact_match,strict-match`.

    With a reward only metrics that rank choices make sense: the others (`OF_LOGPROBS`) are left out.

    Args:
        tasks: as `check_tasks` takes them, or the harness's own objects.
        dial: leans the model, at `alpha`.
        reward: what ranks the choices, alone or with the log-prob.
        limit: the first so many documents of each task.
        fewshot: examples before each question (by default the task's own number).
        apply_chat_template: put prompts into the tokenizer's chat template (or the one so named).
        fewshot_as_multiturn: examples as turns of the chat (by default where there is one).
        system_instruction: text before every prompt; the system message of a chat.
        rendering: how the chat template is run.
        batch_size: rows of a batch. The harness's default of 1 makes no row depend on others.
        say: told, in a line, of prompts that were cut and of what had no effect.

    Raises:
        ConfigError: unknown tasks, a read-out without its dial, settings that make no sense, no
            harness.
        DataError: a continuation that is empty, or longer than the model's context.
        ModelError: no chat template; log-probs, rewards or logits that are no numbers.
    """
    if read_out not in ("logprob", "reward", "sum"):
        raise ConfigError(f"read-out {read_out!r}: expected logprob, reward or sum")
    if (reward is None) != (read_out == "logprob"):
        raise ConfigError("read-outs reward and sum take a reward dial, logprob takes none")
    for name, value, least in (
        ("limit", limit, 1),
        ("fewshot", fewshot, 0),
        ("batch_size", batch_size, 1),
    ):
        if value is not None and (type(value) is not int or value < least):
            raise ConfigError(f"{name} is {value!r}; expected a whole number, {least} or more")
    if fewshot_as_multiturn and not apply_chat_template:
        raise ConfigError(
            "fewshot_as_multiturn makes turns of a chat: it takes apply_chat_template"
        )
    known = check_tasks(tasks, root)
    if apply_chat_template and not getattr(tokenizer, "chat_template", None):
        raise ModelError("apply_chat_template: the tokenizer has no chat template")
    import lm_eval  # pyright: ignore[reportMissingImports]

    turns = bool(apply_chat_template) if fewshot_as_multiturn is None else fewshot_as_multiturn
    with (
        _untouched(model),
        hushed("lm_eval.models.huggingface"),
    ):  # what it says, we say once a task
        lm = _model_class()(model, tokenizer, reward, read_out, force, batch_size)
        if apply_chat_template:
            named = isinstance(apply_chat_template, str)
            chosen = {"chat_template": apply_chat_template} if named else None
            lm.template = template_of(tokenizer, rendering, chosen)
            lm.chat_template_args = {**lm.chat_template_args, **lm.template.kwargs}
            lm.end = next(iter(end_ids(tokenizer, rendering, chosen)), lm.end)
        with dial(model, alpha, force=force) if dial is not None else nullcontext():
            run: Any = lm_eval.simple_evaluate
            out = run(
                model=lm,
                tasks=known,
                task_manager=Loader(known, read_out),
                num_fewshot=fewshot,
                limit=limit,
                log_samples=False,
                bootstrap_iters=0,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=turns,
                system_instruction=system_instruction,
                confirm_run_unsafe_code=False,
            )
    for line in _notes(lm, out, fewshot):
        say(line)
    return {task: _metrics(metrics, read_out) for task, metrics in out["results"].items()}


def _metrics(metrics: dict[str, Any], read_out: ReadOut) -> dict[str, float]:
    values = {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and "stderr" not in key and key != "sample_len"
    }
    names = Counter(key.partition(",")[0] for key in values)
    kept = {(k if names[n] > 1 else n): v for k, v in values.items() for n in [k.partition(",")[0]]}
    if read_out != "logprob":
        kept = {k: v for k, v in kept.items() if not k.startswith(OF_LOGPROBS)}
    return kept


def _notes(lm: Any, out: Any, fewshot: int | None) -> Iterator[str]:
    """What happened to prompts without any metric showing it."""
    for task, n in lm.cut.items():
        yield (
            f"{task}: {n} of {lm.asked[task]} requests are longer than the model's context of "
            f"{lm.max_length} tokens; the beginnings of their prompts were cut, as the harness does"
        )
    if lm.no_system:
        yield (
            f"the chat template shows no system text: it is missing from {lm.no_system} prompts, as "
            "it would be with the harness"
        )
    for task, n in (out.get("n-shot") or {}).items():
        if fewshot is not None and n != fewshot:
            yield f"{task} has {n} examples by its own rule: {fewshot} were asked for"


@cache
def _model_class() -> Any:
    """The harness's model class over ours; made here, since the harness is an extra."""
    from lm_eval.models import huggingface  # pyright: ignore[reportMissingImports]

    base: Any = huggingface.HFLM

    class TrimtabLM(base):
        """The harness's model, which says where prompts end, for dials that ask, counts the prompts
        that it cuts, and has rewards of choices beside their log-probs."""

        def __init__(
            self,
            model: Any,
            tokenizer: Any,
            reward: RewardDial | None = None,
            read_out: ReadOut = "logprob",
            force: bool = False,
            batch_size: int = 1,
        ):
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # whose padding token the harness sets
                backend="causal",
                batch_size=batch_size,
            )
            self.reward, self.read_out, self.force = reward, read_out, force
            self.cut: Counter[str] = Counter()
            self.asked: Counter[str] = Counter()
            self.no_system = 0
            self.end: int = self.eot_token_id
            self._tasks: list[str] = []  # of the requests that are about to come as tokens
            # Behind a prompt that ends in EOS the harness would score another text.
            self._ends = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **kwargs: Any,
        ) -> list[int]:
            ids = super().tok_encode(string, add_special_tokens, None, **kwargs)
            if self._appended(string) and ids[-1:] == [self.tokenizer.eos_token_id]:
                ids = ids[:-1]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> Any:
            if not self._ends:
                return super().tok_batch_encode(
                    strings, padding_side, left_truncate_len, truncation
                )
            rows = [self.tok_encode(s, left_truncate_len=left_truncate_len) for s in strings]
            padded = self.tokenizer.pad(
                {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
            )
            return padded["input_ids"], padded["attention_mask"]

        def _appended(self, string: str) -> bool:
            return self._ends and not string.endswith(self.tokenizer.eos_token)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            for request in requests:
                if not request.args[1]:
                    raise DataError(f"{request.task_name}: a continuation is empty")
            self._tasks = [r.task_name or "" for r in requests]
            self.asked.update(self._tasks)
            try:
                return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            finally:
                self._tasks = []

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            self._check(requests)
            quiet = disable_tqdm or len(requests) == 1
            if self.read_out == "reward":
                return [(r, False) for r in self._rewards(requests)]
            # A reward's own adapter leans the log-probs that are added to it.
            own = nullcontext() if self.reward is None else self.reward(self.model, 1.0, force=True)
            with own:
                if are_rows_apart(self.model):
                    found = self._by_prompt(requests)
                else:
                    found = super()._loglikelihood_tokens(requests, quiet, override_bs)
            numbers(torch.tensor([logp for logp, _ in found]), "log-probs")
            if self.read_out == "sum":
                rewards = self._rewards(requests)
                found = [(r + p, greedy) for r, (p, greedy) in zip(rewards, found, strict=True)]
            return found

        def _by_prompt(self, requests: Any) -> list[tuple[float, bool]]:
            """Requests of one prompt at a time, whose end is said."""
            groups: dict[tuple[Any, ...], list[int]] = {}
            for i, (_, context, continuation) in enumerate(requests):
                over = max(0, len(context) + len(continuation) - self.max_length - 1)
                groups.setdefault(tuple(context[over:]), []).append(i)
            found: list[Any] = [None] * len(requests)
            for context, members in groups.items():
                with prompts([len(context)]):
                    part = super()._loglikelihood_tokens([requests[i] for i in members], True)
                for i, value in zip(members, part, strict=True):
                    found[i] = value
            return found

        def _rewards(self, requests: Any) -> list[float]:
            """Rewards of the continuations, what ends an answer behind each; every distinct one once.
            Prompts are cut to what the context holds with it."""
            end = (self.end,)
            groups: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
            keys = []
            for _, context, continuation in requests:
                answer = (*continuation, *end)
                room = max(1, self.max_length - len(answer))
                keys.append((tuple(context[-room:]), answer))
                groups.setdefault(keys[-1][0], {})[answer] = None
            rows = [
                Row(str(i), context, tuple(answers)[start : start + 16], (), ())
                for i, (context, answers) in enumerate(groups.items())
                for start in range(0, len(answers), 16)
            ]
            order = [(row.prompt, answer) for row in rows for answer in row.answers]
            encoded = Encoded(tuple(rows), 0, self.end, "requests")
            rewards, _ = rewards_of(self.model, self.reward, encoded, force=self.force)
            found = dict(zip(order, rewards.tolist(), strict=True))
            return [found[key] for key in keys]

        def _check(self, requests: Any) -> None:
            """Count the requests that are cut; raise DataError where none of it can be scored."""
            tasks = self._tasks or ["a task"] * len(requests)
            most = self.max_length - (0 if self.reward is None else 2)  # a token before, EOS behind
            for task, (_, context, continuation) in zip(tasks, requests, strict=True):
                if not context:
                    raise DataError(f"{task}: a prompt is nothing but blanks")
                if not 0 < len(continuation) <= most:
                    shown = self.tok_decode(continuation)[:60]  # type: ignore[arg-type]
                    raise DataError(
                        f"{task}: the continuation {shown!r} has {len(continuation)} tokens; expected "
                        f"1 to {most}, which the model's context holds"
                    )
                if len(context) + len(continuation) > self.max_length + 1:
                    self.cut[task] += 1

        def _model_generate(self, *args: Any, **settings: Any) -> Any:
            return super()._model_generate(*args, logits_processor=[checked_logits], **settings)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore

            for request in requests:
                context, settings = request.args
                task = request.task_name or ""
                new = dict(normalize_gen_kwargs(settings, self.max_gen_toks))["max_gen_toks"]
                if new >= self.max_length:
                    raise ConfigError(
                        f"{task}: {new} tokens are to be drawn, the model's context holds "
                        f"{self.max_length} with the prompt"
                    )
                self.asked[task] += 1
                self.cut[task] += len(self.tok_encode(context)) > self.max_length - new
            self.cut += Counter()  # drops the zeros
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            chat: Any = self.template.folded(chat_history, None)
            text = super().apply_chat_template(chat, add_generation_prompt)
            system = [m["content"].strip() for m in chat_history if m["role"] == "system"]
            self.no_system += any(s not in text for s in system)
            return text

    return TrimtabLM


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """The model's weights and modes as they are, whatever is called in between."""
    modes = [(module, module.training) for module in model.modules()]
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
        for module, training in modes:
            module.training = training
