"""The images of `conditioned` by diffusers. Needs torch."""

import io
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

import sdjax
from sdjax.jobs.canonical import split
from tests import toys
from tests.golden import conditioned
from tests.golden.reference import SCHEDULERS

# torch's names of the latent upscalers.
_INTERPOLATIONS = {
    "latent": {"mode": "bilinear"},
    "latent_antialiased": {"mode": "bilinear", "antialias": True},
    "latent_bicubic": {"mode": "bicubic"},
    "latent_nearest": {"mode": "nearest"},
    "latent_nearest_exact": {"mode": "nearest-exact"},
    "latent_bicubic_antialiased": {"mode": "bicubic", "antialias": True},
}


def _scheduler(folder: Path, job: sdjax.Job) -> Any:
    kind, own = SCHEDULERS[job.sampler]
    more = {"use_karras_sigmas": True} if job.schedule == "karras" else {}
    return kind.from_pretrained(folder / "scheduler", **{**own, **more, "clip_sample": False, "steps_offset": 1})


def _image(name: str) -> PIL.Image.Image:
    return PIL.Image.fromarray(conditioned.image(name.removesuffix(".png")))


def draw(folder: Path, controls: Path, job: sdjax.Job) -> np.ndarray:
    """An image of a model in a folder, uint8, (height, width, 3)."""
    plain = diffusers.StableDiffusionPipeline.from_pretrained(
        folder,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
    )
    parts = {**plain.components, "scheduler": _scheduler(folder, job)}
    given: dict[str, Any] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(job.seed),
    }
    if job.hires_scale:
        return _again(parts, given, job)
    if job.depth_image:
        kind, given["depth_map"] = diffusers.StableDiffusionDepth2ImgPipeline, _depth()
        parts = {name: part for name, part in parts.items() if name not in ("safety_checker", "image_encoder")}
        parts["depth_estimator"] = None
    else:
        kind = _kind(job)
        parts["requires_safety_checker"] = False
    if job.image:
        given |= {"image": _image(job.image), "strength": job.strength or (1.0 if job.mask_image else 0.8)}
    if job.mask_image:
        given["mask_image"] = PIL.Image.open(io.BytesIO(conditioned.FILES[job.mask_image]))
    if job.controlnets:
        nets = [diffusers.ControlNetModel.from_pretrained(controls / each.name) for each in job.controls]
        shown = [_image(name) for name in split(job.control_image)]
        parts["controlnet"] = nets if len(nets) > 1 else nets[0]
        given["control_image" if job.image else "image"] = shown if len(nets) > 1 else shown[0]
        one = (lambda values: values) if len(nets) > 1 else (lambda values: values[0])
        given["controlnet_conditioning_scale"] = one([each.weight for each in job.controls])
        given["control_guidance_start"] = one([each.start for each in job.controls])
        given["control_guidance_end"] = one([each.end for each in job.controls])
        given["guess_mode"] = job.guess_mode
    if not job.depth_image:
        given |= {"height": job.height, "width": job.width} if kind not in _SIZED_BY_IMAGE else {}
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(pipeline(**given).images[0])


_SIZED_BY_IMAGE = (diffusers.StableDiffusionImg2ImgPipeline,)


def _kind(job: sdjax.Job) -> Any:
    if job.mask_image:
        inpaint = diffusers.StableDiffusionControlNetInpaintPipeline
        return inpaint if job.controlnets else diffusers.StableDiffusionInpaintPipeline
    if job.image:
        img2img = diffusers.StableDiffusionControlNetImg2ImgPipeline
        return img2img if job.controlnets else diffusers.StableDiffusionImg2ImgPipeline
    return diffusers.StableDiffusionControlNetPipeline


def _depth() -> torch.Tensor:
    return torch.from_numpy(conditioned.depth().astype(np.float32) / 65535)[None]


def _again(parts: dict[str, Any], given: dict[str, Any], job: sdjax.Job) -> np.ndarray:
    """Draws, enlarges the latents, and draws from them again with the noise of the same seed."""
    parts["requires_safety_checker"] = False
    first, second = (
        kind(**parts) for kind in (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionImg2ImgPipeline)
    )
    for pipeline in (first, second):
        pipeline.set_progress_bar_config(disable=True)
    latents = first(**given, width=job.width, height=job.height, output_type="latent").images
    factor = first.vae_scale_factor
    size = (int(job.height * job.hires_scale) // factor, int(job.width * job.hires_scale) // factor)
    larger = torch.nn.functional.interpolate(latents, size=size, **_INTERPOLATIONS[job.hires_upscaler])
    given |= {
        "num_inference_steps": job.hires_steps or job.steps,
        "generator": torch.Generator("cpu").manual_seed(job.seed),
    }
    return np.asarray(second(**given, image=larger, strength=job.hires_strength).images[0])


def of_model(name: str, root: Path) -> dict[str, np.ndarray]:
    """The images of one model."""
    model = conditioned.MODELS[name]
    folder = toys.write_toy(root / name, model.toy)
    controls = conditioned.write_controls(root / "controls")
    return {case: draw(folder, controls, job) for case, job in model.jobs.items()}


def record() -> None:
    """Stores them."""
    images = {}
    with tempfile.TemporaryDirectory() as root:
        for name in conditioned.QUICK:
            images |= {f"{name}/{case}": image for case, image in of_model(name, Path(root)).items()}
    np.savez_compressed(conditioned.RECORDED, **images)


if __name__ == "__main__":
    record()
