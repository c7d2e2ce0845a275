"""Names of places in a model."""

from __future__ import annotations

import pytest

from trimtab.errors import ConfigError
from trimtab.sites import block_index, from_hidden_states_index, from_llama_cpp_index, parse_sites


@pytest.mark.parametrize(
    ("spec", "n", "expected"),
    [
        ("0.3..0.9", 30, tuple(range(9, 27))),
        # 0.29 * 100 is 28.999999999999996, 0.55 * 100 is 55.00000000000001
        ("0.29..0.55", 100, tuple(range(29, 55))),
        ("0.3..0.9", 4, (1, 2, 3)),  # floor(1.2) to ceil(3.6) - 1
        ("0..1", 4, (0, 1, 2, 3)),
        ("0..0.6", 30, tuple(range(18))),
        (".5..1.0", 5, (2, 3, 4)),
        ("5", 30, (5,)),
        ("-1", 30, (29,)),
        (-2, 4, (2,)),
        ("embed, 3,final", 4, ("embed", 3, "final")),
        ("3,-1,3", 4, (3,)),  # each place once
        ([0, "2", "final"], 4, (0, 2, "final")),
        ("model.layers.1.mlp:out", 4, ("model.layers.1.mlp:out",)),
        ("0,0.5..1", 4, (0, 2, 3)),
    ],
)
def test_parse(spec, n, expected):
    assert parse_sites(spec, n) == expected


@pytest.mark.parametrize(
    "spec", ["4", "-5", 4, "0.9..0.3", "0.3..0.3", "", "layer3", "x:output", "1.5..2"]
)
def test_what_is_no_site_is_refused_by_name(spec):
    with pytest.raises(ConfigError, match="site") as caught:
        parse_sites(spec, 4)
    assert str(spec) in str(caught.value)


def test_negative_blocks_count_from_the_end():
    assert [block_index(k, 3) for k in (0, 2, -1, -3)] == [0, 2, 2, 0]


def test_converters():
    # transformers: embeddings, one entry a block, but the last is post-norm (DESIGN.md, Site)
    assert [from_hidden_states_index(i, 4) for i in range(5)] == ["embed", 0, 1, 2, "final"]
    assert from_hidden_states_index(-1, 4) == "final"
    with pytest.raises(IndexError):
        from_hidden_states_index(5, 4)
    assert from_llama_cpp_index(7) == 7
