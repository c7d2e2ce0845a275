"""Chat templates, one a behaviour, on a tokenizer whose tokens are bytes and special strings.

A case says what its template makes of a chat in strings written by hand: what a model is given to
answer, and of the answer what the template puts first, the content, the end and what trails. `ids`
turns them into token ids without the tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<eos>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<think>",
    "</think>",
    "[INST]",
    "[/INST]",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|return|>",
    "[THINK]",
    "[/THINK]",
)
_SPLIT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
BYTES = len(SPECIAL)
"""The id of byte 0."""


def ids(text: str) -> tuple[int, ...]:
    """Token ids of text, special strings included."""
    found: list[int] = []
    for part in _SPLIT.split(text):
        found += [SPECIAL.index(part)] if part in SPECIAL else [BYTES + b for b in part.encode()]
    return tuple(found)


@cache
def _core() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    vocabulary = {s: n for n, s in enumerate(SPECIAL)}
    vocabulary |= {letters[b]: BYTES + b for b in range(256)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return core.to_str()


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(rest)) for b in range(256)]


def tokenizer(template: str | None, eos: str = "</s>", *, adds: str = "") -> Any:
    """A tokenizer with a chat template. `adds`: `bos`, `eos` or `bos eos` around every text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_core())
    if adds:
        around = f"{'<s> ' if 'bos' in adds else ''}$A{f' {eos}' if 'eos' in adds else ''}"
        core.post_processor = TemplateProcessing(
            single=around, special_tokens=[(s, SPECIAL.index(s)) for s in ("<s>", eos)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token="<pad>"
    )
    made.chat_template = template
    return made


@dataclass(frozen=True)
class Case:
    """A template, and what it makes of a chat.

    Attributes:
        chat: what is asked.
        answer: its answer's content.
        head: what a model is given to answer.
        first, content, end, trail: what is scored.
        same_as_trl: whether TRL's tokenisation is the same.
    """

    template: str
    head: str
    content: str = "Because."
    first: str = ""
    end: str = "</s>"
    trail: str = ""
    chat: tuple[dict[str, Any], ...] = ({"role": "user", "content": "Why?"},)
    answer: str = "Because."
    eos: str = "</s>"
    same_as_trl: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        """Made anew, so that a test may change it."""
        return tokenizer(self.template, self.eos)

    @property
    def reply(self) -> tuple[dict[str, Any], ...]:
        """The answer as a message."""
        return ({"role": "assistant", "content": self.answer},)

    @property
    def scored(self) -> str:
        """All that is scored."""
        return self.first + self.content + self.end + self.trail


def user(text: str) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    """A system message."""
    return {"role": "system", "content": text}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED = (  # the generation prompt opens a thinking part; answers lose theirs
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'system' %}{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
INSERTED = (  # an answer without reasoning gets an empty one, if it is the last
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1].lstrip() }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_LAST = (  # the system text stands before the last message, if that is a user's
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST]{% if system is defined and loop.last %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
REWRITTEN = (  # reasoning of earlier turns is kept once the chat ends with an answer
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if messages[-1].role == 'user' %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SYSTEM_DROPPED = (  # only while nothing is answered
    "{% for m in messages %}{% if m.role != 'system' or messages[-1].role == 'user' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_IGNORED = (
    "{% for m in messages %}{% if m.role != 'system' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
    " {{ eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}."
    "<|im_end|>\n" + CHATML
)
STRIPPED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
EOS_NEWLINE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OTHER_END = (  # the end of a turn, and the EOS behind the last one
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHANNELS = (  # the answer's header goes on behind the generation prompt, the end depends on the place
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}"
    "<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}" + CHATML
)
SETTING = (
    "{% if tone is defined %}<|im_start|>system\nTone: {{ tone }}<|im_end|>\n{% endif %}"
    + CHATML[: CHATML.rindex("{% endif %}")]
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
LONE_CLOSE = (  # the generation prompt is a lone closing tag, or opens a thinking part when asked to
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|></think>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
BRACKETS = (  # reasoning between tags of another name, out of a key of its own
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

ASKED = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
BRIEF = (system("Be brief."), user("Why?"))
LONGER = (user("Who?"), assistant("<think>hm</think>Me."), user("Why?"))

CASES: dict[str, Case] = {
    "chatml": Case(CHATML, ASKED, end="<|im_end|>", trail="\n", eos="<|im_end|>"),
    "chatml_system": Case(
        CHATML,
        "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED,
        end="<|im_end|>",
        trail="\n",
        chat=BRIEF,
    ),
    "thinking_opened": Case(OPENED, "<s><|user|>Why?<|assistant|><think>\n", same_as_trl=False),
    "thinking_opened_and_given": Case(
        OPENED,
        "<s><|user|>Why?<|assistant|><think>\n",
        content="hm\n</think>\n\nBecause.",
        answer="<think>\nhm\n</think>\n\nBecause.",
        same_as_trl=False,
    ),
    "thinking_inserted": Case(
        INSERTED, ASKED, first="<think>\n\n</think>\n\n", end="<|im_end|>", trail="\n"
    ),
    "thinking_given": Case(
        INSERTED,
        ASKED,
        content="<think>hm</think>Because.",
        answer="<think>hm</think>Because.",
        end="<|im_end|>",
        trail="\n",
    ),
    "earlier_thinking": Case(
        INSERTED,
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n" + ASKED,
        first="<think>\n\n</think>\n\n",
        end="<|im_end|>",
        trail="\n",
        chat=LONGER,
    ),
    "system_last": Case(
        SYSTEM_LAST, "<s>[INST]Be brief.\n\nWhy?[/INST]", chat=BRIEF, same_as_trl=False
    ),
    "history_rewritten": Case(
        REWRITTEN,
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n" + ASKED,
        end="<|im_end|>",
        trail="\n",
        chat=LONGER,
        same_as_trl=False,
    ),
    "system_folded": Case(
        NO_SYSTEM,
        "<s><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        end="<end_of_turn>",
        trail="\n",
        chat=BRIEF,
        eos="<eos>",
        same_as_trl=False,
        settings={"system_role": "fold"},
    ),
    "system_dropped": Case(
        SYSTEM_DROPPED,
        "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED,
        end="<|im_end|>",
        trail="\n",
        chat=BRIEF,
        same_as_trl=False,
    ),
    "between": Case(
        ALTERNATING, "<s>[INST] Why? [/INST]", first=" ", end=" </s>", content="Because."
    ),
    "date": Case(
        DATED,
        "<|im_start|>system\nToday is 01 Jan 2025, 2025-01-01.<|im_end|>\n" + ASKED,
        end="<|im_end|>",
        trail="\n",
        same_as_trl=False,
    ),
    "strips": Case(
        STRIPPED,
        "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        answer="  Because.\n",
        end="<|end|>",
        trail="\n",
    ),
    "keeps_blanks": Case(
        EOS_NEWLINE,
        "<|user|>\nWhy?</s>\n<|assistant|>\n",
        answer=" \nBecause.\n ",
        content=" \nBecause.\n ",
        trail="\n",
    ),
    "eos_newline": Case(EOS_NEWLINE, "<|user|>\nWhy?</s>\n<|assistant|>\n", trail="\n"),
    "other_end": Case(
        OTHER_END, "<|user|>\nWhy?<|end|>\n<|assistant|>\n", end="<|end|>", trail="\n</s>"
    ),
    "no_end": Case(NO_END, "<|user|>\nWhy?<|assistant|>\n", end=""),
    "channels": Case(
        CHANNELS,
        "<|start|>user<|message|>Why?<|end|><|start|>assistant",
        first="<|channel|>final<|message|>",
        end="<|return|>",
    ),
    "setting": Case(
        SETTING,
        "<|im_start|>system\nTone: dry<|im_end|>\n" + ASKED,
        end="<|im_end|>",
        trail="\n",
        settings={"template_kwargs": {"tone": "dry"}},
    ),
    "thinking_closed_by_the_prompt": Case(
        SETTING,
        ASKED + "<think>\n\n</think>\n\n",
        end="<|im_end|>",
        trail="\n",
        settings={"template_kwargs": {"enable_thinking": False}},
        same_as_trl=False,
    ),
    "lone_close": Case(LONE_CLOSE, "<s><|user|>Why?<|assistant|></think>"),
    "brackets": Case(BRACKETS, "<s>[INST]Why?[/INST]"),
}
"""By behaviour."""
