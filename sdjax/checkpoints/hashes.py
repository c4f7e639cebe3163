"""The hashes by which files of weights are known on the hubs and in A1111."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sdjax.checkpoints.pickled import is_pickled

# A1111's first hash of checkpoints: of so many bytes from there on, so many hexadecimal digits.
_OLD_START, _OLD_BYTES, _OLD_DIGITS = 0x100000, 0x10000, 8
# Of sha256, what A1111 shows of checkpoints, and of adapters.
_SHORT_DIGITS, _ADAPTER_DIGITS = 10, 12


class Hashes(NamedTuple):
    """Of one file.

    sha256: of all of it, 64 hexadecimal digits.
    short: A1111's of a checkpoint ("Model hash"), the first 10 of those.
    old: A1111's before November 2022: sha256 of 0x10000 bytes from 0x100000 on, the first 8.
    after_header: of safetensors, sha256 of what follows the header, so that edits of the metadata do not change it:
      kohya's `sshs_model_hash`, AutoV3 elsewhere. Empty for other files.
    """

    sha256: str
    short: str
    old: str
    after_header: str

    @property
    def adapter(self) -> str:
        """What A1111 shows of a LoRA: the first 12 of `after_header`."""
        return self.after_header[:_ADAPTER_DIGITS]


def hash_file(file: Path) -> Hashes:
    """Reads a file from end to end."""
    with ThreadPoolExecutor(1) as pool, file.open("rb") as opened:
        after = None if is_pickled(opened.read(16)) else pool.submit(_after_header, file)
        opened.seek(0)
        whole = hashlib.file_digest(opened, "sha256").hexdigest()
        opened.seek(_OLD_START)
        old = hashlib.sha256(opened.read(_OLD_BYTES)).hexdigest()[:_OLD_DIGITS]
        return Hashes(whole, whole[:_SHORT_DIGITS], old, after.result() if after else "")


def _after_header(file: Path) -> str:
    with file.open("rb") as opened:
        opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        return hashlib.file_digest(opened, "sha256").hexdigest()
