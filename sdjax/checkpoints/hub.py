"""Checkpoints by their names on a hub (`org/name`), fetched into the cache of `huggingface_hub`.

A name stands for what a branch holds today; the commit that it led to is given back, so that a run can record it and
another can ask for just that one.
"""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdjax.checkpoints.diffusers_folder import CONFIG, INDEX, SCHEDULER, TOKENIZER
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.tensors import CheckpointError, MissingWeightsError, pickled_stem
from sdjax.families.networks import AUTOENCODER_KL
from sdjax.families.registry import FAMILIES, by_pipeline

# org/name, and what may follow: a file of the repository, or a folder in it.
_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<inside>[^\\]+))?")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_PICKLED = _SINGLE_FILES[1:]
# What lies beside a single file and says what it can't say itself.
_BESIDE = (".yaml", ".yml", ".json")


class Snapshot(NamedTuple):
    """What was fetched.

    path: a folder in diffusers' layout, or a single file.
    commit: the hash of the commit that the revision led to.
    """

    path: Path
    commit: str


class _Name(NamedTuple):
    repository: str
    inside: str  # a path in it, or ""

    @property
    def is_file(self) -> bool:
        return self.inside.lower().endswith(_SINGLE_FILES)


def _parse(name: str) -> _Name | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    inside = match["inside"] or ""
    whole = all(part not in ("", ".", "..") for part in inside.split("/")) if inside else True
    return _Name(match["repository"], inside) if whole else None


def is_hub_name(name: str) -> bool:
    """Whether a model's name may be one on a hub: `org/name`, or `org/name/path` of a file or folder in it."""
    return _parse(name) is not None


def fetched(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    pickled: bool = False,
    cache: Path | None = None,
    endpoint: str | None = None,
    offline: bool = False,
) -> Snapshot:
    """The local files of a model on a hub; only what is needed of them and not yet there is fetched.

    Of a folder that is what `read_diffusers_folder` reads: configs, tokenizer, and each network's safetensors of one
    variant.
    `org/name/path/file.safetensors` is a single file, with the config beside it that has its name, if there is one;
    `org/name/folder` is a folder inside.

    Args:
      revision: a branch, a tag or a commit's whole hash; None is the main branch.
      variant: for example "fp16"; None takes the plain files, or where there are none, the others.
      pickled: whether pickled files are fetched: by their name, or where a network has no others.
      cache, endpoint: None are huggingface_hub's own (HF_HOME, HF_ENDPOINT), as is what identifies the user.
      offline: take what is in the cache and ask nobody (as HF_HUB_OFFLINE=1 does).

    Raises:
      CheckpointError: if it can't be had; the message says what to do. It is a MissingWeightsError if a network has no
        weights of the variant.
    """
    parsed = _parse(name)
    if parsed is None:
        raise CheckpointError(f"{name!r} is no name on a hub; expected org/name or org/name/path/file.safetensors")
    if parsed.is_file and not parsed.inside.lower().endswith(".safetensors") and not pickled:
        raise CheckpointError(f"{name} is pickled; such files can hide code and are only fetched if asked for: pickled")
    source = _Source(name, parsed.repository, revision, cache, endpoint, offline)
    return _single_file(source, parsed.inside) if parsed.is_file else _folder(source, parsed.inside, variant, pickled)


class _Source(NamedTuple):
    """A repository at a revision."""

    name: str
    repository: str
    revision: str | None
    cache: Path | None
    endpoint: str | None
    offline: bool

    def get(self, patterns: Sequence[str]) -> Path:
        """The snapshot's folder, with the files in it that fit `patterns` (those of fnmatch)."""
        # Where no hub is used, nothing of it is loaded.
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        asked = f"{self.name} (at revision {self.revision})" if self.revision else self.name
        try:
            return Path(
                snapshot_download(
                    self.repository,
                    revision=self.revision,
                    cache_dir=self.cache,
                    endpoint=self.endpoint,
                    local_files_only=self.offline,
                    allow_patterns=list(patterns),
                )
            )
        except GatedRepoError as error:
            what = "its owner grants access by request: accept the terms on its page, then log in (`hf auth login`)"
            raise CheckpointError(f"{asked}: {what}") from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"there is no model {asked}: no file or folder on this machine, and the hub does not know the "
                "repository, or not for this user (`hf auth login` if it is private)"
            ) from error
        except RevisionNotFoundError as error:
            what = "the repository has no such revision; give a branch, a tag or a commit's whole hash"
            raise CheckpointError(f"{asked}: {what}") from error
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"there is no model {asked}: no file or folder on this machine, and as a name on the hub it is not, "
                "or not wholly, in the cache, and the hub can't be asked (no network, or HF_HUB_OFFLINE is set): run "
                "once where there is a network, or give a path"
            ) from error
        except Exception as error:  # also those of the HTTP library, which is another one from version to version
            raise CheckpointError(f"{asked} could not be fetched from the hub: {error}") from error


def _single_file(source: _Source, inside: str) -> Snapshot:
    stem = str(PurePosixPath(inside).with_suffix(""))
    root = source.get([glob.escape(inside), *(glob.escape(stem) + suffix for suffix in _BESIDE)])
    if not (root / inside).is_file():
        raise CheckpointError(f"{source.name}: the repository {source.repository} has no file {inside}")
    return Snapshot(root / inside, root.name)


def _folder(source: _Source, inside: str, variant: str | None, pickled: bool) -> Snapshot:
    prefix = f"{inside}/" if inside else ""
    start = glob.escape(prefix)
    root = source.get([start + INDEX, start + CONFIG])
    # What the name led to is now known, and must not change between one question and the next.
    source = source._replace(revision=root.name)
    folder = root / inside
    if (folder / INDEX).is_file():
        # Of another pipeline at least the VAE may be of use, and what reads the rest says that it is not supported.
        family = (*by_pipeline(read_json(folder / INDEX).get("_class_name")), *FAMILIES)[0]
        parts = (*family.networks, SCHEDULER, TOKENIZER, *family.folder.extra_folders)
        source.get([f"{start}{part}/*{suffix}" for part in parts for suffix in (".json", ".txt")])
        stems = {f"{start}{name}/": network.stem for name, network in family.networks.items()}
    elif (folder / CONFIG).is_file():
        # One network: a VAE has a repository of its own.
        stems = {start: AUTOENCODER_KL.stem}
    else:
        raise CheckpointError(
            f"{source.name} has neither {INDEX} nor {CONFIG}, so it is no folder of diffusers; a single file is "
            f"named with its path: {source.name}/FILE.safetensors"
        )
    for patterns in _weights(variant, pickled):
        wanted = [where + pattern for where, stem in stems.items() for pattern in _named(patterns, stem)]
        source.get(wanted)
        stems = {where: stem for where, stem in stems.items() if not _has_weights(root, where, stem, patterns)}
        if not stems:
            return Snapshot(folder, root.name)
    lacking = ", ".join(where.removesuffix("/") or "itself" for where in stems)
    which = f" of the variant {variant!r}" if variant else ""
    raise MissingWeightsError(
        f"{source.name} has no safetensors{which} for: {lacking}"
        + ("" if pickled else "; if there are pickled ones, and you trust them, ask for them: pickled")
    )


def _weights(variant: str | None, pickled: bool) -> Iterable[tuple[str, ...]]:
    """Patterns of weights' files, those that are better first."""
    mark = f".{variant}" if variant else ""
    yield (f"{{stem}}{mark}.safetensors", f"{{stem}}{mark}-?????-of-?????.safetensors")
    if not variant:
        yield ("{stem}.*safetensors",)
    if pickled:
        yield (f"{{pickled}}{mark}.bin", f"{{pickled}}{mark}-?????-of-?????.bin")
        if not variant:
            yield ("{pickled}.*bin",)


def _named(patterns: Sequence[str], stem: str) -> list[str]:
    return [pattern.format(stem=stem, pickled=pickled_stem(stem)) for pattern in patterns]


def _has_weights(root: Path, where: str, stem: str, patterns: Sequence[str]) -> bool:
    return any(next(root.glob(where + pattern), None) for pattern in _named(patterns, stem))
