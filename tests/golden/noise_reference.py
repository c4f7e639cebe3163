"""Records noise.npz with torch, torchsde, NVIDIA's cuRAND and A1111's code.

    python -m tests.golden.noise_reference FOLDER

in the environment of `make parity`, with FOLDER a copy of A1111's stable-diffusion-webui, g++ on the path, and the
package nvidia-curand-cu12, of which only the headers are used: what a GPU would run, compiled for the CPU. Nothing here
comes from sdjax.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torchsde
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

from tests.golden import noise


def torch_randn(seed: int, counts: tuple[int, ...]) -> np.ndarray:
    """Successive draws from one CPU generator, joined."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.cat([torch.randn(count, generator=generator) for count in counts]).numpy()


# Of the GPU's world only what curand_kernel.h asks for to be compiled for the CPU.
_CUDA_RUNTIME = """
#pragma once
#include <cmath>
#define __host__
#define __device__
#define __constant__
#define __forceinline__ inline
#define __builtin_align__(n)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDACC__ 1
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct double4 { double x, y, z, w; };
struct dim3 { unsigned x, y, z; };
typedef void* cudaStream_t;
typedef int libraryPropertyType;
static inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
"""
_TARGET = """
#pragma once
#define NV_IF_TARGET(...)
#define NV_IF_ELSE_TARGET(condition, device, ...) __VA_ARGS__
"""
# As torch's kernel of `normal_` calls it: one state a thread; its first value is the thread's.
_PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#define QUALIFIERS static inline
#include <curand_kernel.h>
int main(int, char** arguments) {
  unsigned long long seed = strtoull(arguments[1], 0, 10), draws = strtoull(arguments[2], 0, 10);
  int first = atoi(arguments[3]), count = atoi(arguments[4]);
  for (int thread = first; thread < first + count; thread++) {
    curandStatePhilox4_32_10_t state;
    curand_init(seed, thread, 4 * draws, &state);
    printf("%.9g\\n", curand_normal4(&state).x);
  }
}
"""


def cuda_randn(folder: Path) -> dict[str, np.ndarray]:
    """cuRAND's values under "seed draws first"."""
    package = importlib.util.find_spec("nvidia.curand")
    assert package is not None and package.submodule_search_locations, "install nvidia-curand-cu12"
    headers = Path(next(iter(package.submodule_search_locations))) / "include"
    (folder / "nv").mkdir()
    (folder / "nv" / "target").write_text(_TARGET)
    (folder / "cuda_runtime.h").write_text(_CUDA_RUNTIME)
    (folder / "program.cpp").write_text(_PROGRAM)
    options = ["-O1", "-ffp-contract=off", "-fpermissive", "-w", f"-I{folder}", f"-I{headers}"]
    subprocess.run(["g++", *options, str(folder / "program.cpp"), "-o", str(folder / "program")], check=True)
    values = {}
    for seed in noise.SEEDS:
        for draws, first, count in noise.CUDA_DRAWS:
            arguments = [str(folder / "program"), *map(str, (seed, draws, first, count))]
            printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
            values[f"{seed} {draws} {first}"] = np.array(printed.split(), np.float32)
    return values


def webui(folder: Path) -> types.ModuleType:
    """A1111's modules/rng.py, and so rng_philox.py, without the rest of it."""
    modules = types.ModuleType("modules")
    modules.__path__ = [str(folder / "modules")]
    cpu = torch.device("cpu")
    devices = types.SimpleNamespace(cpu=cpu, device=cpu)
    shared = types.SimpleNamespace(device=cpu, opts=types.SimpleNamespace(randn_source="CPU", eta_noise_seed_delta=0))
    modules.devices, modules.shared = devices, shared
    sys.modules |= {"modules": modules, "modules.devices": devices, "modules.shared": shared}
    return importlib.import_module("modules.rng")


def image_noise(rng: types.ModuleType, name: str) -> np.ndarray:
    """What one image gets from ImageRNG: at the start, and for two steps."""
    shape, strength, size = noise.IMAGES[name]
    height, width = (8 * size[0], 8 * size[1]) if size else (0, 0)
    images = rng.ImageRNG(shape, [noise.IMAGE_SEED], [noise.VARIATION_SEED], strength, height, width)
    return torch.cat([images.next() for _ in range(3)]).numpy()


def tree(seed: int) -> np.ndarray:
    """torchsde's tree under diffusers' copy of k-diffusion's noise sampler, asked for `queries`."""
    bounds = torch.tensor(noise.SIGMA_MIN), torch.tensor(noise.SIGMA_MAX)
    sampler = BrownianTreeNoiseSampler(torch.zeros(1, *noise.TREE_SHAPE), *bounds, seed=[seed])
    with warnings.catch_warnings():
        # The bounds are rounded, so the first and the last query reach beyond them.
        warnings.simplefilter("ignore")
        return torch.cat([sampler(*map(torch.tensor, query)) for query in noise.queries()]).numpy()


def main() -> None:
    """Records them all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("webui", type=Path)
    rng = webui(parser.parse_args().webui)
    arrays = {f"few {seed}": torch_randn(seed, noise.FEW) for seed in noise.SEEDS}
    with tempfile.TemporaryDirectory() as folder:
        arrays |= {f"cuda {name}": values for name, values in cuda_randn(Path(folder)).items()}
    own = torchsde._brownian.brownian_interval._randn
    for source, setting in (("torch", "CPU"), ("philox", "NV")):
        rng.shared.opts.randn_source = setting
        arrays |= {f"image {source} {name}": image_noise(rng, name) for name in noise.IMAGES}
        # As A1111 does when it starts.
        torchsde._brownian.brownian_interval._randn = lambda size, dtype, device, seed: rng.randn_local(seed, size)
        arrays |= {f"tree {source} {seed}": tree(seed) for seed in noise.TREES[source]}
    torchsde._brownian.brownian_interval._randn = own
    np.savez_compressed(noise.FILE, **arrays)


if __name__ == "__main__":
    main()
