"""OpenVINO: the networks converted from torch, in the loop of diffusers' pipeline."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import openvino
import torch
import transformers

from benchmarks.peers import work as works
from benchmarks.peers.diffusers_peer import generators
from benchmarks.peers.peer import Run, threads
from benchmarks.peers.work import Work

Network = Callable[..., np.ndarray]


def prepare(work: Work, model: Path, build: Path, precision: str) -> Run:
    """The networks compiled for the shapes of this work.

    Args:
      work: to be done.
      model: the folder.
      build: gets the converted networks.
      precision: "f32" or "bf16".
    """
    torch.set_num_threads(threads())
    torch.set_grad_enabled(False)
    if not (build / "converted").exists():  # in a process of its own, whose memory it does not keep
        subprocess.run([sys.executable, "-m", "benchmarks.peers.openvino_peer", str(model), str(build)], check=True)
    config = diffusers.UNet2DConditionModel.load_config(model, subfolder="unet")
    if work.kind == "unet":
        latents, timesteps, context = works.unet_inputs(work, config["in_channels"], config["cross_attention_dim"])
        latents = np.ascontiguousarray(latents.transpose(0, 3, 1, 2))
        unet = _compiled(build / "unet.xml", precision, latents.shape, timesteps.shape, context.shape)
        return lambda work: unet(latents, timesteps, context).transpose(0, 2, 3, 1)
    return _Pipeline(work, model, build, precision).run


def _compiled(file: Path, precision: str, *shapes: tuple[int, ...]) -> Network:
    core = openvino.Core()
    network = core.read_model(file)
    network.reshape(dict(enumerate(map(openvino.PartialShape, shapes))))
    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads()}
    compiled = core.compile_model(network, "CPU", hints)
    return lambda *arrays: compiled(arrays)[0]


class _Pipeline:
    """Text to images."""

    def __init__(self, work: Work, model: Path, build: Path, precision: str) -> None:
        unet = diffusers.UNet2DConditionModel.load_config(model, subfolder="unet")
        vae = diffusers.AutoencoderKL.load_config(model, subfolder="vae")
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(model / "tokenizer")
        scheduler = diffusers.DDIMScheduler.load_config(model, subfolder="scheduler")
        self.scheduler = diffusers.EulerDiscreteScheduler.from_config(scheduler)
        self.scaling = vae["scaling_factor"]
        batch, side = work.size("batch"), work.size("side") // 2 ** (len(vae["block_out_channels"]) - 1)
        self.shape = (1, unet["in_channels"], side, side)
        tokens, (_, *rest) = self.tokenizer.model_max_length, self.shape
        context = (2 * batch, tokens, unet["cross_attention_dim"])
        self.text_encoder = _compiled(build / "text_encoder.xml", precision, (2 * batch, tokens))
        self.unet = _compiled(build / "unet.xml", precision, (2 * batch, *rest), (2 * batch,), context)
        self.decoder = _compiled(build / "decoder.xml", precision, (batch, *rest))

    def run(self, work: Work) -> np.ndarray:
        """Images in batches."""
        steps, _, batch, images = work.sizes
        prompts = works.prompts(images)
        return np.concatenate(
            [self._batch(steps, prompts[first : first + batch], first) for first in range(0, images, batch)]
        )

    def _batch(self, steps: int, prompts: list[str], first_seed: int) -> np.ndarray:
        texts = self.tokenizer(
            [""] * len(prompts) + prompts, padding="max_length", truncation=True, return_tensors="np"
        )
        context = self.text_encoder(texts["input_ids"])
        self.scheduler.set_timesteps(steps)
        noise = [torch.randn(self.shape, generator=generator) for generator in generators(first_seed, len(prompts))]
        latents = torch.cat(noise) * self.scheduler.init_noise_sigma
        for time in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, time)
            times = np.full(2 * len(prompts), time, np.float32)
            predicted = self.unet(np.concatenate([scaled, scaled]), times, context)
            without, by_prompt = torch.from_numpy(predicted).chunk(2)
            guided = without + works.GUIDANCE_SCALE * (by_prompt - without)
            latents = self.scheduler.step(guided, time, latents).prev_sample
        pixels = self.decoder((latents / self.scaling).numpy())
        return np.rint(np.clip(pixels.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


# --- Conversion ---


class _Result(torch.nn.Module):
    """A network's method that gives a tuple as a module that gives its first."""

    def __init__(self, network: torch.nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        return self.method(*arrays, return_dict=False)[0]


def convert(model: Path, build: Path) -> None:
    """Writes the three networks, one after the other, in float32."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    latents = torch.zeros(2, unet.config.in_channels, 16, 16)
    context = torch.zeros(2, works.TOKENS, unet.config.cross_attention_dim)
    _write(_Result(unet, unet.forward), (latents, torch.zeros(2), context), build / "unet.xml")
    del unet
    vae = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
    _write(_Result(vae, vae.decode), (latents,), build / "decoder.xml")
    del vae
    text_encoder = transformers.CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    tokens = torch.zeros(2, text_encoder.config.max_position_embeddings, dtype=torch.int64)
    _write(_Result(text_encoder, text_encoder.forward), (tokens,), build / "text_encoder.xml")
    (build / "converted").touch()


def _write(network: torch.nn.Module, example: tuple[torch.Tensor, ...], file: Path) -> None:
    converted = openvino.convert_model(network.eval(), example_input=example)
    openvino.save_model(converted, file, compress_to_fp16=False)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
