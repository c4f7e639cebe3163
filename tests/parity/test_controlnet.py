"""ControlNets and T2I adapters against diffusers, live, and on toys of the original code."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sdjax.checkpoints.controlnet_file import find_controlnet, load_control
from sdjax.models.controlnet import ControlNet, ControlNetConfig, residual_scales
from sdjax.models.t2i_adapter import T2IAdapter
from tests.golden import controlnet, networks
from tests.golden.checkpoints import checksum

pytestmark = pytest.mark.parity

diffusers = pytest.importorskip("diffusers", reason="needs torch")
reference = pytest.importorskip("tests.golden.controlnet_reference", reason="needs torch", exc_type=ImportError)


@pytest.mark.parametrize("name", {**controlnet.CASES, **controlnet.LIVE_CASES})
def test_a_steered_unet_gives_what_diffusers_gives(name: str) -> None:
    case = {**controlnet.CASES, **controlnet.LIVE_CASES}[name]
    given, wanted = controlnet.outputs(case), reference.outputs(case)
    assert given.keys() == wanted.keys()
    errors = {output: networks.relative_error(array, wanted[output]) for output, array in given.items()}
    print(f"\n{name}: prediction {errors['prediction']:.1e}, worst residual {max(errors.values()):.1e}")
    assert max(errors.values()) < networks.TOLERANCE
    if name in controlnet.CASES:
        with np.load(controlnet.RECORDED) as stored:
            for output, array in controlnet.thinned(wanted).items():
                assert networks.relative_error(array, stored[f"{name}/{output}"]) < networks.TOLERANCE


@pytest.mark.parametrize("name", [*controlnet.ORIGINAL_CONTROLNETS, *controlnet.ORIGINAL_ADAPTERS])
def test_a_toy_of_the_original_code_gives_what_that_gave(name: str, tmp_path: Path) -> None:
    state, asked = controlnet.original_toy(name), controlnet.original_inputs()
    save_file(state, tmp_path / "toy.safetensors")
    found = find_controlnet(tmp_path / "toy.safetensors")
    variables, config = {"params": load_control(found, jnp.float32)[0]}, found.config
    hint = asked.pop("hint")
    if isinstance(config, ControlNetConfig):
        network = ControlNet(config)
        embedded = network.apply(variables, jnp.asarray(hint), method="embed")
        scales = residual_scales(config, jnp.ones(controlnet.BATCH), jnp.zeros(controlnet.BATCH, bool))
        given = network.apply(
            variables, **{k: jnp.asarray(v) for k, v in asked.items()}, embedded=embedded, scales=scales
        )
        arrays = [*given.down, given.mid]
        read = reference.read_by_diffusers(name, state)
        assert controlnet.checksums(variables["params"]) == {key: checksum(value) for key, value in read.items()}
    else:
        arrays = T2IAdapter(config).apply(variables, jnp.asarray(hint[..., : config.in_channels]))
    with np.load(controlnet.RECORDED) as stored:
        errors = [
            networks.relative_error(np.asarray(array)[..., ::8], stored[f"original_{name}/{index}"])
            for index, array in enumerate(arrays)
        ]
        assert f"original_{name}/{len(arrays)}" not in stored
    print(f"\n{name}: {max(errors):.1e}")
    assert max(errors) < networks.TOLERANCE


@pytest.mark.parametrize("name", ["whole_sd2", "full_adapter", "light_adapter"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_that_diffusers_writes_is_read(name: str, variant: str | None, tmp_path: Path) -> None:
    control = controlnet.LIVE_CASES[name].controls[0]
    model = reference.network(control)
    model.save_pretrained(tmp_path, variant=variant)
    found = find_controlnet(tmp_path, variant)
    assert found.config == control.config
    params, _ = load_control(found, jnp.float32)
    controlnet.assert_same(params, control.params())
    # By its file alone, the config beside it; and what sdjax writes opens in diffusers.
    (weights,) = tmp_path.glob("*.safetensors")
    assert find_controlnet(weights).config == control.config
    shutil.rmtree(tmp_path)
    controlnet.write_folder(tmp_path, control)
    again = type(model).from_pretrained(tmp_path)
    assert isinstance(again, diffusers.ControlNetModel | diffusers.T2IAdapter)
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), tensor.numpy())
