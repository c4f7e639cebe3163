"""Pictures of inpainting and depth models, of such with class labels, and of SD-Turbo, against diffusers."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import toys
from tests.golden import pictures, variants

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.variant_reference", reason="needs torch", exc_type=ImportError)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_pictures_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    toy, cases = variants.VARIANTS[name]
    folder = toys.write_toy(tmp_path, toy)
    drawn = pictures.drawn(sdjax.load(folder), cases)
    references = {case: reference.draw(folder, picture) for case, picture in cases.items()}
    shares = {case: pictures.share_that_differs(drawn[case], references[case]) for case in cases}
    print("\n" + "\n".join(f"{name}, {case}: {share:.4%} differ by more than 1" for case, share in shares.items()))
    assert max(shares.values()) <= pictures.TOLERATED_SHARE
    if name in variants.QUICK:
        with np.load(variants.RECORDED) as stored:
            for case, picture in references.items():
                assert pictures.share_that_differs(picture, stored[f"{name}/{case}"]) <= pictures.TOLERATED_SHARE
