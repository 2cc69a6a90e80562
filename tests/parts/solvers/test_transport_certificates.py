"""Transport certificates are true at every scale, gradients right or refused, and guards catch their bugs."""

from __future__ import annotations

import pytest
import torch
import transport_guards
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_transport_guards import PLANTED
from transport_guards import ordered

CHECKS = {
    name.removeprefix("check_"): found
    for name, found in vars(transport_guards).items()
    if name.startswith("check_")
}


@pytest.mark.parametrize("name", CHECKS)
def test_guard(name):
    check = CHECKS[name]
    check()


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug):
    check, planted = PLANTED[bug]
    with planted(), pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[check]()


def test_every_guard_catches_something():
    assert {check for check, _ in PLANTED.values()} == set(CHECKS)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10_000),
    exponent=st.integers(-15, 15),
    offset=st.sampled_from([0.0, 1.0, -3.0, 1e4]),
    square=st.booleans(),
    single=st.booleans(),
)
def test_bound_optimum_and_value_are_ordered_at_every_scale(seed, exponent, offset, square, single):
    dtype = torch.float32 if single else torch.float64
    ordered(seed, exponent, offset, square=square, dtype=dtype)
