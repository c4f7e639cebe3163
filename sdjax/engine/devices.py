"""The devices of an engine, what lies on them, and the programs that are compiled for them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sdjax.engine.device import as_function, compiler_options
from sdjax.engine.inputs import BY_IMAGE, REPLICATED

# Programs that are kept: images may be of as many sizes.
_MAX_PROGRAMS = 512
# Bytes of parameters besides the model's that stay on the devices: ControlNets and upscalers, the last ones used.
_MAX_KEPT = 4 << 30


class Program(NamedTuple):
    """A function of parameters and inputs, as it is mapped over devices.

    key: with the structure of the parameters and the shapes of the inputs, all that it depends on.
    function: (parameters, inputs) -> outputs, for one device's share; pure.
    inputs: how they lie over the devices: a partition spec, or a tree of such that begins as they do.
    outputs: likewise.
    on_compile: called before it is compiled.
    """

    key: Any
    function: Callable[[Any, Any], Any]
    inputs: Any = BY_IMAGE
    outputs: Any = BY_IMAGE
    on_compile: Callable[[], None] = lambda: None


def shapes_of(tree: Any) -> tuple[Any, ...]:
    """What of arrays a program is compiled for."""
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


def _bytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class Devices:
    """Local devices of one kind, over which batches are mapped.

    Every program is compiled once for a shape and runs on all devices alike, each on its share of the batch.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        """Compiles and puts nothing yet."""
        self.all = tuple(devices)
        self.mesh = Mesh(np.array(self.all), ("data",))
        # Those that another thread compiles just now are there already.
        self._programs: OrderedDict[Any, Future[Callable[..., Any]]] = OrderedDict()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def put(self, tree: Any, sharding: Any) -> Any:
        """Arrays on the devices; `sharding` is a partition spec, or a tree of such that begins as `tree` does."""
        shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), sharding)
        return jax.device_put(tree, shardings)

    def kept(self, digest: str, load: Callable[[], Any]) -> Any:
        """Parameters that lie on all devices under a digest; the least recently used go where there are too many."""
        if digest not in self._kept:
            self._kept[digest] = self.put(load(), REPLICATED)
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and sum(map(_bytes_of, self._kept.values())) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return self._kept[digest]

    def compiled(self, program: Program, params: Any, inputs: Any) -> Callable[[Any, Any], Any]:
        """A program mapped over the devices, compiled once for its key, for parameters and inputs that lie on them.

        Whoever asks while another thread compiles it waits for that.
        """
        # An adapter may bring a bias to layers that have none; batches of several sizes share these programs.
        place = program.key, jax.tree.structure(params), shapes_of(inputs)
        with self._lock:
            known = self._programs.get(place)
            program_to_be = known or self._programs.setdefault(place, Future())
            self._programs.move_to_end(place)
            while len(self._programs) > _MAX_PROGRAMS:
                self._programs.popitem(last=False)
        if known is None:
            try:
                program_to_be.set_result(self._compile(program, params, inputs))
            except BaseException as error:
                program_to_be.set_exception(error)
                with self._lock:
                    self._programs.pop(place, None)
        return program_to_be.result()

    def _compile(self, program: Program, params: Any, inputs: Any) -> Callable[[Any, Any], Any]:
        program.on_compile()
        # Nothing crosses devices, and the loops of devices may differ in length: no replication to check.
        mapped = jax.shard_map(
            as_function(program.function),
            mesh=self.mesh,
            in_specs=(REPLICATED, program.inputs),
            out_specs=program.outputs,
            check_vma=False,
        )
        compiled: Callable[[Any, Any], Any]
        compiled = jax.jit(mapped).lower(params, inputs).compile(compiler_options(self.all[0].platform))
        return compiled

    def run(self, program: Program, params: Any, inputs: Any) -> Any:
        """Runs a program with parameters on the devices, and inputs there or on the host."""
        inputs = self.put(inputs, program.inputs)
        return self.compiled(program, params, inputs)(params, inputs)
