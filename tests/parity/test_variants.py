"""Images of inpainting and depth models, of such with class labels, and of SD-Turbo, against diffusers."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import toys
from tests.golden import images, variants

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.variant_reference", reason="needs torch", exc_type=ImportError)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_images_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    toy, cases = variants.VARIANTS[name]
    folder = toys.write_toy(tmp_path, toy)
    drawn = images.drawn(sdjax.load(folder), cases)
    references = {case: reference.draw(folder, image) for case, image in cases.items()}
    shares = {case: images.share_that_differs(drawn[case], references[case]) for case in cases}
    print("\n" + "\n".join(f"{name}, {case}: {share:.4%} differ by more than 1" for case, share in shares.items()))
    assert max(shares.values()) <= images.TOLERATED_SHARE
    if name in variants.QUICK:
        with np.load(variants.RECORDED) as stored:
            for case, image in references.items():
                assert images.share_that_differs(image, stored[f"{name}/{case}"]) <= images.TOLERATED_SHARE
