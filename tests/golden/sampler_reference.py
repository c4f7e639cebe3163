"""Records samplers.npz with diffusers, k-diffusion and A1111's code.

    python -m tests.golden.sampler_reference FOLDER

in the environment of `make parity`, with FOLDER a copy of A1111's stable-diffusion-webui, of which
modules/sd_schedulers.py and modules/sd_samplers_extra.py are run. Nothing here comes from sdjax but the cases.

All is done in float64: in the modules of the reference torch.float32 means torch.float64, and likewise numpy's. Only
A1111's schedules end in float32 all the same.
"""

import argparse
import contextlib
import importlib
import importlib.util
import pathlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from tests.golden import samplers, strengths
from tests.golden.samplers import Case


class _Double:
    """A module of torch or numpy whose float32 is its float64, with some other names put in."""

    def __init__(self, module: types.ModuleType, **names: Any) -> None:
        self.__dict__.update(names)
        self.float32 = module.float64
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def double() -> Iterator[None]:
    """float64 wherever the reference asks for no type, or for `float()`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class _Noise:
    """Draws what the cases say, one after the other."""

    def __init__(self) -> None:
        self._drawn = 0

    def white(self, *_: Any, **__: Any) -> torch.Tensor:
        """In the place of `randn_like` and `randn_tensor`."""
        self._drawn += 1
        return torch.from_numpy(samplers.white(self._drawn - 1))

    def path(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """In the place of a `BrownianTreeNoiseSampler`."""
        return torch.from_numpy(samplers.path(float(start), float(end)))


# --- diffusers ---


def _timesteps(scheduler: Any, case: Case) -> torch.Tensor:
    """Those that img2img takes."""
    parts = types.SimpleNamespace(scheduler=scheduler)
    return diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(parts, case.steps, case.strength, "cpu")[0]  # type: ignore[arg-type]


def by_diffusers(case: Case) -> np.ndarray:
    """What its scheduler makes of the latents."""
    config = dict(case.config)
    kind = getattr(diffusers, config["_class_name"])
    module, noise = sys.modules[kind.__module__], _Noise()
    names: dict[str, Any] = {"torch": _Double(torch), "np": _Double(np)}
    if hasattr(module, "randn_tensor"):
        names["randn_tensor"] = noise.white
    with double(), mock.patch.multiple(module, **names):
        scheduler = kind.from_config({**config, "clip_sample": False})
        scheduler.set_timesteps(case.steps)
        told = {"eta": case.options.eta} if case.options.eta is not None else {}
        timesteps, latents = scheduler.timesteps, torch.from_numpy(samplers.LATENTS)
        if case.strength < 1:
            timesteps = _timesteps(scheduler, case)
            latents = scheduler.add_noise(torch.from_numpy(samplers.IMAGE), latents, timesteps[:1])
        else:
            latents = latents * scheduler.init_noise_sigma
        for timestep in timesteps:
            if hasattr(scheduler, "noise_sampler"):
                scheduler.noise_sampler = noise.path
            scaled = scheduler.scale_model_input(latents, timestep)
            output = samplers.network(scaled, float(timestep), torch)
            latents = scheduler.step(output, timestep, latents, return_dict=False, **told)[0]
        return latents.numpy()


# --- k-diffusion ---


def _append_dims(values: torch.Tensor, count: int) -> torch.Tensor:
    return values[(...,) + (None,) * (count - values.ndim)]


def k_diffusion() -> tuple[types.ModuleType, types.ModuleType]:
    """Its samplers and its wrappers of networks, without what the package needs for training and for images."""
    if "k_diffusion.external" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        assert found is not None and found.submodule_search_locations, "install k-diffusion"
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(found.submodule_search_locations)
        parts: dict[str, Any] = {"k_diffusion": package}
        for name, what in (("k_diffusion.utils", {"append_dims": _append_dims}), ("torchdiffeq", {"odeint": None})):
            parts[name] = types.ModuleType(name)
            parts[name].__dict__.update(what)
        package.__dict__["utils"] = parts["k_diffusion.utils"]
        sys.modules.update(parts)
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


def betas(case_config: dict[str, Any]) -> torch.Tensor:
    """Of a Stable Diffusion's training."""
    ends = (case_config["beta_start"] ** 0.5, case_config["beta_end"] ** 0.5)
    return torch.linspace(*ends, 1000, dtype=torch.float64) ** 2


def wrapped(network: Callable[..., Any], alphas_cumprod: torch.Tensor, prediction_type: str) -> Any:
    """A network as k-diffusion's samplers want it."""
    _, external = k_diffusion()
    kinds = {"epsilon": external.DiscreteEpsDDPMDenoiser, "v_prediction": external.DiscreteVDDPMDenoiser}
    return kinds[prediction_type](network, alphas_cumprod, quantize=False)


def _formula(scaled: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return samplers.network(scaled, float(timestep[0]), torch)


def _model(case: Case) -> Any:
    config = dict(case.config)
    signal = torch.cumprod(1 - betas(config), dim=0)
    return wrapped(_formula, signal, config.get("prediction_type", "epsilon"))


# Samplers that have noise of a path, and so take a `noise_sampler` that gives it.
_PATHS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
# A1111 asks for one step more and leaves out the last but one.
_DISCARDING = ("dpm_2", "dpm_2_ancestral")


def laid_by_k_diffusion(model: Any, schedule: str, sampler: str, steps: int) -> torch.Tensor:
    """Sigmas, as A1111 asks for them."""
    sampling, _ = k_diffusion()
    more = steps + (sampler in _DISCARDING)
    if schedule == "uniform":
        laid = model.get_sigmas(more)
    else:
        function = getattr(sampling, f"get_sigmas_{schedule}")
        laid = function(more, model.sigma_min.item(), model.sigma_max.item())
    return torch.cat([laid[:-2], laid[-1:]]) if sampler in _DISCARDING else laid


# (latents, least sigma, largest) -> what gives the noise from one sigma to another.
Path = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def tree(seed: int) -> Path:
    """k-diffusion's own, seeded as A1111 does."""
    sampling, _ = k_diffusion()
    return lambda latents, low, high: sampling.BrownianTreeNoiseSampler(latents, low, high, seed=[seed])


def sampled_by_k_diffusion(
    model: Any,
    noise: torch.Tensor,
    sampler: str,
    schedule: str,
    steps: int,
    told: dict[str, Any],
    white: Callable[..., torch.Tensor],
    path: Path,
) -> torch.Tensor:
    """What one of its samplers makes of noise."""
    sampling, _ = k_diffusion()
    function = getattr(sampling, f"sample_{sampler.removesuffix('_heun')}")
    if sampler.endswith("_heun"):
        told = {**told, "solver_type": "heun"}
    with mock.patch.object(sampling, "torch", _Double(torch, randn_like=white)):
        if sampler == "dpm_fast":
            ends = model.sigma_min.item(), model.sigma_max.item()
            return function(model, noise * ends[1], *ends, steps, disable=True, **told)
        sigmas = laid_by_k_diffusion(model, schedule, sampler, steps)
        if sampler in _PATHS:
            told = {**told, "noise_sampler": path(noise, sigmas[sigmas > 0].min(), sigmas.max())}
        return function(model, noise * sigmas[0], sigmas, disable=True, **told)


def told(options: samplers.Options) -> dict[str, Any]:
    """Options by k-diffusion's names, without those at their defaults."""
    known = samplers.Options()._asdict()
    return {
        "order" if key == "solver_order" else key: value
        for key, value in options._asdict().items()
        if value != known[key]
    }


def by_k_diffusion(case: Case) -> np.ndarray:
    """What its sampler makes of the latents."""
    assert case.sampler and case.schedule
    noise = _Noise()
    with double():
        return sampled_by_k_diffusion(
            _model(case),
            torch.from_numpy(samplers.LATENTS),
            case.sampler,
            case.schedule,
            case.steps,
            told(case.options),
            noise.white,
            lambda latents, low, high: noise.path,
        ).numpy()


# --- A1111 ---


def webui(folder: pathlib.Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Its schedules and its Restart sampler, without the rest of it."""
    sampling, _ = k_diffusion()
    sys.modules["k_diffusion"].__dict__["sampling"] = sampling
    modules = types.ModuleType("modules")
    modules.__path__ = [str(folder / "modules")]
    options = types.SimpleNamespace(beta_dist_alpha=0.6, beta_dist_beta=0.6)
    shared = types.SimpleNamespace(opts=options, sd_model=types.SimpleNamespace(is_sdxl=False))
    modules.__dict__["shared"] = shared
    sys.modules.update({"modules": modules, "modules.shared": shared})  # type: ignore[dict-item]
    return importlib.import_module("modules.sd_schedulers"), importlib.import_module("modules.sd_samplers_extra")


def laid_by_webui(schedulers: types.ModuleType, schedule: str, steps: int) -> np.ndarray:
    """Sigmas of Stable Diffusion 1."""
    row = schedulers.schedulers_map[samplers.WEBUI_SCHEDULES[schedule]]
    with double():
        model = wrapped(_formula, torch.cumprod(1 - betas(dict(samplers.SD1)), dim=0), "epsilon")
        told: dict[str, Any] = {"sigma_min": model.sigmas[0].item(), "sigma_max": model.sigmas[-1].item()}
        if row.need_inner_model:
            told["inner_model"] = model
        return row.function(n=steps, device=torch.device("cpu"), **told).numpy()


def by_webui(extra: types.ModuleType, case: Case) -> np.ndarray:
    """What Restart makes of the latents."""
    assert case.sampler and case.schedule
    sampling, _ = k_diffusion()
    with double(), mock.patch.object(sampling, "torch", _Double(torch, randn_like=_Noise().white)):
        model = _model(case)
        sigmas = laid_by_k_diffusion(model, case.schedule, case.sampler, case.steps)
        latents = torch.from_numpy(samplers.LATENTS) * sigmas[0]
        return extra.restart_sampler(model, latents, sigmas, disable=True, s_noise=case.options.s_noise).numpy()


def by_reference(case: Case) -> np.ndarray:
    """What diffusers or k-diffusion makes of the latents."""
    return by_k_diffusion(case) if case.sampler else by_diffusers(case)


def main() -> None:
    """Records them all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("webui", type=pathlib.Path)
    schedulers, extra = webui(parser.parse_args().webui)
    values = [
        by_webui(extra, case) if case.sampler == "restart" else by_reference(case) for case in samplers.CASES.values()
    ]
    laid = {
        f"sigmas {schedule} {steps}": laid_by_webui(schedulers, schedule, steps)
        for schedule in samplers.WEBUI_SCHEDULES
        for steps in samplers.WEBUI_STEPS
    }
    _write(samplers.FILE, samplers.CASES, values, **laid)
    record_strengths()


def record_strengths() -> None:
    """Records the samplers that begin with an image, for which A1111's code is not needed."""
    _write(strengths.FILE, strengths.CASES, [by_reference(case) for case in strengths.CASES.values()])


def _write(file: pathlib.Path, cases: Iterable[str], values: list[np.ndarray], **more: np.ndarray) -> None:
    names = np.frombuffer("\n".join(cases).encode(), np.uint8)
    np.savez_compressed(file, names=names, values=np.array(values).reshape(len(values), -1), **more)


if __name__ == "__main__":
    main()
