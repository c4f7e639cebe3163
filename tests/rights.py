"""Rights of others, for tests that root runs too."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As a user who is not root and owns nothing, where these tests are run by root."""
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if as_root:
            os.seteuid(0)
