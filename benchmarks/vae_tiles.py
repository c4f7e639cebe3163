"""The VAE over strips (`sdjax.models.vae_tiles`) against the whole: memory, time, and differences.

    python benchmarks/vae_tiles.py cost [--what decode] [--size 1024] [--tile 512] [--rounds 3]
    python benchmarks/vae_tiles.py seams [--size 768] [--tile 256] [--images DIR]

`cost` takes Stable Diffusion's VAE with random weights, in float32. Each run is a process of its own, the two ways by
turns; the medians are printed of its seconds and its seconds of CPU (which say more on a machine that is shared),
without compiling, and of its greatest resident memory, less what was resident before.

`seams` takes the embedded model, whose images have smooth areas, and runs in the environment of `make parity`: it
also decodes with diffusers' `enable_tiling` at the same size of tiles. Differences are in steps of 255, each against
the same implementation's decoding of the whole: everywhere, where the image is smooth (it changes by less than 2 from
a pixel to the next), and there in the rows (diffusers: and columns) at the borders of strips (tiles). With --images
it also writes the images and their differences, white where they are greatest.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = Path(__file__).parent.parent / "tests" / "golden" / "configs" / "sd15" / "vae" / "config.json"
SMOOTH = 2


def random_params(vae: Any) -> Any:
    """Weights that keep activations of unit size."""
    import jax
    import jax.numpy as jnp

    side = vae.config.factor
    given = (jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1, 1, vae.config.latent_channels)))
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), *given))["params"]
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: Any) -> Any:
        values = rng.standard_normal(leaf.shape, np.float32)
        scales = {"kernel": np.prod(leaf.shape[:-1]) ** -0.5, "bias": 0.1, "scale": 0.1}
        values *= scales[path[-1].key]
        return jnp.asarray(values + 1 if path[-1].key == "scale" else values)

    return jax.tree.map_with_path(draw, shapes)


def measure(options: argparse.Namespace) -> None:
    """One run, in this process."""
    import jax

    from sdjax.models import VAE, VAEConfig, vae_tiles

    vae = VAE(VAEConfig.from_json(json.loads(CONFIG.read_text())))
    params = random_params(vae)
    rng = np.random.default_rng(1)
    side = options.size // (vae.config.factor if options.what == "decode" else 1)
    given = rng.standard_normal(
        (1, side, side, vae.config.latent_channels if options.what == "decode" else 3), np.float32
    )
    if options.measure == "tiled":
        tiled = {"decode": vae_tiles.decode, "encode": vae_tiles.encode}[options.what]
        run = jax.jit(functools.partial(tiled, vae, tile=options.tile))
    else:
        run = jax.jit(lambda params, given: vae.apply({"params": params}, given, method=options.what))
    compiled = run.lower(params, given).compile()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    starts = {name: clock() for name, clock in clocks.items()}
    found = jax.block_until_ready(compiled(params, given))
    taken = {name: clock() - starts[name] for name, clock in clocks.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.save(options.result, np.concatenate([np.asarray(array) for array in jax.tree.leaves(found)]))
    print(json.dumps({**taken, "gb": (peak - before) / 1e9}))


def cost(options: argparse.Namespace) -> None:
    """Both ways by turns, each run in a process of its own."""
    reports: dict[str, list[dict[str, float]]] = {"whole": [], "tiled": []}
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{way}.npy" for way in reports}
        for _ in range(options.rounds):
            for way, found in reports.items():
                command = [sys.executable, *sys.argv, "--measure", way, "--result", str(files[way])]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(way, found[-1], file=sys.stderr)
        whole, tiled = (np.load(file) for file in files.values())
    print(f"{options.what} {options.size}x{options.size}, tile {options.tile}, medians of {options.rounds}")
    for way, found in reports.items():
        seconds, cpu, gb = (statistics.median(report[name] for report in found) for name in found[0])
        share = gb * 1e9 / options.size**2
        print(f"{way}  {seconds:7.1f} s, {cpu:7.1f} s of CPU  {gb:6.2f} GB, {share:6.0f} bytes a pixel")
    print(f"greatest difference {np.abs(whole - tiled).max():.2e}, of values up to {np.abs(whole).max():.2f}")


def image(size: int) -> np.ndarray:
    """Discs of slowly changing colours before a slowly changing background, in [-1, 1]."""
    from PIL import Image, ImageDraw

    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    pixels = np.stack([0.2 + 0.6 * x, 0.4 + 0.4 * y, 0.9 - 0.5 * x * y], axis=-1)
    rng = np.random.default_rng(2)
    for _ in range(12):
        mask = Image.new("L", (4 * size, 4 * size))
        left, top, side = rng.uniform(0, 3.5 * size), rng.uniform(0, 3.5 * size), rng.uniform(0.3, 1.2) * size
        ImageDraw.Draw(mask).ellipse((left, top, left + side, top + side), fill=255)
        cover = np.asarray(mask.resize((size, size), Image.Resampling.BOX), np.float32)[..., None] / 255
        pixels += cover * (rng.uniform(0, 1, 3) * (0.7 + 0.3 * x[..., None]) - pixels)
    return pixels.astype(np.float32) * 2 - 1


def report(name: str, whole: np.ndarray, tiled: np.ndarray, borders: np.ndarray, images: Path | None) -> None:
    """One line; both images are (h, w, 3) in [-1, 1]."""
    whole, difference = whole * 127.5 + 127.5, np.abs(tiled - whole).max(-1) * 127.5
    steps = [np.pad(np.abs(np.diff(whole, axis=axis)).max(-1), [(0, axis == 0), (0, axis == 1)]) for axis in (0, 1)]
    smooth = np.maximum(*steps) < SMOOTH
    print(f"{name:<28} {whole.shape[1]}x{whole.shape[0]}", end="  ")
    for where, mask in (("everywhere", np.ones_like(smooth)), ("smooth", smooth), ("smooth borders", smooth & borders)):
        print(
            f"{where} ({mask.mean():.1%}): {difference[mask].max():.2g}, mean {difference[mask].mean():.2g}", end="  "
        )
    print()
    if images:
        from PIL import Image

        shown = {"": np.clip(tiled * 127.5 + 127.5, 0, 255), "_difference": 255 * difference / difference.max()}
        for suffix, values in shown.items():
            Image.fromarray(np.round(values).astype(np.uint8)).save(images / f"{name.replace(' ', '_')}{suffix}.png")


def seams(options: argparse.Namespace) -> None:
    """The embedded model's images by both implementations."""
    import diffusers
    import jax
    import torch

    import sdjax
    from sdjax.models import vae_tiles

    size, tile, images = options.size, options.tile, options.images
    if images:
        images.mkdir(parents=True, exist_ok=True)
    model = sdjax.load("emoji")
    vae, params, factor = model.vae, model.params["vae"], model.vae.config.factor
    pixels = image(size)[None]
    latents = np.asarray(jax.jit(lambda p, x: vae.apply({"params": p}, x, method="encode"))(params, pixels).mean)
    whole = np.asarray(jax.jit(lambda p, x: vae.apply({"params": p}, x, method="decode"))(params, latents))[0]
    tiled = np.asarray(jax.jit(functools.partial(vae_tiles.decode, vae, tile=tile))(params, latents))[0]
    rows = tile * tile // size // factor * factor
    at_border = np.isin(np.arange(size) % rows, (0, rows - 1))
    borders = np.broadcast_to(at_border[:, None], (size, size))
    report("sdjax decode", whole, tiled, borders, images)
    reference = diffusers.AutoencoderKL.from_pretrained(Path(sdjax.__file__).parent / "assets" / "emoji" / "vae")
    given = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        whole = reference.decode(given).sample[0].permute(1, 2, 0).numpy()
        reference.enable_tiling()
        reference.tile_sample_min_size, reference.tile_latent_min_size = tile, tile // factor
        tiled = reference.decode(given).sample[0].permute(1, 2, 0).numpy()
    apart = round(tile * (1 - reference.tile_overlap_factor))
    at_border = np.isin(np.arange(size) % apart, (0, apart - 1))
    report("diffusers decode", whole, tiled, at_border[:, None] | at_border[None], images)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run, size, tile in ((cost, 1024, 512), (seams, 768, 256)):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--size", type=int, default=size, help="side of the image in pixels")
        command.add_argument("--tile", type=int, default=tile, help="as sdjax.models.vae_tiles takes it")
        if run is cost:
            command.add_argument("--what", choices=["decode", "encode"], default="decode")
            command.add_argument("--rounds", type=int, default=3)
            command.add_argument("--measure", choices=["whole", "tiled"], help=argparse.SUPPRESS)
            command.add_argument("--result", type=Path, help=argparse.SUPPRESS)
        else:
            command.add_argument("--images", type=Path, metavar="DIR", help="where to write images")
    options = parser.parse_args()
    if getattr(options, "measure", None):
        measure(options)
    else:
        options.run(options)


if __name__ == "__main__":
    main()
