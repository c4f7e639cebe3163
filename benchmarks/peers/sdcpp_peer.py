"""stable-diffusion.cpp, by stable-diffusion-cpp-python, on a single file."""

from pathlib import Path

import numpy as np
from stable_diffusion_cpp import StableDiffusion

from benchmarks.peers import work as works
from benchmarks.peers.peer import Run, threads
from benchmarks.peers.work import Work
from pipelines.convert import convert


def prepare(work: Work, model: Path, build: Path) -> Run:
    """Loads the single file, which `build` gets; images are drawn one at a time, whatever the batch."""
    file = build / "model.safetensors"
    if not file.exists():
        list(convert(str(model), file, prune=True))
    program = StableDiffusion(
        model_path=str(file),
        n_threads=threads(),
        wtype="f32",
        rng_type="cpu",
        sampler_rng_type="cpu",
        diffusion_flash_attn=True,
        verbose=False,
    )
    return lambda work: _images(work, program)


def _images(work: Work, program: StableDiffusion) -> np.ndarray:
    steps, side, _, images = work.sizes
    drawn = [
        program.generate_image(
            prompt,
            width=side,
            height=side,
            cfg_scale=works.GUIDANCE_SCALE,
            sample_method="euler",
            sample_steps=steps,
            seed=seed,
        )
        for seed, prompt in enumerate(works.prompts(images))
    ]
    return np.stack([np.asarray(image) for [image] in drawn])
