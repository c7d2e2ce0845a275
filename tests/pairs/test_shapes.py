"""Preference data in the shapes that people have: what is read, what is said of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import DataError
from trimtab.pairs import PairSet, read_pairs

U, A = "user", "assistant"


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def contents(pairs: PairSet) -> list[list[Any]]:
    """Prompt, chosen, rejected of each pair: texts, and of chats `role: content`."""

    def flat(text: Any) -> Any:
        return text if isinstance(text, str) else [f"{m['role']}: {m['content']}" for m in text]

    return [[flat(p.prompt), flat(p.chosen), flat(p.rejected)] for p in pairs]


def refused(source: Any, *parts: str, **how: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_pairs(source, **how)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


Q, GOOD, BAD = [f"{U}: Sky?"], [f"{A}: Blue."], [f"{A}: Red."]
FROM = {"from": "human", "value": "Sky?"}
GPT = [{"from": "gpt", "value": "Blue."}, {"from": "gpt", "value": "Red."}]
TALK = [said(U, "Sky?")]

CHATS: list[tuple[str, dict[str, Any], str]] = [
    (
        "messages",
        {"messages": TALK, "chosen": said(A, "Blue."), "rejected": said(A, "Red.")},
        "prompt is messages",
    ),
    (
        "messages beside texts",
        {"messages": TALK, "chosen": "Blue.", "rejected": "Red."},
        "prompt is messages",
    ),
    (
        "messages within the answers",
        {
            "chosen": {"messages": [*TALK, said(A, "Blue.")]},
            "rejected": {"messages": [*TALK, said(A, "Red.")]},
        },
        "",
    ),
    (
        "OpenAI",
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [said(A, "Blue.")],
            "non_preferred_output": [said(A, "Red.")],
        },
        "chosen is preferred_output, rejected is non_preferred_output; prompt is messages",
    ),
    (
        "ShareGPT",
        {"conversations": [FROM], "chosen": GPT[0], "rejected": GPT[1]},
        "prompt is conversations; chats are ShareGPT's",
    ),
    (
        "ShareGPT, whole",
        {"chosen": [FROM, GPT[0]], "rejected": [FROM, GPT[1]]},
        "chats are ShareGPT's",
    ),
    (
        "UltraFeedback",
        {
            "source": "x",
            "instruction": "Sky?",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "Red.", "overall_score": 9, "fine-grained_score": 2.0},
                {"model": "b", "response": "Blue.", "overall_score": 7, "fine-grained_score": 4.5},
            ],
        },
        "prompt is instruction; the best of completions by fine-grained_score (highest first)",
    ),
    (
        "UltraFeedback, ratings alone",
        {
            "instruction": "Sky?",
            "completions": [
                {
                    "response": "Red.",
                    "annotations": {"a": {"Rating": "5"}, "b": {"Rating": "1"}, "c": {"Type": []}},
                },
                {
                    "response": "Blue.",
                    "annotations": {"a": {"Rating": "4"}, "b": {"Rating": "N/A"}},
                },
            ],
        },
        "by the mean Rating of annotations",
    ),
    (
        "Nectar: ranks",
        {
            "prompt": "\n\nHuman: Sky?\n\nAssistant: ",
            "answers": [{"answer": "Red.", "rank": 2.0}, {"answer": "Blue.", "rank": 1.0}],
        },
        "by rank (lowest first)",
    ),
    (
        "lists beside each other",
        {"prompt": "Sky?", "responses": ["Red.", "Blue."], "scores": [0.1, 0.9]},
        "the best of responses by scores",
    ),
    (
        "HelpSteer2 preference",
        {"prompt": "Sky?", "response_1": "Red.", "response_2": "Blue.", "preference_strength": 2},
        "response_1 or response_2 is chosen by preference_strength (below 0: the first)",
    ),
    (
        "HelpSteer3",
        {
            "context": TALK,
            "response1": "Blue.",
            "response2": "Red.",
            "overall_preference": -1,
            "individual_preference": [],
        },
        "prompt is context; response1 or response2 is chosen by overall_preference",
    ),
    (
        "SHP",
        {
            "history": "Sky?",
            "human_ref_A": "Blue.",
            "human_ref_B": "Red.",
            "labels": 1,
            "score_A": 9,
            "score_B": 3,
        },
        "human_ref_a or human_ref_b is chosen by labels (1: A, 0: B)",
    ),
    (
        "SHP, B",
        {"history": "Sky?", "human_ref_A": "Red.", "human_ref_B": "Blue.", "labels": 0},
        "(1: A, 0: B)",
    ),
    (
        "SHP, scores alone",
        {
            "history": "Sky?",
            "human_ref_A": "Red.",
            "human_ref_B": "Blue.",
            "score_A": 3,
            "score_B": 9,
        },
        "the one with the higher score",
    ),
    (
        "letters",
        {"prompt": "Sky?", "response_a": "Red.", "response_b": "Blue.", "preference": "B"},
        "response_a or response_b is chosen by preference",
    ),
    (
        "letters in brackets",
        {"question": "Sky?", "A": "Blue.", "B": "Red.", "preferred": "(A)"},
        "a or b is chosen by preferred",
    ),
    (
        "PKU-SafeRLHF",
        {"prompt": "Sky?", "response_0": "Red.", "response_1": "Blue.", "better_response_id": 1},
        "response_0 or response_1 is chosen by better_response_id",
    ),
    (
        "AlpacaFarm",
        {
            "instruction": "Sky?",
            "input": "",
            "output_1": "Blue.",
            "output_2": "Red.",
            "preference": 1,
        },
        "prompt is instruction; output_1 or output_2 is chosen by preference",
    ),
    (
        "Chatbot Arena",
        {
            "conversation_a": [*TALK, said(A, "Red.")],
            "conversation_b": [*TALK, said(A, "Blue.")],
            "winner": "model_b",
        },
        "conversation_a or conversation_b is chosen by winner",
    ),
    (
        "content in parts",
        {
            "prompt": [{"role": U, "content": [{"type": "text", "text": "Sk"}, "y?"]}],
            "chosen": [{"role": A, "content": [{"type": "text", "text": "Blue."}]}],
            "rejected": [{"role": A, "content": [{"type": "output_text", "text": "Red."}]}],
        },
        "",
    ),
]


@pytest.mark.parametrize(("row", "note"), [c[1:] for c in CHATS], ids=[c[0] for c in CHATS])
def test_a_chat_in_each_shape(row: dict[str, Any], note: str, tmp_path: Path) -> None:
    pairs = read_pairs(lines(tmp_path / "a.jsonl", [row]))
    assert contents(pairs) == [[Q, GOOD, BAD]]
    assert (not note and not pairs.notes) or note in " | ".join(pairs.notes)
    assert read_pairs([row]).digest == pairs.digest, "a list of dicts is read alike"


def test_model_written_evaluations() -> None:
    """`answer_matching_behavior`, as texts that go on where the question ends."""
    row = {
        "question": "Do you agree?\n\nChoices:\n (A) Yes\n (B) No",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    }
    pairs = read_pairs([row])
    assert contents(pairs) == [[row["question"], " (A)", " (B)"]]
    assert "chosen is answer_matching_behavior" in pairs.notes[0]
    assert "prompt is question" in pairs.notes[0]


def test_kto_pairs_where_a_prompt_has_both(tmp_path: Path) -> None:
    rows = [
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        {"prompt": "Grass is", "completion": " green.", "label": True},
        {"prompt": "The sky is", "completion": " red.", "label": False},
        {"prompt": "The sky is", "completion": " sad.", "label": False},
        {"prompt": "Snow is", "completion": " black.", "label": False},
    ]
    pairs = read_pairs(lines(tmp_path / "kto.jsonl", rows))
    assert contents(pairs) == [
        ["The sky is", " blue.", " red."],
        ["The sky is", " blue.", " sad."],
    ]
    assert len(pairs.items()) == 1
    assert pairs.left_out == {"answers whose prompt has no better or worse one": 2}
    chats = [
        {"messages": [*TALK, said(A, "Blue.")], "label": "true"},
        {"messages": [*TALK, said(A, "Red.")], "label": "false"},
    ]
    assert contents(read_pairs(chats)) == [[Q, GOOD, BAD]]
    share = [{"conversations": [FROM, g], "kto_tag": g is GPT[0]} for g in GPT]
    assert contents(read_pairs(share)) == [[Q, GOOD, BAD]]
    assert "no pair in it (2 answers" in refused(rows[1:2] + rows[4:])
    refused([{**rows[0], "label": "perhaps"}], "row 1", "'label'", "true or false", "'perhaps'")


def test_answers_with_scores_row_by_row() -> None:
    """HelpSteer's ratings: the best answer of a prompt against each worse one."""
    rows = [
        {"prompt": "Sky?", "response": text, "helpfulness": n, "verbosity": 1}
        for text, n in (("Red.", 1), ("Blue.", 4), ("Sad.", 0))
    ]
    pairs = read_pairs(rows)
    assert contents(pairs) == [[Q, GOOD, BAD], [Q, GOOD, [f"{A}: Sad."]]]
    assert "columns that are not used: verbosity" in pairs.notes
    ties = [{**row, "helpfulness": 2} for row in rows]
    refused(ties, "no pair in it", "3 answers whose prompt has no better or worse one")


def test_multi_turn_prompts_of_helpsteer() -> None:
    prompt = "Sky?\n<extra_id_1>Assistant\nAbove.\n<extra_id_1>User\nColour?"
    row = {"prompt": prompt, "response_1": "x", "response_2": "y", "preference_strength": -3}
    assert contents(read_pairs([row])) == [
        [[f"{U}: Sky?", f"{A}: Above.", f"{U}: Colour?"], [f"{A}: x"], [f"{A}: y"]]
    ]


@pytest.mark.parametrize("answer", ["B", "b", "(B)", 1, "Blue"])
@pytest.mark.parametrize("form", ["list", "lettered", "arc", "columns"])
def test_multiple_choice(form: str, answer: Any) -> None:
    texts = ["Red", "Blue", "Sad"]
    if form == "list":
        row: dict[str, Any] = {"question": "Sky?", "choices": texts, "answer": answer}
    elif form == "lettered":
        row = {
            "question": "Sky?",
            "options": dict(zip("ABC", texts, strict=True)),
            "answer": answer,
        }
    elif form == "arc":
        named = {"text": texts, "label": ["A", "B", "C"]}
        row = {"question": "Sky?", "choices": named, "answerKey": answer}
    else:
        row = {"question": "Sky?", **dict(zip("ABC", texts, strict=True)), "answer": answer}
    prompt = "Question: Sky?\nAnswer:"
    assert contents(read_pairs([row])) == [[prompt, " Blue", " Red"], [prompt, " Blue", " Sad"]]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        # a number for letters, a letter's place past the end, three answers, no verdict, no prompt
        (
            {"prompt": "q", "response_a": "x", "response_b": "y", "label": 1},
            ["'label'", "int 1", "A or B"],
        ),
        (
            {"prompt": "q", "response_1": "x", "response_2": "y", "preference": 0},
            ["'preference'", "int 0", "1 or 2"],
        ),
        (
            {"prompt": "q", "response_0": "x", "response_1": "y", "better": 2},
            ["'better'", "0 or 1"],
        ),
        (
            {"prompt": "q", "answer_0": "x", "answer_1": "y", "answer_2": "z", "label": 1},
            ["more than two answers", "'answer_0'"],
        ),
        ({"prompt": "q", "response_a": "x", "response_b": "y"}, ["which is better is not said"]),
        ({"response_a": "x", "response_b": "y", "winner": "a"}, ["there is no prompt"]),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": True}, ["bool True"]),
        ({"question": "q", "choices": ["x", "y"], "answer": "E"}, ["'answer'", "A, B", "'E'"]),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, ["'answer'", "int 2"]),
        ({"instruction": "q", "completions": ["x", "y"]}, ["completions 1", "a score"]),
        ({"prompt": "q", "responses": ["x", "y"], "scores": [1]}, ["'scores'", "2 numbers"]),
        ({"prompt": "q", "response": "x", "score": "high"}, ["'score'", "number", "'high'"]),
        (
            {"conversations": [{"from": "narrator", "value": "x"}], "chosen": "a", "rejected": "b"},
            ["message 1", "'narrator'", "human"],
        ),
        (
            {"prompt": [{"role": U, "content": [{"type": "image", "image": 1}]}], **dict.fromkeys(
                ("chosen", "rejected"), "a")},
            ["message 1", "parts of text", "image"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused(row: dict[str, Any], parts: list[str]) -> None:
    refused([row], "row 1", *parts)


@pytest.mark.parametrize("verdict", ["tie", "tie (bothbad)", "neither", ""])
def test_ties_are_left_out_and_counted(verdict: str) -> None:
    row = {"prompt": "Sky?", "response_a": "Blue.", "response_b": "Red.", "winner": "a"}
    pairs = read_pairs([row, {**row, "winner": verdict}])
    assert contents(pairs) == [[Q, GOOD, BAD]]
    assert pairs.left_out == {"rows that prefer neither answer": 1}
    equal = {"prompt": "q", "responses": ["x", "y"], "scores": [1, 1]}
    told = read_pairs([equal, {**equal, "scores": [2, 1]}]).left_out
    assert told == {"prompts whose answers all have one score": 1}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "q", "completion": "a"}, ["'label/kto_tag' is missing", "'KTO'"]),
        ({"prompt": "q", "chosen": "a"}, ["'rejected' is missing", "'preference pairs'"]),
        ({"question": "q", "answer_matching_behavior": "a"}, ["'answer_not_matching_behavior'"]),
        ({"instruction": "q", "output": "a"}, ["'label/kto_tag' is missing"]),
        ({"question": "q", "choices": ["a", "b"]}, ["'multiple choice'", "answerkey"]),
        ({"Frage": "q", "Gut": "a", "Schlecht": "b"}, ["'chosen' and 'rejected' are missing"]),
        ({}, ["'chosen' and 'rejected' are missing", "given are: none"]),
    ],
)
def test_the_nearest_shape_and_what_it_lacks(row: dict[str, Any], parts: list[str]) -> None:
    text = refused([row], "row 1", *parts)
    assert "--columns prompt=…,chosen=…,rejected=…" in text


def test_a_prompt_under_another_name() -> None:
    plain = {"chosen": " blue.", "rejected": " red."}
    for name in ("question", "instruction", "query", "input", "context"):
        pairs = read_pairs([{name: "The sky is", **plain}])
        assert contents(pairs) == [["The sky is", " blue.", " red."]]
        assert f"prompt is {name}" in pairs.notes[0]
    both = {"instruction": "Name it.", "input": "Sky", **plain}
    assert read_pairs([both])[0].prompt == "Name it.\nSky"
    orca = {"system": "Be brief.", "question": "Sky?", **plain}
    assert (read_pairs([orca])[0].system, read_pairs([orca])[0].prompt) == ("Be brief.", "Sky?")
    # Where the answers hold it already, it is not put before them once more.
    whole = {f: f"\n\nHuman: Sky?\n\nAssistant: {t}" for f, t in plain.items()}
    assert read_pairs([{"question": "Sky?", **whole}]).digest == read_pairs([whole]).digest
    talk = {f: [*TALK, said(A, t)] for f, t in plain.items()}
    assert read_pairs([{"messages": talk["chosen"], **talk}]).digest == read_pairs([talk]).digest
    # A prompt that is there stays the prompt.
    assert read_pairs([{"prompt": "P", "question": "Q", **plain}])[0].prompt == "P"


# ---- files ----------------------------------------------------------------------------------------

ROW = {"prompt": "The sky is", "chosen": " blue; or so,", "rejected": " red."}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["prompt chosen rejected", "Prompt Chosen Rejected"])
def test_csv_with_any_separator_and_headers(mark: str, header: str, tmp_path: Path) -> None:
    names = header.split()
    quoted = [f'"{value}"' for value in ROW.values()]
    path = tmp_path / ("a.tsv" if mark == "\t" else "a.csv")
    path.write_text("\ufeff" + mark.join(names) + "\n" + mark.join(quoted) + "\n", "utf-8")
    pairs = read_pairs(path)
    assert pairs[0].content() == list(ROW.values())
    assert pairs.digest == read_pairs([ROW]).digest
    assert ("read as prompt" in " ".join(pairs.notes)) is (header[0] == "P")


def test_headers_in_any_case() -> None:
    for names in (
        ("PROMPT", " chosen ", "Rejected"),
        ("Question", "Chosen Response", "rejected response"),
    ):
        row = dict(zip(names, ROW.values(), strict=True))
        assert contents(read_pairs([row])) == [list(ROW.values())]
    # Two columns that differ in case alone: the exact one is meant.
    assert read_pairs([{**ROW, "Prompt": "other"}])[0].prompt == ROW["prompt"]


@pytest.mark.parametrize(
    "value",
    [
        [ROW, {**ROW, "prompt": "x"}],
        {"data": [ROW, {**ROW, "prompt": "x"}], "version": 1},
        {k: [v, "x" if k == "prompt" else v] for k, v in ROW.items()},
        {k: {"0": v, "1": "x" if k == "prompt" else v} for k, v in ROW.items()},
    ],
    ids=["array", "within an object", "columns", "columns, as pandas writes them"],
)
def test_json_files(value: Any, tmp_path: Path) -> None:
    expected = read_pairs([ROW, {**ROW, "prompt": "x"}]).digest
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=indent))
        assert read_pairs(tmp_path / "a.json").digest == expected
    if isinstance(value, list):  # a list in a file of lines, lines in a file of a list
        (tmp_path / "a.jsonl").write_text(json.dumps(value))
        assert read_pairs(tmp_path / "a.jsonl").digest == expected
        assert read_pairs(lines(tmp_path / "b.json", value)).digest == expected


def test_json_files_that_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in ({"a": 1}, "text", {"prompt": ["x"], "chosen": []}, {"a": [ROW], "b": [ROW]}):
        path.write_text(json.dumps(value))
        refused(path, "a.json", "expected")


# ---- columns, bad rows, what is held out --------------------------------------------------------


def test_columns_say_what_is_what(tmp_path: Path) -> None:
    rows = [{"Frage": "The sky is", "Gut": " blue.", "Schlecht": " red.", "prompt": "not this"}]
    path = lines(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "Frage", "chosen": "Gut", "rejected": "Schlecht"}
    expected = [["The sky is", " blue.", " red."]]
    assert contents(read_pairs(path, columns=columns)) == expected
    assert contents(read_pairs(rows, columns=columns)) == expected
    spec = f"{path}{{prompt=Frage, chosen=Gut,rejected=Schlecht}}"
    assert contents(read_pairs(spec)) == expected
    assert contents(read_pairs(f"{spec}[:1]")) == expected
    nested = [{"q": {"text": "The sky is"}, "chosen": " blue.", "rejected": " red."}]
    assert contents(read_pairs(nested, columns={"prompt": "q.text"})) == expected
    refused(path, "chosen=Guut", "'Gut'", "Frage, Gut", columns={"chosen": "Guut"})
    refused(f"{path}{{choosen=Gut}}", "'choosen=Gut'", "'chosen'")
    refused(path, "'choosen'", "'chosen'", columns={"choosen": "Gut"})
    refused("facts:train{chosen=x}", "tables")
    kto = [{"x": "a", "answer": text, "ok": ok} for text, ok in ((" b", 1), (" c", 0))]
    renamed = {"prompt": "x", "completion": "answer", "label": "ok"}
    assert contents(read_pairs(kto, columns=renamed)) == [["a", " b", " c"]]


def test_skip_bad_counts_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [
        json.dumps(x) for x in ({**ROW, "chosen": ""}, {**ROW, "rejected": 3}, ["x"], {"prompt": 1})
    ]
    path.write_text("\n".join([json.dumps(ROW), *bad, "{", json.dumps({**ROW, "prompt": "x"})]))
    refused(path, "a.jsonl:")
    pairs = read_pairs(path, skip_bad=True)
    assert [p.prompt for p in pairs] == ["The sky is", "x"]
    assert pairs.left_out == {"bad rows": 5}
    for number in range(2, 7):
        assert any(f"a.jsonl:{number}:" in note for note in pairs.notes), number
    assert read_pairs(f"{path}{{skip-bad}}").left_out == {"bad rows": 5}
    csv = tmp_path / "a.csv"
    csv.write_text("prompt,chosen,rejected\na, b, c\na,b\nd, e, f\n")
    assert (len(read_pairs(csv, skip_bad=True)), read_pairs(csv, skip_bad=True).left_out) == (
        2,
        {"bad rows": 1},
    )
    lines(path, [{**ROW, "chosen": ""}] * 30)
    assert "no pair in it (30 bad rows left out)" in refused(path, skip_bad=True)
    lines(path, [ROW, *[{**ROW, "chosen": ""}] * 30])
    assert read_pairs(path, skip_bad=True).notes[-1] == "left out: and 10 more"


def test_holding_out_by_item(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"{i}", "chosen": f" {k}"} for i in range(20) for k in range(2)]
    path = lines(tmp_path / "a.jsonl", rows)
    held, rest = (read_pairs(f"{path}[{which} 0.2]") for which in ("holdout", "without"))
    assert (len(held.items()), len(rest.items())) == (4, 16)
    assert not set(held.items()) & set(rest.items())
    assert sorted([*held, *rest], key=lambda p: str(p.source)) == sorted(
        read_pairs(path), key=lambda p: str(p.source)
    )
    assert read_pairs(f"{path}[holdout 0.2]").digest == held.digest, "drawn once and for all"
    assert len(read_pairs(f"{path}[:10][holdout 0.2]").items()) == 1
    for share in ("0", "1", "1.5", "-1"):
        refused(f"{path}[holdout {share}]", "between 0 and 1")
    refused(f"{path}[:2][holdout 0.2]", "nothing is left", "1 items")
    refused(f"{path}[holdout]", "such as [:750]")
