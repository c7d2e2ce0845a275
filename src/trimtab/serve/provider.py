"""A model provider of Inspect: `inspect eval TASK --model trimtab/M -M dial=DIR -M alpha=1`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatCompletionChoice,
    ChatMessageAssistant,
    GenerateConfig,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)

from trimtab import models
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.evaluation.formats import format_for
from trimtab.evaluation.generation import ends_of
from trimtab.progress import warn
from trimtab.serve.answers import Answer
from trimtab.serve.app import Running
from trimtab.serve.bodies import Refused
from trimtab.serve.engine import Engine, TooLong
from trimtab.serve.request import Request, seed_of
from trimtab.serve.shelf import Shelf

UNKNOWN = (
    *("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "prompt_logprobs"),
    *("response_schema", "reasoning_effort", "reasoning_tokens", "extra_body", "modalities"),
)
"""Settings of Inspect's that would change an answer, and that nobody here heeds: refused."""
REASONS: dict[str, Any] = {"stop": "stop", "length": "max_tokens"}


class Provider(ModelAPI):
    """A model with its dials at fixed strengths; samples that Inspect runs together share a batch."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        dial: str | Sequence[str] = (),
        alpha: float | str | Sequence[float | str] = 1.0,
        prompt_style: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        load_in: str | None = None,
        context: int = 2048,
        rows: int = 16,
        force: bool = False,
        **unknown: Any,
    ):
        """
        Args:
            model_name: Hub id, folder, .gguf file, or smollm2-135m.
            dial: folders or Hub ids of dials.
            alpha: the strength of each, or one for all.
            prompt_style: chat or plain; by default the chat template where there is one.
            context: tokens of the longest request.
            rows: of the batch.
            force: go on although a dial was made for another base model.

        Raises:
            ConfigError: an argument (`-M`) that is not known, or strengths that do not fit the dials.
        """
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if unknown:
            raise ConfigError(f"-M {', '.join(unknown)}: there is no such argument")
        if prompt_style not in (None, "chat", "plain"):
            raise ConfigError(f"-M prompt_style={prompt_style}: expected chat or plain")
        places = [dial] if isinstance(dial, str) else list(dial)
        given = [alpha] if isinstance(alpha, int | float | str) else list(alpha)
        given *= len(places) if len(given) == 1 else 1
        if len(given) != len(places):
            raise ConfigError(f"-M alpha: {len(given)} strengths for {len(places)} dials")
        dials = {
            f"dial-{n}": Dial.from_pretrained(place, force=force) for n, place in enumerate(places)
        }
        self.shelf = Shelf(model_name, dials)
        self.alphas = self.shelf.alphas(model_name, dict(zip(dials, given, strict=True)))
        model, tokenizer = models.load(model_name, dtype=dtype, device=device, load_in=load_in)  # pyright: ignore[reportArgumentType]
        self.engine = Engine(
            model, tokenizer, dials, rows=rows, queue=1 << 20, context=context, force=force
        )
        style: Any = prompt_style or ("chat" if tokenizer.chat_template else "plain")
        turned = [dials[name] for name, strength in self.alphas.items() if strength]
        self.form = replace(format_for(turned, style), style=style)
        self.warnings = self.shelf.warnings(self.alphas, style)
        for line in self.warnings:
            warn(line)

    async def generate(
        self, input: list[Any], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """Answers to a chat.

        Raises:
            ConfigError: tools, contents that are no text, or a setting that nobody here heeds.
        """
        if tools and tool_choice != "none":
            raise ConfigError("tools are not called here: expected a task without tools")
        for name in UNKNOWN:
            if getattr(config, name, None):
                raise ConfigError(f"{name}: there is no such setting here")
        prompt = self._prompt(input)
        ids = self.form.ids(self.engine.tokenizer, prompt)
        ends = ends_of(self.engine.model, self.engine.tokenizer, self.form, [prompt])
        room = self.engine.context - len(ids)
        most = min(config.max_tokens or math.inf, max(1, room))
        asked = Request(
            ids,
            self.alphas,
            frozenset(ends),
            int(most),
            1.0 if config.temperature is None else config.temperature,
            1.0 if config.top_p is None else config.top_p,
            None,
            tuple(config.stop_seqs or ()),
            (config.top_logprobs or 0) if config.logprobs else None,
        )
        n, seed = config.num_choices or 1, config.seed
        each = [replace(asked, seed=None if seed is None else seed_of(seed, i)) for i in range(n)]
        try:
            choices = await Running(self.engine, each).done()
        except TooLong as error:
            return ModelOutput.from_content(self.model_name, "", "model_length", str(error))
        except Refused as error:
            raise ConfigError(error.error["message"]) from error
        form = Answer(self.engine.tokenizer, "", chat=True, told=asked.top is not None, extra={})
        whole = form.whole(choices, len(ids))
        full = config.max_tokens is None or config.max_tokens > room
        reasons = {**REASONS, "length": "model_length"} if full else REASONS
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(
                        content=c["message"]["content"], model=self.model_name, source="generate"
                    ),
                    stop_reason=reasons.get(c["finish_reason"], "unknown"),
                    logprobs=Logprobs(**c["logprobs"]) if c["logprobs"] else None,
                )
                for c in whole["choices"]
            ],
            usage=ModelUsage(
                input_tokens=len(ids),
                output_tokens=whole["usage"]["completion_tokens"],
                total_tokens=whole["usage"]["total_tokens"],
            ),
            metadata={"alphas": [*self.alphas.values()], "warnings": self.warnings},
        )

    def _prompt(self, chat: Sequence[Any]) -> Any:
        """Messages as the template takes them; without one, their texts with an empty line between."""
        for message in chat:
            parts = [] if isinstance(message.content, str) else message.content
            if message.role == "tool" or any(part.type != "text" for part in parts):
                raise ConfigError(f"a {message.role} message that is no text: expected text alone")
        if self.form.style == "plain":
            return "\n\n".join(message.text for message in chat)
        return [{"role": message.role, "content": message.text} for message in chat]

    def max_connections(self) -> int:
        """Samples that Inspect runs together: the rows of the batch."""
        return self.engine.rows

    def collapse_user_messages(self) -> bool:
        """Templates want the roles in turn."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """The same."""
        return True

    def close(self) -> None:
        """End the engine."""
        self.engine.close()
