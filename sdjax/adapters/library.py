"""Adapters on storage, by name: folders of LoRA, embedding and hypernetwork files."""

import collections
import contextlib
import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdjax.adapters import per_image
from sdjax.adapters.embedding import Embedding, check_width, read_embedding
from sdjax.adapters.files import AdapterError
from sdjax.adapters.hypernetwork import Hypernetwork, check_fit, read_hypernetwork
from sdjax.adapters.lora import Lora, read_lora
from sdjax.checkpoints import names
from sdjax.checkpoints.tensors import CheckpointError, Params, list_file
from sdjax.models import TextEncoderConfig, UNetConfig
from sdjax.text.tags import Tag

# What files of adapters end in.
_ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
# Names of files in folders that peft and diffusers write.
_IN_FOLDERS = ("adapter_model", "pytorch_lora_weights")
_MOST_FACTORS = 64
# Bytes of adapters that are kept in memory; the one in use always is.
_MOST_KEPT = 1 << 31
# Pictures in which A1111 hides embeddings name them so, before the pixels; all others are previews.
_EMBEDDED, _HEAD = b"sd-ti-embedding", 4096
# Digits of a hash that A1111 shows.
_SHORT = 12


class Folder:
    """The files of one kind, each under its name without ending, or its path from the folder if two have one name."""

    def __init__(self, folder: str | Path | None, kind: str, setting: str) -> None:
        """Lists a folder and those within it.

        Args:
          folder: on this machine; None has no files.
          kind: what is in it, for errors.
          setting: where the folder is named, for errors.

        Raises:
          AdapterError: if there is no such folder.
        """
        self._kind, self._setting = kind, setting
        self._files: dict[str, list[Path]] = {}
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise AdapterError(f"{setting} = {folder}: there is no such folder on this machine")
        by_path: dict[str, Path] = {}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and (file.suffix in _ENDINGS or (file.suffix == ".png" and _holds_embedding(file))):
                # peft and diffusers write a folder for each, and call the file in it always alike.
                whole = file.parent if file.stem in _IN_FOLDERS and file.parent != self.folder else file.with_suffix("")
                path = whole.relative_to(self.folder).as_posix()
                if path not in by_path or _rank(file) < _rank(by_path[path]):
                    by_path[path] = file
        for path, file in by_path.items():
            for name in {path.rpartition("/")[2], path}:
                self._files.setdefault(name, []).append(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def files(self) -> Iterator[Path]:
        """All files."""
        return iter(dict.fromkeys(file for files in self._files.values() for file in files))

    def file(self, name: str) -> Path:
        """The file of a name.

        Raises:
          AdapterError: if there is none, or there are two.
        """
        if self.folder is None:
            raise AdapterError(f"{self._kind} {name!r}: there is no folder of such files; set {self._setting}")
        found = self._files.get(name, [])
        if len(found) > 1:
            files = " and ".join(map(str, found))
            raise AdapterError(f"{self._kind} {name!r}: {files} have this name; say the path from {self.folder}")
        if not found:
            near = difflib.get_close_matches(name, self._files, 1, 0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise AdapterError(f"{self._kind} {name!r}: there is no such file in {self.folder}{hint}")
        return found[0]


def _rank(file: Path) -> int:
    """Which of several files of one name is taken: what was saved again as safetensors is the same, and no pickle."""
    return _ENDINGS.index(file.suffix) if file.suffix in _ENDINGS else len(_ENDINGS)


def _holds_embedding(file: Path) -> bool:
    with file.open("rb") as stream:
        return _EMBEDDED in stream.read(_HEAD)


class WeightedLora(NamedTuple):
    """A LoRA of a picture, and how strongly it acts in the UNet and in the text encoder."""

    adapter: Lora
    weight: float
    text_encoder_weight: float


class WeightedHypernetwork(NamedTuple):
    """A hypernetwork of a picture, and how strongly it acts."""

    adapter: Hypernetwork
    weight: float


class Found(NamedTuple):
    """The adapters of a picture, in the order in which they act."""

    loras: tuple[WeightedLora, ...] = ()
    hypernetworks: tuple[WeightedHypernetwork, ...] = ()
    embeddings: tuple[Embedding, ...] = ()

    def identity(self) -> list[Any]:
        """What of them decides the bits of a picture: no names."""
        return [
            [[each.adapter.digest, each.weight, each.text_encoder_weight] for each in self.loras],
            [[each.adapter.digest, each.weight] for each in self.hypernetworks],
            [each.digest for each in self.embeddings],
        ]

    def told(self) -> str:
        """What was applied, for metadata: JSON, or nothing if nothing was."""
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
        self._loras = Folder(library.loras, "lora", "lora_folder")
        self._hypernetworks = Folder(library.hypernetworks, "hypernetwork", "hypernetwork_folder")
        self._embeddings = Folder(library.embeddings, "embedding", "embedding_folder")
        self._as_factors: dict[str, dict[names.Path, per_image.Factors] | None] = {}
        self.lora = _Kept(self._lora)
        self.hypernetwork = _Kept(self._hypernetwork)
        self.embedding = _Kept(self._embedding)

    def _lora(self, name: str) -> Lora:
        aliased = [] if name in self._loras else self._aliases.get(name, [])
        if len(aliased) > 1:
            raise AdapterError(f"lora {name!r}: {' and '.join(map(str, aliased))} have this name inside")
        file = aliased[0] if aliased else self._loras.file(name)
        # A folder's adapter is called after the folder, and has a config beside it.
        whole = file.parent if file.stem in _IN_FOLDERS and file.parent != self._loras.folder else file
        return read_lora(whole, self._text_encoder, self._unet, self._library.pickled)

    @functools.cached_property
    def _aliases(self) -> dict[str, list[Path]]:
        """LoRAs by the name that their trainer wrote into them, by which A1111 knows them too."""
        found: dict[str, list[Path]] = {}
        for file in self._loras.files():
            with contextlib.suppress(CheckpointError):  # told when it is asked for by its name
                if alias := list_file(file, self._library.pickled).metadata.get("ss_output_name"):
                    found.setdefault(alias, []).append(file)
        return found

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

    def _factors(self, lora: Lora) -> dict[names.Path, per_image.Factors] | None:
        if lora.digest not in self._as_factors:
            if len(self._as_factors) >= _MOST_FACTORS:
                self._as_factors.clear()
            self._as_factors[lora.digest] = per_image.low_rank(lora.changes)
        return self._as_factors[lora.digest]

    def vectors(self, bundled: Mapping[str, Embedding]) -> Mapping[str, int]:
        """Names of embeddings, also of bundled ones -> how many vectors each has; read where asked for."""
        return _Counts(self._embeddings, self.embedding, bundled)

    def find(self, named: Sequence[Tag], embeddings: Iterable[str]) -> Found:
        """The adapters that a picture names, but those without weight.

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
        return Found(
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
