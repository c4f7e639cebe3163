"""What of an image's adapters is in its id and in its metadata."""

import json

import numpy as np

from sdjax.adapters.adapter_set import AdapterSet, WeightedHypernetwork, WeightedLora
from sdjax.adapters.embedding import Embedding
from sdjax.adapters.hypernetwork import Hypernetwork, Structure
from sdjax.adapters.lora import Lora

INK = Lora("ink", None, "a" * 64, "b" * 12, {}, {})
OIL = Hypernetwork("oil", "c" * 64, Structure((32,), (1.0, 1.0), None, False, False), {})
CASTLE = Embedding("castle", "d" * 64, np.ones((2, 32), np.float32))
ALL = AdapterSet((WeightedLora(INK, 0.8, 0.5),), (WeightedHypernetwork(OIL, 1.0),), (CASTLE,))


def test_the_identity_has_digests_and_weights_and_no_names():
    assert ALL.identity() == [[["a" * 64, 0.8, 0.5]], [["c" * 64, 1.0]], ["d" * 64]]
    renamed = ALL._replace(embeddings=(CASTLE._replace(name="fort"),))
    assert renamed.identity() == ALL.identity() and not any(AdapterSet().identity())


def test_metadata_name_what_is_applied_with_the_hashes_that_a1111_shows():
    assert json.loads(ALL.to_metadata()) == [
        {
            "kind": "lora", "name": "ink", "digest": "a" * 64, "short_hash": "b" * 12,
            "weight": 0.8, "text_encoder_weight": 0.5,
        },
        {"kind": "hypernetwork", "name": "oil", "digest": "c" * 64, "short_hash": "c" * 12, "weight": 1.0},
        {"kind": "embedding", "name": "castle", "digest": "d" * 64, "short_hash": "d" * 12},
    ]  # fmt: skip
    assert AdapterSet().to_metadata() == ""
