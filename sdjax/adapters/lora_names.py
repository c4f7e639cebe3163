"""The names under which LoRA files speak of the modules of the networks, and what each tensor is to its module.

Trainers write a module's path with dots or with underscores, as diffusers calls it or as the original code did. So all
names a module may have are listed with underscores, and a file's name is looked up after its prefix is taken off.
"""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from sdjax.checkpoints import name_table, original_names
from sdjax.checkpoints.name_table import Path
from sdjax.families.known_models import FOREIGN_LORA_MODULES
from sdjax.families.networks import CLIP_TEXT_MODEL, UNET_2D_CONDITION_MODEL
from sdjax.families.stable_diffusion import LORA_PREFIXES, LORA_UNUSED
from sdjax.models import TextEncoderConfig, UNetConfig

# What a tensor is to its module, by the end of its name.
_ROLES = tuple(
    (re.compile(f"(?P<module>.*?){ending}"), role)
    for ending, role in (
        # kohya; diffusers, of now and older; peft, with or without the adapter's name.
        (r"(?:[._]lora|\.lora_linear_layer)[._]down\.weight", "down"),
        (r"(?:[._]lora|\.lora_linear_layer)[._]up\.weight", "up"),
        (r"\.lora_mid\.weight", "middle"),
        (r"\.lora_A(?:\.[^.]+)?\.weight", "down"),
        (r"\.lora_B(?:\.[^.]+)?\.weight", "up"),
        (r"\.lora_B(?:\.[^.]+)?\.bias", "up_bias"),
        (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "magnitude"),
        (r"\.dora_scale", "dora_scale"),
        (r"(?:[._]lora|\.lora_linear_layer)?\.alpha", "alpha"),
        (r"\.scalar", "scalar"),
        *((rf"\.{name}(?:\.(?!weight)[^.]+)?", name) for name in (
            "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
            "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        )),
        (r"\.diff", "diff"),
        (r"\.diff_b", "diff_b"),
        (r"\.w_norm", "w_norm"),
        (r"\.b_norm", "b_norm"),
    )
)  # fmt: skip
# Kinds of adapter that are known and not read.
_REFUSED = tuple(
    (re.compile(rf".*\.{ending}"), kind)
    for ending, kind in (
        (r"(on_input|ia3_l.*)", "IA3"),
        (r"(a1|a2|b1|b2|bm)\.weight", "GLoRA"),
        (r"(oft_blocks|oft_diag|oft_[rRs].*|boft_[Rs].*|rescale)", "OFT or BOFT"),
        (r"(lambda_layer|p_layer\.weight|q_layer\.weight)", "T-LoRA"),
        (r"lora_embedding_[AB].*", "LoRA of token embeddings"),
        (r"vera_lambda_.*", "VeRA"),
    )
)
# What diffusers' former attention processors called the projections of the text encoder.
_FORMER_PROJECTIONS = (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out"))
_BUNDLED = re.compile(r"bundle_emb\.(?P<name>[^.]+)\.(?P<form>.+)")


class Key(NamedTuple):
    """What a tensor's name says: the module as the file calls it, and the tensor's role in it."""

    module: str
    role: str


def parsed(name: str) -> Key | None:
    """Splits a tensor's name; None if its end is not known."""
    for pattern, role in _ROLES:
        if match := pattern.fullmatch(name):
            return Key(match["module"], role)
    return None


class Bundled(NamedTuple):
    """What the name of a tensor of an embedding says that is bundled with the LoRA."""

    name: str
    form: str


def bundled_embedding(name: str) -> Bundled | None:
    """Splits the name of such a tensor; None for any other."""
    match = _BUNDLED.fullmatch(name)
    return Bundled(match["name"], match["form"]) if match else None


def refused_kind(name: str) -> str | None:
    """The kind of adapter that only is written with such names, if it is known and not read."""
    return next((kind for pattern, kind in _REFUSED if pattern.fullmatch(name)), None)


def other_model(name: str) -> str | None:
    """The model for which a file with such a name in it is, if it is for another."""
    return next((model for pattern, model in FOREIGN_LORA_MODULES if re.fullmatch(pattern, name)), None)


def without_prefix(module: str) -> tuple[str | None, str]:
    """The network that a module's prefix says, or None, and the rest of its name."""
    part: str | None = None
    while found := next(((prefix, says) for prefix, says in LORA_PREFIXES if module.startswith(prefix)), None):
        module, part = module.removeprefix(found[0]), found[1] or part
    return part, module


def is_unused(module: str) -> bool:
    """Whether a module has no say in images."""
    return without_prefix(module) in LORA_UNUSED


class Modules(NamedTuple):
    """The modules of a model.

    paths: by network and name with underscores, the path of a module with its network first.
    shapes: of each module's parameters as torch has them, by its path and their leaf.
    """

    paths: dict[str, dict[str, Path]]
    shapes: dict[Path, dict[str, tuple[int, ...]]]

    def find(self, module: str) -> Path | None:
        """The path of a module as a file calls it: ("unet", "mid_block", ..., "to_q")."""
        part, module = without_prefix(module)
        key = _underscored(module.replace(".processor.", "."))
        return next((paths[key] for name, paths in self.paths.items() if part in (None, name) and key in paths), None)


def _underscored(name: str) -> str:
    return name.replace(".", "_")


@functools.cache
def modules_of(networks: tuple[tuple[str, UNetConfig | TextEncoderConfig], ...]) -> Modules:
    """All modules of the networks that LoRAs change, (name, config) each, and the names which files have for them."""
    shapes: dict[Path, dict[str, tuple[int, ...]]] = {}
    paths: dict[str, dict[str, Path]] = {}
    for part, config in networks:
        network = UNET_2D_CONDITION_MODEL if isinstance(config, UNetConfig) else CLIP_TEXT_MODEL
        for keys, leaf in jax.tree.leaves_with_path(network.param_shapes(config)):
            path = tuple(key.key for key in keys)
            shapes.setdefault((part, *path[:-1]), {})[path[-1]] = name_table.shape_in_file(path, leaf.shape)
        names = _unet_names(config) if isinstance(config, UNetConfig) else _text_names(config)
        paths[part] = {_underscored(name): (part, *path) for path, name in names}
    return Modules(paths, shapes)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _unet_names(config: UNetConfig) -> Iterator[tuple[Path, str]]:
    """Each module with each of its names."""
    for source in original_names.unet_sources(config):
        name = _module(name_table.file_names(source.path, UNET_2D_CONDITION_MODEL.table)[0])
        yield source.path[:-1], name
        yield source.path[:-1], _module(source.name.removeprefix(original_names.UNET))
        if name.endswith(".to_out.0"):
            yield source.path[:-1], name.removesuffix(".0")


def _text_names(config: TextEncoderConfig) -> Iterator[tuple[Path, str]]:
    """Each module with each of its names."""
    for source in original_names.open_clip_sources(config):
        for name in name_table.file_names(source.path, CLIP_TEXT_MODEL.table):
            yield source.path[:-1], _module(name)
            for theirs, former in _FORMER_PROJECTIONS:
                if name.endswith(f".{theirs}.weight"):
                    yield source.path[:-1], _module(name).removesuffix(theirs) + former
        if source.rows is None:
            name = _module(source.name.removeprefix(original_names.OPEN_CLIP))
            # Positions are a parameter of no module there.
            yield from ((source.path[:-1], each) for each in (name, f"model.{name}") if name)
