"""The command line: one thin file a verb. torch is imported only once the verb is known."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TextIO

from trimtab.cli import help

VERBS = {
    "demo": "four dials on a small real model, compared on one page, in minutes",
    "fit": "make a dial from preference pairs",
    "fit-condition": "find in which prompts a dial is to act, from examples",
    "bench-tasks": "tasks of lm-evaluation-harness; multiple choice ranked by reward, too",
    "cache": "store hidden states of pairs, from which heads are trained",
    "evaluate": "accuracy and damage of dials on pairs, at several alphas",
    "compare": "models x suites x methods x seeds, with verdicts against DPO; resumable",
    "compare-heads": "an alignment head beside DPO, GenARM and ARGS, over alpha; resumable",
    "compare-rewards": "preference heads beside SFT and DPO on multiple choice; resumable",
    "tune": "choose a method's settings by trials on held-out training items; resumable",
    "study": "studies by name: list, run, check, report; resumable",
    "dose": "every way to steer towards a trait, at the damage of a persona prompt; resumable",
    "generate": "continue prompts at several alphas",
    "serve": "an OpenAI-compatible server where each request turns its dials, and a page with sliders",
    "chat": "chat in the terminal, turning dials in between",
    "calibrate": "how far a dial may be turned within a budget of damage",
    "export": "a dial in another tool's format, checked there",
    "import": "a dial of another tool as one of ours, checked on its model",
    "push": "a dial to the Hugging Face Hub, with a full card",
    "explain": "the tokens that a dial promotes and demotes, step by step",
    "judge": "compare two files of answers pairwise, in both orders",
    "inspect": "look at pairs (a spec) or at a dial (a folder)",
    "report": "make the page of a run from its result files",
    "pack": "one file from which a run's figures are made again elsewhere",
    "reproduce": "run a pack, and say what differs: data, model, version or number",
    "recipe": "make results again: run what files say, then render their pages; resumable",
    "methods": "list the methods",
    "completion": "a script by which bash or zsh completes all this",
    "anchor": "experiments with concepts whose direction is chosen before training",
}

OF_STUDIES = {
    "compare": "compare",
    "compare-heads": "heads",
    "compare-rewards": "rewards",
    "dose": "steering",
}
"""Studies that have a verb of their own beside `study run NAME`."""
CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes")
"""Loggers that warn of what concerns no user as soon as transformers is imported, which imports every
quantiser that is installed."""

USAGE = """\
trimtab: preference pairs in, a dial out

usage: trimtab VERB [flags]        trimtab VERB --help

{verbs}

Flags can also come from a YAML file with the same keys: --config FILE.
Pairs are named by specs, such as facts:train, genies:truthful_qa/train[:750], jsonl:FILE.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: `trimtab VERB ...`. Exits with 2 on bad input, 130 on Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<15} {what}" for verb, what in VERBS.items())))
        sys.exit(0)
    if words[0] in ("-V", "--version"):
        from trimtab import __version__

        print(__version__)
        sys.exit(0)
    sys.exit(_run(words[0], words[1:]))


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A notice is a line of its own; other warnings look as Python has them."""
    from trimtab.progress import Notice
    from trimtab.terminal import visible

    if issubclass(category, Notice):
        print(visible(f"warning: {message}"), file=sys.stderr)
    else:
        print(
            warnings.formatwarning(message, category, filename, lineno, line),
            file=sys.stderr,
            end="",
        )


def main_of(verb: str) -> Callable[[list[str]], None]:
    """What runs a verb with its words; `import` is no name for a module."""
    name = "study" if verb in OF_STUDIES else verb.replace("-", "_")
    module = importlib.import_module(f"trimtab.cli.{'import_dial' if verb == 'import' else name}")
    return partial(module.run_study, OF_STUDIES[verb], verb) if verb in OF_STUDIES else module.main


def _run(verb: str, words: list[str]) -> int:
    from trimtab.errors import ConfigError, TrimtabError, near
    from trimtab.terminal import shown, visible

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if text := help.find([verb, *words]):
            print(text)
            return 0
        if verb not in VERBS:
            raise ConfigError(
                f"unknown verb {verb!r}{near(verb, VERBS)} (known: {', '.join(VERBS)})"
            )
        with shown():
            main_of(verb)(words)
    except TrimtabError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: what was done is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `trimtab methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        said = f"error: {str(error.filename or 'a file')[-300:]}: {error.strerror or error}"
        print(visible(said), file=sys.stderr)
        return 2
    return 0
