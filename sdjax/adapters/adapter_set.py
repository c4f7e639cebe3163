"""The adapters that act on an image, and what of them is in its id and its metadata."""

import json
from typing import Any, NamedTuple

from sdjax.adapters.embedding import Embedding
from sdjax.adapters.hypernetwork import Hypernetwork
from sdjax.adapters.lora import Lora

# Digits of a hash that A1111 shows.
_SHORT = 12


class WeightedLora(NamedTuple):
    """A LoRA of an image, and how strongly it acts in the UNet and in what reads text."""

    adapter: Lora
    weight: float
    text_weight: float


class WeightedHypernetwork(NamedTuple):
    """A hypernetwork of an image, and how strongly it acts."""

    adapter: Hypernetwork
    weight: float


class AdapterSet(NamedTuple):
    """The adapters of an image, in the order in which they act."""

    loras: tuple[WeightedLora, ...] = ()
    hypernetworks: tuple[WeightedHypernetwork, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def identity(self) -> list[Any]:
        """What of them decides the bits of an image: no names."""
        return [
            [[each.adapter.digest, each.weight, each.text_weight] for each in self.loras],
            [[each.adapter.digest, each.weight] for each in self.hypernetworks],
            [each.digest for each in self.embeddings],
        ]

    def to_metadata(self) -> str:
        """What is applied, for metadata: JSON, or nothing if nothing is."""
        listed: list[dict[str, Any]] = []
        for each in self.loras:
            weights = {"weight": each.weight, "text_encoder_weight": each.text_weight}
            listed.append({"kind": "lora", **_file_of(each.adapter), **weights})
        listed += [
            {"kind": "hypernetwork", **_file_of(each.adapter), "weight": each.weight} for each in self.hypernetworks
        ]
        listed += [{"kind": "embedding", **_file_of(each)} for each in self.embeddings]
        return json.dumps(listed) if listed else ""


def _file_of(adapter: Lora | Hypernetwork | Embedding) -> dict[str, str]:
    # A1111's short hash is its own only for LoRAs, of which it leaves the header out.
    short = adapter.short_hash if isinstance(adapter, Lora) else adapter.digest[:_SHORT]
    return {"name": adapter.name, "digest": adapter.digest, "short_hash": short}
