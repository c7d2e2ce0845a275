"""Every reader of foreign bytes: what it reads, made nearly right, and how it is called.

A call returns, or raises an error of trimtab; what it returns has been used as a verb would use it, so
that a value which turns into a NaN later is found here.
"""

from __future__ import annotations

import errno
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import transformers
from hypothesis import strategies as st
from safetensors.torch import save

from fuzz import mutants, whole
from trimtab.dials import Dial, VectorDial
from trimtab.dials.conditions import load_condition
from trimtab.dials.saved import write
from trimtab.errors import TrimtabError
from trimtab.evaluation.answers import read_answers
from trimtab.export.gguf import read_control_vector
from trimtab.export.importing import read_directions
from trimtab.pairs import read_pairs
from trimtab.pairs.prompts import read_prompts
from trimtab.panel import read_panel
from trimtab.serve.bodies import ChatBody, CompletionBody, Refused, parsed
from trimtab.sites import parse_sites
from trimtab.study.reading import read, read_grid
from trimtab.study.settings import read_settings
from trimtab.study.suite import read_suite

REFUSED = (TrimtabError, Refused)
"""What a reader may raise."""


@dataclass(frozen=True)
class Reader:
    """A reader: what is written for it, and what reads it from a folder."""

    contents: st.SearchStrategy[Any]
    write: Callable[[Path, Any], object]
    call: Callable[[Path], Any]


def _file(name: str) -> Callable[[Path, bytes], object]:
    return lambda folder, data: (folder / name).write_bytes(data)


# ---- pairs, prompts, answers ---------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
ROWS: list[Any] = [
    {"prompt": "Who?", "chosen": "I.", "rejected": "You.", "system": "Be brief.", "item": "1"},
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "All."}]},
    {
        "prompt": CHAT[:1],
        "chosen": [CHAT[1]],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "All."}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {"Prompt": "Who?", "Chosen": "I.", "Rejected": "You."},
    {"prompt": "Who?", "completion": "I.", "label": True},
    {"prompt": "Who?", "completion": "You.", "label": False},
    {
        "question": "Who?",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    },
    {
        "prompt": "Who?",
        "completions": [
            {"response": "I.", "overall_score": 3.5},
            {"response": "You.", "overall_score": 1},
        ],
    },
    {
        "history": "Who?",
        "human_ref_A": "I.",
        "human_ref_B": "You.",
        "labels": 1,
        "score_A": 3,
        "score_B": 2,
    },
    {
        "context": [{"role": "user", "content": "Who?"}],
        "response1": "I.",
        "response2": "You.",
        "overall_preference": -2,
    },
    {
        "conversations": [{"from": "human", "value": "Who?"}],
        "chosen": {"from": "gpt", "value": "I."},
        "rejected": {"from": "gpt", "value": "You."},
    },
    {"query": "Who?", "choices": ["I.", "You."], "gold": 0, "item": "x"},
]
ANSWERS: list[Any] = [
    {"instruction": "Who?", "output": "I.", "generator": "m"},
    {
        "uid": "1",
        "messages": [CHAT[0], {"role": "assistant", "content": {"answer": "I."}}],
        "model": "m",
    },
    {"prompt": "Who?", "choices": [{"turns": [{"content": "I."}]}], "model_id": "m"},
]
PROMPTS: list[Any] = [
    "Who?",
    {"prompt": CHAT[:1], "system": "Be brief.", "uid": "1"},
    {"turns": ["Who?"], "question_id": 3, "tools": [], "chat_template_kwargs": {"a": 1}},
    CHAT[:1],
]


def _pairs(spec: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        pairs = read_pairs(f"{spec}:{folder / 'data'}")
        _ = pairs.digest

    return call


def _parquet(folder: Path, drawn: tuple[Any, int]) -> None:
    rows, accident = drawn
    rows = [r for r in rows if isinstance(r, dict)] or [{}]
    try:
        table = pa.Table.from_pylist([{str(k): v for k, v in r.items()} for r in rows])
        pyarrow.parquet.write_table(table, folder / "data")
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[:1]), folder / "data")
    if accident:
        data = bytearray((folder / "data").read_bytes())
        data[accident % len(data)] ^= 1 << accident % 8
        (folder / "data").write_bytes(data)


# ---- settings ------------------------------------------------------------------------------------

SUITE = {
    "description": "A suite.",
    "train": "facts/train",
    "evaluate": {"test": "facts/test", "oos": "facts/oos"},
    "dose": "facts/test",
    "instruction": "Answer.",
    "validation": "facts/rnd",
    "published": {"note": "A paper.", "rows": {"dpo": {"test": 0.5}}},
}
SETTINGS = {
    "settings": {
        "dpo": {"train": {"learning_rate": 1e-4, "epochs": 1}, "objective": {"beta": 0.1}},
        "mine": {"method": "innerdpo", "objective": {"sites": "0.1..0.5"}},
        "mean": {"sites": "0.5"},
    },
    "tuned": {"dpo": {"trials": 1}},
}
FIT = {"seed": 1, "train": {"learning_rate": 1e-4, "pairs_per_step": 8}, "dial": {"rank": 1}}
RECIPE = {
    "run": "fit dpo",
    "out": "runs/x",
    "flags": {"model": "m", "pairs": "facts/train", "seed": 1},
}
PANEL = {
    "knowledge": {"kind": "choices", "sources": ["choices:ARC-Easy/test"]},
    "bbq": {"kind": "bbq"},
    "refusal": {"kind": "refusal"},
}


def _fit_config(folder: Path) -> None:
    from trimtab.cli.fit import main
    from trimtab.cli.parse import Checked, checking

    try:
        with checking():
            main(
                [
                    "dpo",
                    "--model",
                    "m",
                    "--pairs",
                    "p",
                    "--out",
                    "o",
                    "--config",
                    str(folder / "data"),
                ]
            )
    except Checked:
        return


def _recipe(folder: Path) -> None:
    from trimtab.cli.recipe import read_recipe

    read_recipe(folder / "data", [])


# ---- results -------------------------------------------------------------------------------------

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "results"


@cache
def _run() -> tuple[dict[str, Any], list[Any], list[Any]]:
    """A small committed run: what it is about, some of its figures and verdicts."""
    for file in sorted(COMMITTED.glob("**/study.json")):
        folder = file.parent
        if (folder / "results.jsonl").is_file() and (folder / "verdicts.jsonl").is_file():
            lines = [
                [json.loads(line) for line in (folder / name).read_text().splitlines()[:3]]
                for name in ("results.jsonl", "verdicts.jsonl")
            ]
            return json.loads(file.read_text()), lines[0], lines[1]
    raise AssertionError(f"no run in {COMMITTED}")


def _results(folder: Path, data: tuple[bytes, bytes, bytes]) -> None:
    for name, content in zip(("study.json", "results.jsonl", "verdicts.jsonl"), data, strict=True):
        (folder / name).write_bytes(content)


# ---- dials ---------------------------------------------------------------------------------------


@cache
def _model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def used(dial: Dial) -> None:
    """Turn a dial on a model: what it does is finite, or refused.

    Raises:
        AssertionError: log-probs are not finite.
    """
    for alpha in (1.0, -0.5):
        with torch.no_grad(), dial(_model(), alpha):
            logits = _model()(input_ids=torch.arange(8)[None]).logits
        assert torch.isfinite(logits).all(), "a dial was accepted that makes NaN"


@cache
def _saved(kind: str) -> dict[str, bytes]:
    import tempfile

    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "vector":
            steps = {1: torch.randn(16, generator=draw), "embed": torch.randn(16, generator=draw)}
            write(VectorDial(steps, {1: 0.5, "embed": 0.1}), folder)
        else:
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(0)
            wrapped = get_peft_model(
                transformers.LlamaForCausalLM(_model().config),
                LoraConfig(r=2, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 1}),
            )
            wrapped.save_pretrained(str(folder))
        return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".md"}


WRONG_TENSORS: list[Any] = [
    torch.zeros(0),
    torch.zeros(16),
    torch.zeros(1, 16),
    torch.zeros(17),
    torch.tensor(1.0),
    torch.zeros(3, 5, 2),
    torch.full((16,), math.nan),
    torch.full((16,), math.inf),
    torch.full((16,), 1e30),
    torch.full((16,), 3e38),
    torch.zeros(16, dtype=torch.int64),
    torch.zeros(16, dtype=torch.bool),
    torch.ones(16).to(torch.float8_e4m3fn),
    torch.ones(16, dtype=torch.bfloat16),
    torch.ones(16, dtype=torch.complex64),
    torch.full((16,), 1e-45),
]


@st.composite
def tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with a tensor of another kind, or mangled."""
    from safetensors.torch import load

    found = dict(sorted(load(content).items()))  # its order is none
    if draw(st.booleans()):
        name = draw(st.sampled_from([*found, "other"]))
        if draw(st.integers(0, 4)) == 0:
            found.pop(name, None)
        else:
            found[name] = draw(st.sampled_from(WRONG_TENSORS)).clone()
    return draw(mutants.mangled(save(found))) if found else save({})


@st.composite
def dial_folders(draw: st.DrawFn, kind: str) -> dict[str, bytes]:
    """A saved dial whose note or weights are others, with digests that fit: a stranger's, not a damaged
    one."""
    files = dict(_saved(kind))
    note = "dial.json" if kind == "vector" else "adapter_config.json"
    (weights,) = (n for n in files if n.endswith(".safetensors"))
    if draw(st.booleans()):
        files[weights] = draw(tensors(files[weights]))
    value = json.loads(files[note])
    settings = {k: value[k] for k in ("settings",)} if kind == "vector" else value
    changed = draw(mutants.documents([settings]))
    if kind == "vector":
        value.update(changed if isinstance(changed, dict) else {"settings": changed})
    else:
        value = changed
    files[note] = mutants.text_of(value).encode()
    return files


def _dial(folder: Path) -> None:
    used(Dial.from_pretrained(folder))


@cache
def _condition() -> dict[str, bytes]:
    note = {
        "format": 1,
        "site": 1,
        "threshold": 0.1,
        "over": "prompt",
        "above": True,
        "prompt_style": "plain",
        "rendering": {},
        "balanced_accuracy": 0.9,
        "base_model": "m",
    }
    return {
        "condition.json": json.dumps(note).encode(),
        "condition.safetensors": save({"condition": torch.ones(16)}),
    }


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, bytes]:
    """A condition whose note or weights are others."""
    files = _condition()
    return {
        "condition.json": draw(mutants.jsons(json.loads(files["condition.json"]))),
        "condition.safetensors": draw(tensors(files["condition.safetensors"])),
    }


def _files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _numpy(value: Any, many: bool = False) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **value) if many else np.save(stream, value, allow_pickle=False)
    return stream.getvalue()


ARRAYS = [
    *(
        np.ones(16),
        np.ones((2, 16), np.float32),
        np.zeros((2, 0)),
        np.array(1.0),
        np.full((2, 16), np.nan),
    ),
    *(
        np.full((2, 16), 1e300),
        np.ones((2, 16), np.complex64),
        np.array(["a", "b"]),
        np.ones((2, 16), bool),
    ),
    *(np.array(["2001-01-01"], "datetime64[D]"), np.zeros((2, 16), [("a", "f4"), ("b", "i2")])),
]


@cache
def _control_vector() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "v.gguf"
        out = gguf.GGUFWriter(str(file), "controlvector")
        out.add_string("controlvector.model_hint", "llama")
        out.add_uint32("controlvector.layer_count", 1)
        out.add_tensor("direction.1", np.ones(16, np.float32))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return file.read_bytes()


def _directions(suffix: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        found = read_directions(folder / f"data{suffix}", 2)
        for v in found.values():
            assert torch.isfinite(v).all()

    return call


def _bodies(kind: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        found = parsed(kind, (folder / "data").read_bytes())
        json.dumps(found.model_dump(), allow_nan=False).encode()

    return call


BODY = {
    "model": "m",
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 1,
    "n": 1,
    "seed": 3,
    "stop": ["x"],
    "dials": {"a": 1.5},
}


def _fit_words(_: Path, words: list[str]) -> None:
    from trimtab.cli.fit import main
    from trimtab.cli.parse import Checked, checking

    try:
        with checking():
            main(words)
    except Checked:
        return


FLAGS = (
    "--model",
    "--pairs",
    "--out",
    "--seed",
    "--train.learning-rate",
    "--dial.rank",
    "--objective.beta",
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """The words of a `fit`."""
    flags = [w for flag in FLAGS for w in (flag, draw(mutants.words("1", "0.1", "m")))]
    return [draw(mutants.words("dpo", "mean")), *flags]


def _spec(folder: Path, text: str) -> None:
    read_pairs(text, folder)


def _sites(_: Path, text: str) -> None:
    parse_sites(text, 4)


def _word(call: Callable[[Path, Any], Any], contents: Any) -> Reader:
    """A reader of a word."""
    kept: list[Any] = [""]
    return Reader(contents, lambda _, text: kept.__setitem__(0, text), lambda d: call(d, kept[0]))


def reader(contents: Any, call: Callable[[Path], Any], name: str = "data") -> Reader:
    """A reader of one file."""
    return Reader(contents, _file(name), call)


SPECS = (
    *("facts/train", "genies:truthful_qa/test[:10]", "jsonl:a.jsonl", "a.csv[2:4]"),
    *("hh:helpful/test[:5 items]", "personas:honesty[holdout 0.2]", "hub:org/data:config/train"),
    *("choices:ARC-Easy/test", "ethics:justice/test"),
)

READERS: dict[str, Reader] = {
    "specs": _word(_spec, mutants.words(*SPECS)),
    "sites": _word(_sites, mutants.words("0.5", "0.1..0.5", "embed,3", "1,2", "all", "logits")),
    "words of fit": _word(_fit_words, command_lines()),
    "pairs jsonl": reader(mutants.json_lines(*ROWS), _pairs("jsonl")),
    "pairs json": reader(
        mutants.jsons(ROWS[:3], {"data": ROWS[:1]}, {k: [v] for k, v in ROWS[0].items()}),
        _pairs("json"),
    ),
    "pairs csv": reader(mutants.tables(ROWS[:1] * 2), _pairs("csv")),
    "pairs parquet": Reader(
        st.tuples(st.lists(mutants.documents(ROWS), min_size=1, max_size=3), st.integers(0, 3000)),
        _parquet,
        _pairs("parquet"),
    ),
    "prompts jsonl": reader(
        mutants.json_lines(*PROMPTS), lambda d: read_prompts(d / "data.jsonl"), "data.jsonl"
    ),
    "prompts json": reader(
        mutants.jsons(PROMPTS), lambda d: read_prompts(d / "data.json"), "data.json"
    ),
    "answers": reader(
        mutants.jsons(ANSWERS) | mutants.json_lines(*ANSWERS), lambda d: read_answers(d / "data")
    ),
    "suite": reader(mutants.yamls(SUITE), lambda d: read_suite(d / "data").digest),
    "settings": reader(mutants.yamls(SETTINGS), lambda d: read_settings([d / "data"])),
    "fit config": reader(mutants.yamls(FIT), _fit_config),
    "recipe": reader(mutants.yamls(RECIPE), _recipe),
    "panel": reader(mutants.yamls(PANEL), lambda d: read_panel(d / "data")),
    "results": Reader(
        st.deferred(
            lambda: st.tuples(
                mutants.jsons(_run()[0]),
                mutants.json_lines(*_run()[1]),
                mutants.json_lines(*_run()[2]),
            )
        ),
        _results,
        read,
    ),
    "grid": reader(
        mutants.jsons({"studies": ["a", "b"], "title": "T", "command": "c", "notes": []}),
        read_grid,
        "grid.json",
    ),
    "dial": Reader(st.deferred(lambda: dial_folders("vector")), whole.put_dial, _dial),
    "peft": Reader(st.deferred(lambda: dial_folders("peft")), whole.put_dial, _dial),
    "condition": Reader(st.deferred(conditions), _files, load_condition),
    "control vector": reader(
        st.deferred(lambda: mutants.mangled(_control_vector())),
        lambda d: read_control_vector(d / "data.gguf"),
        "data.gguf",
    ),
    "directions csv": reader(
        mutants.tables([{"layer": str(n), "a": "0.5", "b": "1"} for n in range(2)]),
        _directions(".csv"),
        "data.csv",
    ),
    "directions npy": reader(
        st.sampled_from([_numpy(a) for a in ARRAYS]).flatmap(mutants.mangled),
        _directions(".npy"),
        "data.npy",
    ),
    "directions npz": reader(
        st.sampled_from([_numpy({"0": a, "1": a}, True) for a in ARRAYS]).flatmap(mutants.mangled),
        _directions(".npz"),
        "data.npz",
    ),
    "directions safetensors": reader(
        tensors(save({"layer.0": torch.ones(16), "layer.1": torch.ones(16)})),
        _directions(".safetensors"),
        "data.safetensors",
    ),
    "chat body": reader(mutants.jsons({**BODY, "messages": CHAT[:1]}), _bodies(ChatBody)),
    "completion body": reader(mutants.jsons({**BODY, "prompt": [1, 2]}), _bodies(CompletionBody)),
}
READERS |= whole.readers()


def outcome(reader: Reader, folder: Path, content: Any) -> str:
    """`read` or `refused`. Anything else that a reader raises goes through.

    Raises:
        AssertionError: its message is no line that a person would read.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader.write(folder, content)
    try:
        reader.call(folder)
    except OSError as error:  # the command line says it in a line
        if error.errno != errno.ENAMETOOLONG:
            raise
        return "refused"
    except REFUSED as error:
        said = str(error) or str(getattr(error, "error", ""))
        assert 0 < len(said) < 4000, f"a message of {len(said)} characters"
        return "refused"
    return "read"
