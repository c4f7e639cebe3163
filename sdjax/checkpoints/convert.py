"""Between the two forms of a checkpoint, an original single file and a diffusers folder, without losing anything.

Numbers are copied as they are stored, never read as such. What one form has and the other has no place for goes with
it, so that the way there and back gives the same files: a folder gets `original/` with the tensors left over (averages,
buffers of training, layers that are not used) and how the file was written; a file gets the folder's texts as metadata
and its other tensors under names that start with "folder:".
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sdjax.checkpoints import original_names
from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.contents import Folder, Parameter, of_file, of_folder
from sdjax.checkpoints.diffusers_folder import write_configs
from sdjax.checkpoints.folder_metadata import WEIGHTS, folder_texts, is_folder_path, to_metadata
from sdjax.checkpoints.identify import identify
from sdjax.checkpoints.json_file import MOST_INDEX_BYTES, read_json
from sdjax.checkpoints.pickled import is_pickled
from sdjax.checkpoints.single_file import read_file
from sdjax.checkpoints.stored_tensor import CheckpointError, Tensor
from sdjax.checkpoints.streamed import Piece, Target, header_of, in_order, read_header, write_tensors, written_whole
from sdjax.checkpoints.tensors import Listing, list_file, list_tensors
from sdjax.families.family import Family

# Beside a folder's networks: what was in the single file that it was made of, and has no place in them.
_ORIGINAL = "original"
_LEFT_OVER, _WRITTEN = f"{_ORIGINAL}/left_over.safetensors", f"{_ORIGINAL}/header.json"
# What says whose tensors they are, as torch's.
_METADATA = {"format": "pt"}
# The model specification's key for what the UNet predicts: "epsilon", "v".
_PREDICTS = "modelspec.prediction_type"
_FOLDER = "folder:"
_INDEX, _TOKENIZER, _SCHEDULER = "model_index.json", "tokenizer", "scheduler/scheduler_config.json"
# Tensors that are no parameters and say how images are made: the UNet predicts v, the schedule ends in noise.
_MARKERS = ("v_pred", "ztsnr")
# Of CLIP's vocabulary: start, end, and what prompts are padded with, which is "!" in OpenCLIP.
_CLIP_TOKENS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
_OPEN_CLIP_TOKENS = {**_CLIP_TOKENS, "pad_token_id": 0}
# Any of these is a whole vocabulary.
_VOCABULARIES = (f"{_TOKENIZER}/vocab.json", f"{_TOKENIZER}/tokenizer.json")
_VOCABULARY_FILES = (*_VOCABULARIES, f"{_TOKENIZER}/merges.txt")


class ClipTokenizer(NamedTuple):
    """CLIP's own tokenizer, which single files do not hold.

    write: writes its folder, for OpenCLIP (padded with token 0) or for CLIP (with the end token).
    is_in: whether a tokenizer's folder holds just this vocabulary.
    """

    write: Callable[[Path, bool], None]
    is_in: Callable[[Path], bool]


# --- A folder as a file ---


def folder_to_file(
    root: Path,
    file: Path,
    tokenizer: ClipTokenizer,
    variant: str | None = None,
    prune: bool = False,
    pickled: bool = False,
) -> list[str]:
    """Writes a diffusers folder as an original single file.

    Args:
      root: the folder. If it was made of a single file, it is that file again, to the last byte.
      file: must not be there yet; its name ends in .safetensors.
      variant: which weights of the folder, for example "fp16".
      prune: leave out what is not needed for images.
      pickled: whether pickled weights are taken where there are no others; what comes back of them is safetensors.

    Returns:
      The files of weights that were left out: other variants, pickled ones, and those that are not needed.

    Raises:
      CheckpointError, ConfigError: if the folder is not whole, or its weights are no longer those of the file that it
        was made of.
    """
    _check_name(file)
    folder = of_folder(root, variant, pickled)
    if len(folder.family.text_networks) != 1:
        raise CheckpointError(
            f"{root}: {folder.family.name} has no single file: the original code has one text encoder"
        )
    recorded = root / _WRITTEN
    if recorded.is_file() and not prune:
        targets, header = _as_recorded(root, recorded, folder.parameters)
        kept: list[Path] = []
    else:
        kept = [] if prune else _other_weights(root, folder.family, variant)
        targets, header = _as_original(root, folder, kept, tokenizer, prune)
    with written_whole(file) as partial:
        write_tensors(partial, targets, header)
    read = {*kept, *(file for files in folder.files.values() for file in files)}
    return sorted(file.relative_to(root).as_posix() for file in _all_weights(root) if file not in read)


def _as_original(
    root: Path, folder: Folder, others: Sequence[Path], tokenizer: ClipTokenizer, prune: bool
) -> tuple[list[Target], bytes]:
    """What an original file of a folder holds, and its header."""
    targets = [target for part in folder.configs for target in _under_original_names(part, folder)]
    texts = dict(_texts(root, folder, tokenizer))
    if not prune:
        used = {each.piece.tensor for each in folder.parameters}
        unlike = [part for part in folder.configs if not _is_plain(root, part, folder)]
        stored = [each for part in unlike for each in _as_stored(root, part, folder)]
        stored += [(file.relative_to(root).as_posix(), read_header(file), list_file(file).tensors) for file in others]
        for path, header, tensors in stored:
            texts[path] = header.decode()
            targets += [
                Target(f"{_FOLDER}{path}:{name}", tensor.dtype, tensor.shape, (Piece(tensor),))
                for name, tensor in tensors.items()
                if tensor not in used
            ]
    targets = in_order(targets)
    predicts = {_PREDICTS: folder.prediction_type.removesuffix("_prediction")}
    return targets, header_of(targets, {**_METADATA, **predicts, **to_metadata(texts)})


def _under_original_names(part: str, folder: Folder) -> Iterator[Target]:
    """The tensors of one network as the original code calls them, fused where it fuses them."""
    found = {each.path: each for each in folder.parameters if each.part == part}
    by_name: dict[str, list[original_names.Source]] = {}
    for source in original_names.sources(folder.configs[part]):
        by_name.setdefault(source.name, []).append(source)
    for name, sources in by_name.items():
        sources.sort(key=lambda source: source.rows or (0, 0))
        stored = [found[source.path] for source in sources]
        kinds = {each.dtype for each in stored}
        if len(kinds) > 1:
            tensors = ", ".join(f"{each.names[0]} ({each.dtype})" for each in stored)
            raise CheckpointError(f"{part}: {tensors} are one tensor in an original file, and must be of one kind")
        yield Target(name, kinds.pop(), sources[0].shape, tuple(each.piece for each in stored))


def _as_stored(root: Path, part: str, folder: Folder) -> Iterator[tuple[str, bytes, Mapping[str, Tensor]]]:
    """The weights' files of a network: path, header and tensors; pickled ones as the safetensors file they would be."""
    files = folder.files[part]
    if files[0].suffix.lower() == WEIGHTS:
        for file in files:
            yield file.relative_to(root).as_posix(), read_header(file), list_file(file).tensors
        return
    tensors = list_tensors(files, pickled=True)
    header = header_of(in_order([_copied(tensor) for tensor in tensors.values()]), _METADATA)
    if header != header_of(in_order(_under_diffusers_names(part, folder.parameters)), _METADATA):
        yield _weights_path(part, folder.family), header, tensors


def _texts(root: Path, folder: Folder, tokenizer: ClipTokenizer) -> Iterator[tuple[str, str]]:
    """Configs and tokenizer of a folder, by path; CLIP's own vocabulary is left out."""
    is_clips = tokenizer.is_in(root / _TOKENIZER)
    for file in sorted([*root.glob("*.*"), *root.glob("*/*.*")]):
        path = file.relative_to(root).as_posix()
        if file.suffix not in (".json", ".txt") or file.parent.name == _ORIGINAL or not is_folder_path(path):
            continue
        if (is_clips and path in _VOCABULARY_FILES) or (".index." in file.name and not _is_used(file, folder)):
            continue
        try:
            yield path, file.read_bytes().decode()
        except ValueError as error:
            raise CheckpointError(f"{file} is no text in UTF-8 ({error})") from error


def _is_used(index: Path, folder: Folder) -> bool:
    """Whether an index is that of the weights which were chosen."""
    if ".bin." in index.name:  # of pickled ones, which become safetensors
        return False
    used = {file.name for file in folder.files.get(index.parent.name, ())}
    listed = read_json(index, MOST_INDEX_BYTES).get("weight_map")
    return isinstance(listed, dict) and {str(name) for name in listed.values()} == used


def _is_plain(root: Path, part: str, folder: Folder) -> bool:
    """Whether a network's weights are one file, just as it would be written."""
    path = root / _weights_path(part, folder.family)
    if folder.files[part] != (path,):
        return False
    return read_header(path) == header_of(in_order(_under_diffusers_names(part, folder.parameters)), _METADATA)


def _weights_path(part: str, family: Family) -> str:
    """Where a network's weights are written, in a folder."""
    return f"{part}/{family.networks[part].stem}{WEIGHTS}"


def _is_open_clip(outline: Checkpoint) -> bool:
    return original_names.is_open_clip(outline.family.text_config(outline.configs))


def _all_weights(root: Path) -> list[Path]:
    return [
        file
        for suffix in (WEIGHTS, ".bin", ".ckpt", ".pt", ".msgpack", ".h5")
        for file in root.glob(f"*/*{suffix}")
        if file.parent.name != _ORIGINAL
    ]


def _other_weights(root: Path, family: Family, variant: str | None) -> list[Path]:
    """Files of the same variant with tensors of other parts than the networks: the safety checker's."""
    others = [file for file in _all_weights(root) if file.suffix == WEIGHTS and file.parent.name not in family.networks]
    # "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors", or without a mark.
    return [file for file in others if file.name.split(".")[1].split("-")[0] == (variant or WEIGHTS[1:])]


def _as_recorded(root: Path, recorded: Path, found: Sequence[Parameter]) -> tuple[list[Target], bytes]:
    """What the single file held of which a folder was made, and its header."""
    written = read_json(recorded, MOST_INDEX_BYTES)
    pieces = {f"{each.part}/{name}": each.piece for each in found for name in each.names}
    left_over = list_file(root / _LEFT_OVER).tensors if (root / _LEFT_OVER).is_file() else {}

    def pieces_of(name: str) -> list[Piece]:
        sources = written["tensors"].get(name)
        return [Piece(left_over[name])] if sources is None else [pieces[source] for source in sources]

    try:
        return _in_header(written["header"], pieces_of), written["header"].encode()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{recorded} does not describe the weights that are now in {root} ({error}). If they have been changed "
            f"since, remove {root / _ORIGINAL}, or have it left out (--prune)"
        ) from error


def _in_header(header: str, pieces_of: Callable[[str], Sequence[Piece]]) -> list[Target]:
    """The tensors that a header lists, in the order in which they lie.

    Raises:
      KeyError, ValueError, TypeError, AttributeError: if it is no header, or `pieces_of` gives other numbers than it
        says.
    """
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    targets = []
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        target = Target(name, entry["dtype"], tuple(entry["shape"]), tuple(pieces_of(name)))
        kinds = {piece.tensor.dtype for piece in target.pieces}
        if kinds != {target.dtype} or sum(piece.nbytes for piece in target.pieces) != target.nbytes:
            raise ValueError(f"{name} was {target.dtype} {target.shape}, and is another now")
        if entry["data_offsets"] != [place, place + target.nbytes]:
            raise ValueError(f"{name} does not follow the tensor before it")
        targets.append(target)
        place += target.nbytes
    return targets


# --- A file as a folder ---


def file_to_folder(
    file: Path,
    root: Path,
    tokenizer: ClipTokenizer,
    *,
    config: Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    pickled: bool = False,
    prune: bool = False,
) -> None:
    """Writes an original single file as a diffusers folder.

    Args:
      file: safetensors, or a pickled file where `pickled` allows it. If it was made of a folder, it is that folder
        again: the same weights' files and configs, to the last byte.
      root: must not be there yet.
      config, prediction_type: what the file can't say, as for `read_file`.
      ema: take the averages as the UNet's weights.
      prune: leave out what is not needed for images.

    Raises:
      CheckpointError, ConfigError: if the file is no whole checkpoint, or is one of a kind that is not supported.
    """
    listing = list_file(file, pickled)
    texts = folder_texts(listing.metadata, file)
    outline = read_file(file, None, config=config, prediction_type=prediction_type, ema=ema, pickled=pickled)
    found = of_file(file, listing, outline, ema)
    with written_whole(root) as partial:
        _write_texts(partial, texts)
        if _INDEX not in texts or config or prediction_type:
            _write_configs(partial, outline)
        _write_tokenizer(partial, texts, outline, tokenizer)
        headers = {path: text for path, text in texts.items() if path.endswith(WEIGHTS) and not prune}
        for path, targets, header in _weights(file, outline.family, headers, found, listing.tensors):
            write_tensors(partial / path, targets, header)
        if not prune:
            _write_original(file, partial, listing, found, tokenizer)


def _write_texts(root: Path, texts: Mapping[str, str]) -> None:
    for path, text in texts.items():
        if not path.endswith(WEIGHTS):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(text.encode())


def _write_configs(root: Path, outline: Checkpoint) -> None:
    write_configs(
        root,
        outline.family,
        outline.configs,
        scheduler=outline.scheduler,
        scheduler_class=outline.scheduler_class,
        special_tokens=_OPEN_CLIP_TOKENS if _is_open_clip(outline) else _CLIP_TOKENS,
    )


def _write_tokenizer(root: Path, texts: Mapping[str, str], outline: Checkpoint, tokenizer: ClipTokenizer) -> None:
    """Writes the vocabulary, if the file carries none: that of a config's folder, or CLIP's."""
    given = outline.tokenizer_folder
    if any(path in texts for path in _VOCABULARIES):
        return
    if given:
        (root / _TOKENIZER).mkdir(parents=True, exist_ok=True)
        for file in [file for file in given.iterdir() if file.suffix in (".json", ".txt")]:
            shutil.copyfile(file, root / _TOKENIZER / file.name)
    else:
        tokenizer.write(root / _TOKENIZER, _is_open_clip(outline))
        _write_texts(root, texts)


def _weights(
    file: Path,
    family: Family,
    headers: Mapping[str, str],
    found: Sequence[Parameter],
    tensors: Mapping[str, Tensor],
) -> Iterator[tuple[str, list[Target], bytes]]:
    """The files of weights of a folder: path, tensors and header."""
    for part in family.networks:
        if not any(path.startswith(f"{part}/") for path in headers):
            targets = in_order(_under_diffusers_names(part, found))
            yield _weights_path(part, family), targets, header_of(targets, _METADATA)
    pieces = {f"{each.part}/{name}": each.piece for each in found for name in each.names}
    for path, header in headers.items():

        def pieces_of(name: str, path: str = path) -> list[Piece]:
            extra = tensors.get(f"{_FOLDER}{path}:{name}")
            return [Piece(extra) if extra else pieces[f"{path.split('/')[0]}/{name}"]]

        try:
            yield path, _in_header(header, pieces_of), header.encode()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{file}: what its metadata say of {path} are not the tensors that it holds ({error}). If they have "
                "been changed since, have the folder written without (--prune)"
            ) from error


def _write_original(
    file: Path, root: Path, listing: Listing, found: Sequence[Parameter], tokenizer: ClipTokenizer
) -> None:
    """Writes what makes the single file again of the folder, unless the folder alone does."""
    header = _header(file, listing)
    if folder_texts(listing.metadata, file):
        folder = of_folder(root)
        again = _as_original(root, folder, _other_weights(root, folder.family, None), tokenizer, prune=False)
        if again[1] == header:
            return
    by_tensor: dict[str, list[Parameter]] = {}
    for each in sorted(found, key=lambda each: each.piece.rows or (0, 0)):
        by_tensor.setdefault(each.piece.tensor.name, []).append(each)
    whole = {
        name: [f"{each.part}/{each.names[0]}" for each in used]
        for name, used in by_tensor.items()
        if sum(each.piece.nbytes for each in used) == listing.tensors[name].nbytes
    }
    left_over = in_order([_copied(tensor) for name, tensor in listing.tensors.items() if name not in whole])
    if left_over:
        write_tensors(root / _LEFT_OVER, left_over, header_of(left_over, _METADATA))
    (root / _WRITTEN).parent.mkdir(exist_ok=True)
    written = json.dumps({"header": header.decode(), "tensors": whole}, ensure_ascii=False, indent=1)
    (root / _WRITTEN).write_text(written + "\n", "utf-8")


def _header(file: Path, listing: Listing) -> bytes:
    """A file's header; of a pickled file, which has none, that of the safetensors file with the same tensors."""
    with file.open("rb") as opened:
        if not is_pickled(opened.read(16)):
            return read_header(file)
    return header_of(in_order([_copied(tensor) for tensor in listing.tensors.values()]), _METADATA)


def _copied(tensor: Tensor) -> Target:
    return Target(tensor.name, tensor.dtype, tensor.shape, (Piece(tensor),))


# --- A file as another file ---


def file_to_file(
    file: Path,
    target: Path,
    *,
    config: Path | None = None,
    prediction_type: str | None = None,
    pickled: bool = False,
    prune: bool = False,
) -> None:
    """Writes the tensors of a file, under their names, as safetensors; texts and numbers beside them are metadata.

    Args:
      file: safetensors, or a pickled file where `pickled` allows it. Of whatever kind, unless `prune`, but for
        hypernetworks, whose structure stands beside their tensors.
      target: must not be there yet; its name ends in .safetensors.
      config: says which tensors are needed, where it is pruned; it is not in the new file, and is to lie beside it too.
      prediction_type: what the UNet predicts, which the new file says then.
      prune: write only the tensors of a checkpoint that are needed for images.

    Raises:
      CheckpointError, ConfigError: if the file can't be read, or is no whole checkpoint where it has to be.
    """
    _check_name(target)
    listing = list_file(file, pickled)
    tensors = listing.tensors
    if identify(tensors).kind == "hypernetwork":
        raise CheckpointError(f"{file} is a hypernetwork, for which there is no form but the one it has")
    if prune:
        outline = read_file(file, None, config=config, prediction_type=prediction_type, pickled=pickled)
        used = {*_MARKERS, *(each.piece.tensor.name for each in of_file(file, listing, outline))}
        tensors = {name: tensor for name, tensor in tensors.items() if name in used}
    metadata = {**listing.metadata, **_METADATA}
    if prediction_type:
        metadata |= _saying(prediction_type, folder_texts(metadata, file))
        if prediction_type != "v_prediction":
            tensors = {name: tensor for name, tensor in tensors.items() if name != _MARKERS[0]}
    targets = in_order([_copied(tensor) for tensor in tensors.values()])
    with written_whole(target) as partial:
        write_tensors(partial, targets, header_of(targets, metadata))


def _saying(prediction_type: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Metadata that say what the UNet predicts, as does the scheduler's config if the file carries one."""
    said = {_PREDICTS: prediction_type.removesuffix("_prediction")}
    if _SCHEDULER not in texts:
        return said
    try:
        config = {**json.loads(texts[_SCHEDULER]), "prediction_type": prediction_type}
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the metadata's {_SCHEDULER} is no object of JSON ({error})") from error
    return said | to_metadata({_SCHEDULER: json.dumps(config, indent=2, sort_keys=True) + "\n"})


def _check_name(file: Path) -> None:
    if file.suffix.lower() != WEIGHTS:
        raise CheckpointError(f"{file}: a single file is written as safetensors; give a name that ends in {WEIGHTS}")


def _under_diffusers_names(part: str, found: Iterable[Parameter]) -> list[Target]:
    return [Target(each.names[0], each.dtype, each.shape, (each.piece,)) for each in found if each.part == part]
