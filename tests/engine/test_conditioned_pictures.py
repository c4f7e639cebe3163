"""Pictures that begin with or are steered by other pictures, against recordings of diffusers' pipelines."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden import conditioned, pictures


@pytest.mark.parametrize("name", conditioned.QUICK)
def test_pictures_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    drawn = conditioned.drawn(name, tmp_path)
    with np.load(conditioned.RECORDED) as stored:
        shares = {case: pictures.share_that_differs(image, stored[f"{name}/{case}"]) for case, image in drawn.items()}
    assert {case: share for case, share in shares.items() if share > pictures.TOLERATED_SHARE} == {}
