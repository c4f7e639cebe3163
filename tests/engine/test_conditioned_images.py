"""Images that begin with or are steered by other images, against recordings of diffusers' pipelines."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden import conditioned, images


@pytest.mark.parametrize("name", conditioned.QUICK)
def test_images_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    drawn = conditioned.drawn(name, tmp_path)
    with np.load(conditioned.RECORDED) as stored:
        shares = {case: images.share_that_differs(image, stored[f"{name}/{case}"]) for case, image in drawn.items()}
    assert {case: share for case, share in shares.items() if share > images.TOLERATED_SHARE} == {}
