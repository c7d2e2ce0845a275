"""Readers on documents that are nearly right: each is read or refused in words. `make fuzz` does more."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.readers import READERS, outcome


@pytest.mark.parametrize("name", READERS)
def test_a_document_is_read_or_refused(name, tmp_path):
    reader = READERS[name]

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck.__members__.values()],
    )
    @given(st.data())
    def run(data):
        content = data.draw(reader.contents)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert outcome(reader, tmp_path / "d", content) in ("read", "refused")

    run()
