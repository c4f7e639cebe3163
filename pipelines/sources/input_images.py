"""The images that rows name: where they are, and their bytes, on whatever Beam's filesystems reach."""

import dataclasses
from typing import Any

from sdjax import storage
from sdjax.images.decode import MAX_BYTES
from sdjax.jobs.input_images import check_path, read_file, scheme_of
from sdjax.jobs.job import IMAGE_FIELDS, Job, JobError

# Of addresses that are read, those of Beam's filesystems; nothing is fetched from the web, where a file may be another
# one tomorrow, or none.
SCHEMES = ("gs", "s3", "hdfs", "azfs")


def located(job: Job, source: str) -> Job:
    """The job with whole paths in the place of those relative to its prompt file, `source`.

    Raises:
      JobError: naming the field, for what can't be a path.
    """
    whole: dict[str, Any] = {}
    for field, parts in IMAGE_FIELDS.items():
        if not getattr(job, field):
            continue
        try:
            check_path(getattr(job, field))
        except JobError as error:
            raise JobError(f"{field}: {error}") from error
        whole[field] = "; ".join(storage.beside(source, path) for path in parts(getattr(job, field)))
    return dataclasses.replace(job, **whole) if whole else job


def read(path: str) -> bytes:
    """The bytes of an image's file.

    Raises:
      JobError: if it can't be read, or is far too large, or lies where nothing is read from.
    """
    check_path(path)
    scheme = scheme_of(path)
    if scheme is None:
        return read_file(path)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        if scheme == "file":
            raise JobError(f"{path}: say the path alone, without {scheme}:")
        raise JobError(f"{path}: {scheme}: is not read from; expected a path, or an address of {known}")
    try:
        data = storage.read_whole(path, MAX_BYTES + 1)
    except (storage.StorageError, OSError, ValueError, ImportError) as error:
        raise JobError(str(error)) from error
    if len(data) > MAX_BYTES:
        raise JobError(f"{path} has more than {MAX_BYTES} bytes, which no image takes")
    return data
