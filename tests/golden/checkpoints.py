"""Original single files: what the original code puts into them, and toys of every variant written that way.

Names and shapes come from the original repositories (`tests.golden.full_size_original`), never from sdjax' tables.
"""

import functools
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

import sdjax
from sdjax.checkpoints import name_table
from sdjax.checkpoints.diffusers_folder import write_configs
from sdjax.checkpoints.tensors import Params
from sdjax.families.stable_diffusion import SD1
from sdjax.text.vocabulary import END, START, clip_vocabulary, write_tokenizer
from tests.golden import images

FOLDER = Path(__file__).parent
RECORDED = FOLDER / "full_size_original.json.gz"
# What the original networks give for `inputs`, on the toys' weights.
OUTPUTS = FOLDER / "checkpoints_original.npz"
# What diffusers reads from the toys: each parameter's checksum, by its name there; and what it draws.
CHECKSUMS = FOLDER / "checkpoints_diffusers.json.gz"
DRAWN = FOLDER / "checkpoints_drawn.npz"


class Variant(NamedTuple):
    """One variant of the family.

    repository: whose code and config it is built from: "compvis" or "stability".
    config: the file there.
    in_channels: of the UNet, where the config is that of another variant.
    """

    repository: str
    config: str
    in_channels: int | None = None


_CONFIGS = "configs/stable-diffusion/"
VARIANTS = {
    "sd1": Variant("compvis", f"{_CONFIGS}v1-inference.yaml"),
    "sd1_inpaint": Variant("compvis", f"{_CONFIGS}v1-inference.yaml", in_channels=9),
    "sd2": Variant("stability", f"{_CONFIGS}v2-inference.yaml"),
    "sd2_v": Variant("stability", f"{_CONFIGS}v2-inference-v.yaml"),
    "sd2_inpaint": Variant("stability", f"{_CONFIGS}v2-inpainting-inference.yaml"),
    "sd2_depth": Variant("stability", f"{_CONFIGS}v2-midas-inference.yaml"),
}
# What is smaller in the toys. All norms of the original code have 32 groups; heads are as published.
TOY_TEXT_WIDTH, TOY_TEXT_LAYERS = 32, 2
TOY_VAE = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1}
_TOY_UNET = {"num_res_blocks": 1, "context_dim": TOY_TEXT_WIDTH}
TOY_UNETS = {
    "compvis": {**_TOY_UNET, "model_channels": 32, "channel_mult": [1, 2, 2], "attention_resolutions": [2, 1]},
    "stability": {
        **_TOY_UNET,
        "model_channels": 64,
        "channel_mult": [1, 2],
        "attention_resolutions": [1],
        "use_fp16": False,
    },
}


# What a toy's UNet is said to predict, where its structure leaves it open.
PREDICTS = {"sd2": "epsilon", "sd2_v": "v_prediction"}


class Drawing(NamedTuple):
    """An image from the single file of a toy."""

    variant: str
    job: sdjax.Job


_job = functools.partial(
    sdjax.Job,
    prompt="a photo of a red apple",
    negative_prompt="the blue cat",
    seed=3,
    guidance_scale=7.5,
    noise_source="torch",
    width=32,
    height=32,
)
_turbo = functools.partial(_job, sampler="euler", timestep_spacing="trailing", guidance_scale=1.0)
# Recorded, and made without torch in every run of the tests, by one program.
RECORDED_DRAWINGS = {
    "turbo-1": Drawing("sd2", _turbo(steps=1)),
    "turbo-4": Drawing("sd2", _turbo(steps=4)),
}
# Compared live only.
LIVE_DRAWINGS = {
    "sd1": Drawing("sd1", _job(sampler="plms", steps=12)),
    "sd2": Drawing("sd2", _job(sampler="plms", steps=12)),
    "sd2_v": Drawing("sd2_v", _job(sampler="ddim", steps=12)),
    "turbo-2": Drawing("sd2", _turbo(steps=2)),
}


class Original(NamedTuple):
    """What the original code says about one variant.

    config: its YAML file, read.
    shapes: the whole model's state by name, averages (EMA) among it; MiDaS is left out.
    """

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


@functools.cache
def _listed() -> dict[str, Any]:
    return json.loads(gzip.decompress(RECORDED.read_bytes()))


def original(variant: str, size: str) -> Original:
    """The recording of a variant's `size`, "full" or "toy"."""
    config, shapes = _listed()[size][variant]
    return Original(config, {name: tuple(shape) for name, shape in shapes.items()})


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random values for a model's state that keep activations of unit size.

    They come from numpy's frozen `RandomState`, in the order of the names; what training leaves behind comes last, so
    that the others are the same without it.
    """
    rng = np.random.RandomState(11)
    found = {}
    for name in sorted(shapes, key=lambda name: (is_training_state(name), name)):
        values = rng.standard_normal(shapes[name]).astype(np.float32)
        if values.ndim > 1 and "embedding" not in name:
            values /= np.sqrt(values[0].size)
        elif name.endswith("bias"):
            values *= 0.1
        elif values.ndim == 1:
            values = 1 + 0.1 * values
        found[name] = values.astype(np.float32)
    return found


def is_training_state(name: str) -> bool:
    """Whether a name is of the average, or of the schedule's buffers: published files are with and without."""
    return name.startswith("model_ema.") or "." not in name


def toy_weights(variant: str, ema: bool = False) -> dict[str, np.ndarray]:
    """The whole state of a toy, by its original names."""
    shapes = original(variant, "toy").shapes
    return weights({name: shape for name, shape in shapes.items() if ema or not is_training_state(name)})


def write_toy(file: Path, variant: str, ema: bool = False, dtype: Any = np.float32, **metadata: str) -> Path:
    """Writes a toy as a single safetensors file; gives its path."""
    tensors = {name: values.astype(dtype) for name, values in toy_weights(variant, ema).items()}
    save_file(tensors, file, metadata=metadata or None)
    return file


def inputs(in_channels: int) -> dict[str, np.ndarray]:
    """What the toys' networks are asked: two samples, channels last."""
    rng = np.random.RandomState(12)
    return {
        "sample": rng.standard_normal((2, 8, 8, in_channels)).astype(np.float32),
        "timesteps": np.array([7.0, 801.0], np.float32),
        "context": rng.standard_normal((2, 77, TOY_TEXT_WIDTH)).astype(np.float32),
        "latents": rng.standard_normal((2, 4, 4, 4)).astype(np.float32),
        "pixels": rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),
        "input_ids": rng.randint(0, 49406, (2, 77)).astype(np.int32),
    }


def outputs(
    model: sdjax.Model, wanted: Iterable[str] = ("prediction", "mean", "decoded", "text")
) -> dict[str, np.ndarray]:
    """What a toy's networks give for `inputs`, by sdjax."""
    asked = inputs(model.unet.config.in_channels)

    def apply(part: str, *arguments: np.ndarray, method: str | None = None) -> Any:
        network = functools.partial(model.networks[part].apply, method=method)
        return jax.jit(network)({"params": model.params[part]}, *arguments)

    given = {
        "prediction": lambda: apply("unet", asked["sample"], asked["timesteps"], asked["context"]),
        "mean": lambda: apply("vae", asked["pixels"], method="encode").mean,
        "decoded": lambda: apply("vae", asked["latents"], method="decode"),
        "text": lambda: apply("text_encoder", asked["input_ids"]).last_hidden_state,
    }
    return {name: np.asarray(given[name]()) for name in wanted}


def as_image(drawing: Drawing) -> images.Image:
    """The same for the reference that draws from folders."""
    return images.Image(drawing.job)


def load_toy(file: Path, variant: str, **options: Any) -> sdjax.Model:
    """The toy, with what its structure leaves open said."""
    return sdjax.load(file, **{"prediction_type": PREDICTS.get(variant), **options})


def write_configs_of(folder: Path, model: sdjax.Model) -> Path:
    """Writes a model's configs and CLIP's tokenizer as diffusers wants them beside a single file; gives the folder."""
    vocabulary = clip_vocabulary()
    padding = END if model.networks["text_encoder"].config.hidden_act == "quick_gelu" else "!"
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": padding}
    write_configs(
        folder,
        model.family,
        model.configs,
        scheduler=model.scheduler,
        scheduler_class=model.scheduler_class,
        special_tokens={key: vocabulary.tokens[token] for key, token in special.items()},
    )
    write_tokenizer(
        folder / "tokenizer", vocabulary, model.networks["text_encoder"].config.max_position_embeddings, padding
    )
    return folder


def checksum(values: np.ndarray) -> str:
    """Of a parameter in torch's layout."""
    return f"{zlib.crc32(np.ascontiguousarray(values, np.float32).tobytes()):08x}"


def checksums(params: Params) -> dict[str, dict[str, str]]:
    """Those of all parameters of a model, by network and diffusers' name, without the prefix that files have."""
    found: dict[str, dict[str, str]] = {}
    for part, tree in params.items():
        table = SD1.networks[part].table
        found[part] = {}
        for keys, leaf in jax.tree.leaves_with_path(tree):
            path = tuple(key.key for key in keys)
            name = name_table.file_names(path, table)[0].removeprefix(table.prefix)
            found[part][name] = checksum(name_table.to_file(path, np.asarray(leaf)))
    return found


def recorded_checksums(variant: str) -> dict[str, dict[str, str]]:
    """What diffusers reads from a toy."""
    return json.loads(gzip.decompress(CHECKSUMS.read_bytes()))[variant]


def drawn(models: Mapping[str, sdjax.Model], drawings: Mapping[str, Drawing]) -> dict[str, np.ndarray]:
    """What sdjax draws. `models` are those of each variant."""
    devices = jax.local_devices()[:1]
    images = {}
    for variant in dict.fromkeys(drawing.variant for drawing in drawings.values()):
        engine = sdjax.Engine(models[variant], batch_size=2, devices=devices)
        tasks = {name: engine.prepare(each.job) for name, each in drawings.items() if each.variant == variant}
        results = {result.metadata["id"]: result.image for result in engine.run(list(tasks.values()))}
        images.update({name: results[task.id] for name, task in tasks.items()})
    return images
