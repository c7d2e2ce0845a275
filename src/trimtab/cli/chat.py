"""`trimtab chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction

from trimtab.bounds import Count, NonNegative
from trimtab.cli.flags import OnModel, WithDials, alpha_of
from trimtab.cli.parse import parse
from trimtab.cli.serve import begin
from trimtab.errors import ConfigError, TrimtabError
from trimtab.terminal import visible

if TYPE_CHECKING:
    from trimtab.serve import Engine, Shelf

HELP = """\
/alpha NAME 1.5   turn a dial         /alpha            how they are turned
/system TEXT      a system message    /history          what was said
/again            the last answer anew, at the strengths of now
/reset            begin anew          /quit             leave (or Ctrl-D)"""


@dataclass(frozen=True, kw_only=True)
class Args(WithDials, OnModel):
    """Flags."""

    alpha: Annotated[tuple[str, ...], UseAppendAction] = ()
    """NAME=1.5, or 1.5 for all: how a dial is turned at first (0)."""
    system: str | None = None
    """A system message."""
    max_new_tokens: Count = 256
    """Tokens of the longest answer."""
    temperature: NonNegative = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn."""
    context: Count = 2048
    """Tokens of the longest chat."""


def main(words: list[str]) -> None:
    """Chat until the end of the input."""
    args = parse(Args, words, verb="chat", about="Chat with a model while turning its dials.")
    engine, shelf = begin(args)
    with engine:
        chat = Chat(engine, shelf, args)
        for text in args.alpha:
            name, equals, value = text.rpartition("=")
            for each in [name] if equals else shelf.dials:
                print(chat.turn(each, value))
        _talk(chat)


def _talk(chat: Chat) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (history and editing of the line)

        print(f"{chat.shelf.model}. /help tells what can be typed.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line in ("/quit", "/exit"):
            return
        try:
            for part in chat.says(line):
                print(visible(part), end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except TrimtabError as error:
            print(visible(str(error)), end="")
        if line:
            print()


class Chat:
    """A chat: its messages, and how the dials are turned."""

    def __init__(self, engine: Engine, shelf: Shelf, args: Any):
        self.engine, self.shelf, self.args = engine, shelf, args
        self.alphas: dict[str, float] = dict.fromkeys(shelf.dials, 0.0)
        self.system, self.messages = args.system, []

    def says(self, line: str) -> Iterator[str]:
        """What follows a line, piece by piece."""
        verb, _, rest = line.partition(" ")
        words = rest.split()
        if not line:
            return
        if not line.startswith("/"):
            yield from self._answered([*self.messages, {"role": "user", "content": line}])
        elif verb == "/alpha" and len(words) in (0, 2):
            yield self.turn(*words) if words else self._turned()
        elif verb == "/system":
            self.system = rest.strip() or None
            yield f"system: {self.system or '(none)'}"
        elif verb == "/history":
            yield "\n".join(f"{m['role']}: {m['content']}" for m in self._all(self.messages))
        elif verb == "/again" and self.messages:
            yield from self._answered(self.messages[:-1])
        elif verb == "/reset":
            self.messages = []
            yield "begun anew"
        else:
            yield HELP

    def turn(self, name: str, alpha: str) -> str:
        """Turn a dial. Raises ConfigError where there is none, or the strength is none."""
        if not name or not alpha:
            raise ConfigError("expected a dial's name and a strength, as in honesty 1.5")
        found = self.shelf.alphas(self.shelf.model, {name: alpha_of(alpha)})
        self.alphas |= found
        return "\n".join([self._turned(), *self.shelf.warnings(found, "chat")])

    def _turned(self) -> str:
        return ", ".join(f"{name} {alpha:g}" for name, alpha in self.alphas.items()) or "no dials"

    def _all(self, messages: list[Any]) -> list[Any]:
        return [*([{"role": "system", "content": self.system}] * bool(self.system)), *messages]

    def _answered(self, messages: list[Any]) -> Iterator[str]:
        """Stream the answer to some messages, and keep both. Stopped early, what was said is kept."""
        from trimtab.evaluation.formats import format_for
        from trimtab.evaluation.generation import ends_of
        from trimtab.serve import End, Request, Token

        turned = [self.shelf.dials[name] for name, alpha in self.alphas.items() if alpha]
        form = format_for(turned, "chat" if self.engine.tokenizer.chat_template else "plain")
        prompt: Any = self._all(messages)
        if form.style == "plain":
            prompt = "\n\n".join(m["content"] for m in prompt)
        ids = form.ids(self.engine.tokenizer, prompt)
        ends = ends_of(self.engine.model, self.engine.tokenizer, form, [prompt])
        most = max(1, min(self.args.max_new_tokens, self.engine.context - len(ids)))
        asked = Request(ids, self.alphas, frozenset(ends), most, self.args.temperature)
        said = ""
        try:
            for event in self.engine.stream(asked):
                if isinstance(event, Token):
                    said += event.text
                    yield event.text
                elif isinstance(event, End) and event.error:
                    raise ConfigError(event.error)
        finally:
            self.messages = [*messages, {"role": "assistant", "content": said}]
