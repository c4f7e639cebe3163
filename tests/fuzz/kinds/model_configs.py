"""Model configs of every part: folders with one or more values damaged, and JSON that is cut, deep, huge or doubled.

A folder that loads is whole: a changed value was one that can be. An error is one of those that loaders say they
raise, of one short line that begins with the file.
"""

import contextlib
import copy
import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import CLIPTokenizer

import sdjax
from sdjax.adapters.files import AdapterError, AdapterFile
from sdjax.adapters.peft_config import read_scales
from sdjax.checkpoints.controlnet_file import find_controlnet
from sdjax.checkpoints.depth_file import find_depth
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.checkpoints.vae_file import find_vae
from sdjax.library.classifier import load_classifier
from sdjax.library.upscalers import read_diffusion_upscaler
from sdjax.models import ConfigError
from sdjax.text.tokenizer import TokenizerError
from tests import toys
from tests.checkpoints.test_depth_file import write_folder as write_depth
from tests.golden import controlnet, sd_upscalers
from tests.library.test_classifier import write_classifier

ERRORS = (CheckpointError, ConfigError, TokenizerError, AdapterError)
LONGEST_MESSAGE = 1500
# What an error of a loader may not be: something that Python or another library said of itself.
NOT_OURS = ("Traceback", "object has no attribute", "unexpected keyword", "unhashable", "recursion depth", "panicked")


class Part(NamedTuple):
    """A folder that loads, and how.

    folder: as it is.
    files: in it, of JSON.
    load: reads a copy.
    """

    folder: Path
    files: list[str]
    load: Callable[[Path], object]


PARTS: list[Part] = []
PEFT = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "alpha_pattern": {"down_blocks": 2},
    "rank_pattern": {},
    "use_rslora": False,
    "init_lora_weights": True,
    "target_modules": ["to_q"],
}


def warm(folder: Path) -> None:
    """Writes a folder of each part and loads it."""
    PARTS.extend(made(folder))
    for part in PARTS:
        part.load(part.folder)


def made(folder: Path) -> list[Part]:
    """The parts, in a folder."""
    model = toys.write_toy(folder / "model", toys.TINY)
    whole = shutil.copytree(model, folder / "whole")
    CLIPTokenizer.from_pretrained(str(model / "tokenizer")).save_pretrained(str(whole / "tokenizer"))
    networks = [name for name in listed(model) if not name.startswith("tokenizer/")]
    tokenizer = ["tokenizer/vocab.json", "tokenizer/tokenizer_config.json"]
    controls = {"controlnet": controlnet.CASES["sd1"], "adapter": controlnet.LIVE_CASES["full_adapter"]}
    for name, case in controls.items():
        (folder / name).mkdir()
        controlnet.write_folder(folder / name, case.controls[0])
    for name in ("classifier", "peft"):
        (folder / name).mkdir()
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(PEFT))
    depth = write_depth(folder / "depth")
    parts = [
        Part(model, networks, read_model),
        Part(model, ["scheduler/scheduler_config.json"], read_model),
        Part(model, tokenizer, read_model),
        Part(whole, ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"], read_model),
        Part(model, networks, read_whole_model),
        Part(model / "vae", ["config.json"], lambda path: sound(find_vae(path).config)),
        Part(folder / "controlnet", ["config.json"], lambda path: sound(find_controlnet(path).config)),
        Part(folder / "adapter", ["config.json"], lambda path: sound(find_controlnet(path).config)),
        Part(depth, listed(depth), lambda path: sound(find_depth(path).config)),
        Part(write_classifier(folder / "classifier"), ["config.json"], load_classifier),
        Part(folder / "peft", ["adapter_config.json"], read_peft),
    ]
    for name, toy in sd_upscalers.TOYS.items():
        place = sd_upscalers.write(folder / name, toy)
        parts.append(Part(place, listed(place), read_an_upscaler))
    return parts


def listed(folder: Path) -> list[str]:
    """The JSON files of a folder, but for vocabularies."""
    found = (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.json")))
    return [name for name in found if Path(name).name != "vocab.json"]


# --- What loads is sound ---


def read_model(path: Path) -> None:
    """Configs and tokenizer of a model; a job is resolved, and tokens are made."""
    resolved(sdjax.load(path, weights=False))


def read_whole_model(path: Path) -> None:
    """The same with its weights, to whose shapes the configs are held."""
    resolved(sdjax.load(path))


def resolved(model: sdjax.Model) -> None:
    """Checks a model that has loaded."""
    for config in (model.unet.config, model.vae.config, model.networks["text_encoder"].config, model.scheduler):
        sound(config)
    assert len(model.tokenizer("a red apple").ids) == model.tokenizer.length
    assert max(model.tokenizer("a red apple").ids) < model.networks["text_encoder"].config.vocab_size
    with contextlib.suppress(sdjax.JobError):
        model.resolve(sdjax.Job(prompt="a cat", seed=0, steps=2, height=8, width=8))


def read_an_upscaler(path: Path) -> None:
    """All of an upscaler's parts."""
    found = read_diffusion_upscaler(path, np.float32)
    for config in (*found.configs.values(), found.scheduler, found.low_res):
        sound(config)


def read_peft(path: Path) -> None:
    """The strength of a module."""
    file = AdapterFile(path / "adapter_model.safetensors", "x", "", "", {}, {})
    scales = read_scales(file)
    if scales is None:  # the file is gone, and the adapter as good without
        assert not (path / "adapter_config.json").is_file()
        return
    strength = scales.of("unet", "down_blocks.0.attentions.0.to_q")
    assert strength is None or 0 < strength < 1e39


def sound(config: Any) -> None:
    """Numbers are finite and in the bounds that are promised, lists short."""
    for value in dataclasses.asdict(config).values() if config is not None else ():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int | float):
                assert math.isfinite(each) and abs(each) <= 3e38, value


# --- Damage ---

Json = Any
_CLASSES = ("UNet2DModel", "T5EncoderModel", "AutoencoderTiny", "EDMEulerScheduler", "SASolverScheduler", "CLIPModel")
_TEXTS = ("", "gelu", *_CLASSES, "\x1b[31m", "\u202e", "\ud800", "x" * 5000)
_NUMBERS = [8] * 5, [-1, 0], [10**9] * 4, [1] * 100_000, [1, 2, 3], [[1]]
_LISTS: tuple[Json, ...] = (*_NUMBERS, [], [1], ["a"], [None], [{}])


def values(rng: random.Random) -> Json:
    """A value that a config would hardly have."""
    return rng.choice(
        (
            rng.choice((0, 1, 2, 3, 25, 64, -1, -(10**9), 2_000_000_000, 10**7, 10**18, 10**100, 10**400)),
            rng.choice((0.0, 0.5, -0.5, 1e-300, 1e38, 1e308, float("nan"), float("inf"), float("-inf"))),
            rng.choice((True, False, None)),
            rng.choice(_TEXTS),
            copy.deepcopy(rng.choice(_LISTS)),
            {"a": rng.randrange(9)},
            nested(rng.choice((5, 30, 33, 200))),
        )
    )


def nested(depth: int) -> Json:
    """Lists and objects in one another."""
    value: Json = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def change(rng: random.Random, document: Json, others: list[str]) -> None:
    """Changes one place of a document, mostly near the top."""
    here = document
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            if isinstance(here, dict):
                here["a"] = values(rng)
            return
        key = rng.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.7:
            here = here[key]
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del here[key]
        elif kind == 1 and isinstance(here, dict):
            here[rng.choice((*others, "brand_new_switch", "_class_name", "\x1b[2J"))] = values(rng)
        elif kind == 2 and isinstance(here[key], int | float) and not isinstance(here[key], bool):
            here[key] = here[key] * rng.choice((-1, 0, 2, 3, 1000, 10**6, 0.5, 1.0))
        else:
            here[key] = values(rng)
        return


def damaged_text(rng: random.Random, text: bytes) -> bytes:
    """The text of a file, no longer what JSON is or of what size it should be."""
    at = rng.randrange(len(text) + 1)
    deep = rng.choice((40, 900, 100_000))
    return rng.choice(
        (
            lambda: text[:at],
            lambda: text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :],
            lambda: text[:at] + b"\xff\xfe" + text[at:],
            lambda: b"",
            lambda: text.decode("utf-8", "replace").encode("utf-16"),
            lambda: b"[" * deep + b"]" * deep,
            lambda: b'{"a":' * deep + b"1" + b"}" * deep,
            lambda: text.rstrip()[:-1] + b', "_class_name": 1, "_class_name": 2}',
            lambda: text + b" " * (70 << 20),
            lambda: b'{"a": ' + b"9" * rng.choice((400, 5000)) + b"}",
            lambda: b'{"a": [' + b"[]," * 400_000 + b"0]}",
        )
    )()


def damage(rng: random.Random, file: Path) -> None:
    """Damages a JSON file."""
    text = file.read_bytes()
    kind = rng.random()
    if kind < 0.15:
        file.write_bytes(damaged_text(rng, text))
    elif kind < 0.17:
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
    else:
        document = json.loads(text)
        names = list(document)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            change(rng, document, names)
        file.write_text(json.dumps(document))


def case(rng: random.Random, folder: Path) -> bool:
    """One damaged part; whether it was refused."""
    part = rng.choice(PARTS)
    copied = shutil.copytree(part.folder, folder / "part")
    for name in {rng.choice(part.files) for _ in range(rng.choice((1, 1, 2)))}:
        damage(rng, copied / name)
    try:
        part.load(copied)
    except ERRORS as error:
        check_message(str(error), folder)
        return True
    return False


def check_message(message: str, folder: Path) -> None:
    """It names a file, in a line that a terminal shows as it is."""
    assert str(folder) in message, f"it names no file: {message}"
    assert len(message.replace(str(folder), "")) < LONGEST_MESSAGE, f"{len(message)} letters"
    assert message.isprintable(), ascii(message)
    assert not any(words in message for words in NOT_OURS), message
