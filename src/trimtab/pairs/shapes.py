"""Shapes of preference data that people have, each read as rows of `prompt`, `chosen`, `rejected`.

A shape is known by its columns, whatever their case. A row with `chosen` and `rejected` (or `positive`
and `negative`) is in our own shape and stays as it is, but for a prompt under another name. What was
taken for what is one line of the source's notes. Answers to what somebody asked become chat messages;
`completion` and `answer_matching_behavior` are texts that go on where the prompt ends, as in TRL.

Columns, as published: OpenAI's preference files, the model-written evaluations (Perez et al. 2022;
`answer_matching_behavior`), UltraFeedback, Nectar, TRL's unpaired preferences (KTO), HelpSteer 1 to 3,
SHP, PKU-SafeRLHF, AlpacaFarm, Chatbot Arena, MMLU and ARC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .column_names import (
    ANSWERS,
    ENDS,
    LISTS,
    PAIRS,
    PROMPTS,
    RIGHT,
    SCORES,
    SIGNED,
    STEMS,
    THIRD,
    VERDICTS,
)
from .files import implicit_prompt, shown
from .said import chat_of, text_of_parts, turns_of
from .verdicts import better_of, index_of, mean_rating, number_of, truth_of

Row = dict[str, Any]


class Undecided(Exception):
    """A row that prefers neither answer; the text is what they are counted as."""


@dataclass
class Scored:
    """An answer with its score, to be paired with others to the same prompt."""

    row: Row
    where: str
    answer: Any
    score: float


@dataclass(frozen=True)
class Shape:
    """One shape: `needs` are its columns, of each the names that will do."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row, str], tuple[Row | list[Scored], str]] | None
    """A row (its columns are taken out) to a row of ours or to scored answers, and what was taken for
    what. None where `to_rows` knows what to do."""

    def lacks(self, row: Mapping[str, object]) -> list[str]:
        """The columns that are not there."""
        return [shortly(names) for names in self.needs if not any(n in row for n in names)]


def shortly(names: tuple[str, ...]) -> str:
    """A column's name, or the first few that will do."""
    return "/".join(names[:3])


def _ours(row: Row, where: str) -> tuple[Row, str]:
    """chosen and rejected, the prompt perhaps under another name."""
    said = []
    for name in ("chosen", "rejected"):
        row[name], note = chat_of(row[name], name, where)
        said += [note] if note else []
    if "prompt" not in row and (found := _prompt_column(row)):
        prompt, _ = chat_of(row[found], found, where)
        if not _held(prompt, row["chosen"], row["rejected"]):
            row["prompt"] = _prompt(row, where)
            said = [f"prompt is {found}", *said]
    elif "prompt" in row:
        row["prompt"], note = chat_of(row["prompt"], "prompt", where)
        said += [note] if note else []
    if isinstance(row.get("prompt"), list | tuple):  # as in `messages` beside two texts
        for name in ("chosen", "rejected"):
            if isinstance(row[name], str):
                row[name] = [{"role": "assistant", "content": row[name]}]
    return row, "; ".join(dict.fromkeys(said))


def _held(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Whether both answers begin with the prompt, so that it need not be said."""
    if all(isinstance(x, list | tuple) for x in (prompt, chosen, rejected)):
        return len(prompt) > 0 and list(prompt[:1]) == list(chosen[:1]) == list(rejected[:1])
    if not all(isinstance(x, str) for x in (prompt, chosen, rejected)):
        return False
    shared = str(implicit_prompt(chosen, rejected)[0])
    return bool(prompt.strip()) and prompt.strip() in shared and not shared.startswith(prompt)


def _other_names(row: Row, where: str) -> tuple[Row, str]:
    """The two answers under other names; OpenAI's files hold messages and tools in `input`."""
    better, worse = next(pair for pair in PAIRS if pair[0] in row and pair[1] in row)
    row["chosen"], row["rejected"] = row.pop(better), row.pop(worse)
    given = row.get("input")
    if better == "preferred_output" and isinstance(given, Mapping):
        row.pop("input")
        row["messages"] = given.get("messages")
        if given.get("tools"):
            row["tools"] = given["tools"]
    row, said = _ours(row, where)
    return row, "; ".join(filter(None, [f"chosen is {better}, rejected is {worse}", said]))


def _scored_list(row: Row, where: str) -> tuple[list[Scored], str]:
    """Several answers to one prompt in a list, with a score each."""
    named = [n for n in LISTS if n in row]
    name = next((n for n in named if isinstance(row[n], list | tuple)), None)
    if name is None:
        raise DataError(
            f"{where}: column {named[0]!r}: expected a list of answers, given {shown(row[named[0]])}"
        )
    entries, scores = list(row.pop(name)), None
    for other in ("scores", "ratings", "rewards", "ranks"):
        if other in row:
            scores = row.pop(other)
            sign = -1 if other == "ranks" else 1
            if not isinstance(scores, list | tuple) or len(scores) != len(entries):
                raise DataError(
                    f"{where}: column {other!r}: expected {len(entries)} numbers, one for each of "
                    f"{name!r}, given {shown(scores)}"
                )
            both = zip(entries, scores, strict=True)
            pairs = [(entry, sign * number_of(score, other, where)) for entry, score in both]
            used = other
            break
    else:
        pairs, used = [], ""
        for number, entry in enumerate(entries, 1):
            place = f"{where}: {name} {number}"
            if not isinstance(entry, Mapping):
                raise DataError(
                    f"{place}: expected an object with an answer and a score, given {shown(entry)}"
                )
            answer = next((n for n in ("messages", *ANSWERS) if n in entry), None)
            score = next((n for n in SCORES if entry.get(n) is not None), None)
            if answer is None or (score is None and "annotations" not in entry):
                raise DataError(
                    f"{place}: expected an answer ({', '.join(ANSWERS[:3])}) and a score "
                    f"({', '.join(SCORES[:3])}), given {', '.join(map(str, entry))}"
                )
            used = score or "the mean Rating of annotations"
            value = (
                mean_rating(entry["annotations"], place)
                if score is None
                else number_of(entry[score], score, place)
            )
            pairs.append((entry[answer], -value if score == "rank" else value))
    prompt = _prompt_column(row)
    row["prompt"] = as_messages(_prompt(row, where))
    scored = [Scored(row, where, as_answer(a, name, where), s) for a, s in pairs]
    if len(scored) < 2 or len({s.score for s in scored}) < 2:
        raise Undecided("prompts whose answers all have one score")
    order = "lowest first" if used in ("rank", "ranks") else "highest first"
    return scored, (
        f"prompt is {prompt}; the best of {name} by {used} ({order}) is chosen, against each worse one"
    )


def _unpaired(row: Row, where: str) -> tuple[list[Scored], str]:
    """One answer, good or bad."""
    label = "kto_tag" if "kto_tag" in row else "label"
    good = truth_of(row.pop(label), label, where)
    if "completion" not in row and not any(n in row for n in ANSWERS):
        row, answer, used = _last_turn(row, where)
    else:
        used = next(n for n in ANSWERS if n in row)
        answer = row.pop(used)
    said = f"{used} with {label} true is chosen, with false rejected, where a prompt has both"
    return _one(row, where, answer, used, float(good), said)


def _last_turn(row: Row, where: str) -> tuple[Row, Any, str]:
    """A chat whose last message is the answer."""
    name = next(n for n in ("messages", "conversations", "conversation") if n in row)
    turns, _ = chat_of(row.pop(name), name, where)
    if not isinstance(turns, list) or len(turns) < 2 or turns[-1].get("role") != "assistant":
        raise DataError(f"{where}: column {name!r}: expected a chat that ends with an answer")
    row["prompt"] = turns[:-1]
    return row, [turns[-1]], f"the last message of {name}"


def _scored(row: Row, where: str) -> tuple[list[Scored], str]:
    """One answer with a score."""
    used, by = (next(n for n in names if n in row) for names in (ANSWERS, SCORES))
    answer, score = row.pop(used), number_of(row.pop(by), by, where)
    best = "lowest" if by == "rank" else "highest"
    said = f"of each prompt's {used}s the one of the {best} {by} is chosen, against each worse one"
    return _one(row, where, answer, used, -score if by == "rank" else score, said)


def _one(
    row: Row, where: str, answer: Any, used: str, score: float, said: str
) -> tuple[list[Scored], str]:
    name = _prompt_column(row)
    prompt = _prompt(row, where)
    if used == "completion" and isinstance(prompt, str) and isinstance(answer, str):
        row["prompt"] = prompt  # as TRL has it: a text that goes on
    else:
        row["prompt"], answer = as_messages(prompt), as_answer(answer, used, where)
    return [Scored(row, where, answer, score)], (f"prompt is {name}; " if name else "") + said


def _two(row: Row, where: str) -> tuple[Row, str]:
    """Two answers and a column, or a score each, that says which is better."""
    first, second = _couple(row) or ("", "")
    stem = _stem(first)
    if more := [stem + end for end in THIRD.get(first.removeprefix(stem), ()) if stem + end in row]:
        raise DataError(
            f"{where}: columns {first!r}, {second!r} and {more[0]!r}: more than two answers; give two, "
            "or a list of them with scores"
        )
    answers = [row.pop(first), row.pop(second)]
    verdict = next((n for n in VERDICTS if row.get(n) is not None), None)
    ends = first.removeprefix(stem), second.removeprefix(stem)
    scores = f"score{ends[0]}", f"score{ends[1]}"
    if verdict is None and not all(s in row for s in scores):
        raise DataError(
            f"{where}: columns {first!r} and {second!r}: which is better is not said; expected a "
            f"column such as preference, label or winner, or {scores[0]} and {scores[1]}"
        )
    if verdict is not None:
        which = better_of(row.pop(verdict), verdict, first, second, where)
        said = f"{first} or {second} is chosen by {verdict}"
        if verdict in SIGNED:
            said += " (below 0: the first)"
        elif first == "human_ref_a":
            said += " (1: A, 0: B)"
    else:
        one, two = (number_of(row.pop(s), s, where) for s in scores)
        which = None if one == two else int(two > one)
        said = f"of {first} and {second} the one with the higher score is chosen"
    if which is None:
        raise Undecided("rows that prefer neither answer")
    name = _prompt_column(row)
    if name:
        row["prompt"] = as_messages(_prompt(row, where))
    elif all(isinstance(a, str) for a in answers):
        raise DataError(
            f"{where}: columns {first!r} and {second!r}: there is no prompt; expected one of "
            f"{', '.join(PROMPTS)}"
        )
    good, bad = (as_answer(answers[i], (first, second)[i], where) for i in (which, 1 - which))
    return {**row, "chosen": good, "rejected": bad}, (f"prompt is {name}; " if name else "") + said


def _choices(row: Row, where: str) -> tuple[list[Scored], str]:
    """A question with several choices, of which a letter, an index or the text itself is right."""
    name = next((n for n in ("choices", "options") if n in row), None)
    by = next(n for n in RIGHT if n in row)
    letters = [n for n in "abcde" if n in row]
    given: Any = row.pop(name) if name else {n.upper(): row.pop(n) for n in letters}
    right = row.pop(by)
    if isinstance(given, Mapping) and isinstance(given.get("text"), list | tuple):
        texts, labels = list(given["text"]), [str(v).strip() for v in given.get("label", ())]
    elif isinstance(given, Mapping):
        texts, labels = list(given.values()), [str(k).strip() for k in given]
    else:
        texts = list(given) if isinstance(given, list | tuple) else []
        labels = [chr(ord("A") + i) for i in range(len(texts))]
    if len(texts) < 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        raise DataError(
            f"{where}: column {name or ', '.join(letters)!r}: expected two or more texts, given "
            f"{shown(given)}"
        )
    index = index_of(right, texts, labels, by, where)
    question = _prompt(row, where)
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: expected a question as text, given {shown(question)}")
    row["prompt"] = f"Question: {question.strip()}\nAnswer:"
    said = (
        f"prompt is question; of {name or 'the lettered columns'} the one that {by} names is chosen"
    )
    return [
        Scored(row, where, " " + t.strip(), float(i == index)) for i, t in enumerate(texts)
    ], said


CALLED = {
    "preferred_output": "OpenAI's preferences",
    "answer_matching_behavior": "matching behaviour",
}
SHAPES: tuple[Shape, ...] = (
    Shape("preference pairs", (("chosen",), ("rejected",)), _ours),
    Shape("contrasts", (("positive",), ("negative",)), lambda row, _: (row, "")),
    *(
        Shape(CALLED.get(better, "pairs"), ((better,), (worse,)), _other_names)
        for better, worse in PAIRS
    ),
    Shape("multiple choice", (("question",), ("choices", "options"), RIGHT), _choices),
    Shape("lettered choices", (("question",), ("a",), ("b",), RIGHT), _choices),
    Shape("scored answers in a list", (PROMPTS, LISTS), _scored_list),
    *(
        Shape(f"two answers ({first}, {second})", ((first,), (second,)), _two)
        for stem in STEMS
        for first, second in ((stem + end for end in ends) for ends in ENDS)
    ),
    Shape("two answers (A, B)", (("a",), ("b",), VERDICTS), _two),
    Shape("KTO", (PROMPTS, ANSWERS, ("label", "kto_tag")), _unpaired),
    Shape("KTO in messages", (("messages", "conversations"), ("label", "kto_tag")), _unpaired),
    Shape("scored answers (HelpSteer)", (PROMPTS, ANSWERS, SCORES), _scored),
)
"""Every shape, in the order in which they are tried."""


# ---- values ---------------------------------------------------------------------------------------


def _prompt_column(row: Row) -> str | None:
    return next((n for n in PROMPTS if row.get(n) is not None), None)


def _prompt(row: Row, where: str) -> Any:
    """The prompt, taken out of the row: text or messages; of Alpaca's files the input goes with the
    instruction."""
    name = _prompt_column(row)
    if name is None:
        raise DataError(f"{where}: there is no prompt; expected one of {', '.join(PROMPTS)}")
    prompt, _ = chat_of(row.pop(name), name, where)
    extra = row.get("input")
    if name == "instruction" and isinstance(extra, str):
        row.pop("input")
        prompt = f"{prompt}\n{extra}" if extra.strip() else prompt
    return prompt


def as_messages(prompt: Any) -> Any:
    """What somebody asked, as chat messages: of a text with turns in it, the turns."""
    return turns_of(prompt) if isinstance(prompt, str) else prompt


def as_answer(value: Any, name: str, where: str) -> Any:
    """An answer as chat messages."""
    value, _ = chat_of(value, name, where)
    if isinstance(value, list | tuple):
        return list(value)
    text = text_of_parts(value)
    if not isinstance(text, str):
        raise DataError(
            f"{where}: column {name!r}: expected text or a list of chat messages, given "
            f"{shown(value)}"
        )
    return [{"role": "assistant", "content": text}]


def _couple(row: Row) -> tuple[str, str] | None:
    for stem in STEMS:
        for one, two in ENDS:
            if stem + one in row and stem + two in row:
                return stem + one, stem + two
    return ("a", "b") if "a" in row and "b" in row else None


def _stem(name: str) -> str:
    return next((s for s in STEMS if name.startswith(s)), "")
