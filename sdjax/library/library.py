"""Where all named files of a run are."""

from pathlib import Path
from typing import NamedTuple

from sdjax.assets import BUNDLED, bundled
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.library.finding import FileState, FindingError, find_path, states_of

# Where a bundled model has its own.
_PARTS = {"controlnets": "controlnets", "depth_model": "", "classifier": "noise_classifier"}


class Library(NamedTuple):
    """Where all named files of a run are, on this machine; None has none.

    Folders count with those within them, also behind links. Of the bundled model "emoji" there are ControlNets, an
    estimator of depth and a classifier, which are called by its name in the place of a path.

    loras, hypernetworks, embeddings: folders of such files.
    controlnets: a folder of ControlNets and T2I adapters: files, and folders that diffusers wrote.
    upscalers: a folder of upscalers: files of networks (Real-ESRGAN), and folders or files of diffusion models.
    depth_model: an estimator of depth, as `sdjax.library.depth.load_depth` takes it.
    classifier: of noisy latents, as `load_classifier` takes it.
    pickled: whether pickled files (.pt, .pth, .ckpt, .bin) may be read too, by a reader that runs nothing.
    """

    loras: str | Path | None = None
    hypernetworks: str | Path | None = None
    embeddings: str | Path | None = None
    controlnets: str | Path | None = None
    upscalers: str | Path | None = None
    depth_model: str | Path | None = None
    classifier: str | Path | None = None
    pickled: bool = False

    def place(self, field: str) -> str | Path | None:
        """The path that a field says, also of what is bundled."""
        given: str | Path | None = getattr(self, field)
        return bundled(given, _PARTS[field]) or given if given and field in _PARTS else given

    def states(self) -> tuple[FileState, ...]:
        """The states of all files: others where one came, went or was written."""
        places = (self.place(field) for field in self._fields if field != "pickled")
        return tuple(state for place in places if place is not None for state in states_of(place))


def find_place(name: str | Path, field: str, kind: str) -> Path:
    """The file or folder of a name that stands for itself, or for what is bundled.

    Args:
      name: a path, or a bundled name.
      field: of `Library`.
      kind: what it is, for errors.

    Raises:
      CheckpointError: if there is none.
    """
    try:
        return bundled(name, _PARTS[field]) or find_path(name, kind, BUNDLED)
    except FindingError as error:
        raise CheckpointError(str(error)) from error
