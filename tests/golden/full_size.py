"""The published configs of Stable Diffusion 1.5 and 2.1, and the recorded names and shapes of their parameters."""

import gzip
import json
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
NAMES = ("sd15", "sd21")
RECORDED = Path(__file__).parent / "full_size.json.gz"


def recorded(name: str, part: str) -> dict[str, tuple[int, ...]]:
    """What diffusers' or transformers' class has: name -> shape."""
    listed = json.loads(gzip.decompress(RECORDED.read_bytes()))[name][part]
    return {key: tuple(shape) for key, shape in listed.items()}
