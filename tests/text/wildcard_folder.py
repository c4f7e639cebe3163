"""Wildcards in a local folder."""

from pathlib import Path

from sdjax.text.wildcards import MAX_FILE_BYTES, Wildcards, files_in, wildcards_of_files


def wildcards_in(folder: Path) -> Wildcards:
    """The text files of a folder and the folders in it, and in those that are linked."""

    def read(path: str) -> bytes:
        with (folder / path).open("rb") as stream:
            return stream.read(MAX_FILE_BYTES + 1)

    return wildcards_of_files(lambda: files_in(folder), read, str(folder))
