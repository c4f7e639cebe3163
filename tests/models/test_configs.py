"""Configs that can't be: each an error that names the file and the key."""

import pytest

from sdjax.models import ConfigError, TextEncoderConfig, UNetConfig, VAEConfig


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (VAEConfig, "norm_num_groups", 0),
        (VAEConfig, "scaling_factor", 0),
        (VAEConfig, "scaling_factor", None),
        (VAEConfig, "scaling_factor", "0.18"),
        (VAEConfig, "scaling_factor", float("nan")),
        (VAEConfig, "latent_channels", -4),
        (VAEConfig, "latent_channels", 4.5),
        (VAEConfig, "force_upcast", "true"),
        (VAEConfig, "act_fn", {"a": 1}),
        (VAEConfig, "block_out_channels", []),
        (TextEncoderConfig, "num_attention_heads", 0),
        (TextEncoderConfig, "hidden_act", ["gelu"]),
        (UNetConfig, "layers_per_block", "2"),
        (UNetConfig, "layers_per_block", True),
        (UNetConfig, "act_fn", {"a": 1}),
        (UNetConfig, "sample_size", "64"),
        (UNetConfig, "cross_attention_dim", [768, 768, 768, 1024]),
        (UNetConfig, "attention_head_dim", [8, 8]),
    ],
)
def test_a_value_that_can_not_be_is_refused(config: type, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key) as raised:
        config.from_json({key: value}, "somewhere/config.json")
    assert str(raised.value).startswith("somewhere/config.json: ")
