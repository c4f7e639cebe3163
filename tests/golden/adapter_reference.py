"""The same adapters made, written and applied by lycoris, peft and diffusers. Needs torch."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import torch
from lycoris import kohya
from safetensors.torch import load_file, save_file

from tests import toys
from tests.golden import adapters, networks, reference
from tests.golden.adapters import Arrays, Case

logging.getLogger("LyCORIS").setLevel(logging.ERROR)

# A module of each sort, for recordings.
_UNET_MODULES = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.attentions.0.norm",
    "mid_block.attentions.0.transformer_blocks.0.norm2",
)
_TEXT_MODULES = (
    "encoder.layers.0.self_attn.q_proj",
    "encoder.layers.1.self_attn.out_proj",
    "encoder.layers.1.mlp.fc1",
)


class Networks(torch.nn.Module):
    """A toy's two networks, the text encoder under the name that it has in published files."""

    def __init__(self, toy: str) -> None:
        super().__init__()
        params = adapters.toy_params(toy)
        self.unet = _filled(adapters.TOYS[toy].unet, params["unet"])
        self.text_model = _filled(adapters.TOYS[toy].text_encoder, params["text_encoder"])


def _filled(config: Any, params: Any) -> torch.nn.Module:
    model = reference.skeleton(config).eval().requires_grad_(False)
    model.load_state_dict(reference._state(params, toys.NETWORKS[type(config)].table), strict=True)
    return model


def _randomised(
    parameters: Iterator[tuple[str, torch.nn.Parameter]], seed: int, dtype: torch.dtype = torch.float32
) -> None:
    """Values that change weights about as much as they are, and that `dtype` can hold."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if "dora_scale" in name or "magnitude" in name:
            parameter.data *= 1 + 0.3 * noise
        elif "norm" in name.split(".")[-1] or name.endswith(("bias", "diff_b")):
            parameter.data = 0.2 * noise
        else:  # LoHa and LoKr multiply more of them
            parameter.data = (0.6 if "hada" in name or "lokr" in name else 0.25) * noise
        parameter.data = parameter.data.to(dtype).float()


@torch.no_grad()
def _outputs(case: Case, nets: Networks, parts: set[str]) -> Arrays:
    toy = adapters.TOYS[case.toy]
    found = {}
    if "unet" in parts:
        asked = networks.inputs(networks.Network(toy.unet, dict))
        sample, timesteps, context = (reference._to_torch(array) for array in asked.values())
        found["unet"] = reference._to_numpy(nets.unet(sample, timesteps, context).sample)
    if "text_encoder" in parts:
        ids = networks.inputs(networks.Network(toy.text_encoder, dict))["input_ids"]
        found["text_encoder"] = nets.text_model(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    return found


def made(case: Case, folder: Path, every_module: bool = False) -> tuple[Path, Arrays, Arrays]:
    """Makes an adapter with random values.

    Args:
      folder: where it is written.
      every_module: rather than one of each sort.

    Returns:
      The file, the parameters that it changes, merged, and what the networks give with it.
    """
    return _WRITERS[case.writer](case, folder, every_module)


# --- lycoris ---


_SOME_MODULES = {
    "unet_target_module": [],
    "unet_target_name": list(_UNET_MODULES),
    "text_encoder_target_module": [],
    "text_encoder_target_name": [f"text_model.{name}" for name in _TEXT_MODULES],
}
_EVERY_MODULE = {
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
}


def _by_lycoris(case: Case, folder: Path, every_module: bool) -> tuple[Path, Arrays, Arrays]:
    nets = Networks(case.toy)
    network = kohya.LycorisNetworkKohya
    kept = {name: getattr(network, name) for name in dir(network) if name.isupper()}
    network.apply_preset(_EVERY_MODULE if every_module else _SOME_MODULES)
    text = torch.nn.Module()
    text.text_model = nets.text_model
    options = {"lora_dim": 2, "conv_lora_dim": 2, "warn_on_unmatched": False, **case.options}
    made = network(text, nets.unet, multiplier=case.weight, **options)
    for name, value in kept.items():
        setattr(network, name, value)
    before = {"unet": dict(nets.unet.state_dict()), "text_encoder": dict(nets.text_model.state_dict())}
    made.apply_to(text, nets.unet, True, True)
    loras = {"unet": made.unet_loras, "text_encoder": made.text_encoder_loras}
    dtype = getattr(torch, case.dtype)
    _randomised(made.named_parameters(), 3, dtype)
    for lora in made.unet_loras + made.text_encoder_loras:
        if isinstance(getattr(lora, "scalar", None), torch.nn.Parameter):
            lora.scalar.data.fill_(0.7)
        if lora.name == "full":  # its values have the weights in them
            lora.weight.data += lora.org_weight
            if lora.bias is not None:
                lora.bias.data += lora.org_bias[0]
    file = folder / f"{case.options['network_module']}{case.ending}"
    made.eval().save_weights(file, dtype, None)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for lora in made.unet_loras + made.text_encoder_loras:
        _watch(lora, seen)
    outputs = _outputs(case, nets, set(before))
    merged = {}
    models = (("unet", "lora_unet_", nets.unet), ("text_encoder", "lora_te_text_model_", nets.text_model))
    for part, prefix, model in models:
        names = {prefix + name.replace(".", "_"): name for name, _ in model.named_modules()}
        for lora in loras[part]:
            for leaf, value in zip(("weight", "bias"), seen[lora.lora_name], strict=True):
                name = f"{names[lora.lora_name]}.{leaf}"
                if value is not None:
                    merged[f"{part}.{name}"] = (value if lora.name == "full" else before[part][name] + value).numpy()
    return file, merged, outputs


def _watch(lora: Any, seen: dict[str, Any]) -> None:
    """Keeps what a module of lycoris adds to the weight and the bias in its forward pass (or, of a full one, has)."""
    operation = lora.op

    def watched(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> Any:
        seen[lora.lora_name] = (weight.clone(), None if bias is None else bias.clone())
        return operation(x, weight=weight, bias=bias, **options)

    lora.op = watched


# --- peft ---

_KINDS = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}


def _targets(model: torch.nn.Module, listed: tuple[str, ...], every_module: bool) -> list[str]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    modules = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name in modules if every_module or name in listed]


def _by_peft(case: Case, folder: Path, every_module: bool) -> tuple[Path, Arrays, Arrays]:
    nets = Networks(case.toy)
    attribute = "unet" if case.part == "unet" else "text_model"
    model = getattr(nets, attribute)
    options = dict(case.options)
    kind = _KINDS[options.pop("kind", "lora")]
    targets = _targets(model, _UNET_MODULES if case.part == "unet" else _TEXT_MODULES, every_module)
    wrapped = peft.PeftModel(model, kind(target_modules=targets, **options)).eval()
    _randomised(((name, value) for name, value in wrapped.named_parameters() if value.requires_grad), 4)
    wrapped.save_pretrained(folder)
    for module in wrapped.modules():
        if case.weight != 1 and isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.set_scale("default", case.weight)
    bare = Networks(case.toy)
    setattr(bare, attribute, wrapped.base_model.model)
    outputs = _outputs(case, bare, {str(case.part)})
    before = dict(getattr(Networks(case.toy), attribute).state_dict())
    after = wrapped.merge_and_unload().state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    merged = {f"{case.part}.{name}": after[name].numpy() for name in changed}
    return folder / "adapter_model.safetensors", merged, outputs


# --- diffusers ---


def _by_diffusers(case: Case, folder: Path, every_module: bool) -> tuple[Path, Arrays, Arrays]:
    nets = Networks(case.toy)
    options = dict(case.options)
    metadata, former = options.pop("metadata", True), options.pop("former", False)
    state, configs = {}, {}
    for part, model, listed in (
        ("unet", nets.unet, _UNET_MODULES),
        ("text_encoder", nets.text_model, _TEXT_MODULES),
    ):
        targets = _targets(model, listed, every_module)
        if former:
            targets = [name for name in targets if ".attn" in name or "self_attn" in name]
        config = peft.LoraConfig(target_modules=targets, **options)
        peft.inject_adapter_in_model(config, model)
        _randomised(((name, value) for name, value in model.named_parameters() if "lora_" in name), 5)
        state[part] = _adapter_state(model)
        configs[part] = config.to_dict()
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=state["unet"],
        text_encoder_lora_layers=state["text_encoder"],
        **({f"{part}_lora_adapter_metadata": config for part, config in configs.items()} if metadata else {}),
    )
    file = folder / "pytorch_lora_weights.safetensors"
    if former:
        save_file({_formerly(name): value for name, value in load_file(file).items()}, file)
    return file, *loaded_by_diffusers(case, file)


def _adapter_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}


def _formerly(name: str) -> str:
    """The name that diffusers' attention processors gave, before it had peft."""
    for projection in ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"):
        for now, then in (("lora_A", "down"), ("lora_B", "up"), ("lora.down", "down"), ("lora.up", "up")):
            short = projection.removesuffix(".0").replace("_proj", "")
            short = short if short.startswith("to_") else f"to_{short}"
            processor = "processor." if name.startswith("unet") else ""
            name = name.replace(f".{projection}.{now}.weight", f".{processor}{short}_lora.{then}.weight")
    return name


def loaded_by_diffusers(case: Case, file: Path) -> tuple[Arrays, Arrays]:
    """What diffusers makes of any file of LoRA: merged parameters, and outputs."""
    nets = Networks(case.toy)
    loader = diffusers.StableDiffusionPipeline
    state, alphas, metadata = loader.lora_state_dict(file.parent, weight_name=file.name, return_lora_metadata=True)
    options: dict[str, Any] = {"network_alphas": alphas, "adapter_name": "default", "metadata": metadata}
    loader.load_lora_into_unet(state, unet=nets.unet, **options)
    loader.load_lora_into_text_encoder(state, text_encoder=nets.text_model, **options)
    for module in nets.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.set_scale("default", case.weight)
    parts = {name.partition(".")[0] for name in state}
    outputs = _outputs(case, nets.eval(), parts)
    merged = {}
    for part, model in (("unet", nets.unet), ("text_encoder", nets.text_model)):
        for name, module in list(model.named_modules()):
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.merge()
                merged[f"{part}.{name}.weight"] = module.get_base_layer().weight.detach().numpy()
    return merged, outputs


_WRITERS = {"lycoris": _by_lycoris, "peft": _by_peft, "diffusers": _by_diffusers}


def record() -> None:
    """Stores all cases."""
    arrays = {}
    for name, case in adapters.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            file, merged, outputs = made(case, Path(folder))
            kept = [file, *Path(folder).glob("adapter_config.json")]
            for each in kept:
                arrays[f"{name}/file/{each.name}"] = np.frombuffer(each.read_bytes(), np.uint8)
        arrays[f"{name}/merged"], arrays[f"{name}/outputs"] = adapters.sampled(merged), adapters.sampled(outputs)
    np.savez_compressed(adapters.RECORDED, **arrays)


if __name__ == "__main__":
    record()
