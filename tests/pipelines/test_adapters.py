"""Whole runs with adapters: which rows are made, which rejected, what is recorded, and that it can be made again."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines import verify
from pipelines.config import RunConfigError
from pipelines.config.recorded import with_names
from pipelines.loading import make_engine
from pipelines.trust import made_with, moved
from sdjax.images.encode import read_parameters
from sdjax.storage import read_jsonl
from tests import toys

MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
ROWS = [
    {"prompt": "a red apple <lora:ink:0.8>", "seed": 1},
    {"prompt": "a red apple", "loras": ["ink:0.8", "ink:2"], "seed": 2},
    {"prompt": "a red apple", "seed": 3},
    {"prompt": "a <lora:inc:1> cat", "seed": 4},
    {"prompt": "a cat", "loras": "ink:lots", "seed": 5},
    {"prompt": "a cat <lora:large:1>", "seed": 6},
]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapted")
    toys.write_toy(root / "tiny", toys.TINY)
    (root / "loras").mkdir()
    for name, width in (("ink", 32), ("large", 64)):
        tensors = {f"{MODULE}.lora_up.weight": normal(1, width, 2), f"{MODULE}.lora_down.weight": normal(2, 2, width)}
        save_file(tensors, root / "loras" / f"{name}.safetensors")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    counts = run_here(
        root / "rows.jsonl",
        root / "out",
        model=str(root / "tiny"),
        dtype="float32",
        **{"library.loras": str(root / "loras")},
    )
    assert (counts.rows, counts.rejected_rows, counts.made, counts.problems()) == (6, 3, 4, [])
    return root


def test_rows_say_what_was_applied_and_others_are_rejected_with_their_reason(made):
    rows = {int(row["seed"]): row for row in read_jsonl(str(made / "out" / "metadata.jsonl"))}
    [applied] = json.loads(rows[1]["adapters_applied"])
    assert (applied["name"], applied["weight"]) == ("ink", 0.8) and rows[3]["adapters_applied"] == ""
    assert len({row["id"] for row in rows.values()}) == len(rows)
    text = read_parameters(made / "out" / rows[1]["file_name"], "x")
    assert f"ink: {applied['short_hash']}" in str(text)
    reasons = {reject["line"]: reject["reason"] for reject in read_jsonl(str(made / "out" / "rejects.jsonl"))}
    assert "did you mean 'ink'" in reasons[4]
    assert "the weight 'lots'" in reasons[5]
    assert "large.safetensors can't be applied to this model" in reasons[6]


def test_images_with_adapters_are_made_again_also_where_the_folder_has_moved(made):
    given = made_with(str(made / "out"))
    assert given.library.loras == str(made / "loras")
    (made / "loras").rename(made / "elsewhere")
    here = moved(given, {"library.loras": str(made / "elsewhere")})
    report = verify.regenerate(str(made / "out"), lambda settings: make_engine(with_names(here, settings)), 1.0)
    assert (report.remade, report.exact, report.findings) == (4, 4, ())
    with pytest.raises(RunConfigError, match="steps is no file or folder of a run"):
        moved(given, {"steps": "3"})
