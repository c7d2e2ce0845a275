"""The one renderer against strings written by hand, template by template (see `templates.py`), and
against TRL's own tokenisation where that is right."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import torch

from templates import (
    ALTERNATING,
    ASKED,
    BRACKETS,
    BRIEF,
    CASES,
    CHANNELS,
    CHATML,
    DATED,
    INSERTED,
    LONE_CLOSE,
    LONGER,
    NO_SYSTEM,
    OPENED,
    OTHER_END,
    REWRITTEN,
    STRIPPED,
    SYSTEM_DROPPED,
    SYSTEM_IGNORED,
    SYSTEM_LAST,
    TOOLS,
    Case,
    assistant,
    ids,
    system,
    tokenizer,
    user,
)
from trimtab.batching import (
    answer_spans,
    collate,
    encode,
    encode_answers,
    encode_contrast,
    make_contrast,
)
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.pairs import Pair, PairSet
from trimtab.rendering import (
    Rendering,
    end_ids,
    plain_ids,
    prompt_ids,
    record_of,
    render_answer,
)

NO, YES = (assistant("No."),), (assistant("Because."),)


def pairs_of(*pairs: tuple[Any, Any, Any], **more: Any) -> PairSet:
    """Pairs by prompt, chosen and rejected, an item each."""
    return PairSet(
        [
            Pair(p, c, r, str(n), source=f"f.jsonl:{n + 1}", **more)
            for n, (p, c, r) in enumerate(pairs)
        ],
        "f",
    )


def scored_text(encoded: Any, made: Any) -> list[str]:
    """What is scored of each answer, as text, from the batch that a model would get."""
    batch = collate(encoded, range(len(encoded.rows)))
    return [
        made.decode(batch.token_id[batch.token_scored & (batch.token_answer == a)])
        for a in range(batch.n_answers)
    ]


# ---- every template ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_template_by_hand(name: str) -> None:
    """Prompt, what the template puts first, content, end and trailing part are the strings that were
    written by hand."""
    case = CASES[name]
    made, rendering = case.tokenizer, Rendering(**case.settings)
    found = render_answer(case.chat, case.reply, made, "chat", rendering=rendering)
    assert found.prompt == ids(case.head)
    assert found.ids == ids(case.head + case.scored)
    (turn,) = found.turns
    assert found.ids[turn.start : turn.content] == ids(case.first)
    assert found.ids[turn.content : turn.end] == ids(case.content)
    assert found.ids[turn.end : turn.trail] == ids(case.end)
    assert found.ids[turn.trail : turn.stop] == ids(case.trail)
    assert turn.stop == len(found.ids)


@pytest.mark.parametrize("name", CASES)
def test_pairs_through_a_template(name: str) -> None:
    """Of a pair of answers the batch scores, pools and marks what was written by hand, and what
    generates is given the prompt of the row."""
    case = CASES[name]
    made, rendering = case.tokenizer, Rendering(**case.settings)
    pairs = pairs_of((case.chat, case.reply, NO))
    encoded = encode(pairs, made, rendering=rendering)
    (row,) = encoded.rows
    assert row.prompt == ids(case.head) == prompt_ids(case.chat, made, rendering=rendering)
    batch = collate(encoded, [0])
    mine = batch.token_answer == 0
    for mask, text in (
        (batch.token_scored, case.scored),
        (batch.token_body, case.content),
        (batch.token_marker, ids(case.end)[-1:]),
    ):
        wanted = ids(text) if isinstance(text, str) else text
        assert tuple(batch.token_id[mask & mine].tolist()) == wanted
    spans = answer_spans(encoded)
    read = row.answers[0][spans.start[0] : spans.end[0]]
    assert read == ids(case.content + case.end)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.same_as_trl])
def test_trl_scores_the_same(name: str) -> None:
    """TRL's own functions give these very ids, where its prompt is the one of inference."""
    from trl.data_utils import _tokenize, common_prefix_length

    case = CASES[name]
    made, kwargs = case.tokenizer, Rendering(**case.settings).kwargs
    prompt = _tokenize(made, list(case.chat), add_generation_prompt=True, **kwargs)["input_ids"]
    chosen, rejected = (
        _tokenize(made, [*case.chat, *reply], **kwargs)["input_ids"] for reply in (case.reply, NO)
    )
    start = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    encoded = encode(
        pairs_of((case.chat, case.reply, NO)), made, rendering=Rendering(**case.settings)
    )
    (row,) = encoded.rows
    assert list(row.prompt) == prompt[:start]
    assert [list(a) for a in row.answers] == [chosen[start:], rejected[start:]]
    batch = collate(encoded, [0])
    assert batch.token_scored.all()


@pytest.mark.parametrize("name", CASES)
def test_the_end_is_where_generation_stops(name: str) -> None:
    case = CASES[name]
    rendering = Rendering(**case.settings)
    mark = ids(case.end)[-1:]
    assert end_ids(case.tokenizer, rendering) == mark
    assert case.end or not mark


@pytest.mark.parametrize("name", CASES)
def test_poles_stand_where_the_answer_begins(name: str) -> None:
    """A contrast's poles are the prompt of inference and the suffix; only an answer's header that the
    generation prompt leaves open is completed."""
    case = CASES[name]
    made, rendering = case.tokenizer, Rendering(**case.settings)
    poles = [((*case.chat[:-1], user(f"{who} {case.chat[-1]['content']}")), who) for who in "AB"]
    chosen, rejected = ((*chat, assistant("It is so")) for chat, _ in poles)
    found = encode_contrast(
        pairs_of(("", chosen, rejected)), made, stops="last", rendering=rendering
    )
    header = case.first if name == "channels" else ""
    at = case.head.rindex("Why?")
    assert [found.ids(p) for p in (*found.chosen, *found.rejected)] == [
        ids(f"{case.head[:at]}{who} {case.head[at:]}{header}It is so") for who in "AB"
    ]


# ---- B1: the same tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "chosen", "rejected"),
    [
        (STRIPPED, "Because.\n", "Because."),
        (STRIPPED, "  Because.", "Because."),
        (STRIPPED, "Because.\r\n\t", "\nBecause. "),
        (STRIPPED, "Because.", assistant("Because.", reasoning_content="I wonder.")),
        (CHATML, assistant("Because.", reasoning_content="one"), "Because."),
        (INSERTED, assistant("Because.", reasoning_content=""), "Because."),
    ],
)
def test_pairs_of_the_same_tokens_are_dropped(template: str, chosen: Any, rejected: Any) -> None:
    made = tokenizer(template)
    chosen, rejected = ((m if isinstance(m, dict) else assistant(m),) for m in (chosen, rejected))
    asked = (user("Why?"),)
    encoded = encode(pairs_of((asked, chosen, rejected), (asked, YES, NO)), made)
    assert (encoded.identical_pairs, encoded.n_pairs, encoded.dropped_pairs) == (1, 1, 0)
    assert [row.pair_ids for row in encoded.rows] == [(1,)]
    with pytest.raises(DataError, match=r"f: in all 1 pairs both answers are the same tokens"):
        encode(pairs_of((asked, chosen, rejected)), made)


def test_answers_of_the_same_tokens_are_one_answer_of_a_row() -> None:
    """In one item: the third answer is the first again, once the template has stripped it."""
    made = tokenizer(STRIPPED)
    asked = (user("Why?"),)
    texts = ["Because.", "No.", "Because. "]
    pairs = PairSet(
        [
            Pair(asked, (assistant(texts[c]),), (assistant(texts[r]),), "i")
            for c, r in ((0, 1), (2, 1), (0, 2))
        ],
        "one item",
    )
    encoded = encode(pairs, made)
    (row,) = encoded.rows
    assert row.pairs == ((0, 1), (0, 1))
    assert encoded.identical_pairs == 1
    assert len(row.answers) == 2


def test_candidates_of_the_same_tokens_keep_their_places() -> None:
    encoded = encode_answers(
        "Why?", ["Because.", "No.", "Because. "], tokenizer(STRIPPED), prompt_style="chat"
    )
    assert [len(a) for a in encoded.rows[0].answers] == [10, 5, 10]


def test_poles_of_the_same_tokens_are_dropped() -> None:
    made = tokenizer(STRIPPED)
    same = ((user("Why?"), assistant("So")), (user("Why? "), assistant("So")))
    apart = ((user("Why?"), assistant("So")), (user("Who?"), assistant("So")))
    found = encode_contrast(pairs_of(("", *same), ("", *apart)), made, stops="last")
    assert (found.identical_pairs, found.n_pairs) == (1, 1)
    with pytest.raises(DataError, match="both poles are the same tokens"):
        encode_contrast(pairs_of(("", *same)), made)


# ---- B2, B3: what is scored is the answer, behind the prompt of inference ---------------------------


@pytest.mark.parametrize("template", [SYSTEM_LAST, SYSTEM_DROPPED, REWRITTEN])
@pytest.mark.parametrize(
    "chat",
    [
        (system("Be brief."), user("Why?")),
        (user("Who?"), assistant("<think>hm</think>Me."), user("Why?")),
        (system("Be brief."), *LONGER),
    ],
)
def test_the_question_is_never_scored(template: str, chat: Any) -> None:
    made = tokenizer(template)
    encoded = encode(pairs_of((chat, YES, NO)), made)
    assert encoded.rows[0].prompt == prompt_ids(chat, made)
    end = "</s>" if template == SYSTEM_LAST else "<|im_end|>\n"
    assert scored_text(encoded, made) == [f"Because.{end}", f"No.{end}"]
    if chat[0]["role"] == "system":
        assert "Be brief." in made.decode(encoded.rows[0].prompt)


def test_a_persona_acts_in_both_renderings() -> None:
    """B3: with such a template two personas gave the very same scored rows."""
    made = tokenizer(SYSTEM_LAST)
    rows = [
        encode(pairs_of(((system(f"You are {who}."), user("Why?")), YES, NO)), made).rows[0]
        for who in ("kind", "cruel")
    ]
    assert rows[0].prompt != rows[1].prompt
    assert rows[0].answers == rows[1].answers
    assert rows[0].prompt == prompt_ids((system("You are kind."), user("Why?")), made)


def test_reasoning_of_the_answer_is_kept_where_the_template_cuts_it() -> None:
    """DeepSeek-R1's templates drop what stands before </think> in every answer: it is the answer."""
    made = tokenizer(OPENED.replace("<think>\n{% endif %}", "{% endif %}"))
    answer = "<think>hm</think>Because."
    found = render_answer((user("Why?"),), (assistant(answer),), made, "chat")
    assert found.prompt == ids("<s><|user|>Why?<|assistant|>")
    assert found.ids == ids(f"<s><|user|>Why?<|assistant|>{answer}</s>")


def test_reasoning_beside_an_answer_is_rendered_as_the_model_would_write_it() -> None:
    """The generation prompt opens the thinking part, the whole rendering writes it otherwise."""
    template = BRACKETS.replace(
        "{% endfor %}", "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}[THINK]{% endif %}"
    )
    chat = (assistant("Because.", reasoning_content="hm"),)
    found = render_answer((user("Why?"),), chat, tokenizer(template), "chat")
    assert found.prompt == ids("<s>[INST]Why?[/INST]\n[THINK]")
    assert found.ids == ids("<s>[INST]Why?[/INST]\n[THINK]hm[/THINK]Because.</s>")
    (turn,) = found.turns
    assert found.ids[turn.content : turn.end] == ids("Because.")


def test_a_long_answer_behind_a_rewritten_prompt() -> None:
    """An answer of several turns keeps them all."""
    made = tokenizer(SYSTEM_LAST)
    reply = (assistant("Ask."), user("What?"), assistant("That."))
    found = render_answer((system("Be brief."), user("Why?")), reply, made, "chat")
    assert found.ids == ids("<s>[INST]Be brief.\n\nWhy?[/INST]Ask.</s>[INST]What?[/INST]That.</s>")


# ---- B5: the end of an answer ------------------------------------------------------------------


def test_readings_do_not_depend_on_the_eos() -> None:
    """The end is the template's; a tokenizer with another EOS gives the same body and marker."""
    for eos in ("<|end|>", "</s>", "<pad>"):
        encoded = encode(pairs_of(((user("Why?"),), YES, NO)), tokenizer(STRIPPED, eos))
        batch = collate(encoded, [0])
        assert tuple(batch.token_id[batch.token_marker].tolist()) == ids("<|end|>") * 2
        assert answer_spans(encoded, "last_turn").end.tolist() == [9, 4]


def test_a_mark_within_an_answer_does_not_end_it() -> None:
    encoded = encode(pairs_of(((user("Why?"),), (assistant("A</s>B"),), NO)), tokenizer(OTHER_END))
    batch = collate(encoded, [0])
    body = batch.token_id[batch.token_body & (batch.token_answer == 0)]
    assert tuple(body.tolist()) == ids("A</s>B")


def test_digests_tell_ends_apart() -> None:
    """The same ids with other spans are read otherwise: stored readings must not be shared."""
    pairs = pairs_of(((user("Why?"),), YES, NO))
    one = encode(pairs, tokenizer(STRIPPED, "<|end|>"))
    other = encode(pairs, tokenizer(STRIPPED.replace("<|end|>", "{{ '<|end|>' }}"), "</s>"))
    assert one.rows[0].answers == other.rows[0].answers
    assert one.rows[0].turns == other.rows[0].turns


# ---- B6: the date ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        DATED,
        "{% macro head() %}{{ strftime_now('%B %-d, %Y') }}{% endmacro %}{{ head() }}" + CHATML,
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
        "{% endif %}{% endif %}Today: {{ date_string }}\n" + CHATML,
        "\n  {% set day = strftime_now('%A') %}{{ day | upper }} {{ strftime_now('%j') | int }}"
        + CHATML,
    ],
)
def test_another_day_gives_the_same_bytes(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    class Day(datetime):
        """A clock that can be set."""

        at = datetime(2031, 5, 17)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return cls.at

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    pairs = pairs_of(((user("Why?"),), YES, NO))
    digests = set()
    for day in (datetime(2031, 5, 17), datetime(2032, 6, 8)):
        Day.at = day
        digests.add(encode(pairs, tokenizer(template)).digest)
    assert len(digests) == 1
    # What a template makes of the pinned day is what it would have made on that day.
    Day.at = datetime(2025, 1, 1)
    made = tokenizer(template)
    true = made.apply_chat_template([user("Why?")], add_generation_prompt=True, tokenize=False)
    assert prompt_ids("Why?", made, "chat") == ids(true)
    Day.at = datetime(1999, 12, 31)
    true = made.apply_chat_template([user("Why?")], add_generation_prompt=True, tokenize=False)
    assert prompt_ids("Why?", made, "chat", rendering=Rendering(date="1999-12-31")) == ids(true)


def test_the_date_is_recorded_where_it_is_told() -> None:
    assert record_of(tokenizer(DATED), Rendering()) == {"date": "2025-01-01"}
    assert record_of(tokenizer(CHATML), Rendering()) == {}
    assert record_of(tokenizer(CHATML), Rendering(date="2024-02-29"))["date"] == "2024-02-29"
    today = Rendering(date="today").date
    assert datetime.fromisoformat(today)
    with pytest.raises(ConfigError, match="expected one like 2025-01-01"):
        Rendering(date="01/02/2025")


# ---- B7: tools and variables act row by row ----------------------------------------------------------


def test_tools_and_variables_of_a_row() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    made, asked = tokenizer(TOOLS), (user("Why?"),)
    pairs = PairSet(
        [Pair(asked, YES, NO, "i"), Pair(asked, YES, NO, "i", tools=tools)], "two settings"
    )
    plain, tooled = encode(pairs, made).rows
    assert plain.prompt == ids(ASKED)
    text = made.apply_chat_template(asked, tools=tools, add_generation_prompt=True, tokenize=False)
    assert tooled.prompt == ids(text)
    assert '"look"' in text
    made = tokenizer(CASES["setting"].template)
    pairs = PairSet(
        [Pair(asked, YES, NO, "i", chat_template_kwargs={"tone": tone}) for tone in ("dry", "wet")],
        "tones",
    )
    dry, wet = encode(pairs, made, rendering=Rendering(template_kwargs={"tone": "none"})).rows
    assert dry.prompt == ids("<|im_start|>system\nTone: dry<|im_end|>\n" + ASKED)
    assert wet.prompt == ids("<|im_start|>system\nTone: wet<|im_end|>\n" + ASKED)


def test_a_system_column_goes_before_the_messages() -> None:
    made = tokenizer(CHATML)
    row = encode(pairs_of(((user("Why?"),), YES, NO), system="Be brief."), made).rows[0]
    assert row.prompt == ids("<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED)
    plain = encode(pairs_of(("Why?", "So.", "No.")), tokenizer(None)).rows[0]
    led = encode(pairs_of(("Why?", "So.", "No."), system="Be brief."), tokenizer(None)).rows[0]
    assert led.prompt == ids("Be brief.\n\n") + plain.prompt


# ---- B8: nothing of the template is scored --------------------------------------------------------


@pytest.mark.parametrize(
    "template", [CHATML, NO_SYSTEM, ALTERNATING, CHANNELS, "Hello there! " + CHATML]
)
def test_an_empty_prompt(template: str) -> None:
    """What the template puts before an answer is the prompt."""
    made = tokenizer(template)
    whole = made.apply_chat_template([user("x"), *YES], tokenize=False)
    try:
        made.apply_chat_template(list(YES), tokenize=False)
    except Exception:
        with pytest.raises(ModelError, match=r"f\.jsonl:1: the chat template does not take"):
            encode(pairs_of(((), YES, NO)), made)
        return
    encoded = encode(pairs_of(((), YES, NO)), made)
    assert encoded.rows[0].prompt
    end = whole[whole.index("Because.") :]
    assert scored_text(encoded, made)[0] == end


def test_a_dialogue_without_a_prompt_scores_the_assistant_alone() -> None:
    made = tokenizer(CHATML)
    pairs = pairs_of(((), (user("Why?"), *YES), (user("Who?"), *YES)))
    encoded = encode(pairs, made)
    assert scored_text(encoded, made) == ["Because.<|im_end|>\n"] * 2
    assert encoded.rows[0].prompt == ids("<|im_start|>user\nWh")


def test_a_system_message_alone_before_dialogues() -> None:
    made = tokenizer(CHATML)
    pairs = pairs_of(((system("Be brief."),), (user("Why?"), *YES), (user("Who?"), *NO)))
    encoded = encode(pairs, made)
    assert scored_text(encoded, made) == ["Because.<|im_end|>\n", "No.<|im_end|>\n"]


def test_a_system_message_alone_before_answers() -> None:
    made = tokenizer(CHATML)
    encoded = encode(pairs_of(((system("Be brief."),), YES, NO)), made)
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n"
    assert encoded.rows[0].prompt == ids(head)


# ---- B9: a template's exception ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "chat", "remedy"),
    [
        (NO_SYSTEM, (system("Be brief."), user("Why?")), "--system-role fold"),
        (ALTERNATING, (user("Why?"), user("Why not?")), "join messages of one role"),
        (ALTERNATING, (system("Be brief."), user("Why?")), "--system-role fold"),
        (ALTERNATING, (assistant("Ask."), user("Why?")), "change the roles"),
        ("{{ raise_exception('tools only') }}" + CHATML, (user("Why?"),), "plain text"),
        ("{{ messages[0].content.missing.more }}" + CHATML, (user("Why?"),), "plain text"),
    ],
)
def test_what_a_template_refuses_names_file_and_line(template: str, chat: Any, remedy: str) -> None:
    made = tokenizer(template)
    with pytest.raises(
        ModelError, match=rf"f\.jsonl:1: the chat template does not take .*{remedy}"
    ):
        encode(pairs_of((chat, YES, NO)), made)
    with pytest.raises(ModelError, match=remedy):
        prompt_ids(chat, made, where="p.txt:3")
    poles = ((*chat, assistant("So")), (*chat, assistant("No")))
    with pytest.raises(ModelError, match=rf"f\.jsonl:1: .*{remedy}"):
        encode_contrast(pairs_of(("", *poles)), made)


@pytest.mark.parametrize(
    ("template", "message"),
    [(SYSTEM_IGNORED, "leaves out or alters message 1 .system: 'Be brief.'.; --system-role fold")],
)
def test_a_message_that_is_left_out(template: str, message: str) -> None:
    made = tokenizer(template)
    with pytest.raises(DataError, match=rf"f\.jsonl:1: the chat template {message}"):
        encode(pairs_of(((system("Be brief."), user("Why?")), YES, NO)), made)
    with pytest.raises(DataError, match=message):
        prompt_ids((system("Be brief."), user("Why?")), made)
    folded = Rendering(system_role="fold")
    found = encode(pairs_of(((system("Be brief."), user("Why?")), YES, NO)), made, rendering=folded)
    assert found.rows[0].prompt == ids(ASKED.replace("Why?", "Be brief.\n\nWhy?"))
    assert any("folded" in note for note in found.notes)


def test_a_user_message_that_is_left_out() -> None:
    """One that forgets all but the last two messages."""
    forgetful = CHATML.replace("in messages %}", "in messages[-2:] %}")
    with pytest.raises(
        DataError, match=r"f\.jsonl:1: .* leaves out or alters message 1 \(user: 'Who\?'\)"
    ):
        encode(pairs_of((LONGER, YES, NO)), tokenizer(forgetful))


def test_folding_acts_only_where_it_is_needed() -> None:
    chat = (system("Be brief."), user("Why?"))
    made = tokenizer(CHATML)
    assert prompt_ids(chat, made, rendering=Rendering(system_role="fold")) == prompt_ids(chat, made)
    with pytest.raises(DataError, match="no user message to fold it into"):
        prompt_ids(chat[:1], tokenizer(NO_SYSTEM), rendering=Rendering(system_role="fold"))


# ---- B10: one BOS, one EOS --------------------------------------------------------------------


@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos eos"])
def test_one_bos_and_one_eos_around_plain_text(adds: str) -> None:
    made = tokenizer(CHATML, adds=adds)
    bos = ids("<s>") if "bos" in adds else ()
    for prompt, answer in (
        ("Why?", "So."),
        ("<s>Why?", "So."),
        ("Why?", "So.</s>"),
        ("<s>[INST]Why?[/INST]", "So."),
    ):
        start = () if prompt.startswith("<s>") else bos
        assert prompt_ids(prompt, made, "plain") == start + ids(prompt)
        found = render_answer(prompt, answer, made)
        assert found.ids == start + ids(prompt + "So.</s>")
        (turn,) = found.turns
        assert found.ids[turn.content : turn.end] == ids("So.")
        assert turn.marker == len(found.ids) - 1
    assert plain_ids("Why?</s>", made) == bos + ids("Why?</s>")


@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos eos"])
@pytest.mark.parametrize("template", [CHATML, SYSTEM_LAST, CHANNELS, "### " + CHATML])
def test_rendered_chats_get_no_special_tokens_but_their_own(template: str, adds: str) -> None:
    """Also as text: repeng's data set and ours of the same personas are the same tokens."""
    from trimtab.compat.repeng import make_dataset

    made, bare = tokenizer(template, adds=adds), tokenizer(template)
    assert prompt_ids("Why?", made, "chat") == prompt_ids("Why?", bare, "chat")
    chat = ((user("Why?"),), YES, NO)
    assert encode(pairs_of(chat), made).digest == encode(pairs_of(chat), bare).digest
    given = ("Be {persona}.", ["kind"], ["cruel"], ["It is so", "\nWell"])
    ours = make_contrast(*given, made, stops="last")
    entries = make_dataset(*given, made)
    texts = encode_contrast(pairs_of(*(("", e.positive, e.negative) for e in entries)), made)
    assert [texts.ids(p) for p in texts.chosen] == [ours.ids(p) for p in ours.chosen]
    assert [texts.ids(p) for p in texts.rejected] == [ours.ids(p) for p in ours.rejected]


# ---- B12: turns -----------------------------------------------------------------------------------


def test_turns_of_others_within_an_answer_are_not_scored() -> None:
    made = tokenizer(CHATML)
    reply = (assistant("Ask."), user("What?"), assistant("That."))
    encoded = encode(pairs_of(((user("Why?"),), reply, NO)), made)
    assert scored_text(encoded, made)[0] == "Ask.<|im_end|>That.<|im_end|>\n"
    batch = collate(encoded, [0])
    mine = batch.token_answer == 0
    assert made.decode(batch.token_id[batch.token_body & mine]) == "Ask.That."
    assert batch.token_marker[mine].sum() == 1
    last = answer_spans(encoded, "last_turn")
    assert encoded.rows[0].answers[0][last.start[0] : last.end[0]] == ids("That.<|im_end|>")


def test_a_tool_within_an_answer_is_not_scored() -> None:
    made = tokenizer(CHATML)
    reply = (assistant("Look."), {"role": "tool", "content": "42"}, assistant("It is 42."))
    encoded = encode(pairs_of(((user("Why?"),), reply, NO)), made)
    assert scored_text(encoded, made)[0] == "Look.<|im_end|>It is 42.<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, STRIPPED, OTHER_END])
def test_an_answer_of_another_role(template: str) -> None:
    """The role's name is the template's, not the answer's."""
    made = tokenizer(template)
    encoded = encode(pairs_of(((user("Why?"), *YES), (user("Go on."),), (user("Stop."),))), made)
    found = scored_text(encoded, made)
    assert [text[:5] for text in found] == ["Go on", "Stop."]
    assert made.decode(encoded.rows[0].prompt).endswith(
        "user\n" if template == CHATML else "<|user|>\n"
    )


def test_a_prompt_that_the_answers_repeat() -> None:
    made = tokenizer(CHATML)
    asked = (user("Why?"),)
    repeated = encode(pairs_of((asked, (*asked, *YES), (*asked, *NO))), made)
    assert repeated.rows == encode(pairs_of((asked, YES, NO)), made).rows
    assert any("repeated" in note for note in repeated.notes)


# ---- B13: where a suffix stands in the answer of a reasoning model -------------------------------------


@pytest.mark.parametrize(
    ("template", "kwargs", "thinking", "text"),
    [
        (BRACKETS, {}, "inside", "[/INST][THINK]So"),
        (BRACKETS, {}, "after", "[/INST][THINK][/THINK]So"),
        (INSERTED, {}, "inside", "assistant\n<think>\nSo"),
        (INSERTED, {}, "after", "assistant\n<think>\n\n</think>\n\nSo"),
        (OPENED, {}, "inside", "<|assistant|><think>\nSo"),
        (OPENED, {}, "after", "<|assistant|><think>\n\n</think>\n\nSo"),
        (LONE_CLOSE, {}, "after", "<|assistant|></think>So"),
        (LONE_CLOSE, {}, "template", "<|assistant|></think>So"),
        (LONE_CLOSE, {"thinking": True}, "inside", "<|assistant|><think>So"),
        (LONE_CLOSE, {"thinking": True}, "after", "<|assistant|><think>\n</think>\n\nSo"),
        (CHANNELS, {}, "inside", "assistant<|channel|>analysis<|message|>So"),
        (CHANNELS, {}, "after", "assistant<|channel|>final<|message|>So"),
    ],
)
def test_thinking_by_the_templates_own_tags(
    template: str, kwargs: dict[str, Any], thinking: Any, text: str
) -> None:
    made = tokenizer(template)
    found = make_contrast(
        "{persona}?",
        ["Why"],
        ["Who"],
        ["So"],
        made,
        stops="last",
        thinking=thinking,
        rendering=Rendering(template_kwargs=kwargs),
    )
    tail = ids(text)
    assert found.ids(found.chosen[0])[-len(tail) :] == tail


@pytest.mark.parametrize(
    ("template", "message"),
    [(LONE_CLOSE, "closes the thinking part"), (STRIPPED, "has no <think>")],
)
def test_thinking_that_is_not_to_be_had(template: str, message: str) -> None:
    made = tokenizer(template)
    if template == STRIPPED:  # nor does the vocabulary know it
        made.get_vocab = lambda: {}
    with pytest.raises(ConfigError, match=message):
        make_contrast("{persona}?", ["a"], ["b"], ["So"], made, thinking="inside")


# ---- a tokenizer that merges -------------------------------------------------------------------


def test_chatml_of_a_tokenizer_with_merges_is_as_it_was(tokenizer: Any) -> None:
    """Prompt and answers are those of the tokenizer's own rendering."""
    chat = (user("Is the sky blue?"),)
    encoded = encode(pairs_of((chat, (assistant("Yes, the sky is blue."),), NO)), tokenizer)
    own = [
        tokenizer.apply_chat_template([*chat, *reply], tokenize=True, return_dict=False)
        for reply in ((assistant("Yes, the sky is blue."),), NO)
    ]
    (row,) = encoded.rows
    assert [[*row.prompt, *answer] for answer in row.answers] == own
    batch = collate(encoded, [0])
    assert tokenizer.decode(batch.token_id[batch.token_body & (batch.token_answer == 0)]) == (
        "Yes, the sky is blue."
    )


def test_without_offsets() -> None:
    """A tokenizer that cannot say where its tokens stand gives the same spans."""

    class Slow:
        """As ours, without offsets."""

        is_fast = False

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, text: str, **kwargs: Any) -> Any:
            assert "return_offsets_mapping" not in kwargs
            return self.inner(text, **kwargs)

    for name in ("chatml", "between", "channels", "keeps_blanks", "system_last"):
        case: Case = CASES[name]
        fast = render_answer(case.chat, case.reply, case.tokenizer, "chat")
        assert render_answer(case.chat, case.reply, Slow(case.tokenizer), "chat") == fast


def test_the_relative_floor_of_directions() -> None:
    """B1: a difference that is rounding, relative to the states, is refused by every estimator."""
    from trimtab.training import METHODS
    from trimtab.training.closed_form import from_gradients, from_states

    g = torch.Generator().manual_seed(0)
    h = 30 * torch.randn(12, 16, generator=g)
    noise = 1e-5 * torch.randn(12, 16, generator=g)
    for name in ("mean", "pca", "pca_center", "logistic"):
        recipe: Any = METHODS[name].recipe
        with pytest.raises(ValueError, match="zero within rounding"):
            from_states(recipe, h + noise, h)
        assert from_states(recipe, h + 1000 * noise, h).norm() == pytest.approx(1)
    for name in ("gradient_mean", "gradient_svd", "fisher"):
        recipe = METHODS[name].recipe
        with pytest.raises(ValueError, match="zero within rounding"):
            from_gradients(recipe, h + noise, h)
        assert from_gradients(recipe, h + 1000 * noise, h).norm() == pytest.approx(1)
    with pytest.raises(ValueError, match="mean difference is zero within rounding"):
        from_states(METHODS["mean"].recipe, torch.cat([h, -h]), torch.cat([-h, h]) * (1 + 1e-7))


# ---- for the eye ---------------------------------------------------------------------------------


def test_a_pair_is_shown_in_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from trimtab.rendering.show import rendered_pair

    reply = (assistant("Ask\x1b[31m."), user("What?"), assistant("That."))
    (pair,) = pairs_of((BRIEF, reply, NO))
    Console(width=100).print(rendered_pair(pair, tokenizer(INSERTED), "plain"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if len(line) > 2 and line[1].isdigit()] == [
        *("prompt", "content", "end", "first", "content", "end", "trailing"),
        *("first", "content", "end", "trailing"),
    ]
    text = " ".join(word for line in lines for word in line)
    assert "content 9 Ask\\u001b[31m." in text
    assert "\x1b" not in text


def test_inspect_shows_a_rendered_pair(tmp_path: Any, capsys: Any, saved_model: Any) -> None:
    import json

    from trimtab.cli import main

    rows = [{"prompt": list(BRIEF), "chosen": list(YES), "rejected": list(NO)}]
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]) + "\n")
    folder = saved_model()
    with pytest.raises(SystemExit) as stop:
        main(["inspect", f"jsonl:{tmp_path / 'p.jsonl'}", "--model", str(folder)])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "is given it (chat)" in " ".join(said.split())
    assert "content" in said
    assert "<|im_end|>" in said


def test_what_a_terminal_is_given() -> None:
    from trimtab.terminal import visible

    given = "a\x1b[2Jb\x9b1mc\x07\u202ed\u2066e\r\x7f\x00\nf\tg\u200dh ü"
    shown = "a\\u001b[2Jb\\u009b1mc\\u0007\\u202ed\\u2066e\\u000d\\u007f\\u0000\nf\tg\u200dh ü"
    assert visible(given) == shown
