"""What decides bits besides jobs is a value that goes between processes, and says where two of it differ."""

import json

import jax
import PIL

import sdjax
from sdjax.engine.fingerprint import EngineIdentity, device_packages, fingerprint_of, identity_of

IDENTITY = EngineIdentity("a", None, None, "12.0", (("batch_size", 4), ("jax", "0.9")))


def test_an_identity_comes_back_from_json_as_it_was(tiny):
    own = identity_of(tiny, "c", 2, jax.devices()[0])
    for identity in (own, IDENTITY):
        found = EngineIdentity.from_json(identity.to_json())
        assert found == identity and hash(found) == hash(identity)


def test_an_engine_has_the_identity_of_its_model_its_devices_and_its_packages(tiny):
    engine = sdjax.Engine(tiny, batch_size=2, devices=jax.devices()[:1])
    assert engine.identity == identity_of(tiny, None, 2, jax.devices()[0])
    assert engine.identity[:4] == (tiny.digest, tiny.file_digest, None, PIL.__version__)
    assert dict(engine.identity.fingerprint) == engine.fingerprint == fingerprint_of(tiny, 2, jax.devices()[0])


def test_on_an_accelerator_the_packages_with_its_compiler_and_kernels_count(tmp_path, monkeypatch):
    for name in ("libtpu-0.0.42.1", "nvidia_cudnn_cu13-9.12.0", "nvidia_cufft-12.0.0", "jax_cuda13_plugin-0.10.2"):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: {}\nVersion: {}\n".format(*name.split("-")))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    device_packages.cache_clear()
    assert device_packages("tpu") == "libtpu 0.0.42.1"
    assert device_packages("gpu") == "jax-cuda13-plugin 0.10.2; nvidia-cudnn-cu13 9.12.0"
    assert device_packages("cpu") == ""
    device_packages.cache_clear()


def test_what_differs_is_told_with_both_values():
    assert IDENTITY.differences(IDENTITY) == {}
    other = IDENTITY._replace(model_digest="b", fingerprint=(("batch_size", 8), ("jax", "0.9"), ("settings", "{}")))
    assert IDENTITY.differences(other) == {
        "model_digest": ("a", "b"),
        "batch_size": (4, 8),
        "settings": (None, "{}"),
    }
    assert json.loads(other.to_json())["model_digest"] == "b"
