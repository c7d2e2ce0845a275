"""repeng's example and its meaning of layers and strengths, under its own names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import build
from trimtab import models
from trimtab.compat.repeng import (
    ControlModel,
    ControlVector,
    DatasetEntry,
    batched_get_hiddens,
    get_available_layers,
    make_dataset,
    model_layer_list,
)
from trimtab.errors import ConfigError, DataError, DialError

SUFFIXES = ["The sky", "The sky is", "Two and two", "Rome is the", "Water boils"]


@pytest.fixture
def dataset() -> list[DatasetEntry]:
    return make_dataset("You are an {persona} person.", ["honest"], ["unhonest"], SUFFIXES)


def repeng_states(model: nn.Module, tokenizer, texts: list[str], layer: int) -> torch.Tensor:
    """What repeng reads: `hidden_states[layer + 1]` at the last token, text by text."""
    return torch.stack(
        [
            model(**tokenizer(t, return_tensors="pt"), output_hidden_states=True).hidden_states[
                layer + 1
            ][0, -1]
            for t in texts
        ]
    )


@pytest.mark.parametrize(("method", "centred"), [("pca_diff", True), ("pca_center", False)])
def test_directions_are_repengs(tiny, tokenizer, dataset, store, method, centred):
    decomposition = pytest.importorskip("sklearn.decomposition")
    model = tiny("llama")
    vector = ControlVector.train(model, tokenizer, dataset, method=method, store=store)
    assert sorted(vector.directions) == [1, 2, 3]  # never layer 0
    assert vector.model_type == "llama"
    for layer in (1, 2):  # the last one repeng reads after the final norm
        h = repeng_states(
            model, tokenizer, [t for e in dataset for t in (e.positive, e.negative)], layer
        )
        rows = h[::2] - h[1::2]
        if not centred:
            rows = torch.cat([rows, -rows])
        truth = decomposition.PCA(1, svd_solver="full").fit(rows.numpy()).components_[0]
        truth *= np.sign(np.sign((h[::2] - h[1::2]).numpy() @ truth).sum())
        assert vector.directions[layer].dtype == np.float32
        assert float(vector.directions[layer] @ truth) > 0.9999


def test_the_readme(tokenizer, dataset):
    """repeng's README, its import alone changed (and a tiny model in place of Mistral)."""
    model = build("llama")
    bare = model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=8)
    model = ControlModel(model, list(range(-1, -3, -1)))
    vector = ControlVector.train(model, tokenizer, dataset)
    outs = []
    for strength in (-2.2, 0, 1, 2.2):
        model.set_control(vector, strength)
        out = model.generate(
            **tokenizer("The sky", return_tensors="pt"),
            do_sample=False,
            max_new_tokens=8,
            repetition_penalty=1.1,
        )
        tokenizer.decode(out.squeeze()).strip()
        outs.append(model(torch.tensor([[5, 6, 7]])).logits)
    model.reset()
    assert torch.equal(outs[1], model(torch.tensor([[5, 6, 7]])).logits)  # 0 is the bare model
    assert not torch.allclose(outs[0], outs[3])
    assert torch.equal(
        model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=8), bare
    )


def test_the_readme_of_the_research_branch(tiny, tokenizer):
    model = build("llama")
    dataset = make_dataset(
        "Pretend you're an {persona} person making statements about the world.",
        ["honest"],
        ["untruthful"],
        SUFFIXES,
        tokenizer,
    )
    _, hidden_layers = get_available_layers(
        model, regex_filter=r".layers.\d+$", layer_range=(0.3, 0.9)
    )
    assert hidden_layers == ["model.layers.1", "model.layers.2"]
    vector = ControlVector.train(
        model, tokenizer, dataset, hidden_layers=hidden_layers, method="fisher_steer_cov_reg1"
    )
    assert list(vector.directions) == hidden_layers
    model = ControlModel(model, {})
    for strength in (-2.0, 0, 2.0):
        model.set_control(vector, strength)
        model.generate(**tokenizer("Should I lie?", return_tensors="pt"), max_new_tokens=4)


def test_strength_and_layer_are_repengs(tiny):
    """coeff times the vector is added to the output of block L, at every position."""
    model = build("llama")
    v = np.arange(32, dtype=np.float32) / 100
    ids = torch.tensor([[5, 6, 7, 8]])
    handle = models.layers(model)[2].register_forward_hook(
        lambda _, __, out: out + 1.5 * torch.from_numpy(v)  # pyright: ignore
    )
    truth = model(ids).logits
    handle.remove()
    control = ControlModel(model, [-2])
    control.set_control(ControlVector("llama", {1: v, 2: v}), 1.5)
    assert torch.allclose(control(ids).logits, truth, atol=1e-5)
    control.set_raw_control({2: torch.from_numpy(1.5 * v)})
    assert torch.allclose(control(ids).logits, truth, atol=1e-5)
    control.set_raw_control(None)
    assert torch.equal(control(ids).logits, model(ids).logits)


def test_normalize_and_operator():
    model = build("llama")
    kept: list[torch.Tensor] = []
    control = ControlModel(model, [2])
    vector = ControlVector("llama", {2: np.ones(32, dtype=np.float32)})
    watch = models.layers(model)[3].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    ids = torch.tensor([[5, 6, 7]])
    control(ids)
    control.set_control(vector, 3.0, normalize=True)
    control(ids)
    control.set_control(vector, 3.0, operator=lambda h, c: h - c)
    control(ids)
    watch.remove()
    assert torch.allclose(kept[0].norm(dim=-1), kept[1].norm(dim=-1), rtol=1e-5)
    assert not torch.allclose(kept[0], kept[1])
    assert torch.allclose(kept[2], kept[0] - 3, atol=1e-5)


def test_trap_an_active_control_is_off_while_extracting(tokenizer, dataset):
    model = build("llama")
    control = ControlModel(model, [1, 2])
    vector = ControlVector.train(control, tokenizer, dataset)
    control.set_control(vector, 8.0)
    steered = control(torch.tensor([[5, 6]])).logits
    assert ControlVector.train(control, tokenizer, dataset) == vector
    assert torch.equal(control(torch.tensor([[5, 6]])).logits, steered)  # and on again


def test_the_model_is_never_changed(dataset):
    model = build("llama")
    before = [type(m) for m in model.modules()]
    control = ControlModel(model, [1])
    control.set_control(ControlVector("llama", {1: np.ones(32, dtype=np.float32)}))
    assert [type(m) for m in model.modules()] == before
    assert control.unwrap() is model
    assert not any(m._forward_hooks for m in model.modules())


def test_arithmetic_stays_in_float32():
    a = ControlVector("m", {1: np.ones(3, dtype=np.float32), 2: np.ones(3, dtype=np.float32)})
    b = ControlVector("m", {2: np.ones(3, dtype=np.float32), 3: np.ones(3, dtype=np.float32)})
    both = a + np.float64(0.5) * b
    assert {k: v.tolist() for k, v in both.directions.items()} == {
        1: [1.0] * 3,
        2: [1.5] * 3,
        3: [0.5] * 3,
    }
    assert {v.dtype for v in both.directions.values()} == {np.dtype(np.float32)}
    assert -(a - a) + b / 2 == ControlVector(
        "m", {1: np.zeros(3), 2: np.full(3, 0.5), 3: np.full(3, 0.5)}
    )
    assert a != b
    with pytest.warns(UserWarning, match="do not mean the same"):
        a + ControlVector("other", {})
    with pytest.raises(TypeError):
        a + 1


def test_what_cannot_be_done_is_said(tokenizer, dataset, tmp_path):
    model = build("llama")
    with pytest.raises(ConfigError, match="trains a dial"):
        ControlVector.train(model, tokenizer, dataset, method="dpo")
    with pytest.raises(ConfigError, match="unknown method"):
        ControlVector.train(model, tokenizer, dataset, method="pca_dif")
    with pytest.raises(DataError, match="empty"):
        ControlVector.train(model, tokenizer, [])
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        ControlModel(model, [4])
    vector = ControlVector("llama", {1: np.ones(5, dtype=np.float32)})
    with pytest.raises(ConfigError, match="has no layer 2"):
        ControlModel(model, [2]).set_control(vector)
    control = ControlModel(model)
    control.set_control(vector)
    with pytest.raises(ConfigError, match="5 entries, the states 32"):
        control(torch.tensor([[5, 6]]))
    control.reset()
    with pytest.raises(ConfigError, match="finite"):
        control.set_control(vector, float("nan"))
    for layer in (0, "model.layers.1"):
        with pytest.raises(DialError, match="blocks 1 and up"):
            ControlVector("llama", {layer: np.ones(3)}).export_gguf(tmp_path / "v.gguf")


def test_gguf_goes_through_the_exporter(monkeypatch, tmp_path):
    """What the exporter is given and gives back; the file itself is tested with the exporter."""
    import sys
    from types import ModuleType

    kept: dict[str, object] = {}
    fake = ModuleType("trimtab.export.gguf")
    fake.write_control_vector = lambda *given: kept.update(given=given)  # type: ignore[attr-defined]
    fake.read_control_vector = lambda file: kept["given"][1:]  # type: ignore[attr-defined,index]
    monkeypatch.setitem(sys.modules, "trimtab.export", ModuleType("trimtab.export"))
    monkeypatch.setitem(sys.modules, "trimtab.export.gguf", fake)
    vector = ControlVector("llama", {1: np.ones(4), 3: np.arange(4)})
    vector.export_gguf(tmp_path / "v.gguf")
    file, directions, hint = kept["given"]  # type: ignore[misc]
    assert (file, hint) == (tmp_path / "v.gguf", "llama")
    assert {v.dtype for v in directions.values()} == {torch.float32}
    assert ControlVector.import_gguf(tmp_path / "v.gguf") == vector


# ---- repeng 0.5's own reading of states ----------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_i4_layers_and_hidden_states_are_repengs(tiny, tokenizer, name):
    model = tiny(name)
    assert len(model_layer_list(model)) == len(model_layer_list(ControlModel(model, [1]))) == 4
    texts = ["The sky", "Two and two are four", "Rome is the"]
    found = batched_get_hiddens(model, tokenizer, texts, [1, -2], 2)
    assert list(found) == [1, 2]
    for layer in (1, 2) if name != "mamba" else ():  # whose hidden_states are others
        wanted = repeng_states(model, tokenizer, texts, layer)
        assert found[layer].shape == (3, 32)
        assert found[layer].dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found[layer]), wanted, rtol=1e-4, atol=1e-4)


def test_i4_own_states_and_transformed_ones(tiny, tokenizer, dataset, store):
    model = ControlModel(tiny("llama"), [1, 2])
    seen = {}

    def compute(*, model, tokenizer, train_strs, hidden_layers, batch_size):
        seen.update(texts=train_strs, layers=hidden_layers, size=batch_size)
        return batched_get_hiddens(model, tokenizer, train_strs, hidden_layers, batch_size)

    plain = ControlVector.train(model, tokenizer, dataset, hidden_layers=[1, -2], store=store)
    given = ControlVector.train(
        model, tokenizer, dataset, hidden_layers=[1, -2], compute_hiddens=compute, batch_size=7
    )
    assert seen["texts"][:2] == [dataset[0].positive, dataset[0].negative]
    assert (seen["layers"], seen["size"]) == ([1, 2], 7)
    for layer, v in plain.directions.items():
        assert float(v @ given.directions[layer]) > 0.9999
    turned = ControlVector.train(
        model,
        tokenizer,
        dataset,
        hidden_layers=[1],
        transform_hiddens=lambda h: {k: -v for k, v in h.items()},
    )
    assert float(turned.directions[1] @ plain.directions[1]) < -0.9999
    wrong = [
        (lambda h: {k: v[:3] for k, v in h.items()}, DataError, "a row a text"),
        (lambda h: {k: v * np.nan for k, v in h.items()}, DataError, "finite"),
        (lambda h: {k: np.ones_like(v) for k, v in h.items()}, DataError, "layer 1"),
    ]
    for transform, kind, message in wrong:
        with pytest.raises(kind, match=message):
            ControlVector.train(
                model, tokenizer, dataset, hidden_layers=[1], transform_hiddens=transform
            )
    with pytest.raises(ConfigError, match="on states alone"):
        ControlVector.train(
            model, tokenizer, dataset, method="svd_gradient", compute_hiddens=compute
        )


@pytest.mark.parametrize("decode", [True, False])
def test_i4_train_with_sae(tiny, tokenizer, dataset, decode):
    """An autoencoder that is a change of basis finds the direction in that basis."""

    class Basis:
        def __init__(self, seed: int):
            g = torch.Generator().manual_seed(seed)
            self.q = torch.linalg.qr(torch.randn(32, 32, generator=g))[0].numpy()

        def encode(self, states):
            return states @ self.q

        def decode(self, features):
            return features @ self.q.T

    layers = {1: Basis(1), 2: Basis(2)}
    sae = SimpleNamespace(layers=layers)

    model = tiny("llama")
    plain = ControlVector.train(
        model, tokenizer, dataset, hidden_layers=[1, 2], method="pca_center"
    )
    found = ControlVector.train_with_sae(
        model, tokenizer, sae, dataset, hidden_layers=[1, 2], decode=decode
    )
    for layer, v in plain.directions.items():
        wanted = v if decode else layers[layer].encode(v)  # pyright: ignore
        assert float(found.directions[layer] @ wanted) > 0.9999


def test_i4_umap_is_there_or_says_what_to_install(tiny, tokenizer, dataset):
    try:
        import umap  # noqa: F401  # pyright: ignore
    except ImportError:
        with pytest.raises(ConfigError, match="umap"):
            ControlVector.train(tiny("llama"), tokenizer, dataset, method="umap")
    else:
        vector = ControlVector.train(tiny("llama"), tokenizer, dataset, method="umap")
        assert sorted(vector.directions) == [1, 2, 3]


@pytest.mark.parametrize(("name", "layers"), [("gpt2", [-2, -3]), ("llama", [2, 3])])
def test_i4_equal_ways_of_saying_a_strength_give_equal_texts(
    tokenizer, dataset, tmp_path, name, layers
):
    """What repeng's own tests hold true of any model: a vector is written and read without a change,
    and coefficient, product, quotient, sign and sum say the same (`python -m bench.repeng_tests`)."""
    model = ControlModel(build(name), layers)
    vector = ControlVector.train(model, tokenizer, dataset, method="pca_center")
    vector.export_gguf(tmp_path / "v.gguf")
    assert ControlVector.import_gguf(tmp_path / "v.gguf") == vector

    def text(control: ControlVector | None, coeff: float = 1.0) -> list[int]:
        if control is not None:
            model.set_control(control, coeff)
        ids = tokenizer("The sky", return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=8, repetition_penalty=1.1)
        model.reset()
        return out[0].tolist()

    bare, up, down = text(None), text(vector, 40.0), text(vector, -40.0)
    assert len({*map(tuple, (bare, up, down))}) == 3
    for control, coeff, wanted in (
        (vector, 0.0, bare),
        (vector * 0.0, 1.0, bare),
        (vector - vector, 1.0, bare),
        (40 * vector, 1.0, up),
        (-(vector * -40), 1.0, up),
        (vector / 0.025, 1.0, up),
        (vector * -40, 1.0, down),
        (-(vector * 40), 1.0, down),
        (vector - 41 * vector, 1.0, down),
    ):
        assert text(control, coeff) == wanted
