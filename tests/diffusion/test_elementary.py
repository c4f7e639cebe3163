"""Elementary functions are exact, and what the host makes of them is the same on every processor."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdjax.diffusion import elementary
from tests.diffusion import host_numbers

ROOT = Path(__file__).parents[2]

# What makes numpy, OpenBLAS and the C library take other kernels than they would choose.
OLD_PROCESSOR = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENBLAS_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-AVX2_Usable,-FMA_Usable",
}
# Recorded on a processor with AVX-512, and the same with all of it switched off.
BITS = {
    "functions": "60b99a517d093b73",
    "tables": "9c617183943887cc",
    "blurs": "efe2af0272d4c33d",
    "torch": "6be712cc2de79d01",
    "philox": "2be12ad25558d30a",
}

RANGES = {
    "log": (np.log, [(1e-12, 1e12), (0.5, 2.0)]),
    "log1p": (np.log1p, [(-0.99, 3.0), (-1e-6, 1e-6)]),
    "exp": (np.exp, [(-700.0, 700.0), (-1.0, 1.0)]),
    "expm1": (np.expm1, [(-3.0, 3.0), (-1e-3, 1e-3)]),
    "sin": (np.sin, [(-7.0, 7.0), (-1000.0, 1000.0)]),
    "cos": (np.cos, [(-7.0, 7.0), (-1000.0, 1000.0)]),
    "tan": (np.tan, [(-1.5, 1.5)]),
    "atan": (np.arctan, [(-3.0, 3.0), (-1e6, 1e6)]),
    "acos": (np.arccos, [(-1.0, 1.0)]),
}


@pytest.mark.parametrize(("name", "low", "high"), [(n, *ends) for n, (_, many) in RANGES.items() for ends in many])
def test_functions_are_exact_but_for_the_last_bits(name, low, high):
    x = np.random.default_rng(0).uniform(low, high, 5000)
    found, exact = getattr(elementary, name)(x), RANGES[name][0](x.astype(np.longdouble))
    assert np.all(np.abs(found - exact) <= 4 * np.spacing(np.abs(exact).astype(np.float64)))


@pytest.mark.parametrize("name", RANGES)
def test_numbers_and_arrays_give_the_same_bits(name):
    x = np.random.default_rng(1).uniform(*RANGES[name][1][0], 300)
    function = getattr(elementary, name)
    assert [function(float(each)) for each in x] == function(x).tolist()


def test_functions_know_their_ends():
    assert [elementary.acos(end) for end in (-1.0, 1.0)] == [math.pi, 0.0]
    assert [elementary.atan(end) for end in (-math.inf, 0.0, math.inf)] == [-math.pi / 2, 0.0, math.pi / 2]
    assert [function(-math.inf) for function in (elementary.exp, elementary.expm1)] == [0.0, -1.0]
    assert elementary.exp(np.array([-1000.0, 0.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("exponent", [0, 1, 2, 7.0, 1 / 7, -1.5, 100])
def test_powers_are_exact_but_for_the_last_bits(exponent):
    bases = np.array([0.03, 0.9, 1.0, 1.1, 14.6])
    np.testing.assert_allclose(elementary.power(bases, exponent), bases**exponent, rtol=1e-13)


def test_equations_and_polynomials_are_solved():
    matrix, right = np.random.default_rng(2).normal(size=(3, 3)), [1.0, -2.0, 0.5]
    np.testing.assert_allclose(elementary.solve(matrix.tolist(), right), np.linalg.solve(matrix, right), rtol=1e-12)
    assert elementary.polynomial_with_roots([1.0, 2.0, 3.0]) == [-6.0, 11.0, -6.0, 1.0]
    found = [elementary.log_gamma(x) for x in (0.1, 0.6, 1.2, 5.0, 30.0)]
    np.testing.assert_allclose(found, [math.lgamma(x) for x in (0.1, 0.6, 1.2, 5.0, 30.0)], atol=1e-13)


def test_what_the_host_makes_has_the_bits_of_every_processor():
    assert host_numbers.digests() == BITS


def test_what_the_host_makes_does_not_depend_on_instruction_sets():
    arguments = [sys.executable, "-m", "tests.diffusion.host_numbers"]
    done = subprocess.run(arguments, cwd=ROOT, env={**os.environ, **OLD_PROCESSOR}, capture_output=True, check=True)
    assert json.loads(done.stdout) == BITS
