"""The named files of a run as a model uses them: what planning needs of them, and what running needs.

Planning needs digests, structures and numbers of vectors: of adapters, which are small, the whole is read for it; of
ControlNets, upscalers and estimators of depth the headers, and their files are hashed. Running needs parameters. Both
come from one store that is bounded in bytes, and where a file has changed it is read again.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import DTypeLike, Float32, UInt8

from sdjax.adapters import per_image
from sdjax.adapters.adapter_set import AdapterSet, WeightedHypernetwork, WeightedLora
from sdjax.adapters.embedding import Embedding, check_width, embedding_name, read_embedding
from sdjax.adapters.files import AdapterError
from sdjax.adapters.hypernetwork import Hypernetwork, check_fit, read_hypernetwork
from sdjax.adapters.lora import FILES_IN_FOLDERS, Lora, read_lora, trainers_name
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.families.family import UNET, VAE, Family
from sdjax.jobs.job import PIXEL_UPSCALERS, JobError
from sdjax.library import controlnets, depth, upscalers
from sdjax.library.classifier import read_classifier
from sdjax.library.controlnets import ControlNetFile
from sdjax.library.depth import DepthModel, DepthModelFile
from sdjax.library.finding import FindingError
from sdjax.library.folder import Folder
from sdjax.library.kinds import KINDS
from sdjax.library.library import Library
from sdjax.library.store import Store
from sdjax.library.upscalers import UpscalerFile
from sdjax.models import ConfigError
from sdjax.text.controls import Control
from sdjax.text.tags import Tag

Value = TypeVar("Value")

# Errors of files, which are kept until the files change.
_OF_FILES = (AdapterError, CheckpointError, ConfigError)
_CHANGED = "its file has changed since the run began"


def new_store() -> Store:
    """A store for the files of one model."""
    return Store(errors=_OF_FILES)


class OpenLibrary:
    """A library, listed, for one model. Any number of threads may use it."""

    def __init__(
        self,
        library: Library,
        family: Family,
        configs: Mapping[str, Any],
        dtype: DTypeLike,
        store: Store | None = None,
    ) -> None:
        """Lists the folders, and reads nothing yet.

        Args:
          library: where all is.
          family: of the model.
          configs: of its networks, by name.
          dtype: of the parameters of ControlNets, and of upscalers that are diffusion models.
          store: with what has been read already for the same model and dtype, from `new_store`.

        Raises:
          CheckpointError: if a folder is not there.
        """
        self._library, self._dtype = library, dtype
        self._family, self._unet, self._vae = family, configs[UNET], configs[VAE]
        self._adapted = {name: configs[name] for name in family.adapted_networks}
        self._text, self._text_network = family.text_config(configs), family.networks[family.text_networks[0]]
        self._store = store or new_store()
        self._estimator: DepthModel | None = None
        names_inside: dict[str, Callable[[Path], str | None]] = {
            "loras": lambda place: trainers_name(place, library.pickled),
            "embeddings": lambda file: embedding_name(file, library.pickled),
        }
        kinds = {**KINDS} | {field: KINDS[field]._replace(name_inside=name) for field, name in names_inside.items()}
        try:
            self._folders = {field: Folder(library.place(field), kind) for field, kind in kinds.items()}
        except FindingError as error:
            raise CheckpointError(str(error)) from error

    def check(self, controlnet_names: Iterable[str] = (), upscaler_names: Iterable[str] = ()) -> None:
        """Finds out, reading no weights, whether what jobs will need is there.

        Args:
          controlnet_names: of ControlNets and T2I adapters.
          upscaler_names: of upscalers with weights.

        Raises:
          CheckpointError: if something is not there, or not whole.
          ConfigError: if a config asks for what is not implemented.
        """
        if self._library.depth_model is not None:
            depth.find_depth(depth.find_depth_model(self._library.depth_model), self._library.pickled)
        if self._library.classifier is not None:
            read_classifier(self._library.classifier)
        try:
            for name in controlnet_names:
                self._folders["controlnets"].find(name)
            for name in upscaler_names:
                self._folders["upscalers"].find(name)
        except FindingError as error:
            raise CheckpointError(str(error)) from error

    def _kept(self, what: str, path: Path, states: object, read: Callable[[], Value]) -> Value:
        """What is read of a file in a state, once as long as it is kept."""
        return self._store.get((what, str(path), states, self._library.pickled), read)

    # --- Adapters ---

    def adapters(self, tags: Sequence[Tag], embeddings: Iterable[str]) -> AdapterSet:
        """The adapters that an image names, but those without weight.

        Raises:
          AdapterError: if one is not there, can't be read, or is for another model.
        """
        loras = [WeightedLora(self.lora(tag.name), tag.weight, tag.text_weight) for tag in tags if tag.kind == "lora"]
        hypernetworks = [
            WeightedHypernetwork(self.hypernetwork(tag.name), tag.weight) for tag in tags if tag.kind == "hypernetwork"
        ]
        bundled = _bundled(each.adapter for each in loras)
        return AdapterSet(
            tuple(each for each in loras if each.weight or each.text_weight),
            tuple(each for each in hypernetworks if each.weight),
            tuple(bundled[name] if name in bundled else self.embedding(name) for name in embeddings),
        )

    def lora(self, name: str) -> Lora:
        """The LoRA of a name; errors as of `adapters`."""

        def read(place: Path) -> Lora:
            # A file that peft or diffusers wrote is called after its folder.
            is_part = place.name.lower() in FILES_IN_FOLDERS and place.parent != self._folders["loras"].root
            whole = place.parent if is_part else place
            return read_lora(whole, self._adapted, self._library.pickled)

        return self._adapter("loras", name, read)

    def hypernetwork(self, name: str) -> Hypernetwork:
        """The hypernetwork of a name; errors as of `adapters`."""

        def read(file: Path) -> Hypernetwork:
            found = read_hypernetwork(file, self._library.pickled)
            check_fit(found, self._family.networks[UNET].param_shapes(self._unet))
            return found

        return self._adapter("hypernetworks", name, read)

    def embedding(self, name: str) -> Embedding:
        """The embedding of a name; errors as of `adapters`."""

        def read(file: Path) -> Embedding:
            found = read_embedding(file, self._library.pickled)
            check_width(found, self._text_network.param_shapes(self._text))
            return found

        return self._adapter("embeddings", name, read)

    def _adapter(self, field: str, name: str, read: Callable[[Path], Value]) -> Value:
        try:
            place = self._folders[field].find(name)
        except FindingError as error:
            raise AdapterError(str(error)) from error
        return self._kept(field, place, KINDS[field].states(place), lambda: read(place))

    def bundled_embeddings(self, tags: Sequence[Tag]) -> dict[str, Embedding]:
        """The embeddings that came with the LoRAs among these, by name."""
        return _bundled(self.lora(tag.name) for tag in tags if tag.kind == "lora")

    def vector_counts(self, bundled: Mapping[str, Embedding]) -> Mapping[str, int]:
        """The names of embeddings, also of bundled ones -> how many vectors each has; read where asked for."""
        return _VectorCounts(self._folders["embeddings"], self.embedding, bundled)

    def low_rank(self, loras: Sequence[WeightedLora]) -> tuple[per_image.Weighted, ...] | None:
        """LoRAs as what is added for each image; None if one is not of plain low rank."""
        found: list[per_image.Weighted] = []
        for each in loras:
            key = "factors", each.adapter.digest
            factors = self._store.get(key, functools.partial(per_image.low_rank, each.adapter.changes))
            if factors is None:
                return None
            found.append(per_image.Weighted(factors, each.weight, each.text_weight))
        return tuple(found)

    # --- ControlNets ---

    def controlnets(self, controls: Sequence[Control]) -> tuple[ControlNetFile, ...]:
        """The ControlNets that a job names, without parameters.

        Raises:
          JobError: if one is not there, can't be read, or is for another model.
        """
        return tuple(self.controlnet(control.name) for control in controls)

    def controlnet(self, name: str) -> ControlNetFile:
        """The ControlNet or T2I adapter of a name, likewise."""
        try:
            path = self._folders["controlnets"].find(name)
        except FindingError as error:
            raise JobError(f"controlnets: {error}") from error
        try:
            found = self._kept(
                "controlnets",
                path,
                KINDS["controlnets"].states(path),
                lambda: controlnets.read_controlnet(path, name, self._unet, self._vae, self._library.pickled),
            )
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"controlnets: {name}: {error}") from error
        return found._replace(name=name)

    def controlnet_params(self, file: ControlNetFile) -> Params:
        """The parameters of a ControlNet, arrays of numpy.

        Raises:
          JobError: if its files are gone, or others by now.
        """
        return self._params(
            file,
            KINDS["controlnets"].states(file.path),
            lambda: controlnets.load_controlnet(file, self._dtype, self._library.pickled),
            f"controlnets: {file.name}",
        )

    # --- Upscalers ---

    def upscaler(self, name: str, field: str = "upscaler") -> UpscalerFile:
        """The upscaler with weights of a name, without parameters.

        Args:
          name: what the job says.
          field: of the job, for errors.

        Raises:
          JobError: if there is none, or it can't be read.
        """
        try:
            path = self._folders["upscalers"].find(name, PIXEL_UPSCALERS)
        except FindingError as error:
            raise JobError(f"{field}: {error}") from error
        try:
            found = self._kept(
                "upscalers",
                path,
                KINDS["upscalers"].states(path),
                lambda: upscalers.read_upscaler(path, name, self._library.pickled),
            )
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"{field} = {name!r}: {error}") from error
        return found._replace(name=name)

    def upscaler_params(self, file: UpscalerFile) -> Params:
        """The parameters of an upscaler, arrays of numpy.

        Raises:
          JobError: if its files are gone, or others by now.
        """
        return self._params(
            file,
            KINDS["upscalers"].states(file.path),
            lambda: upscalers.load_params(file, self._dtype, self._library.pickled),
            f"upscaler = {file.name!r}",
        )

    # --- Depth ---

    def depth_model(self) -> DepthModelFile | None:
        """The estimator of depth, without parameters; None if there is none.

        Raises:
          JobError: if it can't be read.
        """
        if self._library.depth_model is None:
            return None
        try:
            place = depth.find_depth_model(self._library.depth_model)
            pickled = self._library.pickled
            return self._kept("depth", place, depth.depth_states(place), lambda: depth.read_depth(place, pickled))
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"depth_model: {error}") from error

    def depth_params(self, file: DepthModelFile) -> Params:
        """The parameters of an estimator of depth, arrays of numpy in float32.

        Raises:
          JobError: if its files are gone, or others by now.
        """
        return self._params(
            file,
            depth.depth_states(file.path),
            lambda: depth.load_depth_params(file, self._library.pickled),
            "depth_model",
        )

    def estimate_depth(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "i j"]:
        """How near each place of an image is, on no scale, by the default device.

        Raises:
          JobError: if nothing estimates it, or not of this image.
        """
        file = self.depth_model()
        if file is None:
            raise JobError("depth is to be estimated: set library.depth_model, or give a depth_image")
        if self._estimator is None or self._estimator.digest != file.digest:
            params = jax.device_put(self.depth_params(file))
            self._estimator = DepthModel(file.config, params, file.processor, file.digest)
        try:
            return depth.depth_of(self._estimator, pixels)
        except ValueError as error:
            raise JobError(str(error)) from error

    def _params(
        self,
        file: ControlNetFile | UpscalerFile | DepthModelFile,
        states: object,
        load: Callable[[], tuple[Params, str]],
        where: str,
    ) -> Params:
        """Parameters from files that have to be those that were planned with."""
        try:
            params, digest = self._kept(f"parameters of a {type(file).__name__}", file.path, states, load)
        except (CheckpointError, ConfigError) as error:
            raise JobError(f"{where}: {error}") from error
        if digest != file.digest:
            raise JobError(f"{where}: {_CHANGED}")
        return params


def _bundled(loras: Iterable[Lora]) -> dict[str, Embedding]:
    return {
        name: Embedding(name, hashlib.sha256(f"{lora.digest} {name}".encode()).hexdigest(), vectors)
        for lora in loras
        for name, vectors in lora.embeddings.items()
    }


class _VectorCounts(Mapping[str, int]):
    """How many vectors each embedding has; files are read where a number is asked for."""

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
