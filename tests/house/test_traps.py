"""The known traps of steering and kinds of bad input, each with the tests that would see it; and the
tests that have no other home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from trimtab import models
from trimtab.batching import Encoded, Row, collate
from trimtab.states import read

TESTS = Path(__file__).parents[1]

TRAPS = {
    "1 last token": (
        "test_steering.py::test_trap_the_last_token_whatever_the_padding",
        "test_contrast.py::test_trie_equals_separate_sequences",
    ),
    "2 position ids": (
        "test_vector.py::test_trap_2_positions_of_left_padded_rows_in_a_direct_pass",
        "test_states.py::test_padding_on_the_left_is_no_other_model",
    ),
    "3 tail masks": ("test_traps.py::test_trap_3_the_last_tokens_are_each_row_s_own",),
    "4 the final norm": (
        "test_steering.py::test_trap_the_last_block_is_read_before_the_final_norm",
        "test_vector.py::test_trap_4_a_vector_after_the_last_block_comes_before_the_final_norm",
    ),
    "5 tuples, edits in place": (
        "test_steering.py::test_trap_modules_that_give_tuples_are_read_and_differentiated_like_others",
        "test_vector.py::test_trap_5_states_are_not_changed_in_place",
    ),
    "6 the cache keeps its alpha": (
        "test_vector.py::test_trap_6_a_cache_made_at_one_alpha_stays_so",
        "test_vector.py::test_trap_6_7_positions_mean_the_same_in_cached_decoding_and_in_full_passes",
    ),
    "7 prefill and decoding": (
        "test_vector.py::test_trap_6_7_positions_mean_the_same_in_cached_decoding_and_in_full_passes",
        "test_vector.py::test_the_last_prompt_position_produces_the_first_new_token",
    ),
    "8 double BOS": ("test_contrast.py::test_trap_no_double_bos",),
    "9 chat templates": (
        "test_contrast.py::test_trap_the_poles_differ_in_the_persona_alone",
        "test_contrast.py::test_trap_a_template_that_rejects_a_role_is_said",
        "test_contrast.py::test_poles_that_differ_in_more_than_the_persona_are_warned_of",
    ),
    "10 dtypes": (
        "test_steering.py::test_trap_sums_over_half_precision_states_are_float32",
        "test_steering.py::test_gradients_of_half_precision_models_are_float32",
        "test_vector.py::test_trap_10_vectors_stay_float32_until_they_are_added",
        "test_export.py::test_float64_and_half_directions_are_written_in_float32",
    ),
    "11 scale of states, sinks, post-norms": (
        "test_steering.py::test_trap_strength_is_a_share_of_the_state_of_each_layer",
        "test_states.py::test_sinks_are_left_out_of_lengths_but_not_of_states",
        "test_export.py::test_trap_11_under_post_norms_a_bias_is_refused",
    ),
    "12 PCA": (
        "test_steering.py::test_trap_pca_is_seeded_and_signed_by_the_pairs",
        "test_directions.py::test_centring_removes_the_preference_that_the_mean_holds",
    ),
    "13 tied embeddings": (
        "test_steering.py::test_trap_tied_heads_are_visible",
        "test_vector.py::test_trap_13_a_vector_at_a_tied_embedding_moves_the_input_alone",
    ),
    "14 control left on": (
        "test_steering.py::test_trap_a_dial_that_is_on_while_extracting_is_seen_and_leaves_nothing",
        "test_steering.py::test_trap_hooks_are_gone_after_an_error",
        "test_vector.py::test_trap_14_fitting_and_merging_refuse_a_model_with_a_dial_on",
    ),
    "15 activation checkpointing": (
        "test_vector.py::test_trap_15_a_dial_left_between_forward_and_backward_raises",
        "test_vector.py::test_trap_15_a_dial_changed_between_forward_and_backward_raises",
        "test_vector.py::test_trap_15_a_dial_entered_between_forward_and_backward_raises",
    ),
    "16 renamed arguments": (
        "test_traps.py::test_trap_16_no_argument_that_a_model_may_ignore",
        "test_states.py::test_the_head_sees_scored_positions_alone",
    ),
    "17 experts, recurrent states": (
        "test_steering.py::test_trap_blocks_of_a_mixture_of_experts",
        "test_steering.py::test_trap_states_of_routed_tokens_alone_are_refused",
        "test_steering.py::test_trap_padding_reaches_no_recurrent_state",
        "test_vector.py::test_trap_17_a_vector_at_a_mixture_of_experts_is_added_to_the_block_s_output",
    ),
    "18 several devices": (
        "test_vector.py::test_trap_18_a_vector_goes_to_the_device_of_the_states",
    ),
}

BAD_INPUT = {
    "a layer that matches nothing": (
        "test_states.py::test_a_site_that_is_not_there_is_refused",
        "test_steering.py::test_sites_by_regular_expression",
        "test_dials.py::test_linear_layers_are_found_by_structure",
    ),
    "prompts that differ in more than the persona": (
        "test_contrast.py::test_poles_that_differ_in_more_than_the_persona_are_warned_of",
    ),
    "an empty suffix": ("test_contrast.py::test_what_makes_no_contrast",),
    "a control vector truncated, of another architecture, of another size, fuzzed": (
        "test_export.py::test_a_damaged_control_vector_is_refused_with_the_reason",
        "test_export.py::test_a_control_vector_that_does_not_fit_the_model",
        "test_export.py::test_fuzzed_control_vectors_are_refused_or_read",
        "test_export.py::test_ten_thousand_fuzzed_control_vectors",
    ),
    "an alpha that is no number": (
        "test_dials.py::test_what_alpha_cannot_be",
        "test_bad_input.py::test_alphas_that_are_no_numbers",
    ),
    "dials of two base models": ("test_vector.py::test_dials_of_two_base_models_do_not_compose",),
    "a dial entered or changed under activation checkpointing": TRAPS[
        "15 activation checkpointing"
    ],
}


def test_every_trap_has_a_test():
    assert [int(name.split()[0]) for name in TRAPS] == list(range(1, 19))
    wanted: dict[str, set[str]] = {}
    for name in (name for names in (*TRAPS.values(), *BAD_INPUT.values()) for name in names):
        file, _, test = name.partition("::")
        wanted.setdefault(file, set()).add(test)
    for file, tests in wanted.items():
        found = ast.parse(next(TESTS.rglob(file)).read_text(encoding="utf-8")).body
        assert not tests - {f.name for f in found if isinstance(f, ast.FunctionDef)}, file


@pytest.fixture
def lengths() -> Encoded:
    """Answers of one, two and six tokens, after prompts of other lengths, each with its end marker."""
    rows = (
        Row("a", (5, 6, 7, 8, 9), ((10, 0), (11, 12, 0)), ((0, 1),), (0,)),
        Row("b", (5,), ((13, 14, 15, 16, 17, 18, 0), (19, 20, 0)), ((0, 1),), (1,)),
    )
    return Encoded(rows, 0, 0, "lengths")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_trap_3_the_last_tokens_are_each_row_s_own(tiny, lengths, layout):
    """A mask over the last columns of a batch is right for one padding side alone."""
    model = tiny("llama")
    whole = read(model, collate(lengths, [0, 1], layout), sites=(1,), pool="last:2").states[1]
    wanted = []
    with torch.no_grad():
        for row in lengths.rows:
            for answer in row.answers:
                ids = torch.tensor([[*row.prompt, *answer[:-1]]])
                h = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
                wanted.append(h[-min(2, len(answer) - 1) :].mean(0))
    torch.testing.assert_close(whole, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_trap_16_no_argument_that_a_model_may_ignore(tiny, lengths):
    """`num_logits_to_keep` was renamed, and the old name is swallowed in silence: what reaches the head
    is chosen in a hook instead."""
    model, seen = tiny("llama"), []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True
    )
    heads = models.head(model).register_forward_hook(
        lambda _, args, out: seen.append(out.shape[-2])
    )
    batch = collate(lengths, [0, 1])
    try:
        read(model, batch, logps=True)
    finally:
        handle.remove()
        heads.remove()
    given, kept = seen
    assert not [name for name in given if "logits" in name]
    assert kept == int(batch.token_scored.sum())
