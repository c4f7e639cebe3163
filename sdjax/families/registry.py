"""The families that there are, and which of them a checkpoint is."""

from collections.abc import Iterable

from sdjax import extensions
from sdjax.extensions import Extension, ExtensionError
from sdjax.families.family import Configs, Family
from sdjax.families.latent_upscaler import LATENT_UPSCALER
from sdjax.families.stable_diffusion import SD1, SD2
from sdjax.families.x4_upscaler import X4_UPSCALER
from sdjax.models import ConfigError

FAMILIES = (SD1, SD2, X4_UPSCALER, LATENT_UPSCALER)


def by_pipeline(class_name: object) -> tuple[Family, ...]:
    """The families whose folders name this pipeline in `model_index.json`; empty if none does.

    Those that share a pipeline have the same networks and folders, and are told apart by configs (`by_configs`).
    Another package adds one as an entry point of the pipeline's name.

    Raises:
      ExtensionError: if it is another package's and can't be used.
    """
    own = tuple(family for family in FAMILIES if family.folder.pipeline(class_name))
    added = None if own else extensions.load(extensions.FAMILIES, str(class_name), Family)
    if added and not added.folder.pipeline(class_name):
        extension = extensions.find(extensions.FAMILIES, str(class_name))
        raise ExtensionError(f"{extension}: its family has no pipeline of the name {class_name}")
    return (added,) if added else own


def extension_of(family: Family) -> Extension | None:
    """The package that adds a family; None for one of `FAMILIES`."""
    if family in FAMILIES:
        return None
    found = (extensions.find(extensions.FAMILIES, pipeline.name) for pipeline in family.folder.pipelines)
    return next(filter(None, found), None)


def by_configs(families: Iterable[Family], configs: Configs) -> Family:
    """The family, of those that share a pipeline, to which networks of these configs belong.

    Raises:
      ConfigError: if it is none.
    """
    candidates = tuple(families)
    found = next((family for family in candidates if family.is_of(configs)), None)
    if found is None:
        raise ConfigError(f"the networks' configs are those of none of {', '.join(each.name for each in candidates)}")
    return found


def pipelines(*, upscalers: bool) -> tuple[str, ...]:
    """The names of the pipelines of upscalers, or of models that are none."""
    found = (family.folder.pipelines for family in FAMILIES if family.is_upscaler == upscalers)
    return tuple(dict.fromkeys(pipeline.name for each in found for pipeline in each))
