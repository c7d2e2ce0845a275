"""Messages and texts as token ids: the one place where a chat template is run.

    prompt        what a model is given to answer, generation prompt included
    answer        [what the template puts first] content | end | what trails

Scored is the whole answer, as in TRL; pooled is the content; the marker is the end. The spans are
found by rendering other contents through the template (`template.py`), there is no table of models.
"""

from trimtab.rendering.answers import Written, write
from trimtab.rendering.begin import begin_answer
from trimtab.rendering.probes import Tags
from trimtab.rendering.settings import PINNED, USUAL, PromptStyle, Rendering
from trimtab.rendering.template import Message, Template, record_of, template_of
from trimtab.rendering.tokens import (
    Ids,
    Rendered,
    RenderedText,
    Turn,
    by_eos,
    common_length,
    end_ids,
    head_text,
    ids_of,
    lead_ids,
    messages_of,
    plain_ids,
    prompt_ids,
    render_answer,
)

__all__ = [
    "PINNED",
    "USUAL",
    "Ids",
    "Message",
    "PromptStyle",
    "Rendered",
    "RenderedText",
    "Rendering",
    "Tags",
    "Template",
    "Turn",
    "Written",
    "begin_answer",
    "by_eos",
    "common_length",
    "end_ids",
    "head_text",
    "ids_of",
    "lead_ids",
    "messages_of",
    "plain_ids",
    "prompt_ids",
    "record_of",
    "render_answer",
    "template_of",
    "write",
]
