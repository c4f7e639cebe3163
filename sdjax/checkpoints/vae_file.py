"""A VAE that is not a checkpoint's own: a single file, or a folder that diffusers writes."""

import re
from pathlib import Path

from sdjax.checkpoints.checkpoint import VAEFile
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.infer_config import DIFFUSERS_NAMES, ORIGINAL_NAMES, Shapes, VAENames, infer_vae, under
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.original_names import VAE, choose, is_average, is_extra, naming, vae_sources
from sdjax.checkpoints.tensors import (
    CheckpointError,
    MissingWeightsError,
    Tensor,
    check_layers,
    check_tensors,
    list_file,
    list_tensors,
    weight_files,
)
from sdjax.families.family import VAE as VAE_NETWORK
from sdjax.families.networks import AUTOENCODER_KL
from sdjax.models import VAEConfig

# Autoencoders of other kinds, by the beginning of a name in their files, with or without what stands before all.
_OTHERS = {
    re.compile(rf"({re.escape(VAE)})?{pattern}"): what
    for pattern, what in (
        (r"(encoder|decoder)\.layers\.\d", "an AutoencoderTiny (TAESD)"),
        (r"decoder\.condition_encoder\.", "an AsymmetricAutoencoderKL, whose decoder sees a mask"),
        (r"decoder_unet\.", "a ConsistencyDecoderVAE (of DALL-E 3)"),
        (r"quantize\.", "a VQModel, an autoencoder with a codebook"),
        (r".*\.temporal_res_block\.|decoder\.time_conv_out\.", "the autoencoder of Stable Video Diffusion"),
        (r"(encoder|decoder)\.((mid|up|down)_blocks?\..*)?(conv_in|conv1)\.conv\.", "an autoencoder of videos"),
    )
}


def find_vae(path: Path, variant: str | None = None, pickled: bool = False) -> VAEFile:
    """Finds a VAE.

    Args:
      path: a single file under the original names (with or without `first_stage_model.` before them, which may be a
        whole checkpoint) or diffusers'; a folder with `config.json`; or one of a whole checkpoint, with `vae/`.
      variant: which files of a folder to take where it has them, for example "fp16".
      pickled: whether a single file may be a pickled one, and a folder's weights where there are no others.

    Raises:
      CheckpointError: if there is none, or it is not whole.
      ConfigError: if its config asks for what is not implemented.
    """
    if path.is_dir():
        own = path / VAE_NETWORK
        return _in_folder(own if own.is_dir() else path, variant, pickled)
    tensors = list_file(path, pickled).tensors
    for pattern, what in _OTHERS.items():
        if any(map(pattern.match, tensors)):
            raise CheckpointError(f"{path} is {what}: not supported; expected an AutoencoderKL")
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        beside = path.parent / "config.json"
        if beside.is_file() and (data := read_json(beside)).get("_class_name") == "AutoencoderKL":
            return _found(path, VAEConfig.from_json(data, str(beside)), tensors, path.parent, (path, beside))
        return _found(path, _inferred(path, under(tensors, ""), DIFFUSERS_NAMES), tensors, path.parent, (path,))
    if not any(name.startswith(VAE) for name in tensors):
        if not any(name.startswith("decoder.") for name in tensors):
            raise CheckpointError(f"{path} holds no VAE: it is a {identify(tensors).kind}")
        tensors = {f"{VAE}{name}": tensor for name, tensor in tensors.items() if not is_average(name)}
    config = _inferred(path, under(tensors, VAE), ORIGINAL_NAMES)

    def is_known(name: str) -> bool:
        return not name.startswith(VAE) or is_extra(name) or is_extra(name.removeprefix(VAE))

    chosen = choose(str(path), tensors, {"vae": vae_sources(config)}, is_known)["vae"]
    return VAEFile(path, config, False, chosen, path.parent, (path,))


def _inferred(file: Path, stored: Shapes, called: VAENames) -> VAEConfig:
    with naming(file):
        return infer_vae(stored, called)


def _in_folder(folder: Path, variant: str | None, pickled: bool) -> VAEFile:
    file = folder / "config.json"
    config = VAEConfig.from_json(read_json(file), str(file))
    try:
        files = weight_files(folder, AUTOENCODER_KL.stem, variant, pickled)
    except MissingWeightsError:
        files = weight_files(folder, AUTOENCODER_KL.stem, None, pickled)
    return _found(folder, config, list_tensors(files, pickled), folder, (file, *files))


def _found(
    where: Path, config: VAEConfig, tensors: dict[str, Tensor], root: Path, decisive: tuple[Path, ...]
) -> VAEFile:
    check_layers(config.layers, tensors, str(where))
    chosen = check_tensors(tensors, AUTOENCODER_KL.param_shapes(config), AUTOENCODER_KL.table, str(where))
    knows_scale = decisive != (where,)
    return VAEFile(where, config, knows_scale, chosen, root, decisive)
