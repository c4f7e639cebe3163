"""What tests of several files read prompts with."""

import pytest

from sdjax.text.tokenizer import Tokenizer
from tests.golden import prompts


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """CLIP's, padded as SD1 and as SD2."""
    folder = tmp_path_factory.mktemp("clip")
    return {
        name: Tokenizer(prompts.padded_like(folder / name, padding), 77)
        for name, padding in (("sd1", "<|endoftext|>"), ("sd2", "!"))
    }
