"""What rows may hold beside prompt and answers, and rows that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.batching import collate, encode
from trimtab.errors import DataError
from trimtab.pairs import Pair, PairSet, read_pairs


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


PLAIN = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CHAT = {"prompt": [user("Sky?")], "chosen": [assistant("Blue.")], "rejected": [assistant("Red.")]}
TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(source: Any, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(source)
    for part in parts:
        assert part in str(caught.value)


# ---- settings of a row ----------------------------------------------------------------------------


def test_digests_of_pairs_without_settings_are_what_they_were() -> None:
    # Computed before pairs had settings.
    assert read_pairs([PLAIN, CHAT]).digest == (
        "e5e915bac3a4d9e34102695cc34d6d69195b82d14634831050a0302aa906a3f2"
    )
    empty = {"system": " ", "tools": [], "chat_template_kwargs": {}}
    assert read_pairs([{**PLAIN, **empty}, CHAT]).digest == read_pairs([PLAIN, CHAT]).digest


@pytest.mark.parametrize(
    "setting",
    [
        {"system": "Be brief."},
        {"tools": [TOOL]},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_settings_are_read_and_belong_to_digest_and_item(setting: dict[str, Any]) -> None:
    bare, pairs = read_pairs([CHAT]), read_pairs([CHAT, {**CHAT, **setting}])
    ((name, value),) = setting.items()
    assert getattr(pairs[1], name) == value
    assert getattr(pairs[0], name) is None
    assert PairSet([pairs[1]], "").digest != bare.digest
    assert pairs[0].item != pairs[1].item, "another context is another item"
    assert read_pairs([{**CHAT, **setting, "item": "a"}])[0].item == "a"


def test_settings_from_every_format(tmp_path: Path) -> None:
    import datasets

    rows = [
        {**CHAT, "system": "S", "tools": [TOOL], "chat_template_kwargs": {"think": False}},
        {**CHAT, "prompt": [user("b")], "tools": [], "chat_template_kwargs": {"depth": "7"}},
        {**CHAT, "prompt": [user("c")]},
    ]
    expected = read_pairs(rows)
    assert [p.system for p in expected] == ["S", None, None]
    assert [p.chat_template_kwargs for p in expected] == [{"think": False}, {"depth": "7"}, None]
    path = lines(tmp_path / "a.jsonl", rows)
    assert read_pairs(path).digest == expected.digest
    data: Any = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=tmp_path
    )
    data.to_parquet(tmp_path / "a.parquet")
    # Arrow fills in what a row lacks (here "depth" and "think"): that is not what was written.
    filled = [{"system": None, "tools": None, "chat_template_kwargs": None, **row} for row in rows]
    struct = datasets.Dataset.from_list(filled)
    assert struct[0]["chat_template_kwargs"] == {"think": False, "depth": None}
    for source in (data, tmp_path / "a.parquet", struct, data.to_iterable_dataset()):
        assert read_pairs(source).digest == expected.digest
    # As JSON text, as in a CSV file (and as TRL takes tools).
    text = [{k: v if k == "system" else json.dumps(v) for k, v in row.items()} for row in rows]
    assert read_pairs(text).digest == expected.digest


def test_schemas_of_tools_keep_their_own_keys(tmp_path: Path) -> None:
    import datasets

    def tool(**properties: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    rows = [
        {**CHAT, "tools": [tool(city={"type": "string"})]},
        {**CHAT, "tools": [tool(day={"type": "number"}), tool()]},
    ]
    data = datasets.Dataset.from_list(rows)
    assert data[0]["tools"] != rows[0]["tools"], "columns of Arrow have one set of keys"
    data.to_parquet(tmp_path / "a.parquet")
    for source in (data, tmp_path / "a.parquet"):
        assert [p.tools for p in read_pairs(source)] == [rows[0]["tools"], rows[1]["tools"]]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({**CHAT, "system": 3}, ["'system'", "int 3"]),
        ({**CHAT, "tools": "not json"}, ["'tools'", "list of schemas"]),
        ({**CHAT, "tools": [1]}, ["'tools'", "list of schemas"]),
        ({**CHAT, "chat_template_kwargs": [1]}, ["'chat_template_kwargs'", "object"]),
        ({**CHAT, "chat_template_kwargs": "think"}, ["'chat_template_kwargs'", "object"]),
        (
            {**CHAT, "prompt": [{"role": "system", "content": "A"}, user("b")], "system": "B"},
            ["'system'", "differ"],
        ),
        ({"prompt": "", "chosen": "a", "rejected": "b", "system": "S"}, ["'system'", "prompt"]),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, row: Any, parts: list[str]) -> None:
    path = lines(tmp_path / "bad.jsonl", [CHAT, row])
    refused(path, f"{path}:2", *parts)


def test_one_system_text_is_enough() -> None:
    row = {**CHAT, "prompt": [{"role": "system", "content": "S"}, user("b")], "system": "S"}
    assert read_pairs([row])[0].system is None
    assert read_pairs([row])[0].prompt == tuple(row["prompt"])


def test_messages_that_call_tools() -> None:
    call = {"function": {"name": "rain", "arguments": {"city": "Rome"}}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {**CHAT, "chosen": [calling], "tools": [TOOL]}
    (pair,) = read_pairs([row])
    assert pair.chosen == ({"role": "assistant", "content": "", "tool_calls": [call]},)
    bare = {k: v for k, v in calling.items() if k != "content"}
    assert read_pairs([{**row, "chosen": [bare]}]).digest == read_pairs([row]).digest


def test_unused_columns_are_named(tmp_path: Path) -> None:
    rows = [{**PLAIN, "score_chosen": 5}, {**PLAIN, "prompt_id": "x", "item": "i"}]
    pairs = read_pairs(lines(tmp_path / "a.jsonl", rows))
    assert pairs.notes == ("columns that are not used: score_chosen, prompt_id",)
    assert pairs[:1].notes == pairs.limit(1).notes == pairs.notes
    assert read_pairs([PLAIN]).notes == ()
    tools = read_pairs([{**PLAIN, "tools": [TOOL]}, PLAIN]).notes
    assert len(tools) == 1
    assert "1 of 2 pairs are plain text" in tools[0]
    assert read_pairs([{**CHAT, "tools": [TOOL]}]).notes == ()


# ---- texts stay texts -----------------------------------------------------------------------------

TEXTS = ["007", "null", "true", "1e3", "12", "[1, 2]", "{}", '{"a": 1}', '[{"a": 1}]', "NaN", "ä"]


@pytest.mark.parametrize("place", ["prompt", "answers", "content"])
def test_datasets_that_turn_texts_into_numbers(place: str, tmp_path: Path) -> None:
    import datasets

    rows: list[dict[str, Any]] = []
    for i, text in enumerate(TEXTS):
        if place == "prompt":
            rows.append({**PLAIN, "prompt": text, "rejected": f" {i}"})
        elif place == "answers":
            rows.append({"prompt": f"{i}", "chosen": text, "rejected": "x"})
        else:
            rows.append({**CHAT, "prompt": [user(f"{i}")], "chosen": [assistant(text)]})
    expected = read_pairs(rows)
    # One row has chats where others have text (or a message one key more): a column of `Json`.
    odd = {**CHAT, "chosen": [{**assistant("y"), "tool_calls": [{"name": "f"}]}], "tools": [TOOL]}
    path = lines(tmp_path / "a.jsonl", [*rows, odd])
    data: Any = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=tmp_path
    )
    assert "Json(" in repr(data.features)
    if place != "content":
        assert data[0] != {**rows[0], "tools": None}, "what this is about: 7 where 007 was"
    data.to_parquet(tmp_path / "a.parquet")
    for source in (data, tmp_path / "a.parquet", data.to_iterable_dataset()):
        found = read_pairs(source)
        assert [p.content() for p in found[:-1]] == [p.content() for p in expected]
        assert found[len(rows)].chosen == ({**assistant("y"), "tool_calls": [{"name": "f"}]},)
    order = list(range(len(rows), -1, -1))
    assert [p.content() for p in read_pairs(data.select(order))][1:] == [
        p.content() for p in expected
    ][::-1]


def test_json_columns_of_other_writers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{k: json.dumps(v, indent=1) for k, v in CHAT.items()}]
    table = pa.Table.from_pylist(rows)
    coded = pa.table({k: pa.array(table[k].to_pylist(), pa.json_()) for k in table.column_names})
    # Plain text by its type; that it is JSON stands in what `datasets` wrote beside it.
    features = {"info": {"features": {k: {"_type": "Json"} for k in CHAT}}}
    noted = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    for number, each in enumerate((coded, noted, table)):
        path = tmp_path / f"{number}.parquet"
        pa.parquet.write_table(each, path)
        assert read_pairs(path).digest == read_pairs([CHAT]).digest


def test_chats_written_as_text() -> None:
    expected = read_pairs([CHAT])
    as_json = {k: json.dumps(v) for k, v in CHAT.items()}
    as_python = {k: str(v) for k, v in CHAT.items()}
    for row in (as_json, as_python):
        pairs = read_pairs([row])
        assert pairs.digest == expected.digest
        assert "1 of 1 pairs have chats that are written as JSON text" in pairs.notes[0]
    refused([{**as_json, "prompt": "[{'role': 'user' 'content': }]"}], "row 1", "'prompt'", "JSON")
    # An answer that is JSON is an answer.
    assert read_pairs([{**PLAIN, "chosen": '[{"name": "x"}]'}])[0].chosen == '[{"name": "x"}]'


# ---- prompts and roles that are not as they should be ---------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "prompt": None},
        {"prompt": None, "chosen": "The sky is blue.", "rejected": "The sky is green."},
        {**CHAT, "prompt": None},
    ],
)
def test_a_null_prompt_among_prompts(row: Any, tmp_path: Path) -> None:
    import datasets

    path = lines(tmp_path / "a.jsonl", [PLAIN if isinstance(row["chosen"], str) else CHAT, row])
    refused(path, f"{path}:2", "'prompt' is null", 'give ""')
    data: Any = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=tmp_path
    )
    refused(data, "row 2", "'prompt' is null")
    assert len(read_pairs([row])) == 1, "a column of nothing but nulls is no prompt at all"


def test_a_prompt_that_both_answers_repeat() -> None:
    talk = [user("Sky?"), assistant("Above."), user("Colour?")]
    good, bad = assistant("Blue."), assistant("Red.")
    cases: list[tuple[Any, Any, Any]] = [
        (talk, [*talk, good], [*talk, bad]),
        (talk, [talk[-1], good], [talk[-1], bad]),
        ([{"role": "system", "content": "S"}, *talk], [*talk, good], [*talk, bad]),
    ]
    for prompt, chosen, rejected in cases:
        pairs = read_pairs([{"prompt": prompt, "chosen": chosen, "rejected": rejected}, CHAT])
        assert pairs[0].content()[:3] == [prompt, [good], [bad]]
        assert pairs.notes == ("1 of 2 pairs repeat the prompt in both answers: it is read once",)
    long = "What colour is the sky?"
    row = {"prompt": long, "chosen": f"{long} Blue.", "rejected": f"{long} Red."}
    pairs = read_pairs([row, PLAIN])
    assert pairs[0].content() == [long, " Blue.", " Red."]
    assert len(pairs.notes) == 1
    # Two answers may well begin with a short prompt, unless all of a source's do.
    short = {"prompt": "Hi", "chosen": "Hi there!", "rejected": "Hi you."}
    assert read_pairs([short, PLAIN])[0].chosen == "Hi there!"
    assert read_pairs([short])[0].content() == ["Hi", " there!", " you."]
    # One answer that repeats the prompt differs in that from the other.
    half = {**row, "rejected": " Red."}
    assert read_pairs([half])[0].content() == [long, half["chosen"], " Red."]


def test_turns_of_the_user_within_an_answer_are_said(tokenizer: Any) -> None:
    rest = [user("Sure?"), assistant("Yes.")]
    row = {**CHAT, "chosen": [*CHAT["chosen"], *rest], "rejected": [*CHAT["rejected"], *rest]}
    pairs = read_pairs([row, CHAT])
    assert pairs[0].chosen == tuple(row["chosen"])
    assert len(pairs.notes) == 1
    assert "1 of 2 pairs have turns of the user within an answer" in pairs.notes[0]
    encoded = encode(pairs[:1], tokenizer)
    batch = collate(encoded, [0])
    first = "Blue.<|im_end|>Yes.<|im_end|>\n"
    mine = batch.token_scored & (batch.token_answer == 0)
    assert tokenizer.decode(batch.token_id[mine]) == first, "the user's words are not scored"


@pytest.mark.parametrize(
    ("chosen", "role"),
    [
        ([user("Blue.")], "user"),
        ([user("Really?"), assistant("Blue.")], "user"),
        ([assistant("Blue."), user("Thanks.")], "user"),
        ([{"role": "system", "content": "Blue."}], "system"),
    ],
)
def test_an_answer_that_is_not_the_assistants(chosen: Any, role: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [CHAT, {**CHAT, "chosen": chosen}])
    refused(path, f"{path}:2", "'chosen'", f"role {role!r}", "assistant")
    swapped = {**CHAT, "rejected": chosen}
    refused([swapped], "'rejected'", f"role {role!r}")


def test_whole_sequences_may_be_the_users() -> None:
    row = {"prompt": "", "chosen": [user("Be kind.")], "rejected": [user("Be mean.")]}
    assert read_pairs([row])[0].chosen == (user("Be kind."),)
    system = read_pairs([{**row, "system": "S"}])[0]
    assert system.system == "S"
    assert isinstance(system, Pair)


# ---- who says it -----------------------------------------------------------------------------------


def test_inspect_and_fit_say_what_is_unusual(
    tiny: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from trimtab.pairs.inspect import inspect_pairs, render
    from trimtab.progress import Progress
    from trimtab.training import fit

    rows = [{**PLAIN, "score": 1}, {**PLAIN, "prompt": "The sea is", "system": "Be brief."}]
    pairs = read_pairs(rows)
    report = inspect_pairs(pairs)
    assert report["notes"] == ["columns that are not used: score"]
    Console(width=120).print(render(report))
    assert "columns that are not used: score" in capsys.readouterr().out
    fit("mean", tiny("llama"), tokenizer, pairs, progress=Progress())
    assert "columns that are not used: score" in capsys.readouterr().err
    assert inspect_pairs(read_pairs([PLAIN, {**PLAIN, "system": "S"}]))["duplicates"] == 0
    assert inspect_pairs(read_pairs([PLAIN, PLAIN]))["duplicates"] == 1


def test_scoring_past_a_models_context_is_said(
    tiny: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab import evaluate
    from trimtab.progress import Progress
    from trimtab.training import fit

    model = tiny("llama")
    long = {**PLAIN, "prompt": "a " * 130}
    at = len(tokenizer("a " * 130)["input_ids"])
    limit = model.config.max_position_embeddings
    model.config.max_position_embeddings = at - 1
    try:
        fit("mean", model, tokenizer, read_pairs([PLAIN, long]), progress=Progress())
        said = capsys.readouterr().err
        assert f"2 of 4 prompts with their answers are longer than the {at - 1} tokens" in said
        contrast = {"positive": "a " * 130, "negative": "b"}
        fit("mean", model, tokenizer, read_pairs([contrast]), progress=Progress())
        assert "1 of 2 prompts" in capsys.readouterr().err
        evaluate(model, tokenizer, {}, {"test": read_pairs([long])}, progress=Progress())
        assert "2 of 2 prompts" in capsys.readouterr().err
        fit(
            "mean",
            model,
            tokenizer,
            read_pairs([PLAIN, long]),
            max_length=at - 1,
            progress=Progress(),
        )
        said = capsys.readouterr().err
        assert "longer than the" not in said
        assert "dropped" in said
    finally:
        model.config.max_position_embeddings = limit
