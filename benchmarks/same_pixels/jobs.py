"""The jobs that both revisions make, as rows of prompt files, in runs of one command each.

Every field that a job can have is used by some row, and so is every entry of the registries (samplers, schedules,
spacings, syntaxes, fillings, preprocessors, upscalers): `tests/benchmarks/test_same_pixels.py` checks that. Steps are
few and the models are toys, since only bits are compared; most of the time is spent on compiling.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from sdjax.diffusion.inpaint import FILLINGS
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS
from sdjax.diffusion.samplers import MULTISTEP_STARTS, SAMPLERS
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.diffusion.timestep_spacing import SPACINGS
from sdjax.images.fit import RESIZE_MODES
from sdjax.images.preprocessors import PREPROCESSORS
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.job import EMPHASES

# Each row has a seed of its own, by which its images are known, and this many for its repeats and sweeps.
FIRST_SEED, SEEDS_OF_A_ROW = 10_000, 10
_PROMPTS = ("a photo of a red apple", "the blue cat", "a green dog on the castle", "a castle and an apple")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a prompt file.

    Attributes:
      covers: what it is there for, in reports.
      fields: of the job.
      network: whether an upscaler's network enlarges its image; a revision may change the batch that is compiled of it.
      seeds: how many it asks for; 0 leaves its seed to be derived.
    """

    covers: str
    fields: Mapping[str, Any]
    network: bool
    seeds: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What one command makes.

    Attributes:
      name: of its folder, and in reports.
      keys: of the run, by their names before any revision renamed them; a `PurePath` is among the files.
      rows: of its prompt file.
      devices: that the CPU is divided into.
      same_as: the name of another run whose images these are, bit for bit.
    """

    name: str
    keys: Mapping[str, Any]
    rows: tuple[Row, ...]
    devices: int = 1
    same_as: str | None = None


def row(covers: str, *, network: bool = False, seeds: int = 1, **fields: Any) -> Row:
    """A row with defaults that suit the toys; None takes one back.

    Args:
      covers: see `Row`.
      network: whether a network enlarges the image.
      seeds: how many the row asks for; 0 leaves the seed to be derived.
      fields: of the job.
    """
    defaults = {"prompt": _PROMPTS[0], "negative_prompt": "the blue cat", "steps": 4, "sampler": "ddim"}
    given = {name: value for name, value in {**defaults, **fields}.items() if value is not None}
    return Row(covers, given, network, seeds)


def _with_seeds(rows: Iterable[Row]) -> tuple[Row, ...]:
    seeded = []
    for number, each in enumerate(rows):
        first = FIRST_SEED + number * SEEDS_OF_A_ROW
        seed = {0: {}, 1: {"seed": first}}.get(each.seeds, {"seed": f"{first}..{first + each.seeds - 1}"})
        seeded.append(dataclasses.replace(each, fields={**each.fields, **seed}))
    return tuple(seeded)


def _model(name: str) -> PurePath:
    return PurePath("models") / name


def _image(name: str) -> str:
    return f"images/{name}.png"


_NOISES = ("threefry", "torch", "philox")
_CAT = {"image": _image("cat")}
_IN_MASK = {**_CAT, "mask_image": _image("mask"), "strength": 0.8}
_EDGES = {"controlnets": "tiny:0.8", "control_image": _image("edges")}

# --- The rows, by what they are about ---

_SAMPLERS = [
    *(
        row(f"sampler {name}", sampler=name, steps=7, prompt=_PROMPTS[number % 4], guidance_scale=2 + number % 5)
        for number, name in enumerate(SAMPLERS)
    ),
    *(row(f"schedule {name}", sampler="euler", schedule=name, steps=6) for name in SCHEDULES),
    *(row(f"schedule {name} of DPM++ 2M", sampler="dpmpp_2m", schedule=name, steps=6) for name in SCHEDULES),
    *(
        row(f"spacing {spacing} of {name}", sampler=name, timestep_spacing=spacing, steps=6)
        for spacing in SPACINGS
        for name in ("ddim", "euler_ancestral", "uni_pc_bh2")
    ),
    row("restart with its own levels", sampler="restart", steps=21),
    row("the checkpoint's own sampler", sampler=None),
    row("eta", sampler="ddim", eta=0.6),
    row("churn", sampler="heun", schedule="karras", s_churn=10.0, s_tmin=0.2, s_tmax=10.0, s_noise=1.01),
    *(row(f"solver order {order}", sampler="dpm_solver_2s", solver_order=order, steps=7) for order in (1, 3)),
    row("names of A1111", sampler="DPM++ 2M SDE Karras", timestep_spacing="k_diffusion"),
]
_NOISE = [
    *(
        row(f"{source} noise, {name}", sampler=name, noise_source=source)
        for source in ("torch", "philox")
        for name in ("ddim", "ddpm", "euler_ancestral", "dpmpp_sde", "lcm")
    ),
    *(
        row(f"the Brownian tree of {name}", sampler=name, noise_source="torch", timestep_spacing="k_diffusion")
        for name in ("dpmpp_sde", "dpmpp_3m_sde")
    ),
    *(
        row(f"variation, {source}", noise_source=source, variation_seed=77, variation_strength=0.3)
        for source in _NOISES
    ),
    *(
        row(f"seed resize, {source}", noise_source=source, seed_resize_from_width=24, seed_resize_from_height=12)
        for source in _NOISES
    ),
    row("a derived seed", seeds=0),
    row("three seeds of a sweep", seeds=3, sampler="euler"),
]
_GUIDANCE = [
    *(row(f"guidance scale {scale}", guidance_scale=scale) for scale in (0, 1, 1.5)),
    row("guidance interval", sampler="euler", guidance_start=0.3, guidance_end=0.8),
    row("guidance until", sampler="dpmpp_2m", guidance_end=0.5, steps=6),
    row("rescale", guidance_rescale=0.7),
    row("thresholding", sampler="dpmpp_2m", dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
    row("AND", prompt="a red cat AND a green dog :0.6 AND the castle :-0.2"),
    row("AND without guidance", prompt="a red cat AND a green dog :0.6", guidance_scale=1),
    row("AND, interval", prompt="a red cat AND a green dog", guidance_end=0.6),
]
_ACCELERATIONS = [
    row("DeepCache", deep_cache_interval=2, sampler="heun"),
    row("DeepCache of an inner branch", deep_cache_interval=3, deep_cache_branch=1, steps=6, guidance_start=0.4),
    row("token merging", token_merging_ratio=0.5, sampler="euler"),
    row("T-GATE", gate_step=2, sampler="euler"),
]
_SIZES = [
    row(f"{width}x{height}", width=width, height=height)
    for width, height in ((24, 40), (40, 24), (64, 48), (32, 16), (16, 16))
]
_IMG2IMG = [
    row("img2img", **_CAT, strength=0.5),
    row("img2img, its own strength", **_CAT, sampler="euler"),
    row("img2img of strength 0", **_CAT, strength=0.0),
    row("img2img of strength 1", **_CAT, strength=1.0, sampler="dpmpp_2m"),
    row("img2img, torch noise", **_CAT, strength=0.7, sampler="euler_ancestral", noise_source="torch"),
    row("img2img of the image's own size", image=_image("wide"), strength=0.6),
    *(
        row(f"resize mode {mode}", image=_image("wide"), strength=0.4, width=32, height=32, resize_mode=mode)
        for mode in RESIZE_MODES
    ),
    *(
        row(f"{name} begins as {start}", **_CAT, strength=0.75, steps=8, sampler=name, multistep_start=start)
        for name in ("lms", "plms", "pndm")
        for start in MULTISTEP_STARTS
    ),
]
_INPAINTING = [
    row("inpainting", **_IN_MASK),
    row("inpainting of strength 1", **{**_IN_MASK, "strength": None}),
    row("inpainting, ancestral", **_IN_MASK, sampler="euler_ancestral"),
    row("inpainting, torch noise", **_IN_MASK, sampler="euler_ancestral", noise_source="torch"),
    row("a soft mask", **{**_IN_MASK, "mask_image": _image("soft")}),
    row("a soft mask, binarized", **{**_IN_MASK, "mask_image": _image("soft")}, binarize_mask=True),
    row("an inverted mask", **_IN_MASK, invert_mask=True),
    row("a blurred mask, pixels kept", **_IN_MASK, mask_blur=2.0, keep_unmasked=True),
    *(row(f"inpaint fill {kind}", **_IN_MASK, inpaint_fill=kind) for kind in FILLINGS),
    row("only masked", **_IN_MASK, only_masked=True, only_masked_padding=4),
    row("only masked, blurred and binarized", **_IN_MASK, only_masked=True, mask_blur=1.5, binarize_mask=True),
    row("inpainting with a ControlNet", **_IN_MASK, **_EDGES),
    row("only masked with a ControlNet", **_IN_MASK, **_EDGES, only_masked=True, only_masked_padding=2),
]
_OTHER_CHANNELS = [
    row("mask channels", **_IN_MASK),
    row("mask channels of strength 1", **{**_IN_MASK, "strength": 1.0}, sampler="euler_ancestral"),
    row("mask channels, only masked", **_IN_MASK, only_masked=True, keep_unmasked=True),
    row("mask channels, soft and filled", **{**_IN_MASK, "mask_image": _image("soft")}, inpaint_fill="noise"),
]
_DEPTH = [
    row("a depth image", **_CAT, strength=0.7, depth_image=_image("depth")),
    row("a depth image alone", depth_image=_image("depth"), sampler="euler"),
    row("estimated depth", **_CAT, strength=0.6),
    row("middle depth", sampler="euler_ancestral", noise_source="torch"),
    row("depth inpainting", **_IN_MASK, depth_image=_image("depth")),
]
_CONTROLNETS = [
    row("a ControlNet", **_EDGES),
    row("a ControlNet for some of the steps", **{**_EDGES, "controlnets": "tiny:1.2:0.2:0.7"}),
    row("guess mode", **_EDGES, guess_mode=True),
    row("a ControlNet of means", **{**_EDGES, "controlnets": "pooled"}),
    row("a ControlNet with img2img", **_EDGES, **_CAT, strength=0.6),
    row("a ControlNet sees the image", controlnets="tiny", **_CAT, strength=0.8),
    *(row(f"preprocessor {name}", **_EDGES, control_preprocessor=name) for name in PREPROCESSORS),
    row("preprocessor depth", **_EDGES, control_preprocessor="depth"),
    row("preprocessor with numbers", **_EDGES, control_preprocessor="canny:50:150"),
    row(
        "several ControlNets",
        controlnets="tiny:0.5; tiny:0.7:0:0.5; pooled:0.4",
        control_image=f"{_image('edges')}; {_image('pose')}; {_image('cat')}",
        control_preprocessor="canny; none; invert",
    ),
    row("a T2I adapter", **{**_EDGES, "controlnets": "t2i:0.7"}),
    row("a T2I adapter and a ControlNet", **{**_EDGES, "controlnets": "t2i:0.7:0.1:0.9; tiny"}, guess_mode=True),
]
_HIRES = [
    *(row(f"hires by {name}", hires_scale=1.5, hires_upscaler=name, hires_strength=0.6) for name in LATENT_UPSCALERS),
    *(row(f"hires by {name}", hires_scale=2.0, hires_upscaler=name, sampler="euler") for name in PIXEL_UPSCALERS),
    row("hires with steps of its own", hires_scale=2.0, hires_steps=6, sampler="euler_ancestral"),
    row("hires, torch noise", hires_scale=2.0, hires_strength=0.5, sampler="plms", noise_source="torch"),
    row("hires of a prompt that changes", hires_scale=1.5, steps=8, prompt="[a cat:the dog:1.5] [a|the] castle"),
    row("hires with a ControlNet", **_EDGES, hires_scale=2.0),
    row("hires of img2img", **_CAT, strength=0.6, hires_scale=1.5),
]
_PREVIEWS = [
    row("previews", preview_every=2, steps=5),
    row("previews of a second order", preview_every=1, sampler="heun", guidance_end=0.5),
    row("previews of img2img", **_CAT, strength=0.7, preview_every=1),
    row("previews of hires", hires_scale=1.5, preview_every=2),
    row("previews of inpainting", **_IN_MASK, only_masked=True, preview_every=2),
]
_LONG = "a red cat and a green dog on the castle, " * 12
_SYNTAXES = [
    row("weights", prompt="a (red) cat, a ((green)) [blue] dog, the (castle:1.4)"),
    *(row(f"emphasis {name}", prompt="a (red:1.5) cat, the [castle]", emphasis=name) for name in EMPHASES),
    row("several chunks", prompt=_LONG, negative_prompt="a dog"),
    row("BREAK", prompt="a red cat BREAK the (castle:1.3) BREAK a dog"),
    row("step switches", prompt="[a red cat:a green dog:0.5] on [the:2] [castle::3]", steps=6),
    row("alternation", prompt="a [red cat|green dog|apple] on the castle", sampler="dpm_2_ancestral"),
    row("switches in the negative prompt", negative_prompt="[a cat:the dog:0.5] (blue:1.2)"),
    row("escapes", prompt=r"a \(red\) cat, \[the\] castle"),
    row("problems accepted", prompt="a (red cat, [the castle", prompt_problems="accept"),
    row("an empty prompt", prompt="", negative_prompt=None),
    row("plain", prompt="a (red:1.2) cat AND [the] castle", prompt_syntax="plain"),
    row("plain, cut", prompt=_LONG, prompt_syntax="plain"),
    row("comfyui", prompt="a (red:1.3) cat, ((the castle)), an apple", prompt_syntax="comfyui"),
    row("compel", prompt="a red++ cat, (a green dog)1.3, (the castle)0.6", prompt_syntax="compel"),
    row("compel's blend", prompt='("a red cat", "a green dog").blend(0.7, 0.3)', prompt_syntax="compel"),
    row("compel's and", prompt='("a red cat", "the castle").and()', prompt_syntax="compel"),
    row("template", prompt="a {red|blue|green} {cat|dog}"),
    row("wildcards", prompt="a __animals__ on the __places/*__, {2$$ and $$apple|cat|dog}"),
    row("all of a template", prompt="a {red|blue} {cat|dog}", combinations="all"),
    row("no template", prompt="a {red|blue} cat", combinations="none"),
    row("prompts in a list", prompt=["a red cat", "a green dog"], guidance_scale=[3, 6], sweep="zip"),
    row("embeddings", prompt="a mosaic of the castle, etching"),
    row("embeddings with weights", prompt="a (mosaic:1.3) [etching:dog:0.5] BREAK etching"),
    row("embeddings in the negative prompt", negative_prompt="mosaic, etching"),
    row("embeddings in comfyui", prompt="embedding:mosaic, a (castle:1.2)", prompt_syntax="comfyui"),
    row("embeddings in compel", prompt="(etching)1.2 castle", prompt_syntax="compel"),
]


def _loras(toy: str, weights: Mapping[str, str]) -> list[Row]:
    return [row(f"LoRA {name}, {toy}", loras=f"{name}:{weight}") for name, weight in weights.items()]


_SD1_LORAS = _loras(
    "SD1",
    {
        "lora-and-locon": "1",
        "locon-by-tucker": "0.7",
        "dora-by-inputs": "1",
        "loha": "-0.4",
        "lokr": "0.3",
        "lokr-whole-dora": "1",
        "full-differences-and-norms": "0.5",
        "peft": "1",
        "peft-loha": "0.5",
        "diffusers": "0.8",
        "diffusers-formerly": "1",
    },
)
_SD2_LORAS = _loras(
    "SD2",
    {
        "dora": "1",
        "loha-by-tucker-dora": "1",
        "lokr-of-two-products": "0.3",
        "lokr-by-tucker": "0.2",
        "peft-with-bias-text": "0.6",
        "peft-dora-rank-stabilised": "1",
        "peft-lokr": "0.2",
        "diffusers-without-alpha": "1",
    },
)
_ADAPTERS = [
    *_SD1_LORAS,
    row("two LoRAs by tags", prompt="a cat <lora:diffusers:0.8><lora:peft:0.5:1>, the castle"),
    row("a hypernetwork", hypernetworks="oil:0.6"),
    row("two hypernetworks", prompt="a cat <hypernet:oil:0.6>", hypernetworks="gouache:0.4"),
    row("a LoRA, a hypernetwork and an embedding", prompt="a mosaic <lora:peft:0.7><hypernet:oil:1>"),
    row("clip skip", clip_skip=1),
    row("a LoRA with img2img", prompt="a cat <lora:lokr:0.3>", **_CAT, strength=0.6),
]
_TINY_ADAPTERS = [
    row("no adapter"),
    row("a LoRA", loras="ink:0.8"),
    row("another LoRA", loras="chalk:1:0.5"),
    row("both", prompt="a cat <lora:ink:0.5><lora:chalk:-0.6>"),
    row("a LoRA, AND", prompt="a cat <lora:ink:1> AND the castle :0.5"),
    row("a LoRA, hires", loras="ink:0.7", hires_scale=1.5),
]
_UPSCALERS = [
    *(row(f"upscaler {name}", upscaler=name, upscale_by=1.5) for name in PIXEL_UPSCALERS),
    *(row(f"upscaler {name}", upscaler=name, network=True) for name in ("esrgan", "compact", "ncnn")),
    row("an upscaler by more than its factor", upscaler="compact", upscale_by=3.0, network=True),
    row("two by one upscaler", upscaler="esrgan", prompt=["a cat", "a dog"], network=True),
    row("hires by esrgan", hires_scale=1.5, hires_upscaler="esrgan", network=True),
    row("img2img with an upscaler", **_CAT, strength=0.5, upscaler="compact", network=True),
    row("only masked with an upscaler", **_IN_MASK, only_masked=True, upscaler="compact", network=True),
    row("upscaler x4", upscaler="x4", upscaler_steps=3, upscaler_guidance_scale=6.0, network=True),
    row(
        "upscaler x4, noisier", upscaler="x4", upscaler_steps=2, upscaler_noise_level=200, upscale_by=3.0, network=True
    ),
    row("upscaler x4, torch noise", upscaler="x4", upscaler_steps=3, noise_source="torch", network=True),
    row("upscaler x2", upscaler="x2", upscaler_steps=3, network=True),
    row("upscaler x2, torch noise", upscaler="x2", upscaler_steps=3, noise_source="torch", network=True),
    row("upscaler x2 of img2img", **_CAT, strength=0.5, upscaler="x2", upscaler_steps=2, network=True),
]
_EMOJI = [
    row("the bundled model", prompt="a red apple", negative_prompt=None, sampler="dpmpp_2m", guidance_scale=4),
    row("its own size, ancestral", prompt="a penguin", sampler="euler_ancestral", guidance_scale=4),
    row("another size", prompt="a green tree on a hill", width=96, height=64, guidance_scale=4),
    row("torch noise and AND", prompt="a cat AND a hat :0.7", noise_source="torch", guidance_scale=4),
    row("classifier guidance", prompt="", guidance_scale=1, classifier_scale=8, classifier_label=5),
    row("both guidances", prompt="a heart", guidance_scale=4, classifier_scale=2, classifier_label=7),
    row("the bundled ControlNet", prompt="a house", controlnets="canny:1.2", control_image=_image("edges")),
    row("canny of an image", prompt="a lemon", **_CAT, controlnets="canny", control_preprocessor="canny", strength=0.7),
    row("img2img", prompt="a lemon", **_CAT, strength=0.5),
    row("a long prompt", prompt="a red apple and a green tree, " * 6, guidance_scale=4),
]
_CLASSES = [row("a class label", class_label=3), row("a class label, unguided", class_label=1, guidance_scale=1)]
_TIMED_CLASSES = [row("a class label as a timestep", class_label=400, sampler="euler")]
_TURBO = [row("one step", steps=1, sampler=None, guidance_scale=1), row("four steps", steps=4, sampler=None)]
_PLAIN = [row("text to image"), row("another prompt", prompt=_PROMPTS[2], sampler="euler_ancestral")]
_LARGE = [row("an image in tiles", width=96, height=64), row("img2img in tiles", **_CAT, width=96, height=96)]
_SD2 = [
    row("several chunks", prompt=_LONG),
    row("clip skip", clip_skip=1),
    row("comfyui", prompt="a (red:1.3) cat, ((the castle))", prompt_syntax="comfyui"),
    row("compel", prompt="a red++ cat, (the castle)0.6", prompt_syntax="compel"),
    row("img2img of v", **_CAT, strength=0.7, sampler="dpmpp_2m"),
    row("inpainting of v", **_IN_MASK),
    row("rescale of v", guidance_rescale=0.7),
    row("hires of v", hires_scale=1.5),
    *_SD2_LORAS,
]
_V_SAMPLERS = [row(f"sampler {name} of v", sampler=name, noise_source="torch", steps=5) for name in SAMPLERS]

# One for each way in which a batch has arrays for its images or its evaluations.
_ON_DEVICES = [
    row("torch noise", sampler="euler_ancestral", noise_source="torch"),
    row("guidance interval", sampler="euler", guidance_start=0.3, guidance_end=0.8),
    row("AND", prompt="a red cat AND a green dog :0.6"),
    row("accelerations", deep_cache_interval=2, token_merging_ratio=0.5, gate_step=3, steps=5),
    row("img2img", **_CAT, strength=0.5),
    row("inpainting", **_IN_MASK),
    row("a ControlNet", **_EDGES, guess_mode=True),
    row("hires", hires_scale=1.5, hires_strength=0.6),
    row("previews", preview_every=2, steps=5),
    row("a LoRA and a hypernetwork", loras="ink:0.8", hypernetworks="oil:0.6"),
    *(row(f"an image among others: {prompt}", prompt=prompt) for prompt in _PROMPTS),
]
_TINY = {"model": _model("tiny"), "batch_size": 2}
_WITH_IMAGES = {"controlnet_folder": PurePath("controlnets"), "depth_model": "emoji"}
_WITH_ADAPTERS = {
    "lora_folder": PurePath("loras"),
    "hypernetwork_folder": PurePath("hypernetworks"),
    "embedding_folder": PurePath("embeddings"),
    "pickled": True,
}
_WITH_UPSCALERS = {"upscaler_folder": PurePath("upscalers")}
_ON_ONE = {**_TINY, **_WITH_IMAGES, **_WITH_ADAPTERS}


def _run(name: str, keys: Mapping[str, Any], rows: Iterable[Row], **options: Any) -> Run:
    return Run(name, keys, _with_seeds(rows), **options)


RUNS = (
    _run("samplers", {"model": _model("tiny")}, _SAMPLERS),
    _run("samplers of SD2", {"model": _model("sd2")}, _V_SAMPLERS),
    _run("noise", _TINY, _NOISE),
    _run("guidance and sizes", _TINY, [*_GUIDANCE, *_ACCELERATIONS, *_SIZES]),
    _run("one device", _ON_ONE, _ON_DEVICES),
    _run("four devices", _ON_ONE, _ON_DEVICES, devices=4, same_as="one device"),
    _run("img2img and inpainting", {**_TINY, **_WITH_IMAGES}, [*_IMG2IMG, *_INPAINTING]),
    _run("ControlNets", {**_TINY, **_WITH_IMAGES}, _CONTROLNETS),
    _run("hires and previews", {**_TINY, **_WITH_IMAGES}, [*_HIRES, *_PREVIEWS]),
    _run("mask channels", {"model": _model("tiny-inpaint")}, _OTHER_CHANNELS),
    _run("depth", {"model": _model("tiny-depth"), "depth_model": "emoji"}, _DEPTH),
    _run("prompts", {**_TINY, **_WITH_ADAPTERS, "wildcards": PurePath("wildcards")}, _SYNTAXES),
    _run("adapters of SD1", {"model": _model("sd1"), **_WITH_ADAPTERS}, _ADAPTERS),
    _run("SD2", {"model": _model("sd2"), **_WITH_ADAPTERS}, _SD2),
    _run("LoRAs merged", {**_TINY, **_WITH_ADAPTERS}, _TINY_ADAPTERS),
    _run("LoRAs batched", {**_TINY, **_WITH_ADAPTERS, "lora_mode": "batched"}, _TINY_ADAPTERS),
    _run("upscalers", {"model": _model("sd1"), **_WITH_UPSCALERS}, _UPSCALERS),
    _run("emoji", {"controlnet_folder": "emoji", "classifier": "emoji", "batch_size": 2}, _EMOJI),
    _run("class labels", {"model": _model("classes")}, _CLASSES),
    _run("class labels as timesteps", {"model": _model("timed-classes")}, _TIMED_CLASSES),
    _run("turbo", {"model": _model("turbo")}, _TURBO),
    _run("half precision", {"model": _model("sd1"), "dtype": "bfloat16", "vae_dtype": "float32"}, _PLAIN),
    _run("tiles and another VAE", {"model": _model("sd1"), "vae_tile": 32, "vae": _model("sd2") / "vae"}, _LARGE),
    _run("formats and repeats", {**_TINY, "format": "webp", "animation": "gif", "repeat": 2}, _PREVIEWS[:1]),
)
