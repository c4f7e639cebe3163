"""What an image says of itself, as text: no pixels and no file formats here.

The metadata go into every image as JSON, which is complete and is what sdjax reads back; it is pure ASCII, so that
any container holds it and even half of a surrogate pair comes back as it was.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.sax import saxutils

# https://cv.iptc.org/newscodes/digitalsourcetype: made by a model, by prompting.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# EXIF 2.32, section 4.6.5: the first 8 bytes of a UserComment name its character code.
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"

# NUL ends a text chunk in many readers, and a lone surrogate is no character of UTF-8.
NO_TEXT = re.compile("[\0\ud800-\udfff]")
_XMP_START, _XMP_END = b"<sdjax:metadata>", b"</sdjax:metadata>"
# Letters of a text that are read and written at most. A row of a prompt file has 4 MB; of JSON, a few bytes of a
# stranger's make a list, which takes thirty times the memory.
MAX_TEXT = 1 << 24
# How deep values may lie in each other; ours are flat.
_MOST_DEEP = 4
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:sdjax="urn:sdjax:metadata#">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>{more}
</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def to_json(metadata: Mapping[str, Any]) -> str:
    """The complete metadata: ASCII, keys sorted.

    Raises:
      ValueError: for NaN or infinity, which JSON has no words for, or more than `MAX_TEXT` letters.
    """
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} letters of metadata, more than {MAX_TEXT}; shorten the prompts")
    return text


def from_json(text: str) -> dict[str, Any]:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: if it is no JSON object, too long, or its values lie too deep in each other.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"it has {len(text)} letters, more than {MAX_TEXT}")
    try:
        metadata = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"it is a {type(metadata).__name__}, not an object")
    if not _is_flat(metadata, _MOST_DEEP):
        raise ValueError("it is nested too deep")
    return metadata


def _is_flat(value: Any, depth: int) -> bool:
    """Whether values lie at most so deep in each other."""
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_flat(each, depth - 1) for each in inner)


def xmp_packet(metadata_json: str = "") -> bytes:
    """The label of IPTC's `DigitalSourceType`, and the metadata where a format has no place for it."""
    inside = f"\n<sdjax:metadata>{saxutils.escape(metadata_json)}</sdjax:metadata>" if metadata_json else ""
    return _XMP.format(source_type=SOURCE_TYPE, more=inside).encode()


def json_in_xmp(packet: bytes) -> str | None:
    """The metadata in a packet of `xmp_packet`; None if there is none.

    Found by its element's name and not by an XML parser, which a stranger's packet could keep busy for ever.
    """
    start = packet.find(_XMP_START)
    end = packet.find(_XMP_END, start)
    if start < 0 or end < 0:
        return None
    return saxutils.unescape(packet[start + len(_XMP_START) : end].decode("utf-8", "replace"))


def user_comment(text: str) -> bytes:
    """The value of EXIF's UserComment, big-endian as A1111 (by piexif) writes it."""
    return _UNICODE + text.encode("utf-16-be")


def text_of_user_comment(value: bytes) -> str:
    """The text of a UserComment by any tool: these disagree on the byte order of UNICODE."""
    code, rest = value[: len(_UNICODE)], value[len(_UNICODE) :]
    if code == _UNICODE:
        # Generation parameters are mostly ASCII, of which one byte of two is 0.
        order = "be" if rest[::2].count(0) >= rest[1::2].count(0) else "le"
        return rest.decode(f"utf-16-{order}", "replace").strip("\ufeff")
    return (rest if code == _ASCII else value).decode("utf-8", "replace").strip("\0")
