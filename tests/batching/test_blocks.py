"""Block masks against dense ones, position by position; the kernel itself never runs on a CPU."""

import pytest
import torch

from conftest import random_rows
from trimtab.batching import attention_mask, blocks, collate, contrast_batches, forward, layout_of
from trimtab.batching.contrast import Contrast

SHAPES = ((140, (30, 9, 3)), (2, (4, 1)), (90, (47, 6)))


def seen(mask) -> torch.Tensor:
    """What FlexAttention computes of a mask: whole blocks, the rule within others, nothing elsewhere."""
    lines, _, width, keys = mask.shape
    grid = torch.meshgrid(*map(torch.arange, (lines, width, keys)), indexing="ij")
    by_rule = mask.mask_mod(grid[0], torch.tensor(0), grid[1], grid[2])
    found = torch.zeros_like(by_rule)
    for count, which, whole in (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    ):
        for line in range(lines):
            for row in range(count.shape[2]):
                for column in which[line, 0, row, : count[line, 0, row]].tolist():
                    at = (line, *(slice(n * 128, n * 128 + 128) for n in (row, column)))
                    found[at] = True if whole else by_rule[at]
    return found[:, None]


def both(model, batch):
    with blocks.trying(model, False):
        dense = attention_mask(batch, model)
    with blocks.trying(model, True):
        made = attention_mask(batch, model)
    if not isinstance(dense, dict):
        dense, made = {"": dense}, {"": made}
    assert made.keys() == dense.keys()
    return [(dense[kind], made[kind]) for kind in dense]


@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "mistral"]
)  # no window, some layers', all layers'
@pytest.mark.parametrize("how", ["packed", "line", "prefix"])
def test_blocks_are_the_dense_mask(tiny, name, how):
    rows = random_rows(shapes=SHAPES)
    if how == "prefix":
        first = rows.rows[0]
        rows = type(rows)((first, type(first)(*vars(first).values())), 0, 0, "shared")
    options = {"packed": {}, "line": {"one_line": True}, "prefix": {"share_least": 1}}[how]
    layout = "packed" if how == "packed" else "shared"
    batch = collate(rows, range(len(rows.rows)), layout, **options)
    assert (batch.prefix is not None) == (how == "prefix")
    for dense, made in both(tiny(name), batch):
        assert torch.equal(seen(made), dense)
        assert made.mask_mod is not None
        assert dense.any()
        assert not dense.all()


def test_blocks_of_token_trees(tiny):
    long = tuple(range(3, 163))
    sequences = (long, (*long[:120], *range(200, 230)), (5, 6, 7))
    poles = tuple((n, len(ids)) for n, ids in enumerate(sequences))
    contrast = Contrast(
        sequences, (poles[0], poles[2]), (poles[1], poles[1]), ("a", "b"), 0, "tree"
    )
    (batch,) = contrast_batches(contrast)
    assert batch.ends is not None
    assert batch.input_ids.shape[1] > 128
    for dense, made in both(tiny("mistral"), batch):
        assert torch.equal(seen(made), dense)


# ---- the whole way, with the kernel stood in for ------------------------------------------------


def kernel(query, key, value, block_mask, scale, enable_gqa):
    """What FlexAttention computes, by torch's own attention."""
    assert isinstance(block_mask.shape, tuple)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen(block_mask), scale=scale, enable_gqa=enable_gqa
    )


@pytest.fixture(autouse=True)
def taken_out():
    """What a test has installed is taken out again: it lies over the library's own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    yield
    ALL_ATTENTION_FUNCTIONS._local_mapping.pop("sdpa", None)
    blocks._usual.clear()


@pytest.fixture
def stood_in(monkeypatch, tmp_path):
    """A machine on which block masks could hold."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(blocks, "able", lambda _: True)
    monkeypatch.setattr(blocks, "_compiled", lambda _: kernel)
    return monkeypatch


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_that_is_proven_runs_on_blocks(tiny, stood_in, name):
    model = tiny(name, fresh=True)
    rows = random_rows(shapes=SHAPES)
    batch = collate(rows, range(3), "shared", one_line=True)
    with torch.no_grad():
        dense = forward(model, batch).logits
        assert layout_of(model, rows) == "shared"
        assert blocks.hold(model)
        by_blocks = forward(model, batch).logits
    real = batch.segments >= 0
    torch.testing.assert_close(by_blocks[real], dense[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fault", ["leak", "no window", "cannot be built", "gradient"])
def test_a_model_on_which_blocks_are_wrong_keeps_dense_masks(tiny, stood_in, fault):
    model = tiny("gemma3", fresh=True)
    rule = blocks.packed_rule

    def broken(*_, **__):
        raise RuntimeError("no kernel for this card")

    def leaking(segments, positions, window, prefix, members):
        segments = segments.clamp(max=0) if fault == "leak" else segments
        return rule(segments, positions, None if fault == "no window" else window, prefix, members)

    def detached(query, *args, **how):
        return kernel(query, *args, **how).detach() + 0 * query

    if fault == "cannot be built":
        stood_in.setattr(blocks, "_compiled", lambda _: broken)
    elif fault == "gradient":
        stood_in.setattr(blocks, "_compiled", lambda _: detached)
    else:
        stood_in.setattr(blocks, "packed_rule", leaking)
    with pytest.warns(UserWarning, match="masks are dense"):
        assert layout_of(model, random_rows(shapes=SHAPES)) == "shared"
    assert not blocks.hold(model)


def test_on_a_cpu_nothing_is_tried(tiny):
    assert not blocks.able(tiny("llama"))
    layout_of(tiny("llama"), random_rows())
    assert not blocks.hold(tiny("llama"))


def test_microbatches_are_one_line_of_whole_blocks(tiny, stood_in):
    model, rows = tiny("llama", fresh=True), random_rows(shapes=SHAPES)
    layout_of(model, rows)
    batch = collate(rows, range(3), "shared", **blocks.lines(model))
    assert batch.input_ids.shape == (1, 384)  # 182 + 7 + 143 tokens, and 52 of padding
    apart = collate(rows, range(3), "packed", **blocks.lines(model))
    assert apart.input_ids.shape == (3, 256)
    for dense, made in both(model, batch):
        assert torch.equal(seen(made), dense)
