"""Live comparison with DeepCache, tomesd and tgate, which change diffusers' pipeline."""

from pathlib import Path

import numpy as np
import pytest

import sdjax
from tests import toys
from tests.golden import accelerations, images

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.acceleration_reference", reason="needs torch: make parity", exc_type=ImportError
)


@pytest.mark.parametrize("name", accelerations.TOYS)
def test_accelerated_images(name: str, tmp_path: Path) -> None:
    folder = toys.write_toy(tmp_path, accelerations.TOYS[name])
    found, expected = accelerations.drawn(sdjax.load(folder)), reference.draw(folder)
    shares = {case: images.share_that_differs(found[case], expected[case]) for case in accelerations.CASES}
    print("\n" + "\n".join(f"{name} {case}: {share:.4%} differ by more than 1" for case, share in shares.items()))
    assert max(shares.values()) <= images.TOLERATED_SHARE


def test_recordings_are_what_the_packages_give_now(tmp_path: Path) -> None:
    drawn = reference.draw(toys.write_toy(tmp_path, accelerations.TOYS["sd1"]))
    with np.load(accelerations.RECORDED) as stored:
        for case, image in drawn.items():
            assert images.share_that_differs(image, stored[f"sd1/{case}"]) <= images.TOLERATED_SHARE, case
