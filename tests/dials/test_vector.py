"""Vectors: operators, positions, conditions, arithmetic; what dials have in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import TINY, random_rows
from trimtab.batching import collate
from trimtab.batching.spans import prompts
from trimtab.dials import AdapterDial, Composed, Condition, Dial, VectorDial, conflicts
from trimtab.dials.adapter import linear_modules
from trimtab.errors import ConfigError, DialError
from trimtab.interventions import vectors
from trimtab.states import read

IDS = torch.randint(2, 320, (3, 12), generator=torch.Generator().manual_seed(7))


def logits(model: Any, ids: Tensor = IDS, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


def vector(model: Any, seed: int = 0, sites: tuple = (1, 2), **options: Any) -> VectorDial:
    g = torch.Generator().manual_seed(seed)
    return VectorDial(
        {s: torch.randn(model.config.hidden_size, generator=g) for s in sites},
        dict.fromkeys(sites, 2.0),
        **options,
    ).eval()


# ---- operators, on states -----------------------------------------------------------------------

V = torch.tensor([0.6, 0.8, 0.0])
H = torch.tensor([[3.0, 4.0, 1.0], [-3.0, -4.0, 1.0], [0.8, -0.6, 2.0]])  # <h, v> = 5, -5, 0


def test_operators_by_hand():
    close(vectors.add(H, V), H + V)
    close(vectors.project_out(H, V)[:2], torch.tensor([[0.0, 0.0, 1.0]] * 2))
    close(vectors.suppress_above(H, V, 2.0) @ V, torch.tensor([2.0, -5.0, 0.0]))
    assert torch.equal(vectors.suppress_above(H, V, 2.0)[1:], H[1:])
    close(vectors.replace(H, V, 7.0) @ V, torch.tensor([7.0, 7.0, 7.0]))
    close(vectors.replace(H, V, 7.0)[2], H[2] + 7 * V)
    turned = vectors.repel(H, V, 0.5)
    close(turned.norm(dim=-1), H.norm(dim=-1))
    close(turned[0] @ V / turned[0].norm(), torch.tensor(0.5))
    assert torch.equal(turned[1:], H[1:])
    assert torch.sign(turned[0, 2]) == 1  # the part orthogonal to v keeps its direction


def test_repel_of_a_state_along_the_direction_itself():
    turned = vectors.repel(3 * V[None], V)
    close(turned.norm(), torch.tensor(3.0))
    close(turned[0] @ V, torch.tensor(0.0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-0.9, 0.9))
def test_operators_do_what_they_say(seed: int, level: float):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(7, 5, generator=g, dtype=torch.float64)
    v = torch.randn(5, generator=g, dtype=torch.float64)
    v = v / v.norm()
    assert (vectors.project_out(h, v) @ v).abs().max() < 1e-12
    assert (vectors.suppress_above(h, v, level) @ v).max() <= max(level, (h @ v).min()) + 1e-12
    turned = vectors.repel(h, v, level)
    assert (turned @ v / turned.norm(dim=-1)).max() <= level + 1e-9
    assert torch.allclose(turned.norm(dim=-1), h.norm(dim=-1))
    for once in (
        vectors.project_out(h, v),
        vectors.suppress_above(h, v, level),
        vectors.replace(h, v, level),
        turned,
    ):  # each is its own end: a second time changes nothing
        assert torch.isfinite(once).all()
    assert torch.allclose(vectors.repel(turned, v, level), turned, atol=1e-9)


OPERATORS = [
    ("add", {}),
    ("project_out", {}),
    ("suppress_above", {"levels": {1: 0.3, 2: -0.1}}),
    ("repel", {"levels": {1: 0.1, 2: -0.2}}),
    ("replace", {"levels": {1: 2.0, 2: 0.0}}),
]


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize(("operator", "options"), OPERATORS, ids=[o for o, _ in OPERATORS])
def test_alpha_goes_from_the_state_to_the_operator_s(tiny, operator, options, keep_norm, tmp_path):
    model = tiny("llama")
    dial = vector(model, operator=operator, keep_norm=keep_norm, **options)
    batch = collate(random_rows(), [0, 1])
    first = VectorDial(
        {1: dial.direction(1)},
        {1: 2.0},
        operator=operator,
        keep_norm=keep_norm,
        levels={1: options["levels"][1]} if options else None,
    )
    with torch.no_grad():
        bare = states_at(model, batch, 1)
        with first(model, 0.4):
            part = states_at(model, batch, 1)
        with first(model, 1.0):
            whole = states_at(model, batch, 1)
    if keep_norm:
        close(part.norm(dim=-1), bare.norm(dim=-1))
    else:
        close(part, bare + 0.4 * (whole - bare))
    assert (whole - bare).abs().max() > 1e-2
    dial.save_pretrained(tmp_path / "d")
    again = Dial.from_pretrained(tmp_path / "d")
    assert again.settings() == dial.settings()
    clean = logits(model)
    with dial(model, [0.7, 0.0, -1.0]):
        mixed = logits(model)
    with again(model, [0.7, 0.0, -1.0]):
        assert torch.equal(logits(model), mixed)
    assert torch.equal(mixed[1], clean[1])
    for row, alpha in ((0, 0.7), (2, -1.0)):
        with dial(model, alpha):
            close(logits(model, IDS[row : row + 1])[0], mixed[row], 5e-5)


def states_at(model: Any, batch: Any, site: int) -> Tensor:
    seen: list[Tensor] = []
    handle = model.model.layers[site].register_forward_hook(lambda _, __, y: seen.append(y))
    read(model, batch, sites=(site,))
    handle.remove()
    return seen[0]


def test_what_a_vector_with_options_cannot_be(tiny):
    model = tiny("llama")
    refused: Any = (
        ({"operator": "erase"}, "operator 'erase': expected one of add, project_out"),
        ({"levels": {1: 0.0, 2: 0.0}}, "levels at .* operator 'add'"),
        ({"operator": "replace", "levels": {1: 0.0}}, "expected one a site"),
        ({"operator": "repel", "levels": {1: 1.0, 2: 0.0}}, "expected cosines"),
        ({"positions": "first"}, "positions 'first': expected all, prompt, completion, last"),
        ({"positions": ()}, "or a list of token ids"),
        ({"positions": (-1,)}, "or a list of token ids"),
    )
    for options, message in refused:
        with pytest.raises(DialError, match=message):
            vector(model, **options)


def test_sites_of_other_widths(tiny, tmp_path):
    """Vectors at the outputs of modules, each as wide as its module."""
    model = tiny("llama")
    k = "model.layers.1.self_attn.k_proj:out"
    width = model.get_submodule(k[:-4]).out_features
    assert width != 32
    dial = VectorDial({k: torch.ones(width), 2: torch.ones(32)}, {k: 3.0, 2: 1.0})
    bare = logits(model)
    with dial(model, 1.0):
        moved = logits(model)
    assert (moved - bare).abs().max() > 0.05
    dial.save_pretrained(tmp_path / "d")
    with Dial.from_pretrained(tmp_path / "d")(model, 1.0):
        assert torch.equal(logits(model), moved)
    with (
        pytest.raises(DialError, match=f"7 entries, the model's hidden states {width}"),
        VectorDial({k: torch.ones(7)}, {k: 1.0})(model, 1.0),
    ):
        pytest.fail("entered")


# ---- positions ----------------------------------------------------------------------------------

POSITIONS = ("all", "prompt", "completion", "last", tuple(range(2, 60)))


def greedy(model: Any, dial: Dial, alpha: Any, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    with dial(model, alpha), torch.no_grad():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=1,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("name", TINY)
def test_trap_6_7_positions_mean_the_same_in_cached_decoding_and_in_full_passes(
    tiny, name, positions
):
    """The logits of each decoded token equal those of one pass over prompt and completion, with
    left padding in the one and right padding in the other."""
    model = tiny(name)
    dial = vector(model, positions=positions)
    lengths = [8, 5]
    left = torch.ones(2, 8, dtype=torch.long)
    mask = torch.zeros(2, 8, dtype=torch.long)
    for row, n in enumerate(lengths):
        left[row, 8 - n :] = IDS[row, :n]
        mask[row, 8 - n :] = 1
    out = greedy(model, dial, 1.0, left, mask)
    new = out.sequences[:, 8:]
    full = torch.zeros(2, 14, dtype=torch.long)
    seen = torch.zeros(2, 14, dtype=torch.long)
    for row, n in enumerate(lengths):
        full[row, : n + 6] = torch.cat([IDS[row, :n], new[row]])
        seen[row, : n + 6] = 1
    with dial(model, 1.0), prompts(lengths):
        whole = logits(model, full, attention_mask=seen)
    for row, n in enumerate(lengths):
        decoded = torch.stack([step[row] for step in out.logits])
        close(decoded, whole[row, n - 1 : n + 5], 5e-5)


def test_the_last_prompt_position_produces_the_first_new_token(tiny):
    model = tiny("llama")
    bare, n = logits(model), 5
    changed = {}
    for positions in ("prompt", "completion", "last"):
        dial = vector(model, sites=(3,), positions=positions)  # after the last block
        with dial(model, 1.0), prompts([n] * 3):
            moved = (logits(model) - bare).abs().amax((0, 2)) > 1e-3
        changed[positions] = moved.nonzero()[:, 0].tolist()
    assert changed == {
        "prompt": [0, 1, 2, 3, 4],
        "completion": [4, 5, 6, 7, 8, 9, 10, 11],
        "last": [4],
    }


def test_token_sets(tiny):
    model = tiny("llama")
    ids = IDS.clone()
    ids[0, 3] = ids[1, 7] = 9
    ids[ids == 11] = 12
    dial = vector(model, sites=(3,), positions=(9, 11))
    bare = logits(model, ids)
    with dial(model, 1.0):
        moved = (logits(model, ids) - bare).abs().amax(-1) > 1e-3
    assert torch.equal(moved, ids == 9)


def test_positions_in_packed_rows(tiny):
    """A packed row's answers are steered as the padded rows are."""
    model, rows = tiny("llama"), random_rows()
    for positions in ("prompt", "completion", "last"):
        dial = vector(model, positions=positions)
        found = []
        for layout in ("packed", "padded"):
            batch = collate(rows, [0, 1, 2], layout)
            with dial(model, 1.0), torch.no_grad():
                logps: Any = read(model, batch, logps=True).logps
                found.append(logps[batch.answer_ids.argsort()])
        close(*found)


def test_beams_are_steered_at_their_positions(tiny):
    model = tiny("llama")
    dial = vector(model, positions="completion")
    ids, mask = IDS[:2, :6], torch.ones(2, 6, dtype=torch.long)
    both = greedy(model, dial, [1.0, -1.0], ids, mask, num_beams=3)
    for row, alpha in enumerate((1.0, -1.0)):
        one = greedy(model, dial, alpha, ids[row : row + 1], mask[row : row + 1], num_beams=3)
        assert torch.equal(one.sequences[0], both.sequences[row])


def test_prompts_must_fit_the_batch(tiny):
    model = tiny("llama")
    dial = vector(model, positions="prompt")
    for given_, message in (
        (torch.zeros(2, 2, 2), "expected a count a row"),
        (torch.ones(3, 12), "expected a count a row"),
        ([1, 2], "2 rows, the batch has 3"),
        (torch.ones(3, 5, dtype=torch.bool), r"for a pass over 3 x 12 tokens"),
    ):
        with pytest.raises(ConfigError, match=message), dial(model, 1.0), prompts(given_):
            logits(model)


# ---- conditions ---------------------------------------------------------------------------------


def gate(model: Any, over: str = "prompt", above: bool = True) -> tuple[Condition, Tensor]:
    """A condition that holds for about half of the rows, and each row's score."""
    g = torch.Generator().manual_seed(4)
    direction = torch.randn(32, generator=g)
    seen: list[Tensor] = []
    handle = model.model.layers[0].register_forward_hook(lambda _, __, y: seen.append(y))
    logits(model)
    handle.remove()
    scores = torch.cosine_similarity(seen[0], direction, dim=-1)
    score = {"prompt": scores.mean(-1), "last": scores[:, -1], "token": scores}[over]
    threshold = score.flatten().sort().values
    middle = len(threshold) // 2
    cut = float((threshold[middle - 1] + threshold[middle]) / 2)
    return Condition(0, direction, cut, over, above), score  # type: ignore[arg-type]


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("over", ["prompt", "last", "token"])
def test_a_condition_decides_for_every_row_of_a_batch(tiny, over, above, tmp_path):
    model = tiny("llama")
    condition, score = gate(model, over, above)
    dial = vector(model, sites=(2,), condition=condition)
    plain, bare = vector(model, sites=(2,)), logits(model)
    with dial(model, 1.0):
        conditioned = logits(model)
    with plain(model, 1.0):
        always = logits(model)
    acts = (score > condition.threshold) == above
    assert 0 < acts.sum() < acts.numel()
    if over == "token":
        with plain(model, acts.float()):
            close(conditioned, logits(model))
    else:
        for row in range(3):
            close(conditioned[row], always[row] if acts[row] else bare[row])
            with dial(model, 1.0):  # and alone as among others
                close(logits(model, IDS[row : row + 1])[0], conditioned[row])
    dial.save_pretrained(tmp_path / "d")
    with Dial.from_pretrained(tmp_path / "d")(model, 1.0):
        assert torch.equal(logits(model), conditioned)


def test_a_condition_read_at_the_input_of_what_is_edited(tiny):
    """The same states by another name: block 2's input is block 1's output."""
    model = tiny("llama")
    v = torch.randn(32, generator=torch.Generator().manual_seed(4))
    found = []
    for site in (1, "model.layers.2:in"):
        dial = vector(model, sites=("model.layers.2.mlp:out",))
        seen: list[Tensor] = []
        handle = model.model.layers[1].register_forward_hook(
            lambda _, __, y, seen=seen: seen.append(y)
        )
        logits(model)
        handle.remove()
        score = torch.cosine_similarity(seen[0], v, dim=-1).mean(-1)
        dial.condition = Condition(site, v, float(score.sort().values[1]) - 1e-4)
        with dial(model, 1.0):
            found.append(logits(model))
    assert torch.equal(*found)
    moved = (found[0] - logits(model)).abs().amax((1, 2)) > 1e-3
    assert moved.sum() == 2


def test_a_condition_is_judged_on_the_prompt_and_kept_while_decoding(tiny):
    model = tiny("llama")
    condition, score = gate(model)
    dial = vector(model, sites=(1, 2), condition=condition)
    plain = vector(model, sites=(1, 2))
    mask = torch.ones_like(IDS)
    out = greedy(model, dial, 1.0, IDS, mask)
    acts = (score > condition.threshold).float()
    same = greedy(model, plain, acts, IDS, mask)
    assert torch.equal(out.sequences, same.sequences)
    # in one pass over prompt and completion the same rows act
    with dial(model, 1.0), prompts([12] * 3):
        whole = logits(model, out.sequences)
    close(torch.stack(out.logits, 1), whole[:, 11:17], 5e-5)


def test_a_condition_comes_before_its_edits(tiny):
    model = tiny("llama")
    condition = Condition(2, torch.ones(32), 0.0)
    with (
        pytest.raises(ConfigError, match="read at site 2, after the first edit"),
        vector(model, sites=(1,), condition=condition)(model, 1.0),
    ):
        pytest.fail("entered")
    dial = VectorDial({"model.layers.2.mlp:out": torch.ones(32)}, {"model.layers.2.mlp:out": 1.0})
    dial.condition = condition
    with pytest.raises(ConfigError, match="after the first edit"), dial(model, 1.0):
        pytest.fail("entered")  # block 2 ends behind what is within it
    wrong: Any = (
        ((2, torch.zeros(32), 0.0), "is zero or not finite"),
        ((2, torch.ones(32), 1.5), "threshold 1.5: expected a cosine"),
        ((2, torch.ones(32), 0.0, "first"), "over 'first'"),
    )
    for bad, message in wrong:
        with pytest.raises(DialError, match=message):
            Condition(*bad)


# ---- arithmetic, composing, conflicts -----------------------------------------------------------


def test_vector_arithmetic(tiny, tmp_path):
    model = tiny("llama")
    a, b = vector(model, 1, (1, 2)), vector(model, 2, (2, 3))
    for one, several in (
        (a.plus(b, 0.5), a + 0.5 * b),
        (a.plus(b, -1), a - b),
        (a.times(-2), -2 * a),
        (a.plus(b).times(0.3), 0.3 * (a + b)),
    ):
        assert isinstance(one, VectorDial)
        for alpha in (1.0, -0.7):
            with several(model, alpha):
                expected = logits(model)
            with one(model, alpha):
                close(logits(model), expected, 5e-5)
    one.save_pretrained(tmp_path / "sum")
    assert a.plus(b).sites == (1, 2, 3)
    assert a.plus(a, -0.5).sites == (1, 2)
    for other, message in (
        (vector(model, operator="project_out"), "project_out"),
        (vector(model, positions="last"), "other positions"),
        (vector(model, keep_norm=True), "norms kept"),
    ):
        with pytest.raises(DialError, match=message):
            a.plus(other)
    with pytest.raises(DialError, match="nothing is left"):
        a.plus(a, -1.0)
    with pytest.raises(DialError, match="zero or not finite"):
        a.times(0.0)


def test_dials_of_two_base_models_do_not_compose(tiny):
    model = tiny("llama")
    a, b = vector(model, 1), vector(model, 2)
    a.info.base_model, a.info.base_digest = "one", "1" * 64
    b.info.base_model, b.info.base_digest = "two", "2" * 64
    for compose in (lambda: a + b, lambda: a - 0.5 * b, lambda: Composed([(a, 1.0), (b, 1.0)])):
        with pytest.raises(DialError, match=r"do not compose: one \(111111111111\), two \(2222"):
            compose()
    with pytest.raises(DialError, match="two base models"):
        a.plus(b)
    b.info.base_digest = a.info.base_digest
    assert len((a + b).parts(model)) == 2


def test_conflicts_are_told(tiny):
    model = tiny("llama")
    a, b, c = vector(model, 1, (1, 2)), vector(model, 1, (2, 3)), vector(model, 9, (0,))
    lora = AdapterDial(linear_modules(model, "q_proj"), rank=2)
    again = AdapterDial(linear_modules(model, "(q|k)_proj"), rank=2)
    found = conflicts([a, b, c, lora, again])
    assert [(f.first, f.second) for f in found] == [(0, 1), (3, 4)]
    expected = float(a.direction(2) @ b.direction(2))
    assert found[0].cosines == {2: pytest.approx(expected)}
    assert found[0].worst == pytest.approx(expected)
    assert len(found[1].modules) == 4
    assert "4 modules edited by both" in str(found[1])
    assert "opposed (cosine -1.00 at site 1)" in str(conflicts([a, a.times(-1)])[0])
    assert [(f.first, f.second) for f in conflicts(a + 0.5 * b + c)] == [(0, 1)]
    assert math.isclose(conflicts([a, a])[0].worst, 1.0, abs_tol=1e-6)


# ---- activation checkpointing -------------------------------------------------------------------


def checkpointed(tiny: Any) -> Any:
    model = tiny("llama", fresh=True).train()
    model.gradient_checkpointing_enable()
    return model


def lora(model: Any) -> AdapterDial:
    g = torch.Generator().manual_seed(0)
    dial = AdapterDial(linear_modules(model, "(o|down)_proj"), rank=2, generator=g)
    for B in dial.B:
        B.data = 0.1 * torch.randn(B.shape, generator=g)
    return dial


def test_trap_15_a_dial_left_between_forward_and_backward_raises(tiny):
    model = checkpointed(tiny)
    dial = lora(model)
    with dial(model, 1.0, training=True):
        loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    with pytest.raises(Exception, match=r"between the forward and the backward|different"):
        loss.backward()


def test_trap_15_a_dial_changed_between_forward_and_backward_raises(tiny):
    model = checkpointed(tiny)
    dial = lora(model)
    with dial(model, 1.0, training=True):
        loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    with (
        dial(model, 0.5, training=True),
        pytest.raises(ConfigError, match="between the forward and the backward pass"),
    ):
        loss.backward()


def test_trap_15_a_dial_entered_between_forward_and_backward_raises(tiny):
    model = checkpointed(tiny)
    first, second = lora(model), vector(model)
    with first(model, 1.0, training=True):
        loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
        with (
            second(model, 1.0, training=True),
            pytest.raises(ConfigError, match="between the forward and the backward pass"),
        ):
            loss.backward()


def test_trap_15_a_dial_entered_over_a_bare_forward_raises(tiny):
    """The forward pass ran without any dial, for parameters of somebody else's."""
    model = checkpointed(tiny)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    model.enable_input_require_grads()
    loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    with (
        lora(model)(model, 1.0, training=True),
        pytest.raises(ConfigError, match="a dial was entered between"),
    ):
        loss.backward()


def test_trap_15_passes_in_between_that_leave_everything_as_it_was_are_fine(tiny):
    model = checkpointed(tiny)
    dial = lora(model)
    with dial(model, 1.0, training=True):
        loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
        with torch.no_grad(), vector(model)(model, 2.0):
            logits(model)
        loss.backward()
    assert dial.B[0].grad is not None


def test_our_own_recomputation_counts_as_checkpointing(tiny):
    from trimtab.training.trainer import recomputing

    model = tiny("llama", fresh=True)
    dial = lora(model)
    with recomputing(model):
        with pytest.raises(ConfigError, match="training=True"), dial(model, 1.0):
            pytest.fail("entered")
        with dial(model, 1.0, training=True):
            loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
        with (
            dial(model, 1.0, training=True),
            pytest.raises(ConfigError, match="between the forward and the backward pass"),
        ):
            loss.backward()


# ---- further traps ------------------------------------------------------------------------------


def test_trap_10_vectors_stay_float32_until_they_are_added(tiny):
    """alpha v is multiplied in float32 and rounded once, and so small steps are not lost twice."""
    model = tiny("llama", dtype=torch.bfloat16)
    dial = vector(model, sites=(2,))
    assert dial.direction(2).dtype == torch.float32
    seen: list[Tensor] = []
    with dial(model, 0.3):
        handle = model.model.layers[2].register_forward_hook(lambda _, __, y: seen.append(y))
        logits(model)
        handle.remove()
    handle = model.model.layers[2].register_forward_hook(lambda _, __, y: seen.append(y))
    logits(model)
    handle.remove()
    step = (0.3 * dial.step(2)).to(torch.bfloat16)
    assert torch.equal(seen[0], seen[1] + step)


def test_trap_14_fitting_and_merging_refuse_a_model_with_a_dial_on(tiny, tokenizer, few_pairs):
    from trimtab.training import fit

    model = tiny("llama")
    dial = lora(model)
    with dial(model, 1.0):
        with pytest.raises(ConfigError, match="fitting: a dial is on"):
            fit("mean", model, tokenizer, few_pairs)
        with pytest.raises(ConfigError, match="merging: a dial is on"):
            dial.merged(model)
    with dial(model, 0.0):  # nothing is attached
        fit("mean", model, tokenizer, few_pairs)


def test_trap_5_states_are_not_changed_in_place(tiny):
    """What a module gave out is left alone: autograd and caches may hold it."""
    model = tiny("llama")
    kept: list[Any] = []
    handle = model.model.layers[1].register_forward_hook(
        lambda _, __, y: kept.append((y, y.clone()))
    )
    for operator, options in OPERATORS:
        with vector(model, operator=operator, **options)(model, 1.0):
            logits(model)
    handle.remove()
    assert all(torch.equal(y, copy) for y, copy in kept)


def test_trap_17_a_vector_at_a_mixture_of_experts_is_added_to_the_block_s_output(tiny):
    model = tiny("qwen3moe")
    dial, batch = vector(model, sites=(1,)), collate(random_rows(), [0, 1])
    with torch.no_grad():
        bare = states_at(model, batch, 1)
        with dial(model, 1.0):
            close(states_at(model, batch, 1), bare + dial.step(1))


def test_trap_18_a_vector_goes_to_the_device_of_the_states(tiny):
    """Not of the model: on several devices each block has its own. `meta` stands for another."""
    from trimtab.dials.vector import _add, _add_fused

    def step() -> Tensor:
        return torch.ones(4)

    y = torch.zeros(1, 2, 4, device="meta")
    assert _add(step, y, y, 1.0).device.type == "meta"
    assert _add_fused(step, 1.0)(y, y).device.type == "meta"


def test_trap_13_a_vector_at_a_tied_embedding_moves_the_input_alone(tiny):
    model = tiny("gpt2")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    seen: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda _, x, y: seen.append(y - x[0] @ _.weight.T))
    with vector(model, sites=("embed",))(model, 1.0):
        logits(model)
    handle.remove()
    close(seen[0], torch.zeros_like(seen[0]))


def test_trap_4_a_vector_after_the_last_block_comes_before_the_final_norm(tiny):
    """transformers' last hidden state is post-norm: a direction of one is none of the other."""
    model, seen = tiny("llama"), []
    dial = vector(model, sites=(3,))
    handle = model.model.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    logits(model)
    with dial(model, 1.0):
        logits(model)
    handle.remove()
    close(seen[1] - seen[0], dial.step(3).expand_as(seen[0]))


def test_trap_6_a_cache_made_at_one_alpha_stays_so(tiny):
    """Keys and values of a prompt read with a dial on are not those of the bare model: turning the
    dial between prompt and completion mixes both, and equals neither."""
    model = tiny("llama")
    dial = vector(model)
    prompt, rest = IDS[:, :8], IDS[:, 8:]
    bare = logits(model)[:, 8:]
    with torch.no_grad():
        with dial(model, 1.0):
            cache = model(input_ids=prompt, use_cache=True).past_key_values
            steered = logits(model)[:, 8:]
        mixed = model(input_ids=rest, past_key_values=cache).logits
    assert (mixed - bare).abs().max() > 1e-2
    assert (mixed - steered).abs().max() > 1e-2


def test_trap_2_positions_of_left_padded_rows_in_a_direct_pass(tiny):
    """Where no position ids are given, prompts are counted from the first token that is no padding."""
    model = tiny("llama")
    dial = vector(model, sites=(3,), positions="last")
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = mask[2, :2] = 0
    at = mask.cumsum(-1).sub(1).clamp(min=0)
    bare = logits(model, attention_mask=mask, position_ids=at)
    with dial(model, 1.0), prompts([3, 4, 5]):
        moved = logits(model, attention_mask=mask, position_ids=at)
    changed = (moved - bare).abs().amax(-1) > 1e-3
    assert changed.nonzero().tolist() == [[0, 7], [1, 3], [2, 6]]
