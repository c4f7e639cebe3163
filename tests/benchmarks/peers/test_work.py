"""What programs are asked to do."""

import numpy as np
import pytest

from benchmarks.peers.work import Work, label, operations, part_inputs, prompts, warm_up


def test_operations_are_those_of_the_loops_written_out():
    product = Work("product", (2, 3, 5))
    x, weights = part_inputs(product)
    assert operations(product) == 2 * x.shape[0] * weights.size == 60
    # Two images of 4 x 4 pixels, of each 9 neighbours of 3 channels for each of 5.
    assert operations(Work("convolution", (4, 3, 5))) == 2 * (2 * 4 * 4) * (9 * 3) * 5
    # Scores and what they weigh, for each of 2 images, 3 heads, and 7 x 7 tokens of width 5.
    assert operations(Work("attention", (7, 3, 5))) == 2 * 2 * (2 * 3 * 7 * 7 * 5)


def test_inputs_are_the_same_for_every_program():
    work = Work("attention", (4, 2, 3))
    for ours, theirs in zip(part_inputs(work), part_inputs(work), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.float32
    with pytest.raises(ValueError, match="image is no part"):
        part_inputs(Work("image", (1, 64, 1, 1)))


def test_warming_up_draws_one_batch_of_one_step():
    assert warm_up(Work("image", (20, 64, 4, 32))) == Work("image", (1, 64, 4, 4))
    assert warm_up(Work("unet", (64,))) == Work("unet", (64,))


def test_labels_name_sizes():
    assert label(Work("image", (1, 512, 4, 8))) == "512 x 512, 1 step, batch 4"
    assert label(Work("attention", (4096, 8, 40))) == "4096 tokens, 8 heads of 40"


def test_the_prompts_of_a_batch_are_different():
    assert len(set(prompts(32))) == 32
