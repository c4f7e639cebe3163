"""Devices on which nothing is computed: the passes of a batch run through, and leave compiled programs."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.stages import Compiled

from sdjax.engine.devices import Devices, Program
from sdjax.engine.inputs import REPLICATED


class Uncomputed(Devices):
    """Stands for devices: compiles for them what it is asked to run, and gives shapes in the place of arrays.

    Attributes:
      programs: those that were asked for, in this order.
    """

    def __init__(self, devices: Devices) -> None:
        """Programs are compiled by `devices`, which keeps them."""
        super().__init__(devices.all)
        self._devices = devices
        self.programs: list[Compiled] = []

    def put(self, tree: Any, sharding: Any) -> Any:
        """The shapes of arrays, with where they would lie."""
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), sharding)

        def described(where: NamedSharding, arrays: Any) -> Any:
            return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where), arrays)

        return jax.tree.map(described, shardings, tree)

    def kept(self, digest: str, load: Callable[[], Any]) -> Any:
        """The shapes of parameters."""
        return self.put(load(), REPLICATED)

    def run(self, program: Program, params: Any, inputs: Any) -> Any:
        """The shapes of what a program gives."""
        compiled: Any = self._devices.compiled(program, params, self.put(inputs, program.inputs))
        self.programs.append(compiled)
        return compiled.out_info
