"""Adapters on storage, by name: folders of LoRA, embedding and hypernetwork files."""

import collections
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdjax.adapters import per_image
from sdjax.adapters.embedding import Embedding, check_width, embedding_name, read_embedding
from sdjax.adapters.files import AdapterError
from sdjax.adapters.folder import Folder
from sdjax.adapters.hypernetwork import Hypernetwork, check_fit, read_hypernetwork
from sdjax.adapters.lora import Lora, read_lora
from sdjax.checkpoints import name_table
from sdjax.checkpoints.tensors import CheckpointError, Params, list_file
from sdjax.models import TextEncoderConfig, UNetConfig
from sdjax.text.tags import Tag

_MOST_FACTORS = 64
# Bytes of adapters that are kept in memory; the one in use always is.
_MOST_KEPT = 1 << 31
# Digits of a hash that A1111 shows.
_SHORT = 12


class WeightedLora(NamedTuple):
    """A LoRA of an image, and its weights in the UNet and in the text encoder."""

    adapter: Lora
    weight: float
    text_encoder_weight: float


class WeightedHypernetwork(NamedTuple):
    """A hypernetwork of an image, and its weight."""

    adapter: Hypernetwork
    weight: float


class AdapterSet(NamedTuple):
    """The adapters of an image, in the order in which they are applied."""

    loras: tuple[WeightedLora, ...] = ()
    hypernetworks: tuple[WeightedHypernetwork, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def identity(self) -> list[Any]:
        """What decides the bits of an image: digests and weights, no names."""
        return [
            [[each.adapter.digest, each.weight, each.text_encoder_weight] for each in self.loras],
            [[each.adapter.digest, each.weight] for each in self.hypernetworks],
            [each.digest for each in self.embeddings],
        ]

    def to_metadata(self) -> str:
        """The adapters as metadata have them: JSON, or an empty text if there are none."""
        listed: list[dict[str, Any]] = []
        for each in self.loras:
            weights = {"weight": each.weight, "text_encoder_weight": each.text_encoder_weight}
            listed.append({"kind": "lora", **_file(each.adapter), **weights})
        listed += [
            {"kind": "hypernetwork", **_file(each.adapter), "weight": each.weight} for each in self.hypernetworks
        ]
        listed += [{"kind": "embedding", **_file(each)} for each in self.embeddings]
        return json.dumps(listed) if listed else ""


def _file(adapter: Lora | Hypernetwork | Embedding) -> dict[str, str]:
    # A1111's short hash is its own only for LoRAs, of which it leaves the header out.
    short = adapter.short_hash if isinstance(adapter, Lora) else adapter.digest[:_SHORT]
    return {"name": adapter.name, "digest": adapter.digest, "short_hash": short}


class Library(NamedTuple):
    """Where adapters lie: folders on this machine, and those within them; None has none.

    loras, hypernetworks, embeddings: folders of such files.
    pickled: whether .pt, .bin and .ckpt files may be read too, by an unpickler that runs no code.
    """

    loras: str | Path | None = None
    hypernetworks: str | Path | None = None
    embeddings: str | Path | None = None
    pickled: bool = False


class _Kept:
    """What was read by name: the last used, up to some bytes; and why others could not be."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read
        self._kept: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._sizes: dict[str, int] = {}

    def __call__(self, name: str) -> Any:
        if name in self._kept:
            self._kept.move_to_end(name)
        else:
            try:
                self._kept[name] = self._read(name)
            except AdapterError as error:
                self._kept[name] = str(error)
            self._sizes[name] = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(self._kept[name]))
            while len(self._kept) > 1 and sum(self._sizes.values()) > _MOST_KEPT:
                del self._sizes[self._kept.popitem(last=False)[0]]
        if isinstance(self._kept[name], str):
            raise AdapterError(self._kept[name])
        return self._kept[name]


class Adapters:
    """The adapters of a library that a model is used with; files are read when first asked for, and kept."""

    def __init__(self, library: Library, text_encoder: TextEncoderConfig, unet: UNetConfig, params: Params) -> None:
        """Lists the folders.

        Args:
          library: the folders.
          text_encoder, unet: of the model.
          params: likewise, or anything with their shapes.

        Raises:
          AdapterError: if a folder is not there.
        """
        self._library, self._text_encoder, self._unet, self._params = library, text_encoder, unet, params
        self._loras = Folder(library.loras, "lora", "lora_folder", self._trainers_name)
        self._hypernetworks = Folder(library.hypernetworks, "hypernetwork", "hypernetwork_folder")
        self._embeddings = Folder(library.embeddings, "embedding", "embedding_folder", self._name_inside)
        self._as_factors: dict[str, dict[name_table.Path, per_image.Factors] | None] = {}
        self.lora = _Kept(self._lora)
        self.hypernetwork = _Kept(self._hypernetwork)
        self.embedding = _Kept(self._embedding)

    def _lora(self, name: str) -> Lora:
        file = self._loras.file(name)
        # A folder's adapter is called after the folder, and has a config beside it.
        whole = file.parent if self._loras.is_whole_folder(file) else file
        return read_lora(whole, self._text_encoder, self._unet, self._library.pickled)

    def _trainers_name(self, file: Path) -> str | None:
        """What a LoRA's trainer called it, by which A1111 knows it too."""
        try:
            return list_file(file, self._library.pickled).metadata.get("ss_output_name")
        except CheckpointError:  # told when it is asked for by its name
            return None

    def _name_inside(self, file: Path) -> str | None:
        return embedding_name(file, self._library.pickled)

    def _hypernetwork(self, name: str) -> Hypernetwork:
        found = read_hypernetwork(self._hypernetworks.file(name), self._library.pickled)
        check_fit(found, self._params["unet"])
        return found

    def _embedding(self, name: str) -> Embedding:
        found = read_embedding(self._embeddings.file(name), self._library.pickled)
        check_width(found, self._params["text_encoder"])
        return found

    def bundled(self, named: Sequence[Tag]) -> dict[str, Embedding]:
        """Embeddings that came with the LoRAs among these."""
        return {
            name: Embedding(name, hashlib.sha256(f"{lora.digest} {name}".encode()).hexdigest(), vectors)
            for lora in (self.lora(tag.name) for tag in named if tag.kind == "lora")
            for name, vectors in lora.embeddings.items()
        }

    def low_rank(self, loras: Sequence[WeightedLora]) -> tuple[per_image.Weighted, ...] | None:
        """LoRAs as what is added for each image; None if one is not of plain low rank."""
        found: list[per_image.Weighted] = []
        for each in loras:
            factors = self._factors(each.adapter)
            if factors is None:
                return None
            found.append(per_image.Weighted(factors, each.weight, each.text_encoder_weight))
        return tuple(found)

    def _factors(self, lora: Lora) -> dict[name_table.Path, per_image.Factors] | None:
        if lora.digest not in self._as_factors:
            if len(self._as_factors) >= _MOST_FACTORS:
                self._as_factors.clear()
            self._as_factors[lora.digest] = per_image.low_rank(lora.changes)
        return self._as_factors[lora.digest]

    def vectors(self, bundled: Mapping[str, Embedding]) -> Mapping[str, int]:
        """Names of embeddings, also of bundled ones -> how many vectors each has; read where asked for."""
        return _Counts(self._embeddings, self.embedding, bundled)

    def find(self, named: Sequence[Tag], embeddings: Iterable[str]) -> AdapterSet:
        """The adapters that an image names, but those without weight.

        Raises:
          AdapterError: if one is not there, can't be read, or is for another model.
        """
        loras = [
            WeightedLora(self.lora(tag.name), tag.weight, tag.text_encoder_weight)
            for tag in named
            if tag.kind == "lora"
        ]
        hypernetworks = [
            WeightedHypernetwork(self.hypernetwork(tag.name), tag.weight) for tag in named if tag.kind == "hypernetwork"
        ]
        bundled = self.bundled(named)
        words = tuple(bundled[name] if name in bundled else self.embedding(name) for name in embeddings)
        return AdapterSet(
            tuple(each for each in loras if each.weight or each.text_encoder_weight),
            tuple(each for each in hypernetworks if each.weight),
            words,
        )


class _Counts(Mapping[str, int]):
    def __init__(self, folder: Folder, read: Callable[[str], Embedding], bundled: Mapping[str, Embedding]) -> None:
        self._folder, self._read, self._bundled = folder, read, bundled

    def __getitem__(self, name: str) -> int:
        if name in self._bundled:
            return len(self._bundled[name].vectors)
        if name not in self._folder:
            raise KeyError(name)
        return len(self._read(name).vectors)

    def __contains__(self, name: object) -> bool:
        return name in self._bundled or name in self._folder

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._bundled, *self._folder)))

    def __len__(self) -> int:
        return len(list(iter(self)))
