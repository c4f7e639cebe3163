"""What a file of tensors is, inferred from names and shapes alone.

A table of signatures, tried from top to bottom: the first whose pattern is among the names gives the kind, and its
function tells more, as (name, value) lines. Nothing here decides how a file is loaded.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from sdjax.checkpoints.stored_tensor import Tensor, read_tensor
from sdjax.families.known_models import UNET_PURPOSES, by_context_width, by_token_width, context_width_of

Fact = tuple[str, str]
Facts = Iterator[Fact]
Tensors = Mapping[str, Tensor]

# How many names a line lists, and how many characters a value of metadata may have.
_LISTED, _SHORT = 8, 160


class Identity(NamedTuple):
    """What a file is.

    kind: "checkpoint", "UNet", "VAE", "text encoder", "LoRA", "textual inversion", "hypernetwork", "ControlNet",
      "T2I adapter", "upscaler" or "unknown".
    supported: whether sdjax can use such a file; what of it can't be is said in `facts`.
    facts: what else the names and shapes tell.
    """

    kind: str
    supported: bool
    facts: tuple[Fact, ...]


def identify(tensors: Tensors) -> Identity:
    """What tensors of these names and shapes are."""
    names = "\n".join(tensors)
    for signature in _SIGNATURES:
        if re.search(signature.pattern, names, re.MULTILINE) and signature.fits(tensors):
            return Identity(signature.kind, signature.supported, tuple(signature.facts(tensors)))
    return Identity("unknown", False, tuple(_examples(tensors)))


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


def shortened(text: str, length: int = _SHORT) -> str:
    """One line of a text, cut where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length]}... ({len(text)} characters)"


def precision(tensors: Iterable[Tensor]) -> str:
    """The kinds of number, with how many tensors have each."""
    counts = Counter(tensor.dtype for tensor in tensors)
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in counts.most_common())


def millions(tensors: Iterable[Tensor]) -> str:
    """How many numbers are in tensors."""
    return f"{sum(math.prod(tensor.shape) for tensor in tensors) / 1e6:.2f} M parameters"


def _examples(tensors: Tensors) -> Facts:
    yield "tensors", listed(f"{name} {tensor.shape}" for name, tensor in tensors.items()) or "none"


def _shape(tensors: Tensors, pattern: str) -> tuple[int, ...] | None:
    """The shape of the first tensor whose whole name fits a pattern."""
    return next((tensor.shape for name, tensor in tensors.items() if re.fullmatch(pattern, name)), None)


def _axis(tensors: Tensors, pattern: str, axis: int) -> int | None:
    shape = _shape(tensors, pattern)
    return shape[axis] if shape is not None and axis < len(shape) else None


def _count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers there are in the place of the group of a pattern."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _by_text(width: int | None) -> str:
    if model := by_context_width(width):
        return model.name
    return f"text of width {width}" if width else "not known from its shapes"


# --- Checkpoints ---

_CROSS_ATTENTION = r".*attn2\.to_k\.weight"


def _checkpoint(tensors: Tensors) -> Facts:
    width = _axis(tensors, r"model\.diffusion_model\." + _CROSS_ATTENTION, 1)
    channels = _axis(tensors, r"model\.diffusion_model\.input_blocks\.0\.0\.weight", 1)
    yield "variant", f"{_by_text(width)}, {UNET_PURPOSES.get(channels or 0, f'{channels} channels in')}"
    yield from _parts_of_checkpoint(tensors)


def _is_xl(tensors: Tensors) -> bool:
    """Whether a UNet is XL's, or its refiner's, by the text that it attends to."""
    model = by_context_width(_axis(tensors, r"model\.diffusion_model\." + _CROSS_ATTENTION, 1))
    return model is not None and not model.supported


def _other_checkpoint(name: str) -> Callable[[Tensors], Facts]:
    def facts(tensors: Tensors) -> Facts:
        yield "variant", f"{name}: not supported"
        yield from _parts_of_checkpoint(tensors)

    return facts


_CHECKPOINT_PARTS = {
    "UNet": r"model\.diffusion_model\.",
    "VAE": r"(first_stage_model|vae)\.",
    "text encoder": r"(cond_stage_model|conditioner|text_encoders)\.",
    "averages (EMA)": r"model_ema\.(?!decay$|num_updates$)",
    "depth estimator": r"depth_model\.",
}


def _parts_of_checkpoint(tensors: Tensors) -> Facts:
    rest = dict(tensors)
    for part, start in _CHECKPOINT_PARTS.items():
        own = [rest.pop(name) for name in list(rest) if re.match(start, name)]
        if own:
            yield part, f"{millions(own)} in {len(own)} tensors"
        elif part in ("VAE", "text encoder"):
            yield part, "none: the file is not a whole checkpoint"
    if rest:
        yield "other tensors", listed(rest)


def _unet(tensors: Tensors) -> Facts:
    width = _axis(tensors, _CROSS_ATTENTION, 1)
    channels = _axis(tensors, r"conv_in\.weight|input_blocks\.0\.0\.weight", 1)
    style = "diffusers'" if "conv_in.weight" in tensors else "the original"
    yield "variant", f"{_by_text(width)}, {UNET_PURPOSES.get(channels or 0, f'{channels} channels in')}, {style} names"
    yield "UNet", f"{millions(tensors.values())} in {len(tensors)} tensors"


def _vae(tensors: Tensors) -> Facts:
    latents = _axis(tensors, r"(first_stage_model\.|vae\.)?decoder\.conv_in\.weight", 1)
    style = "the original" if any(".mid.block_1." in name for name in tensors) else "diffusers'"
    halves = [half for half in ("encoder", "decoder") if any(f"{half}." in name for name in tensors)]
    known = "" if latents in (4, None) else "; not that of Stable Diffusion 1 or 2"
    yield "variant", f"{' and '.join(halves)}, {latents} latent channels, {style} names{known}"
    yield "VAE", f"{millions(tensors.values())} in {len(tensors)} tensors"


def _text_encoder(tensors: Tensors) -> Facts:
    width = _axis(tensors, r".*token_embedding\.weight", 1)
    layers = _count(tensors, r".*(?:resblocks|layers)\.(\d+)\.")
    style = "OpenCLIP's names" if any("resblocks" in name for name in tensors) else "transformers' names"
    model = by_token_width(width)
    title = f"{model.text_encoder} ({model.name})" if model and model.supported else f"width {width}"
    yield "variant", f"{title}, {layers} layers, {style}"
    yield "text encoder", f"{millions(tensors.values())} in {len(tensors)} tensors"


# --- Adapters ---

# Ends of names -> (algorithm, the axis of the tensor that is its rank, or None).
_ADAPTER_ENDS: tuple[tuple[str, str, int | None], ...] = (
    (r"[._]lora(_linear_layer)?[._]down\.weight|\.lora_A(\.\w+)?\.weight", "LoRA", 0),
    (r"\.lora_mid\.weight", "Tucker", None),
    (r"\.hada_w1_b", "LoHa", 0),
    (r"\.lokr_w[12]_b", "LoKr", 0),
    (r"\.lokr_w1(_a)?", "LoKr", None),
    (r"\.diff(_b)?", "whole differences", None),
    (r"\.dora_scale|\.lora_magnitude_vector.*", "DoRA", None),
    (r"\.(w|b)_norm", "norms", None),
    (r"\.(oft_\w+|boft_\w+)", "OFT (not supported)", None),
    (r"\.(on_input|ia3_l\w*)", "IA3 (not supported)", None),
    (r"\.(a1|b1)\.weight", "GLoRA (not supported)", None),
)
_ADAPTER_FORMS = (
    ("kohya's names", r"^(lora_(unet|te\d?)_|bundle_emb\.)"),
    ("LyCORIS' names", r"^lycoris_"),
    ("peft's names", r"^base_model\.model\."),
    ("diffusers' names (before peft)", r"\.processor\.|\.lora\.(down|up)\.|_lora\.(down|up)\.|lora_linear_layer"),
    ("diffusers' names", r"^(unet|text_encoder|text_encoder_2|transformer)\."),
)
_ADAPTER_PARTS = (
    ("second text encoder", r"lora_te2_|text_encoder_2\."),
    ("text encoder", r"lora_te1?_|text_encoder\.|.*(text_model|encoder[._]layers)[._]"),
    ("embeddings", r"bundle_emb\."),
    ("transformer", r"transformer\.|lora_transformer_|.*(double|single|joint)_blocks[._]"),
)


def _adapter(tensors: Tensors) -> Facts:
    algorithms: set[str] = set()
    ranks: Counter[int] = Counter()
    modules: dict[str, set[str]] = {}
    alphas: Counter[float] = Counter()
    for name, tensor in tensors.items():
        if name.endswith(".alpha") and math.prod(tensor.shape) == 1:
            alphas[float(read_tensor(tensor).reshape(()))] += 1
            continue
        found = _adapter_end(name)
        if found is None:
            continue
        module, algorithm, axis = found
        algorithms.add(algorithm)
        modules.setdefault(_part(module), set()).add(module)
        if axis is not None and len(tensor.shape) > axis:
            ranks[tensor.shape[axis]] += 1
    names = "\n".join(tensors)
    form = next((form for form, pattern in _ADAPTER_FORMS if re.search(pattern, names, re.MULTILINE)), "other names")
    order = dict.fromkeys(algorithm for _, algorithm, _ in _ADAPTER_ENDS)
    yield "variant", f"{' with '.join(name for name in order if name in algorithms)}, {form}"
    yield "made for", _base(tensors)
    yield "rank", _values(ranks) or "none (not of low rank)"
    yield "alpha", _values(alphas) or "none in the file"
    for part, held in modules.items():
        yield part, f"{len(held)} modules"
    bundled = {name.split(".")[1] for name in tensors if name.startswith("bundle_emb.")}
    if bundled:
        yield "bundled embeddings", listed(sorted(bundled))
    other = [name for name in tensors if _adapter_end(name) is None and not _belongs(name)]
    if other:
        yield "other tensors", listed(other)


def _adapter_end(name: str) -> tuple[str, str, int | None] | None:
    """(module, algorithm, axis of the rank) of a tensor that counts."""
    for end, algorithm, axis in _ADAPTER_ENDS:
        if match := re.fullmatch(f"(.*?)({end})", name):
            return match[1], algorithm, axis
    return None


def _belongs(name: str) -> bool:
    """Whether a tensor is the other half of one that counts, or a scale."""
    ends = (
        r"up\.weight|\.lora_B(\.\w+)?\.(weight|bias)|\.alpha|\.scalar|\.hada_\w+|\.lokr_\w+|\.rescale|\.[ab]2\.weight"
    )
    return bool(re.fullmatch(rf".*({ends})|bundle_emb\..*", name))


def _part(module: str) -> str:
    return next((part for part, start in _ADAPTER_PARTS if re.match(start, module)), "UNet")


def _values(counts: Mapping[int, int] | Mapping[float, int]) -> str:
    """Values, the commonest first, with their number if there are several."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return f"{ordered[0][0]:g}"
    return listed(f"{value:g} ({count} times)" for value, count in ordered)


def _base(tensors: Tensors) -> str:
    """The model for which an adapter was trained, by the width of the text that goes into cross-attention."""
    names = "\n".join(tensors)
    for pattern, model in _OTHER_BASES:
        if re.search(pattern, names, re.MULTILINE):
            return f"{model}: not supported"
    width = _input_width(tensors, r".*attn2[._](processor[._])?to_[kv](_lora)?")
    if width is None:
        width = _input_width(tensors, r".*(q_proj|fc1)(_lora)?|.*text_model[._].*to_q(_lora)?")
        return f"{_by_text(width)} (by its text encoder)" if width else "not known from its shapes"
    return _by_text(width)


_OTHER_BASES = (
    (r"^lora_te2_|^text_encoder_2\.|add_embedding", "Stable Diffusion XL"),
    (r"double_blocks|single_transformer_blocks|single_blocks", "Flux"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"^(transformer|lora_transformer)[._]", "a diffusion transformer"),
    (r"motion_modules", "AnimateDiff"),
)


def _input_width(tensors: Tensors, module: str) -> int | None:
    """How wide the input is of a module whose (whole) name fits a pattern."""
    width = _axis(tensors, rf"({module})([._]lora)?([._]down\.weight|\.lora_A(\.\w+)?\.weight|\.hada_w1_b|\.diff)", 1)
    if width is not None:
        return width
    first = _axis(tensors, rf"({module})\.lokr_w1(_b)?", 1)
    second = _axis(tensors, rf"({module})\.lokr_w2(_b)?", 1)
    return first * second if first and second else None


def _is_inversion(tensors: Tensors) -> bool:
    """One tensor (two for the text encoders of XL) of vectors as wide as token embeddings."""
    shapes = [tensor.shape for tensor in tensors.values()]
    return 0 < len(shapes) <= 2 and all(len(shape) in (1, 2) and by_token_width(shape[-1]) for shape in shapes)


def _inversion(tensors: Tensors) -> Facts:
    for name, tensor in tensors.items():
        if len(tensor.shape) in (1, 2):
            vectors, width = (1, *tensor.shape)[-2:]
            model = by_token_width(width)
            unsupported = "" if model is None or model.supported else "'s second text encoder: not supported"
            title = f"{model.name}{unsupported}" if model else "no known model"
            yield "vectors", f"{vectors} of width {width} ({title}), as {name!r}"


def _hypernetwork(tensors: Tensors) -> Facts:
    widths = sorted({int(name.split(".")[0]) for name in tensors})
    # Widths of the UNet's features are in all such files; of text only Stable Diffusion 2's is none of these.
    title = " (Stable Diffusion 2)" if context_width_of("Stable Diffusion 2") in widths else ""
    yield "widths", f"{', '.join(map(str, widths))}{title}"
    for width in widths[:1]:
        layers = [t.shape for name, t in tensors.items() if re.fullmatch(rf"{width}\.0\..*weight", name)]
        dense = [shape for shape in layers if len(shape) == 2]
        sizes = [dense[0][1], *(shape[0] for shape in dense)] if dense else []
        norms = " with layer norms" if len(dense) < len(layers) else ""
        yield "layers", f"{' -> '.join(map(str, sizes))}{norms} (of width {width})"


def _controlnet(tensors: Tensors) -> Facts:
    style = "diffusers' names" if any("controlnet_cond_embedding" in name for name in tensors) else "the original names"
    yield "variant", f"{_by_text(_axis(tensors, _CROSS_ATTENTION, 1))}, {style}"
    yield "ControlNet", f"{millions(tensors.values())} in {len(tensors)} tensors"


def _t2i_adapter(tensors: Tensors) -> Facts:
    channels = _axis(tensors, r"(adapter\.)?conv_in\.weight", 1)
    yield "T2I adapter", f"{millions(tensors.values())} in {len(tensors)} tensors, {channels} channels in"


def _upscaler(tensors: Tensors) -> Facts:
    blocks = _count(tensors, r".*(?:body|model\.1\.sub)\.(\d+)\.(?:rdb1|RDB1)\.")
    into = _axis(tensors, r"(params(_ema)?\.)?conv_first\.weight|model\.0\.weight", 1)
    yield "variant", f"RRDBNet (ESRGAN) of {blocks} blocks, {into} channels in"
    yield "upscaler", f"{millions(tensors.values())} in {len(tensors)} tensors"


# --- The table ---


class _Signature(NamedTuple):
    """How a kind is recognised.

    pattern: of a name, or the start of one, that all such files have.
    facts: what else is known of it.
    fits: a further condition.
    """

    kind: str
    pattern: str
    facts: Callable[[Tensors], Facts]
    supported: bool = False
    fits: Callable[[Tensors], bool] = lambda _: True


_LORA_PATTERN = (
    r"[._]lora(_linear_layer)?[._](down|up)\.weight$|\.lora_[AB](\.\w+)?\.weight$|\.hada_w1_a$|\.lokr_w[12](_a)?$"
    r"|\.oft_(diag|blocks)$|\.on_input$|\.diff$|\.a1\.weight$|\.dora_scale$"
)
_SIGNATURES = (
    _Signature("hypernetwork", r"^\d+\.[01]\.linear", _hypernetwork, True),
    _Signature("ControlNet", r"^lora_controlnet$", _controlnet),
    _Signature("LoRA", _LORA_PATTERN, _adapter, True),
    _Signature("ControlNet", r"^(control_model\.)?input_hint_block\.|^controlnet_cond_embedding\.", _controlnet, True),
    _Signature("T2I adapter", r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?block1\.weight$", _t2i_adapter, True),
    _Signature("upscaler", r"^(params(_ema)?\.)?body\.0\.rdb1\.|^model\.1\.sub\.0\.RDB1\.", _upscaler, True),
    _Signature(
        "checkpoint", r"^(model\.diffusion_model\.)?joint_blocks\.0\.", _other_checkpoint("Stable Diffusion 3")
    ),
    _Signature("checkpoint", r"^(model\.diffusion_model\.)?double_blocks\.0\.", _other_checkpoint("Flux")),
    _Signature("checkpoint", r"^conditioner\.embedders\.1\.", _other_checkpoint("Stable Diffusion XL")),
    _Signature("checkpoint", r"^model\.diffusion_model\.", _other_checkpoint("Stable Diffusion XL"), False, _is_xl),
    _Signature("checkpoint", r"^model\.diffusion_model\..*time_stack", _other_checkpoint("Stable Video Diffusion")),
    _Signature("checkpoint", r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", _checkpoint, True),
    _Signature("UNet", r"^(down_blocks\.0\.resnets\.0\.time_emb_proj|input_blocks\.1\.0\.emb_layers\.1)\.", _unet),
    _Signature(
        "VAE",
        r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(mid\.block_1|mid_block\.resnets\.0)\.conv1\.weight$",
        _vae,
        True,
    ),
    _Signature("text encoder", r"(^|\.)(text_model\.encoder\.layers\.0\.|transformer\.resblocks\.0\.)", _text_encoder),
    _Signature("textual inversion", r"^emb_params$|^string_to_param\.|^clip_[lg]$", _inversion, True),
    _Signature("textual inversion", "", _inversion, True, _is_inversion),
)  # fmt: skip
