"""More readers: whole folders of others (models, runs, stores), published data, dials of every kind, what is
typed, what comes over the network. `readers.py` has the files of one kind."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from starlette.requests import Request

from fuzz import mutants
from trimtab import models, provenance
from trimtab.anchoring.timeline import read_sheet
from trimtab.cli import calibrate, main_of
from trimtab.cli.parse import Checked, checking
from trimtab.dials import Dial
from trimtab.errors import CacheError
from trimtab.evaluation.endpoint import Endpoint
from trimtab.evaluation.judge import endpoint_judge
from trimtab.files import sha256
from trimtab.pairs import read_pairs
from trimtab.pairs.prompts import read_prompts
from trimtab.rendering import Rendering
from trimtab.report import render
from trimtab.serve.app import Server
from trimtab.store import Store
from trimtab.studies.anchoring import study as anchoring
from trimtab.studies.packs import read_pack
from trimtab.studies.pages import page_of
from trimtab.study.cells import read_cell
from trimtab.study.parameters import parse_parameters
from trimtab.study.reading import check, read
from trimtab.training import METHODS

TESTS = Path(__file__).resolve().parents[1]
RESULTS = TESTS.parent / "docs" / "results"


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Files of a folder, by path within it."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


# ---- published data --------------------------------------------------------------------------------

DIALOGUE = "\n\nHuman: Who?\n\nAssistant: {}"
PUBLISHED: dict[str, tuple[str, str, st.SearchStrategy[bytes]]] = {
    "genies": (
        "genies:x/test",
        "genies/distributions/x/test.json",
        mutants.jsons([{"prompt": "Who?", "responses": {"I.": 1.0, "You.": 0.0, "All.": 0}}]),
    ),
    "hh": (
        "hh:x/test",
        "hh-rlhf/x/test.jsonl",
        mutants.json_lines({"chosen": DIALOGUE.format("I."), "rejected": DIALOGUE.format("You.")}),
    ),
    "choices": (
        "choices:x/test",
        "choices/x.test.jsonl",
        mutants.json_lines({"question": "Who?", "choices": ["I.", "You."], "label": 1}),
    ),
    "ethics": (
        "ethics:justice/test",
        "ethics/justice/justice_test.csv",
        mutants.tables(
            [
                {"label": str(n % 2), "scenario": f"I call Bob on Sundays but not as his {w} is"}
                for n, w in enumerate(("line", "car"))
            ]
        ),
    ),
    "bipo": (
        "bipo:x/test",
        "bipo/x/test.csv",
        mutants.tables([{"question": "Who?", "matching": "I.", "not_matching": "You."}]),
    ),
}


def _published(spec: str) -> Callable[[Path], None]:
    return lambda folder: _digest(read_pairs(spec, folder))


def _digest(pairs: Any) -> None:
    _ = pairs.digest


# ---- models ----------------------------------------------------------------------------------------


@cache
def _made() -> Any:
    """The module that made the dials of an earlier version, with a model of 10,000 weights."""
    import importlib.util

    found = importlib.util.spec_from_file_location("made", DIALS / "make.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


DIALS = TESTS / "dials" / "saved_at_fb81d27"


@cache
def _model() -> Any:
    return _made().tiny_model()


@cache
def _model_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        _model().save_pretrained(name)
        tokenizer = _made().tiny_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        tokenizer.save_pretrained(name)
        return {f.name: f.read_bytes() for f in Path(name).iterdir()}


@st.composite
def model_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """A model's folder with one or two of its files nearly right."""
    from fuzz.readers import tensors

    files = dict(_model_files())
    name = draw(st.sampled_from([*files, "config.json", "trimtab.json", "generation_config.json"]))
    if name.endswith(".safetensors"):
        files[name] = draw(tensors(files[name]))
    elif name == "trimtab.json":
        note = {"source_digest": "0" * 64, "metadata": "", "files": {"config.json": "0"}}
        files[name] = draw(mutants.jsons({**note, "said": ["x"]}))
    elif name.endswith(".json"):
        files[name] = draw(mutants.jsons(json.loads(files[name])))
    else:
        files[name] = draw(mutants.mangled(files[name]))
    return files


def _load(folder: Path) -> None:
    models.depth_of(str(folder))
    model, tokenizer = models.load(str(folder), dtype="float32")
    models.identify(str(folder))
    ids = tokenizer("Who?", return_tensors="pt")["input_ids"]
    if not ids.numel() or ids.max() >= 260:
        return
    with torch.no_grad():
        logits = model(input_ids=ids.long()).logits
    assert torch.isfinite(logits).all(), "a model was accepted that makes NaN"


@cache
def _gguf() -> bytes:
    from test_gguf_lora import write_base

    from conftest import build

    with tempfile.TemporaryDirectory() as name:
        return write_base(build("llama"), Path(name) / "m.gguf").read_bytes()


def _gguf_head() -> bytes:
    """What a GGUF file says before its tensors: the accidents are to fall there."""
    return _gguf()[:12_000]


@st.composite
def ggufs(draw: st.DrawFn) -> bytes:
    """A model in GGUF with accidents in its metadata."""
    data = draw(mutants.mangled(_gguf_head()))
    return data + _gguf()[len(_gguf_head()) :]


def _load_gguf(folder: Path) -> None:
    file = str(folder / "m.gguf")
    models.depth_of(file)
    models.digest_of(file)


# ---- dials -----------------------------------------------------------------------------------------


@st.composite
def old_dials(draw: st.DrawFn) -> dict[str, bytes]:
    """A dial of any kind whose note or weights are others, with digests that fit."""
    from fuzz.readers import tensors

    kind = draw(st.sampled_from([d.name for d in sorted(DIALS.iterdir()) if d.is_dir()]))
    files = {f.name: f.read_bytes() for f in (DIALS / kind).iterdir()}
    if draw(st.booleans()):
        (weights,) = (n for n in files if n.endswith(".safetensors"))
        files[weights] = draw(tensors(files[weights]))
    for note in (n for n in ("dial.json", "adapter_config.json") if n in files):
        if draw(st.booleans()):
            changed = draw(mutants.documents([json.loads(files[note])]))
            files[note] = mutants.text_of(changed).encode()
    return files


def put_dial(folder: Path, files: dict[str, bytes]) -> None:
    """A dial's files, with digests that fit, as a stranger would write who wants it believed."""
    put(folder, files)
    try:
        note = json.loads((folder / "dial.json").read_bytes())
        note["weights"]["sha256"] = sha256(folder / note["weights"]["file"])
        keys = ("format", "kind", "settings", "weights", "base_model", "base_digest")
        note["digest"] = provenance.digest({k: note[k] for k in keys})
        (folder / "dial.json").write_text(json.dumps(note))
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return


def _use(folder: Path) -> None:
    dial = Dial.from_pretrained(folder)
    model = _model()
    for alpha in (1.0, -0.5):
        with torch.no_grad(), dial(model, alpha, force=True):
            logits = model(input_ids=torch.arange(8)[None]).logits
        assert torch.isfinite(logits).all(), "a dial was accepted that makes NaN"


# ---- runs ------------------------------------------------------------------------------------------

JOB = {
    "run": "trimtab.studies.screens.study:Screening.measure",
    "setting": {"pairs": ["facts:test"], "model": "m", "train": 6, "test": 3, "blocks": "0,0.5"},
    "own": {"spec": "facts:test"},
    "label": "x",
    "common": "0" * 64,
    "out": "../..",
    "result": "cells/x/cell.json",
}

RUNS = ("demo", "heads/hh", "heads/dph", "steering/honesty")


@st.composite
def runs(draw: st.DrawFn) -> dict[str, bytes]:
    """A finished run in which up to three values of one file are others."""
    run = RESULTS / draw(st.sampled_from(RUNS))
    files = {f.name: f.read_bytes() for f in sorted(run.iterdir()) if f.suffix.startswith(".json")}
    files["cells/x/job.json"] = json.dumps(JOB).encode()
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".json"):
        files[name] = mutants.text_of(draw(mutants.documents([json.loads(files[name])]))).encode()
        return files
    lines = files[name].split(b"\n")
    at = draw(st.integers(0, len(lines) - 2))
    changed = mutants.text_of(draw(mutants.documents([json.loads(lines[at])])))
    files[name] = b"\n".join([*lines[:at], changed.encode(), *lines[at + 1 :]])
    return files


def _page(folder: Path) -> None:
    check(folder)
    read(folder)
    if page := page_of(folder):
        render.write(page, folder / "page.md")


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, bytes]:
    """An anchoring experiment's result with other values."""
    name = draw(st.sampled_from(("1.6", "2.1", "healing", "mixing", "stories")))
    value = json.loads((RESULTS / "anchoring" / name / "result.json").read_text())
    return {f"{name}/result.json": mutants.text_of(draw(mutants.documents([value]))).encode()}


def _experiment(folder: Path) -> None:
    for run in folder.iterdir():
        anchoring.judge(run.name, folder)
        if page := anchoring.page(run):
            render.write(page, folder / "page.md")


WHAT = {"kind": "probe", "rows": 3}


@cache
def _entry() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        Store(name).put(WHAT, [lambda: {"a": torch.ones(3, 4)}])
        (entry,) = (d for d in Path(name).iterdir() if not d.name.startswith("."))
        return {f.name: f.read_bytes() for f in entry.iterdir()}


@st.composite
def entries(draw: st.DrawFn) -> dict[str, bytes]:
    """A store's entry, damaged, or made to be believed."""
    from fuzz.readers import tensors

    files = dict(_entry())
    (shard,) = (n for n in files if n.endswith(".safetensors"))
    if draw(st.booleans()):
        files[shard] = draw(tensors(files[shard]))
    note = draw(mutants.documents([json.loads(files["manifest.json"])]))
    if draw(st.booleans()) and isinstance(
        note, dict
    ):  # its own digest, and those of its shards, fit
        import hashlib

        if isinstance(note.get("shards"), dict):
            note["shards"] = {n: hashlib.sha256(files[shard]).hexdigest() for n in note["shards"]}
        note.pop("sha256", None)
        with contextlib.suppress(ValueError, RecursionError):
            note["sha256"] = provenance.digest(json.loads(mutants.text_of(note)))
    files["manifest.json"] = mutants.text_of(note).encode()
    return files


def _entry_of(folder: Path, files: dict[str, bytes]) -> None:
    put(Store(folder).folder(WHAT), files)


def _stored(folder: Path) -> None:
    store = Store(folder)
    with contextlib.suppress(CacheError):
        store.check("cache")
    found = store.get(WHAT)
    assert found is None or all(t.shape for t in found.values())


PACK = {
    "study": "compare",
    "title": "t",
    "settings": {"model": "m"},
    "files": {"a.yaml": "a: 1"},
    "inputs": {"base": {"model": "0"}},
    "versions": {"trimtab": "0"},
    "expected": {"t": {"accuracy": [0.5, 0.1]}},
}


def _packed(folder: Path, value: Any) -> None:
    if isinstance(value, dict):
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(mutants.text_of({k: v for k, v in value.items() if k in PACK}))
            value = {"format": 1, **value, "sha256": provenance.digest(content)}
    (folder / "data").write_text(mutants.text_of(value))


def _cell(folder: Path) -> None:
    cell = read_cell(folder / "cells" / "x" / "job.json")
    if cell.done:
        cell.read()


# ---- words and texts -------------------------------------------------------------------------------

VERBS: dict[str, list[str]] = {
    "evaluate": ["--model", "m", "--pairs", "t=facts:test", "--alpha", "-1", "1", "--out", "o"],
    "generate": ["--model", "m", "--prompt", "x", "--alpha", "1", "--max-new-tokens", "4"],
    "calibrate": ["--model", "m", "--dial", "d", "--budget", "kl=0.3", "--largest", "4"],
    "export": ["--model", "m", "--dial", "d", "--to", "gguf", "--alpha", "1", "--out", "o"],
    "cache": ["--model", "m", "--pairs", "facts:test", "--sites", "1,final", "--out", "o"],
    "tune": ["dpo", "--model", "m", "--suite", "facts", "--trials", "2", "--out", "o"],
    "serve": ["--model", "m", "--dial", "a=d", "--port", "8080", "--host", "localhost"],
    "judge": ["a.json", "b.json", "--endpoint", "http://localhost:1/v1", "--key", "KEY"],
    "compare": ["--model", "m", "--suite", "facts", "--methods", "dpo", "--out", "o"],
    "dose": ["--model", "m", "--traits", "honesty", "--kl", "0.1", "--out", "o"],
    "import": ["v.npy", "--model", "m", "--sites", "1", "--out", "o"],
}
"""Words of each verb that make sense, but for what they name."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A verb with some of its words nearly right, left out or doubled."""
    verb = draw(st.sampled_from(sorted(VERBS)))
    words = list(VERBS[verb])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(words) - 1))
        what = draw(st.sampled_from(("other", "other", "out", "twice")))
        if what == "out" and len(words) > 1:
            del words[at]
        elif what == "twice":
            words.insert(at, words[at])
        else:
            words[at] = draw(mutants.words(words[at]))
    return [verb, *words]


def typed(_: Path, words: list[str]) -> None:
    """Check a command line."""
    try:
        with checking():
            main_of(words[0])(words[1:])
    except Checked:
        return


PASSAGES = ("A first passage of some length. " * 3 + "\n\n") * 3


def _passages(folder: Path) -> None:
    from types import SimpleNamespace
    from typing import cast

    args = SimpleNamespace(text=folder / "data.txt", passages=3)
    calibrate._passages(cast("Any", args))


def _zipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


# ---- the network -----------------------------------------------------------------------------------

REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "so: [[A]]"}}]}


def _verdict(folder: Path) -> None:
    data = (folder / "data").read_bytes()
    endpoint = Endpoint("http://localhost:1/v1", attempts=1)
    object.__setattr__(endpoint, "_within", lambda *_: data)
    assert endpoint_judge(endpoint, "m")("p", "a", "b") in (0.0, 0.5, 1.0)


HEADERS = {
    "host": "localhost:8080",
    "origin": "http://localhost:8080",
    "authorization": "Bearer key",
    "content-type": "application/json",
}


@st.composite
def headers(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Headers of a request, some of them nearly right or twice."""
    found = []
    for name, value in HEADERS.items():
        text = value
        if draw(st.booleans()):
            text = draw(mutants.words(value, "http://[", "[::1", "a@b:c", "localhost:x"))
        data = text.encode("utf-8", "replace")
        found += [(name.encode(), data)] * draw(st.sampled_from((0, 1, 1, 1, 1, 1, 2)))
    return found


@cache
def _server() -> Server:
    server: Any = Server.__new__(Server)
    server.hosts, server.key = ("localhost",), "key"
    return server


def _asked(_: Path, found: list[tuple[bytes, bytes]]) -> None:
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": found}
    _server().check(Request({**scope, "query_string": b"", "server": ("localhost", 8080)}))


SHEET = "STEP,PHASE,ACTION,lr,weight:log\n0,start,,0.1,1\n+0.5,,save,0.2,\n20,end,,0.1,2\n"


@st.composite
def sheets(draw: st.DrawFn) -> bytes:
    """A sheet with other cells."""
    lines = [line.split(",") for line in SHEET.splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        line = draw(st.sampled_from(lines))
        at = draw(st.integers(0, len(line) - 1))
        line[at] = draw(mutants.words(line[at], "0", "+0.5", "-10", "1e9", "inf", "nan", "9" * 12))
    text = "\n".join(map(",".join, lines))
    return draw(mutants.mangled(text.encode("utf-8", "surrogatepass")))


def _sheet(folder: Path) -> None:
    table = read_sheet(folder / "data.csv").table()
    assert all(math.isfinite(v) for array in table.values.values() for v in array[:1000])


def readers() -> dict[str, Any]:
    """By name, as `readers.READERS`."""
    from fuzz.readers import Reader, _word, reader

    found: dict[str, Reader] = {
        f"published {name}": reader(contents, _published(spec), file)
        for name, (spec, file, contents) in PUBLISHED.items()
    }
    for name, reader_ in found.items():
        file = PUBLISHED[name.removeprefix("published ")][1]
        found[name] = Reader(reader_.contents, _put_at(file), reader_.call)
    return found | {
        "pairs jsonl.gz": Reader(
            mutants.json_lines({"prompt": "Who?", "chosen": "I.", "rejected": "You."})
            .map(_zipped)
            .flatmap(mutants.mangled),
            _put_at("data.jsonl.gz"),
            lambda d: _digest(read_pairs(str(d / "data.jsonl.gz"))),
        ),
        "prompts txt": reader(
            mutants.mangled(b"Who?\nWhat?\n"), lambda d: read_prompts(d / "data.txt"), "data.txt"
        ),
        "passages": reader(mutants.mangled(PASSAGES.encode()), _passages, "data.txt"),
        "model folder": Reader(st.deferred(model_folders), put, _load),
        "model gguf": reader(st.deferred(ggufs), _load_gguf, "m.gguf"),
        "dials of every kind": Reader(old_dials(), put_dial, _use),
        "runs and their pages": Reader(runs(), put, _page),
        "experiments": Reader(experiments(), put, _experiment),
        "store entry": Reader(st.deferred(entries), _entry_of, _stored),
        "cell": Reader(
            st.fixed_dictionaries(
                {
                    "cells/x/job.json": mutants.jsons(JOB),
                    "cells/x/cell.json": mutants.jsons({"found": {"a": [1.0]}, "seconds": 1.0}),
                }
            ),
            put,
            _cell,
        ),
        "pack": Reader(mutants.documents([PACK]), _packed, lambda d: read_pack(d / "data")),
        "sheet": reader(sheets(), _sheet, "data.csv"),
        "words of every verb": _word(typed, command_lines()),
        "template variables": _word(
            lambda _, text: Rendering(template_kwargs=text),
            mutants.jsons({"enable_thinking": False, "a": {"b": [1]}}).map(
                lambda data: data.decode("utf-8", "replace")
            ),
        ),
        "parameters": _word(
            lambda _, text: parse_parameters([text], METHODS["dpo"]),
            mutants.words(
                "train.learning_rate=1e-5..1e-3", "objective.beta=0.1,0.5", "dial.rank=1,2"
            ),
        ),
        "judge's replies": reader(mutants.jsons(REPLY), _verdict),
        "headers": _word(_asked, headers()),
    }


def _put_at(file: str) -> Callable[[Path, bytes], None]:
    return lambda folder, data: put(folder, {file: data})
