"""Dials of other tools: read by layer, checked on the model, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_export import close, logits, lora, vector
from torch import Tensor

from helpers_study import trimtab
from trimtab.dials import Dial, VectorDial
from trimtab.errors import DialError
from trimtab.export import export, import_dial, write_control_vector
from trimtab.export.importing import read_directions

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

WIDTH = 32
STEPS = {k: torch.randn(WIDTH, generator=torch.Generator().manual_seed(k)) for k in (1, 2)}


def steps_of(dial: Dial) -> dict[Any, Tensor]:
    assert isinstance(dial, VectorDial)
    return {site: dial.step(site) for site in dial.sites}


def same(found: dict[Any, Tensor], wanted: dict[Any, Tensor]) -> None:
    assert list(found) == list(wanted)
    for site, v in wanted.items():
        close(found[site], v)


def write(kind: str, file: Path, first: int = 0) -> Path:
    """The steps in a file of a kind, which gives its name."""
    arrays = {str(k): v.numpy() for k, v in STEPS.items()}
    file = file.with_suffix("." + kind.partition(" ")[0])
    table = torch.zeros(4 + first, WIDTH)
    for k, v in STEPS.items():
        table[k] = v
    match kind:
        case "gguf":
            write_control_vector(file, STEPS, "llama")
        case "safetensors":
            save_file({f"layer.{k}": v for k, v in STEPS.items()}, file)
        case "safetensors by path":
            save_file({f"model.layers.{k}": v for k, v in STEPS.items()}, file)
        case "pt":
            torch.save({k: v.double() for k, v in STEPS.items()}, file)
        case "pt layer_activations":
            torch.save({"layer_activations": STEPS, "layer_type": "decoder_block"}, file)
        case "pt table":
            torch.save(table, file)
        case "npz":
            np.savez(file, **arrays)
        case "npy table":
            np.save(file, table.numpy())
        case "csv table":
            np.savetxt(file, table.numpy(), delimiter=",")
        case "csv layer":
            head = ",".join(["layer", *(f"d{i}" for i in range(WIDTH))])
            body = [",".join([str(k), *map(repr, v.tolist())]) for k, v in STEPS.items()]
            file.write_text("\n".join([head, *body]))
    return file


KINDS = [
    *("gguf", "safetensors", "safetensors by path", "pt", "pt layer_activations", "pt table"),
    *("npz", "npy table", "csv table", "csv layer"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_directions_by_layer_from_every_kind_of_file(
    kind: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny("llama")
    found = import_dial(write(kind, tmp_path / "v"), model, tokenizer)
    same(steps_of(found.dial), STEPS)
    assert "a vector at 2 sites (1, 2); alpha 1 adds it as it is" in found.said[0]
    assert found.dial.info.config["file"].startswith("v.")
    found.dial.check_base(model)
    folder = found.dial.save_pretrained(tmp_path / "dial")
    same(steps_of(Dial.from_pretrained(folder)), STEPS)
    shifted = write(kind, tmp_path / "w", first=1)
    same(steps_of(import_dial(shifted, model, tokenizer, first=1).dial), {
        k - 1: v for k, v in STEPS.items()
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["npy", "pt", "csv row", "csv column", "npz", "safetensors"])
def test_a_single_direction_goes_where_it_is_told(
    kind: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    v = STEPS[1]
    file = tmp_path / ("v." + kind.partition(" ")[0])
    match kind:
        case "npy":
            np.save(file, v.numpy()[None])
        case "pt":
            torch.save(v, file)
        case "csv row":
            file.write_text(",".join(map(repr, v.tolist())))
        case "csv column":
            file.write_text("value\n" + "\n".join(map(repr, v.tolist())))
        case "npz":
            np.savez(file, direction=v.numpy())
        case "safetensors":
            save_file({"direction": v}, file)
    model = tiny("llama")
    with pytest.raises(DialError, match="--layer K says"):
        import_dial(file, model, tokenizer)
    same(steps_of(import_dial(file, model, tokenizer, layer=-1).dial), {3: v})
    with_layer = tmp_path / "x.npz"
    np.savez(with_layer, direction=v.numpy(), layer=2, strength=3.0)
    same(steps_of(import_dial(with_layer, model, tokenizer).dial), {2: v})


def test_what_the_model_says_of_it(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny("llama")
    text = "The capital of France is Paris."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    typical = states.norm(dim=-1)[0, 1:].mean().item()
    for share, warned in ((0.1, False), (30.0, True), (1e-4, True)):
        v = share * typical * STEPS[1] / STEPS[1].norm()
        np.save(tmp_path / "v.npy", v.numpy())
        said = import_dial(tmp_path / "v.npy", model, tokenizer, layer=1).said
        told = float(said[0].partition("as it is: ")[2].partition(" ")[0])
        assert told == pytest.approx(share, rel=0.5), "another text, the same kind of states"
        assert any("is it for this model" in line for line in said) is warned


def test_an_export_comes_back_as_it_was(
    tiny: Any,
    tokenizer: Any,
    tmp_path: Path,
    checked_here: None,
) -> None:
    model = tiny("llama")
    dial = vector(model)
    for to, name in (("repeng", "v.gguf"), ("steering-vectors", "s"), ("gguf", "g.gguf")):
        export(dial, model, tokenizer, to, tmp_path / name, alpha=2.0)
        back = import_dial(tmp_path / name, model, tokenizer).dial
        same(steps_of(back), {site: 2 * dial.step(site) for site in dial.sites})
    adapter = lora(model)
    export(adapter, model, tokenizer, "peft", tmp_path / "p", alpha=0.5)
    found = import_dial(tmp_path / "p", model, tokenizer)
    assert "alpha 1 is the adapter as PEFT applies it" in " ".join(found.said)
    with adapter(model, 0.5):
        wanted = logits(model)
    with found.dial(model, 1.0):
        close(logits(model), wanted)


def test_peft_folders_are_checked_on_the_model(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny("llama", fresh=True), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"])
    )
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "p")
    wanted = logits(model.eval())
    bare = tiny("llama")
    found = import_dial(tmp_path / "p", bare, tokenizer)
    with found.dial(bare, 1.0):
        close(logits(bare), wanted)
    assert found.dial.info.base_digest, "it is known from now on which model it is for"
    with pytest.raises(DialError):
        import_dial(tmp_path / "p", tiny("gpt2"), tokenizer)


def test_nothing_is_unpickled(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    class Loud:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"layer_activations": Loud()}, tmp_path / "v.pt")
    torch.save(Loud(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "v.npy", np.array([Loud()], dtype=object))
    np.savez(tmp_path / "v.npz", a=np.array([Loud()], dtype=object))
    (tmp_path / "v.pkl").write_bytes((tmp_path / "w.pt").read_bytes())
    for name in ("v.pt", "w.pt", "v.npy", "v.npz", "v.pkl"):
        with pytest.raises(DialError) as caught:
            import_dial(tmp_path / name, tiny("llama"), tokenizer)
        assert name in str(caught.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DialError, match="save its tensors by layer"):
        read_directions(tmp_path / "v.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "1,2\n3\n", "different lengths"),
        ("a.csv", "layer,a\n1,x\n", "cannot be read"),
        ("a.csv", "layer,a\n1,2\n", "1 entries"),
        ("a.csv", "1,2\n3,4\n5,6\n", "a table of 3 rows; expected 4"),
        ("a.csv", "layer,a,b\n1,nan,1\n", "finite"),
        ("a.safetensors", "x", "cannot be read"),
        ("a.npy", "x", "cannot be read"),
        ("a.npz", "x", "cannot be read"),
        ("a.gguf", "GGUF", "truncated"),
        ("a.json", "{}", r"expected \.gguf, \.safetensors"),
    ],
)
def test_files_that_hold_no_directions(
    name: str, content: str, message: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DialError, match=message):
        import_dial(tmp_path / name, tiny("llama"), tokenizer)


@pytest.mark.parametrize(
    ("tensors", "how", "message"),
    [
        ({"1": torch.ones(31)}, {}, "31 entries, the model's states have 32"),
        ({"4": torch.ones(32)}, {}, "the model has 0 to 3"),
        ({"0": torch.ones(32)}, {"first": 1}, "block -1"),
        ({"1": torch.zeros(32)}, {}, "all of its directions are zero"),
        ({"1": torch.ones(32), "2": torch.ones(32)}, {"layer": 1}, "holds 2 layers"),
        ({"1": torch.ones(2, 32)}, {}, "vector of finite numbers"),
        ({"1": torch.full((32,), float("nan"))}, {}, "finite"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, {}, "a layer's number"),
        ({"layer.1": torch.ones(32), "1": torch.ones(32)}, {}, "there twice"),
        ({"1": torch.ones(32, dtype=torch.bool)}, {}, "expected numbers"),
    ],
)
def test_directions_that_do_not_fit(
    tensors: Any, how: Any, message: str, tiny: Any, tokenizer: Any, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(DialError, match=message):
        import_dial(tmp_path / "v.safetensors", tiny("llama"), tokenizer, **how)


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("import")
    tiny("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        yield folder


def test_the_verb_and_what_follows(here: Path) -> None:
    file = write("csv layer", here / "v")
    words = ("import", file, "--model", here / "model", "--out", here / "dial")
    done = trimtab(*words)
    assert done.code == 0, done.err
    assert "alpha 1 adds it as it is" in done.out
    assert "holds this very dial already" in trimtab(*words).out
    assert "exists" in trimtab(*words, "--first", "1").err
    assert trimtab(*words, "--overwrite").code == 0
    calibrated = trimtab(
        "calibrate",
        here / "dial",
        "--model",
        here / "model",
        "--passages",
        2,
        "--budget",
        "kl=0.02",
    )
    assert calibrated.code == 0, calibrated.err
    note = json.loads((here / "dial" / "dial.json").read_text())
    assert note["method"] == "import"
    assert note["measured"]["range"]["alpha"]
    assert "nothing is there" in trimtab(*words[:1], here / "none", *words[2:]).err
