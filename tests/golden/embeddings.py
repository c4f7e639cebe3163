"""Records how the programs that know embeddings read them. Needs the environment of `make parity`.

    python -m tests.golden.embeddings a1111 CHECKOUT     a checkout of AUTOMATIC1111's web UI
    python -m tests.golden.embeddings comfyui CHECKOUT   a checkout of ComfyUI
    python -m tests.golden.embeddings diffusers
    python -m tests.golden.embeddings compel             the package compel 2.5.1
    python -m tests.golden.embeddings files              torch

The first two run the checkouts' own tokenizers and `modules/textual_inversion/textual_inversion.py`; for what these
import beside them see `tests.golden.prompts`.
"""

import dataclasses
import importlib
import json
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import toys
from tests.golden import prompts

FOLDER = Path(__file__).parent
ENCODED = FOLDER / "embeddings.npz"
FILES = FOLDER / "embeddings_files"

# Names, and how many vectors they have.
VECTORS = {
    "cat": 1, "cat-toy": 3, "big cat": 2, "<style>": 1, "bad_hands-v5": 8, "Detail2": 7, "wide": 20, "full": 75,
    "cat(toy)": 2,
}  # fmt: skip

_CATS = " ".join(["dog"] * 72)
A1111 = (
    "", "a dog", "cat", "a cat on a mat", "a Cat, a CAT", "cats and category", "cat-toy", "a cat-toy, a cat - toy",
    "big cat", "a big, cat", "a big big cat cat", "(cat:1.2)", "((cat-toy)) and [bad_hands-v5]", "[cat:cat-toy:5]",
    "cat dog [big cat|wide]", "detail2detail2 Detail2", "<style>", "a<style>b", "< style >", "bad_hands-v5" * 2,
    "(big:1.1) cat", "full", "a full cat", "wide " * 4, "wide " * 3 + "bad_hands-v5 Detail2 dog", "cat " * 80,
    _CATS + " cat-toy", _CATS + " a cat-toy dog", _CATS + " a dog cat-toy", _CATS + " a dog cat mat cat",
    "dog, " + _CATS + " a cat-toy", "wide BREAK wide", "BREAK cat", "cat AND cat-toy :0.5",
    " ".join(["dog"] * 40) + ", " + "wide " * 2 + "dog", "cat <|endoftext|> cat big cat",
)  # fmt: skip

COMFYUI = (
    "", "a dog", "cat", "embedding:cat", "a embedding:cat on a mat", "embedding:cat, a dog", "embedding:cat,, dog",
    "embedding:cat,dog", "a\nembedding:cat-toy\nembedding:cat", "a\tembedding:cat", "(embedding:cat-toy:1.2)",
    "(embedding:cat)", "((embedding:cat))", "(a embedding:cat b:0.5) c", "a (embedding:cat:1.1), b",
    "embedding:cat.safetensors dog", "embedding:wide " * 5, _CATS + " embedding:cat-toy", _CATS + " embedding:cat",
    _CATS + " embedding:bad_hands-v5 cat", "embedding:Detail2 " * 11, "embedding:full a", "a embedding:full b",
    "embedding:cat\n\nand dog", "embedding:<style>", r"embedding:cat\(toy\) dog", "(embedding:cat\\(toy\\):1.5) dog",
    "embedding:bad_hands-v5, (embedding:wide:0.7),", "embedding:cat embedding:cat embedding:cat-toy",
)  # fmt: skip

# Names stand as words of their own in these.
DIFFUSERS = (
    "a red dog", "cat-toy", "a <style> dog", "a red apple, <style>, cat-toy", "<style><style> cat-toy cat-toy",
    "a bad_hands-v5 and cat-toy on the castle", "a<style>dog", "the big cat, big cat", "wide " * 4,
)  # fmt: skip
COMPEL = (
    "a red dog", "a <style> dog", "(<style>)1.3 dog", "cat-toy++ dog", "a (cat-toy dog)0.6 castle",
    '("a cat-toy", "a dog <style>").blend(1, 2)', '("a cat-toy", "a dog").and()', "(wide)0.5 wide wide wide dog",
)  # fmt: skip
# Names that are no tokens of the tokenizer, which diffusers refuses.
NEW = ("cat-toy", "<style>", "bad_hands-v5", "big cat", "wide")

# Text encoders of two widths.
TOYS = {
    "sd1": toys.SD1,
    "sd2": dataclasses.replace(
        toys.SD2,
        text_encoder=dataclasses.replace(toys.SD2.text_encoder, hidden_size=48),
        unet=dataclasses.replace(toys.SD2.unet, cross_attention_dim=48),
    ),
}


def vectors(name: str, width: int) -> np.ndarray:
    """The vectors of an embedding."""
    rng = np.random.RandomState(sum(name.encode()))
    return rng.standard_normal((VECTORS[name], width)).astype(np.float32)


def _tokenizer(folder: Path, padding: str = "<|endoftext|>") -> Any:
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(prompts.padded_like(folder, padding))


# --- Token ids ---


def record_a1111(checkout: Path) -> None:
    """Chunks of tokens and weights, and where the vectors are put into them."""
    parser, clip = prompts._a1111_modules(checkout)
    prompts._stand_ins(
        "modules.sd_models", "modules.images", "modules.sd_samplers", "modules.sd_hijack_checkpoint", "modules.errors",
        "modules.hashes", "modules.textual_inversion.dataset", "modules.textual_inversion.learn_schedule",
        "modules.textual_inversion.image_embedding", "modules.textual_inversion.saving_settings",
        "torch.utils.tensorboard",
    )  # fmt: skip
    inversion = importlib.import_module("modules.textual_inversion.textual_inversion")
    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        cutters = {}
        for kind, padding in (("sd1", "<|endoftext|>"), ("sd2", "!")):
            tokenizer = _tokenizer(Path(folder) / kind, padding)
            cutter = clip.FrozenCLIPEmbedderWithCustomWordsBase(types.SimpleNamespace(), types.SimpleNamespace())
            cutter.tokenize = lambda lines, t=tokenizer: t(lines, add_special_tokens=False)["input_ids"]
            cutter.comma_token = tokenizer.get_vocab()[",</w>"]
            cutter.id_start, cutter.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id
            cutter.id_pad = tokenizer.pad_token_id
            database = cutter.hijack.embedding_db = inversion.EmbeddingDatabase()
            for name, count in VECTORS.items():
                embedding = inversion.Embedding(None, name)
                embedding.vectors = count
                database.register_embedding(embedding, types.SimpleNamespace(cond_stage_model=cutter))
            cutters[kind] = cutter
        for prompt in A1111:
            _, parts, _ = parser.get_multicond_prompt_list([prompt])
            texts = {text: None for part in parts for _, text in prompts.schedules(parser, part)}
            case: dict[str, Any] = {"prompt": prompt, "chunks": {}}
            for text in texts:
                chunks, _ = cutters["sd1"].tokenize_line(text)
                sd2, _ = cutters["sd2"].tokenize_line(text)
                case["chunks"][text] = {
                    "sd1": [prompts.runs(chunk.tokens) for chunk in chunks],
                    "sd2": [prompts.runs(row) for row in prompts._after_padding(cutters["sd2"], sd2)],
                    "weights": [prompts.runs(chunk.multipliers) for chunk in chunks],
                    "fixes": [[[fix.offset, fix.embedding.name] for fix in chunk.fixes] for chunk in chunks],
                }
            recorded.append(case)
    _write("a1111", recorded)


def record_comfyui(checkout: Path) -> None:
    """Chunks of tokens and weights; a vector is recorded as its first number, which says whose it is."""
    import safetensors.numpy

    sys.path.insert(0, str(checkout))
    prompts._stand_ins("comfy.ops", "comfy.model_management", "comfy.clip_model", "comfy.utils", "comfy.text_encoders")
    clip = importlib.import_module("comfy.sd1_clip")
    numbers = numbered()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        for name, count in VECTORS.items():
            rows = [[numbers[name, row]] + [0.0] * 767 for row in range(count)]
            safetensors.numpy.save_file({"emb_params": np.array(rows, np.float32)}, where / f"{name}.safetensors")
        _tokenizer(where / "clip")
        tokenizer = clip.SDTokenizer(
            str(where / "clip"), embedding_directory=str(where), tokenizer_class=_transformers_tokenizer()
        )
        recorded = [
            {
                "prompt": prompt,
                "chunks": [
                    [
                        prompts.runs([t if isinstance(t, int) else -int(t[0]) for t, _ in chunk]),
                        prompts.runs([weight for _, weight in chunk]),
                    ]
                    for chunk in tokenizer.tokenize_with_weights(prompt)
                ],
            }
            for prompt in COMFYUI
        ]
    _write("comfyui", recorded)


def _transformers_tokenizer() -> Any:
    import transformers

    return transformers.CLIPTokenizer


def numbered() -> dict[tuple[str, int], int]:
    """A number above 0 for each vector of each embedding."""
    every = [(name, row) for name, count in VECTORS.items() for row in range(count)]
    return {vector: number for number, vector in enumerate(every, 1)}


# --- Encodings ---


def loaded(folder: Path, toy: toys.Toy) -> Any:
    """diffusers' pipeline of a toy, with embeddings."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(toys.write_toy(folder, toy))
    for name in NEW:
        learned = torch.from_numpy(vectors(name, toy.text_encoder.hidden_size))
        # A single vector as most trainers save it.
        pipeline.load_textual_inversion({name: learned[0] if len(learned) == 1 else learned}, token=name)
    return pipeline


def by_diffusers(pipeline: Any, prompt: str) -> np.ndarray:
    """The encoding of a prompt: (tokens, width)."""
    import torch

    with torch.no_grad():
        encoded, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    return encoded[0].numpy()


def record_diffusers() -> None:
    """Projected encodings of plain prompts."""
    _encode("diffusers", DIFFUSERS, lambda pipeline: lambda prompt: by_diffusers(pipeline, prompt))


def record_compel() -> None:
    """Projected encodings of Compel's prompts."""
    import compel

    def encoder(pipeline: Any) -> Any:
        manager = compel.DiffusersTextualInversionManager(pipeline)
        model = compel.Compel(pipeline.tokenizer, pipeline.text_encoder, textual_inversion_manager=manager)
        return lambda prompt: model(prompt)[0].numpy()

    _encode("compel", COMPEL, encoder)


def _encode(kind: str, cases: tuple[str, ...], encoder: Any) -> None:
    recorded = dict(np.load(ENCODED)) if ENCODED.exists() else {}
    recorded = {name: array for name, array in recorded.items() if not name.startswith(f"{kind}/")}
    with tempfile.TemporaryDirectory() as folder:
        for name, toy in TOYS.items():
            encode = encoder(loaded(Path(folder) / name, toy))
            for index, prompt in enumerate(cases):
                projected = encode(prompt).astype(np.float64) @ prompts.projection(toy.text_encoder.hidden_size)
                recorded[f"{kind}/{name}/{index}"] = projected.astype(np.float32)
    np.savez_compressed(ENCODED, **recorded)


# --- Files ---


def record_files() -> None:
    """The forms that torch pickles, with vectors of `cat-toy` and of `cat`, 8 numbers wide."""
    import torch

    several, one = torch.from_numpy(vectors("cat-toy", 8)), torch.from_numpy(vectors("cat", 8))
    told: Mapping[str, Any] = {"name": "cat-toy", "step": 500, "sd_checkpoint": None, "sd_checkpoint_name": None}
    FILES.mkdir(exist_ok=True)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": several}, **told}, FILES / "a1111.pt")
    # As the authors of the method save it.
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(several)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, FILES / "original.pt")
    torch.save({"<cat>": one[0]}, FILES / "diffusers.bin")
    torch.save({"<cat>": one[0].half()}, FILES / "older.bin", _use_new_zipfile_serialization=False)


def _write(kind: str, recorded: Any) -> None:
    """One case a line."""
    lines = [json.dumps(case, ensure_ascii=True) for case in recorded]
    (FOLDER / f"embeddings_{kind}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


def read(kind: str) -> Any:
    """What was recorded of token ids."""
    return json.loads((FOLDER / f"embeddings_{kind}.json").read_text("utf-8"))


def main(kind: str, checkout: str = "") -> None:
    """Records one kind."""
    recorders = {"diffusers": record_diffusers, "compel": record_compel, "files": record_files}
    if kind in recorders:
        recorders[kind]()
    else:
        {"a1111": record_a1111, "comfyui": record_comfyui}[kind](Path(checkout))


if __name__ == "__main__":
    main(*sys.argv[1:])
