"""The upscalers of `upscalers` in torch, written after their papers and published weights. Needs torch.

python -m tests.golden.upscaler_reference      (in the environment of `make parity`) records what they give
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sdjax.models.upscaler import CompactConfig, RRDBNetConfig, UpscalerConfig
from tests.golden import upscalers


def _convolution(taken: int, given: int) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 3, 1, 1)


class _Dense(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for index in range(4):
            self.add_module(f"conv{index + 1}", _convolution(features + index * growth, growth))
        self.conv5 = _convolution(features + 4 * growth, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = x
        for index in range(1, 5):
            known = torch.cat((known, functional.leaky_relu(getattr(self, f"conv{index}")(known), 0.2)), 1)
        return x + self.conv5(known) * 0.2


class _Block(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_Dense(features, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rdb3(self.rdb2(self.rdb1(x))) * 0.2


class RRDBNet(nn.Module):
    """Figure 4 of arXiv:1809.00219 with the pixel-unshuffle of section 3.3 of arXiv:2107.10833."""

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_first = _convolution(3 * config.unshuffle**2, config.features)
        self.body = nn.Sequential(*(_Block(config.features, config.growth) for _ in range(config.blocks)))
        self.conv_body = _convolution(config.features, config.features)
        for level in range(config.doublings):
            self.add_module(f"conv_up{level + 1}", _convolution(config.features, config.features))
        self.conv_hr = _convolution(config.features, config.features)
        self.conv_last = _convolution(config.features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_first(functional.pixel_unshuffle(x, self.config.unshuffle))
        x = x + self.conv_body(self.body(x))
        for level in range(self.config.doublings):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(getattr(self, f"conv_up{level + 1}")(x), 0.2)
        return self.conv_last(functional.leaky_relu(self.conv_hr(x), 0.2))


class Compact(nn.Module):
    """Real-ESRGAN's network for video, "SRVGGNetCompact"; what ncnn's files of x2 and x3 add is a cubic resize."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [_convolution(3, config.features), nn.PReLU(config.features)]
        for _ in range(config.convolutions):
            layers += [_convolution(config.features, config.features), nn.PReLU(config.features)]
        self.body = nn.Sequential(*layers, _convolution(config.features, 3 * config.shuffle**2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shuffle, scale = self.config.shuffle, self.config.scale
        base = functional.interpolate(x, scale_factor=shuffle, mode="nearest")
        large = functional.pixel_shuffle(self.body(x), shuffle) + base
        if scale == shuffle:
            return large
        size = (scale * x.shape[2], scale * x.shape[3])
        return functional.interpolate(large, size, mode="bicubic", align_corners=False)


def network(config: UpscalerConfig) -> nn.Module:
    """With the weights of `upscalers`."""
    made = RRDBNet(config) if isinstance(config, RRDBNetConfig) else Compact(config)
    made.load_state_dict({name: torch.from_numpy(array) for name, array in upscalers.state(config).items()})
    return made.eval()


def given_by(case: upscalers.Case) -> np.ndarray:
    """What a network gives for the images of its case."""
    asked = torch.from_numpy(upscalers.pixels(case)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return np.ascontiguousarray(network(case.config)(asked).permute(0, 2, 3, 1).numpy())


def record() -> None:
    """Stores what each network gives."""
    np.savez_compressed(upscalers.RECORDED, **{name: given_by(case) for name, case in upscalers.CASES.items()})


if __name__ == "__main__":
    record()
