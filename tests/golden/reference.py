"""The same comparisons by diffusers and transformers. Needs torch."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import torch
import transformers
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D

from sdjax.checkpoints import name_table
from sdjax.checkpoints.tensors import Params
from sdjax.families.network import NetworkConfig
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.models.attention import Attention, SpatialTransformer
from sdjax.models.resnet import Downsample, ResnetBlock, Upsample
from tests import toys
from tests.golden import sampler_reference
from tests.golden.images import Image
from tests.golden.networks import Arrays, Block, Network, block_params, inputs

# diffusers' class of each sampler, and what of its config makes it that one.
_TO_THE_LEAST = {"final_sigmas_type": "sigma_min"}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": False}),
    "plms": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm_2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm_2_ancestral": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpm_solver_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", **_TO_THE_LEAST}),
    "dpm_solver_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver", **_TO_THE_LEAST}),
    "dpm_solver_2s": (diffusers.DPMSolverSinglestepScheduler, {"algorithm_type": "dpmsolver", **_TO_THE_LEAST}),
    "dpmpp_2s": (diffusers.DPMSolverSinglestepScheduler, {}),
    "dpmpp_sde": (diffusers.DPMSolverSDEScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "uni_pc": (diffusers.UniPCMultistepScheduler, {"solver_type": "bh1"}),
    "uni_pc_bh2": (diffusers.UniPCMultistepScheduler, {"solver_type": "bh2"}),
}
# The scheduler's own default, where the pipeline's is another.
_ETA = {"tcd": 0.3}
_SCHEDULES = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}


def _to_torch(array: np.ndarray) -> torch.Tensor:
    """Images with channels second; all else as it is."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return np.ascontiguousarray(tensor.numpy())


def _state(params: Params, table: name_table.NameTable) -> dict[str, torch.Tensor]:
    """Our weights under the names of torch's modules, without the prefix that files have."""
    state = {}
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = tuple(key.key for key in keys)
        name = name_table.file_names(path, table)[0].removeprefix(table.prefix)
        state[name] = torch.tensor(name_table.to_file(path, np.asarray(leaf)))
    return state


def skeleton(config: NetworkConfig) -> torch.nn.Module:
    """The reference's network, before its weights."""
    fields = dataclasses.asdict(config)
    if isinstance(config, TextEncoderConfig):
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields))
    kind = diffusers.UNet2DConditionModel if isinstance(config, UNetConfig) else diffusers.AutoencoderKL
    return kind.from_config(fields)


@torch.no_grad()
def outputs(network: Network) -> Arrays:
    """What the reference gives for `networks.inputs`."""
    model = skeleton(network.config).eval()
    model.load_state_dict(_state(network.params(), toys.NETWORKS[type(network.config)].table), strict=True)
    asked = {name: _to_torch(array) for name, array in inputs(network).items()}
    if isinstance(network.config, TextEncoderConfig):
        encoding = model(asked["input_ids"].long(), output_hidden_states=True)
        # The first is what goes into the first layer; the last has not been through the final norm.
        states = {f"hidden_states_{index}": state for index, state in enumerate(encoding.hidden_states)}
        given = {"last_hidden_state": encoding.last_hidden_state, **states}
    elif isinstance(network.config, VAEConfig):
        posterior = model.encode(asked["pixels"]).latent_dist
        given = {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "decoded": model.decode(asked["latents"]).sample,
        }
    else:
        labels = asked.get("class_labels")
        labels = labels if labels is None or labels.is_floating_point() else labels.long()
        given = {"prediction": model(asked["sample"], asked["timesteps"], asked["context"], class_labels=labels).sample}
    return {name: _to_numpy(tensor) for name, tensor in given.items()}


def _block_skeleton(block: Block) -> torch.nn.Module:
    module, first = block.module, block.arguments[0]
    channels = first.shape[-1]
    if isinstance(module, ResnetBlock):
        time = block.arguments[1].shape[-1] if len(block.arguments) > 1 else None
        return ResnetBlock2D(
            in_channels=channels, out_channels=module.channels, temb_channels=time, groups=module.groups, eps=module.eps
        )
    if isinstance(module, Attention):
        context = block.arguments[1].shape[-1] if len(block.arguments) > 1 else None
        return DiffusersAttention(
            channels, context, heads=module.heads, dim_head=channels // module.heads, bias=module.qkv_bias
        )
    if isinstance(module, SpatialTransformer):
        return Transformer2DModel(
            module.heads,
            channels // module.heads,
            in_channels=channels,
            num_layers=module.layers,
            cross_attention_dim=block.arguments[1].shape[-1],
            norm_num_groups=module.groups,
            use_linear_projection=module.use_linear_projection,
        )
    if isinstance(module, Downsample):
        return Downsample2D(channels, use_conv=True, padding=int(module.padding == "both"), name="op")
    assert isinstance(module, Upsample)
    return Upsample2D(channels, use_conv=True)


@torch.no_grad()
def block_output(block: Block) -> np.ndarray:
    """What diffusers' block gives."""
    model = _block_skeleton(block).eval()
    model.load_state_dict(_state(block_params(block), name_table.NameTable()), strict=True)
    arrays = [_to_torch(given) for given in block.arguments if isinstance(given, np.ndarray)]
    if isinstance(block.module, ResnetBlock):
        return _to_numpy(model(arrays[0], arrays[1] if len(arrays) > 1 else None))
    if isinstance(block.module, SpatialTransformer):
        return _to_numpy(model(arrays[0], encoder_hidden_states=arrays[1]).sample)
    if isinstance(block.module, Upsample):
        return _to_numpy(model(arrays[0], output_size=block.arguments[1:]))
    return _to_numpy(model(*arrays))


class Drawer:
    """diffusers' pipeline (of a folder), and k-diffusion's samplers around its networks."""

    def __init__(self, source: Path | diffusers.StableDiffusionPipeline) -> None:
        if isinstance(source, Path):
            source = diffusers.StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
        self.pipeline = source
        self.pipeline.set_progress_bar_config(disable=True)
        self._scheduler = dict(self.pipeline.scheduler.config)
        encoder = self.pipeline.text_encoder
        if not hasattr(encoder, "text_model"):
            # For clip_skip: where diffusers looks for the last norm, which transformers 5 has elsewhere.
            encoder.text_model = types.SimpleNamespace(final_layer_norm=encoder.final_layer_norm)

    def draw(self, image: Image) -> np.ndarray:
        """What it draws: uint8, (height, width, 3)."""
        by = self._by_k_diffusion if image.job.timestep_spacing == "k_diffusion" else self._by_diffusers
        return np.asarray(by(image))

    def _by_diffusers(self, image: Image) -> Any:
        job = image.job
        kind, own = SCHEDULERS[job.sampler]
        # The pipeline turns clipping off in the scheduler it is loaded with; so it must be in others.
        changes: dict[str, Any] = {**dict(image.scheduler), **own, "clip_sample": False}
        changes.update(_SCHEDULES.get(job.schedule or "", {}))
        if job.timestep_spacing:
            changes["timestep_spacing"] = job.timestep_spacing
        if job.solver_order:
            changes["solver_order"] = job.solver_order
        if kind is diffusers.DPMSolverSDEScheduler:
            changes["noise_sampler_seed"] = job.seed
        self.pipeline.scheduler = kind.from_config(self._scheduler, **changes)
        # diffusers has no unconditional images: they are those of the negative prompt without guidance.
        prompt = job.prompt if job.guidance_scale else job.negative_prompt
        return self.pipeline(
            prompt,
            negative_prompt=job.negative_prompt,
            height=job.height,
            width=job.width,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance_scale or 1.0,
            guidance_rescale=job.guidance_rescale,
            clip_skip=job.clip_skip or None,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            output_type="pil",
            eta=_ETA.get(job.sampler, 0.0) if job.eta is None else job.eta,
        ).images[0]

    @torch.no_grad()
    def _by_k_diffusion(self, image: Image) -> Any:
        """As A1111 does: white noise from the image's generator, paths of trees that have the image's seed."""
        job, pipeline = image.job, self.pipeline
        # Both as prompts: for a negative prompt diffusers leaves out no layers.
        texts = [job.negative_prompt, job.prompt]
        context, _ = pipeline.encode_prompt(texts, "cpu", 1, False, clip_skip=job.clip_skip or None)

        def network(scaled: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            both = pipeline.unet(scaled.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=context).sample
            without, given = both.chunk(2)
            return without + job.guidance_scale * (given - without)

        config = self._scheduler | dict(image.scheduler)
        training = diffusers.DDIMScheduler.from_config(config)
        model = sampler_reference.wrapped(network, training.alphas_cumprod, config["prediction_type"])
        shape = (1, pipeline.unet.config.in_channels, *(pipeline.unet.config.sample_size,) * 2)
        generator = torch.Generator("cpu").manual_seed(job.seed)

        def white(*_: Any) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        latents = sampler_reference.sampled_by_k_diffusion(
            model,
            white(),
            "heun" if job.sampler == "restart" else job.sampler,
            job.schedule or "uniform",
            job.steps,
            sampler_reference.told(job.sampler_options),
            white,
            sampler_reference.tree(job.seed),
        )
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
