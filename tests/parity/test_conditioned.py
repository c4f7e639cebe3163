"""Images that begin with or are steered by other images, against diffusers' pipelines."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden import conditioned, images

pytestmark = pytest.mark.parity

reference = pytest.importorskip("tests.golden.conditioned_reference", reason="needs torch", exc_type=ImportError)


@pytest.mark.parametrize("name", conditioned.MODELS)
def test_images_are_those_of_diffusers(name: str, tmp_path: Path) -> None:
    drawn = conditioned.drawn(name, tmp_path)
    references = reference.of_model(name, tmp_path)
    shares = {case: images.share_that_differs(drawn[case], references[case]) for case in references}
    print("\n" + "\n".join(f"{name}, {case}: {share:.4%} differ by more than 1" for case, share in shares.items()))
    assert max(shares.values()) <= images.TOLERATED_SHARE
    if name not in conditioned.QUICK:
        return
    with np.load(conditioned.RECORDED) as stored:
        for case, image in references.items():
            assert images.share_that_differs(image, stored[f"{name}/{case}"]) <= images.TOLERATED_SHARE
