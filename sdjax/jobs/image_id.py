"""What an image is known by: the canonical form of its job, and the hash of all that decides it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sdjax.jobs.job import Job, given_of

# Made once: `json.dumps` makes one for each text.
_SORTED = json.JSONEncoder(sort_keys=True)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical_json(values: Mapping[str, Any]) -> str:
    """Fields of a job as JSON: the prompt and all that is not at its default, sorted, without blanks between them.

    So a field that comes with a later version, and does nothing by default, leaves every id as it is.

    Args:
      values: of all fields, `vars(job)`, or of some (`job.check_each`).
    """
    return _CANONICAL.encode(given_of(values))


def image_id(job: Job, model_digest: str, fingerprint: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that stand for all that decides an image's bits."""
    decided = _SORTED.encode([job.given, model_digest, dict(fingerprint)])
    return hashlib.sha256(decided.encode()).hexdigest()[:32]
