"""Live comparison of samplers with those of diffusers and of k-diffusion, a formula in the place of the network."""

import collections

import numpy as np
import pytest

from tests.golden import samplers as golden
from tests.golden import strengths

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.sampler_reference", reason="needs torch: make parity", exc_type=ImportError
)
# Restart is A1111's, and only recorded.
LIVE = {name: case for name, case in golden.CASES.items() if case.sampler != "restart"}
KINDS = sorted({name.split(" ", 1)[0] for name in LIVE})


@pytest.mark.parametrize("kind", KINDS)
def test_samplers(kind: str) -> None:
    cases = {name: case for name, case in LIVE.items() if name.split(" ", 1)[0] == kind}
    errors = {
        name: golden.relative_error(golden.given(case), reference.by_reference(case)) for name, case in cases.items()
    }
    worst = collections.Counter(errors).most_common(1)
    print(f"\n{kind}: {len(cases)} cases, at worst {worst[0][1]:.1e}, {worst[0][0]}")
    assert {name: error for name, error in errors.items() if not error <= cases[name].tolerance} == {}


@pytest.mark.parametrize("name", ["DDIMScheduler 7", "dpmpp_2m karras 20"])
def test_recordings_are_what_the_reference_gives_now(name: str) -> None:
    np.testing.assert_allclose(
        reference.by_reference(golden.CASES[name]).ravel(), golden.recorded()[name], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", sorted({name.split(" ", 1)[0] for name in strengths.CASES}))
def test_samplers_that_begin_with_an_image(kind: str) -> None:
    cases = {name: case for name, case in strengths.CASES.items() if name.split(" ", 1)[0] == kind}
    references = {name: reference.by_reference(case) for name, case in cases.items()}
    errors = {name: golden.relative_error(golden.given(case), references[name]) for name, case in cases.items()}
    worst = collections.Counter(errors).most_common(1)
    print(f"\n{kind}: {len(cases)} cases, at worst {worst[0][1]:.1e}, {worst[0][0]}")
    assert {name: error for name, error in errors.items() if not error <= strengths.tolerance(cases[name])} == {}
    for name, found in references.items():
        np.testing.assert_allclose(found.ravel(), strengths.recorded()[name], rtol=1e-9, atol=1e-9)
