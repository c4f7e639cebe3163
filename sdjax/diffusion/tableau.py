"""From a sampler written as its paper has it to the table of numbers by which the compiled loop takes its steps.

Every sampler here is linear in the latents, the denoised latents and fresh noise; only the network is not. So it
is a general linear method (Butcher 1966, https://doi.org/10.1090/S0025-5718-1966-0189251-0): between two evaluations of
the network a few latents are kept in registers, and each new register is a weighted sum of the old ones, of what the
network gave and of noise. A sampler is therefore a function that is run once on the host with symbols in the place of
latents, in float64. What it does with them is written down, and this table, not the sampler, goes into the program.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

# Latents that are kept between two evaluations, the network's next input among them. UniPC of order 3 and PNDM's
# Runge-Kutta steps need most.
REGISTERS = 6


class Table(NamedTuple):
    """What a sampler does: row i is about the i-th evaluation of the network and what follows it.

    sigma: noise of the evaluated latents; they are `x0 + sigma * noise`.
    timestep: what the network is told.
    step: the step, counted from 0, to which the evaluation belongs.
    weights: new registers (rows) from old registers, the denoised latents and noise (columns). Register 0 is what the
      network is asked next, and after the last row the result.
    draws: whether noise is drawn after evaluation i; entry 0 is before all, so there is one more.
    brownian: whether that noise is the increment of a Brownian path in sigma over `span`, else white.
    span: from one sigma to another.
    first_noise: weight of the noise drawn before all.
    start: standard deviation of the first latents.
    """

    sigma: Float64[np.ndarray, " n"]
    timestep: Float64[np.ndarray, " n"]
    step: Int64[np.ndarray, " n"]
    weights: Float64[np.ndarray, "n r c"]
    draws: Bool[np.ndarray, " m"]
    brownian: Bool[np.ndarray, " m"]
    span: Float64[np.ndarray, "m 2"]
    first_noise: float
    start: float

    @property
    def evaluations(self) -> int:
        """How often the network is asked."""
        return len(self.sigma)

    @property
    def steps(self) -> int:
        """How many steps are taken: none where nothing that the network says is used."""
        return int(self.step[-1]) + 1 if self.weights[:, :, REGISTERS:].any() else 0


def still(sigma: float) -> Table:
    """The table of no step: latents stay as they are, and what the network says of them, at `sigma`, is left out."""
    weights = np.zeros((1, REGISTERS, REGISTERS + 2))
    weights[0, 0, 0] = 1
    no = np.zeros(2, bool)
    return Table(
        sigma=np.array([sigma]),
        timestep=np.zeros(1),
        step=np.zeros(1, np.int64),
        weights=weights,
        draws=no,
        brownian=no,
        span=np.tile([1.0, 0.5], (2, 1)),
        first_noise=0.0,
        start=0.0,
    )


class _Leaf:
    """A symbol: latents that are in a register or come from outside. Compared by identity."""

    __slots__ = ("born", "form", "kind", "last_use")

    def __init__(self, kind: str, born: int, form: "dict[_Leaf, float] | None" = None) -> None:
        self.kind = kind  # "start", "input", "denoised", "noise" or "kept"
        self.born = born  # the evaluation after which it is there; -1 is before all
        self.form = form  # of inputs and kept ones: the sum which they are
        self.last_use = born


class Vector:
    """A weighted sum of symbols; adds, subtracts, and is multiplied and divided by numbers."""

    __slots__ = ("_terms",)
    # numpy's floats would otherwise take the vector for an element of an array.
    __array_ufunc__ = None

    def __init__(self, terms: "dict[_Leaf, float]") -> None:
        self._terms = terms

    def _plus(self, other: "Vector", factor: float) -> "Vector":
        terms = dict(self._terms)
        for leaf, weight in other._terms.items():
            terms[leaf] = terms.get(leaf, 0.0) + factor * weight
        return Vector({leaf: weight for leaf, weight in terms.items() if weight != 0})

    def __add__(self, other: "Vector") -> "Vector":
        return self._plus(other, 1.0)

    def __sub__(self, other: "Vector") -> "Vector":
        return self._plus(other, -1.0)

    def __mul__(self, factor: float) -> "Vector":
        return Vector({leaf: float(factor) * weight for leaf, weight in self._terms.items() if factor != 0})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Vector":
        return self * (1.0 / float(divisor))

    def __neg__(self) -> "Vector":
        return self * -1.0


class Recorder:
    """Stands for the network, the noise and the first latents while a sampler is written down."""

    def __init__(self, timestep_of: Callable[[float], float]) -> None:
        """Begins.

        Args:
          timestep_of: what the network is told at a noise level, where a sampler does not say it.
        """
        self._timestep_of = timestep_of
        self._leaves: list[_Leaf] = []
        self._inputs: list[_Leaf] = []
        self._levels: list[tuple[float, float, int]] = []
        self._noises: dict[int, tuple[_Leaf, tuple[float, float] | None]] = {}
        self.step = 0
        self.start = Vector({self._leaf("start", -1): 1.0})

    def _leaf(self, kind: str, born: int, form: dict[_Leaf, float] | None = None) -> _Leaf:
        leaf = _Leaf(kind, born, form)
        self._leaves.append(leaf)
        return leaf

    @property
    def _now(self) -> int:
        """The last evaluation so far."""
        return len(self._inputs) - 1

    def _used(self, vector: Vector, at: int) -> None:
        for leaf in vector._terms:
            leaf.last_use = max(leaf.last_use, at)

    def denoise(self, latents: Vector, sigma: float, timestep: float | None = None) -> Vector:
        """The denoised latents by the network at `latents`; these are in a register from here on."""
        self._used(latents, self._now)
        given = self._leaf("input", self._now, latents._terms)
        self._inputs.append(given)
        told = self._timestep_of(float(sigma)) if timestep is None else float(timestep)
        self._levels.append((float(sigma), told, self.step))
        latents._terms = {given: 1.0}
        return Vector({self._leaf("denoised", self._now): 1.0})

    def keep(self, vector: Vector) -> Vector:
        """The same vector in one register: for sums that later steps need as a whole."""
        self._used(vector, self._now)
        return Vector({self._leaf("kept", self._now, vector._terms): 1.0})

    def noise(self, span: tuple[float, float] | None = None) -> Vector:
        """Fresh standard normal noise, once between two evaluations; with a span an increment of a Brownian path."""
        assert self._now not in self._noises, "noise is drawn twice between two evaluations"
        leaf = self._leaf("noise", self._now)
        self._noises[self._now] = (leaf, span)
        return Vector({leaf: 1.0})

    def table(self, result: Vector, start: float) -> Table:
        """What has been written down, with `result` as the last latents."""
        count = len(self._inputs)
        self._used(result, count - 1)
        final = self._leaf("input", count - 1, result._terms)
        begins = self._inputs[0].form
        assert begins is not None and all(leaf.kind in ("start", "noise") for leaf in begins), "begins with the start"
        [scale] = [weight for leaf, weight in begins.items() if leaf.kind == "start"]
        weights = np.zeros((count, REGISTERS, REGISTERS + 2))
        held: dict[_Leaf, int] = {self._inputs[0]: 0}
        for index in range(count):
            following = self._inputs[index + 1] if index + 1 < count else final
            here = [leaf for leaf in self._leaves if leaf.born <= index < leaf.last_use]
            kept = [leaf for leaf in here if leaf is not following and not self._is_raw(leaf)]
            after = self._placed(following, kept, held)
            for leaf, place in after.items():
                self._write(weights[index, place], leaf, held, index)
            held = after
        noises = [self._noises.get(index) for index in range(-1, count)]
        return Table(
            sigma=np.array([sigma for sigma, _, _ in self._levels]),
            timestep=np.array([timestep for _, timestep, _ in self._levels]),
            step=np.array([step for _, _, step in self._levels], np.int64),
            weights=weights,
            draws=np.array([noise is not None for noise in noises]),
            brownian=np.array([noise is not None and noise[1] is not None for noise in noises]),
            span=np.array([noise[1] if noise and noise[1] else (1.0, 0.5) for noise in noises], np.float64),
            first_noise=sum(weight for leaf, weight in begins.items() if leaf.kind == "noise"),
            start=start * scale,
        )

    @staticmethod
    def _is_raw(leaf: _Leaf) -> bool:
        """What is never held: the first latents as such, of which the first input is made."""
        return leaf.kind == "start"

    @staticmethod
    def _placed(following: _Leaf, kept: list[_Leaf], held: dict[_Leaf, int]) -> dict[_Leaf, int]:
        """Registers of what is held after an evaluation; what was held stays where it was."""
        after = {following: 0}
        for leaf in kept:
            if held.get(leaf, 0) > 0:
                after[leaf] = held[leaf]
        free = (place for place in range(1, REGISTERS) if place not in after.values())
        for leaf in kept:
            if leaf not in after:
                place = next(free, None)
                assert place is not None, f"a sampler needs more than {REGISTERS} registers"
                after[leaf] = place
        return after

    def _write(self, row: Float64[np.ndarray, " c"], leaf: _Leaf, held: dict[_Leaf, int], index: int) -> None:
        """One register after an evaluation, from those before it."""
        if leaf in held or leaf.kind in ("denoised", "noise"):
            self._add(row, leaf, 1.0, held, index)
        else:
            assert leaf.form is not None
            for term, weight in leaf.form.items():
                self._add(row, term, weight, held, index)

    def _add(
        self, row: Float64[np.ndarray, " c"], term: _Leaf, weight: float, held: dict[_Leaf, int], index: int
    ) -> None:
        """A symbol to a row: from the registers before, or of this evaluation."""
        if term in held:
            row[held[term]] += weight
        elif term.kind == "denoised" and term.born == index:
            row[REGISTERS] += weight
        elif term.kind == "noise" and term.born == index:
            row[REGISTERS + 1] += weight
        else:
            assert term.form is not None and term.born == index, f"{term.kind} of {term.born} is gone at {index}"
            for inner, factor in term.form.items():
                self._add(row, inner, weight * factor, held, index)
