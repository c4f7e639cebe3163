"""Records how the programs that made the prompt syntaxes read prompts. Needs the environment of `make parity`.

    python -m tests.golden.prompts a1111 CHECKOUT     a checkout of AUTOMATIC1111's web UI, and the package lark 1.1.2
    python -m tests.golden.prompts comfyui CHECKOUT   a checkout of ComfyUI
    python -m tests.golden.prompts compel             the package compel 2.5.1

The first two run the checkouts' own `modules/prompt_parser.py`, `modules/sd_hijack_clip.py` and `comfy/sd1_clip.py`;
what these import beside them has no part in reading prompts, and is replaced by empty modules.
"""

import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.text.vocabulary import clip_vocabulary, write_tokenizer

FOLDER = Path(__file__).parent
STEPS = 10

# The examples of the web UI's own documentation come first.
A1111 = (
    "test", "a [b:3]", "a [b: 3]", "a [[[b]]:2]", "[(a:2):3]", "a [b : c : 1] d", "a[b:[c:d:2]:1]e",
    "a [unbalanced", "a [b:.5] c", "a [{b|d{:.5] c", "((a][:b:c [d:3]", "[a|(b:1.1)]", "[fe|]male", "[fe|||]male",
    "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
    "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]",
    "normal text", "an (important) word", "(unbalanced", r"\(literal\]", "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    # Weights.
    "", " ", "()", "[]", "(a)", "[a]", "((a))", "[[a]]", "([a])", "(a:0)", "(a:-1)", "(a: 1.5 )", "(a:1.)",
    "(a:.5)", "(a:b)", "(a:b:1.2)", "(a:1.2) : b", "a:1.2)", "a) b] (c", "(a [b) c] d", r"\\(a)", r"a\b (c\)d)",
    r"(a\:1.2)", "(a, (b, (c:1.2)), d:0.8)", "(cat:1)", "((cat):1.0)", "[cat:1.2)", "(猫, détail:1.3) 🐈",
    "a\tb\n(c\nd:1.1)\r\n", "(a:\u0661.\u0662)",
    # Steps.
    "[a:b:0]", "[a:b:-1]", "[a:b:10]", "[a:b:11]", "[a:b:1.0]", "[a:b:0.05]", "[a:b:1e0]", "[a:b:+2]",
    "[a:b:1.e-1]", "[a:5]", "[:a:5]", "[a::5]", "[:5]", "[::5]", "[|]", "[|a]", "[a|b|[c|d]]", "[[a|b]:[c|d]:4]",
    "([a|b]:1.2)", "[(a|b):5]", "[a|b:5]", "[a:b:c:5]", "[a:b:x]", "a|b [c:5]", "a | b", "[a:5]\\", r"[a\:b:5]",
    r"[a\|b|c]", r"\[a:b:5\]", "[a:b:5", "a:b:5]", "[ a : 0.3 ]", "[a:5 ]", "[a:1.5.2]", "[a (b:1.3):c:5]",
    "[(a b:c (d):5] e)", "[a\n:b\n:5\n]", "[a:(b:c:1.2):5]",
    # Parts.
    "a AND b", "a :1.2 AND b:-0.5 AND c", "aANDb", "AND", " AND b", "a AND", "a AND AND b", "a AND a", "12:30",
    "a:2:1", "(a AND b)", "[a AND b:5]", "a\nAND\nb : .5\n", "a AND b :1e3", "a:", ":2", "and AND And",
    "[a:b:5] AND [c|d] :0.7", "a : 1. ",
    # Chunks.
    "BREAK", "a BREAK b", "a BREAK", "BREAK a", "a BREAK BREAK b", "a, BREAK , b", "aBREAKb", "(a BREAK b)",
    "(a BREAK b:1)", "((BREAK:-1):-1) a", "(a) BREAK (b:1.2) BREAK [c]", "[a:b BREAK c:5]",
    "[cat:" + "dog, " * 50 + ":5]", r"\BREAK a", "[a:" + "dog " * 80 + ":10]", " ".join(["cat"] * 75),
    " ".join(["cat"] * 76), ", ".join(["cat"] * 38), ", ".join(["cat"] * 120), "cat, " + " ".join(["dog"] * 80),
    " ".join(["cat"] * 54) + ", " + " ".join(["dog"] * 40), " ".join(["cat"] * 55) + ", " + " ".join(["dog"] * 40),
    " ".join(["cat"] * 56) + ", " + " ".join(["dog"] * 40), " ".join(["cat"] * 74) + ", dog",
    " ".join(["cat"] * 75) + ", dog, cat",
    "(" + ", ".join(["red cat"] * 40) + ":1.2), " + ", ".join(["blue dog"] * 20),
    " ".join(["cat"] * 70) + " BREAK " + " ".join(["dog"] * 76), ",,,, " * 30, "cat <|endoftext|> dog",
    "masterpiece, best quality, (ultra-detailed:1.2), 8k uhd, [blurry], a red fox in the snow",
)  # fmt: skip

COMFYUI = (
    "", " ", "a cat", "(a)", "((a))", "(a:1.3)", "((a:1.3))", "((a) b:1.3)", "(a (b:0.5) c)", "(a:b)", "(a:b:1.2)",
    "(:1.2)", "()", "(a:)", "(a: 1.2 )", "(a:1e-1)", "(a", "a)", "((a)", "(a))", "(((a) b)", ") (a) (b)", r"\(a\)",
    r"(a\):1.2)", "[a]", "(a:0)", "(a:-1)", "a:1.2", "a (b:1.1) c (d:0.9), e", "a\nb", "a BREAK b",
    "(" + "cat " * 80 + ":1.2) dog", " ".join(["cat"] * 75), " ".join(["cat"] * 76),
    " ".join(["cat"] * 73) + " (red dog apple:1.1) b", " ".join(["cat"] * 73) + " (" + "dog " * 8 + ":1.1) b",
)  # fmt: skip

COMPEL = (
    "", "a red cat", "a cat, a dog", "a cat,a dog", "cat++", "a cat+ on a (red dog)1.3", "(a cat)++ and dog-",
    "(a (red)+ cat)1.2 dog", '"a red cat"++ dog', "cat.attend(1.4) dog", "(a cat).attend(++)", r"a \(red\) cat",
    "sci-fi cat", "a+b cat", "(cat)-- dog", "(red)0.5 cat", "a (red)0 cat (blue dog)0.3", "(a cat)0.7++ dog",
    "cat (dog)-0.5", '("a red cat", "a blue dog").blend(1, 1)', '("a red cat", "a blue dog").blend(0.7, 0.3)',
    '("a red++ cat", "a (blue)0.6 dog").blend(1, 0.5)', '("a cat", "a dog").blend(1, -0.4, no_normalize)',
    '("a cat", "a dog", "an apple").blend()', '("a red cat", "a dog").and()', '("a red cat", "a dog").and(1, 0.6)',
    '("a (red)0.5 cat", "a dog++", "(blue)0.3 (apple)0.8").and(1.2, 1, 0.5)', "(cat, dog).and(1, 2)",
    "(cat, dog).blend(2, 1)", "cat.swap(dog) on a castle", "hello(world)++", "(a = b)1.2", "a (cat", '"a (cat"+',
    "cat ++", "cat+, dog-.", " ".join(["cat"] * 80), "a " * 70 + "(red dog)0.5 (apple on an apple)0.4 cat",
    "(" + "a " * 80 + ")0.5",
)  # fmt: skip


def padded_like(folder: Path, padding: str) -> Path:
    """CLIP's tokenizer, padded as SD1's (the end token) or SD2's ("!")."""
    write_tokenizer(folder, clip_vocabulary(), 77, padding)
    return folder


def runs(values: list[Any]) -> list[Any]:
    """Runs of equal values, as [value, how many]."""
    return [[value, len(list(run))] for value, run in itertools.groupby(values)]


def spread(recorded: list[Any]) -> tuple[Any, ...]:
    """What `runs` was made of."""
    return tuple(value for value, count in recorded for _ in range(count))


def projection(width: int) -> np.ndarray:
    """Three numbers of each embedding are recorded: (width, 3)."""
    return np.random.RandomState(0).standard_normal((width, 3)) / np.sqrt(width)


def read(name: str) -> Any:
    """What was recorded."""
    return json.loads((FOLDER / f"prompts_{name}.json").read_text("utf-8"))


def write(name: str, recorded: Any) -> None:
    """One case a line."""
    lines = [json.dumps(case, ensure_ascii=True) for case in recorded]
    (FOLDER / f"prompts_{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")


class _Nothing(types.ModuleType):
    """A module with any name in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(f"{self.__name__}.{name}")


def _stand_ins(*names: str) -> None:
    for name in names:
        sys.modules[name] = _Nothing(name)


def _a1111_modules(checkout: Path) -> tuple[Any, Any]:
    sys.path.insert(0, str(checkout))
    _stand_ins("modules.devices", "modules.sd_hijack", "modules.sd_emphasis", "modules.shared")
    options = types.SimpleNamespace(emphasis="Original", comma_padding_backtrack=20)
    sys.modules["modules.shared"].opts = options
    return importlib.import_module("modules.prompt_parser"), importlib.import_module("modules.sd_hijack_clip")


def schedules(parser: Any, text: str) -> Any:
    """The web UI's schedule of one part."""
    return parser.get_learned_conditioning_prompt_schedules([text], STEPS)[0]


def record_a1111(checkout: Path) -> None:
    """Parts, schedules, spans and chunks.

    Where brackets are unbalanced, the web UI's parser decides by the order of sets, so by Python's hash seed; all that
    it gives for eight seeds is recorded.
    """
    import transformers

    parser, clip = _a1111_modules(checkout)
    texts = [[prompt, *(parser.get_multicond_prompt_list([prompt])[1])] for prompt in A1111]
    flat = sorted({text for row in texts for text in row})
    seen: dict[str, list[Any]] = {text: [] for text in flat}
    for seed in range(8):
        result = subprocess.run(
            [sys.executable, "-m", "tests.golden.prompts", "schedules", str(checkout)],
            input=json.dumps(flat), capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )  # fmt: skip
        for text, schedule in zip(flat, json.loads(result.stdout), strict=True):
            if schedule not in seen[text]:
                seen[text].append(schedule)

    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        cutters = {}
        for name, padding in (("sd1", "<|endoftext|>"), ("sd2", "!")):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(padded_like(Path(folder) / name, padding))
            cutter = clip.FrozenCLIPEmbedderWithCustomWordsBase(types.SimpleNamespace(), _Nothing("hijack"))
            cutter.hijack.embedding_db = types.SimpleNamespace(find_embedding_at_position=lambda *_: (None, None))
            cutter.tokenize = lambda lines, t=tokenizer: t(lines, add_special_tokens=False)["input_ids"]
            cutter.comma_token = tokenizer.get_vocab()[",</w>"]
            cutter.id_start, cutter.id_end = tokenizer.bos_token_id, tokenizer.eos_token_id
            cutter.id_pad = tokenizer.pad_token_id
            cutter.encode_with_transformers = lambda tokens: tokens
            cutters[name] = cutter
        for prompt in A1111:
            indices, parts, _ = parser.get_multicond_prompt_list([prompt])
            case: dict[str, Any] = {"prompt": prompt, "negative": seen[prompt], "parts": []}
            for index, weight in indices[0]:
                case["parts"].append({"text": parts[index], "weight": weight, "schedules": seen[parts[index]]})
            found = [*case["negative"], *(found for part in case["parts"] for found in part["schedules"])]
            resolved = {text for schedule in found for _, text in schedule}
            case["spans"] = {text: parser.parse_prompt_attention(text) for text in sorted(resolved)}
            case["chunks"] = {}
            for text in sorted(resolved):
                chunks, _ = cutters["sd1"].tokenize_line(text)
                sd2, _ = cutters["sd2"].tokenize_line(text)
                case["chunks"][text] = {
                    "sd1": [runs(chunk.tokens) for chunk in chunks],
                    "sd2": [runs(row) for row in _after_padding(cutters["sd2"], sd2)],
                    "weights": [runs(chunk.multipliers) for chunk in chunks],
                }
            recorded.append(case)
    write("a1111", recorded)


def _after_padding(cutter: Any, chunks: list[Any]) -> list[list[int]]:
    """The ids which the text encoder sees: they are replaced inside `process_tokens`."""
    seen: list[Any] = []

    def keep(tokens: Any) -> Any:
        seen.extend(tokens.tolist())
        raise InterruptedError  # what follows has to do with embeddings

    cutter.encode_with_transformers = keep
    with contextlib.suppress(InterruptedError):
        cutter.process_tokens([list(chunk.tokens) for chunk in chunks], [chunk.multipliers for chunk in chunks])
    return seen


def record_comfyui(checkout: Path) -> None:
    """Chunks of tokens and weights."""
    import transformers

    sys.path.insert(0, str(checkout))
    _stand_ins("comfy.ops", "comfy.model_management", "comfy.clip_model", "comfy.utils", "comfy.text_encoders")
    clip = importlib.import_module("comfy.sd1_clip")
    with tempfile.TemporaryDirectory() as folder:
        where = str(padded_like(Path(folder), "<|endoftext|>"))
        tokenizer = clip.SDTokenizer(where, tokenizer_class=transformers.CLIPTokenizer)
        recorded = [
            {
                "prompt": prompt,
                "chunks": [
                    [runs([token for token, _ in chunk]), runs([weight for _, weight in chunk])]
                    for chunk in tokenizer.tokenize_with_weights(prompt)
                ],
            }
            for prompt in COMFYUI
        ]
    write("comfyui", recorded)


def record_compel() -> None:
    """Projected embeddings of the toys' text encoders."""
    import compel
    import transformers

    from tests import toys

    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        for name, toy in (("sd1", toys.SD1), ("sd2", toys.SD2)):
            where = toys.write_toy(Path(folder) / name, toy)
            model = compel.Compel(
                transformers.CLIPTokenizer.from_pretrained(where / "tokenizer"),
                transformers.CLIPTextModel.from_pretrained(where / "text_encoder"),
            )
            for prompt in COMPEL:
                embeddings = model(prompt)[0].double().numpy() @ projection(toy.text_encoder.hidden_size)
                recorded.append({"toy": name, "prompt": prompt, "embeddings": np.round(embeddings, 6).tolist()})
    write("compel", recorded)


def main(syntax: str, checkout: str = "") -> None:
    """Records one syntax."""
    if syntax == "schedules":  # a part of the first, in a process of its own
        parser, _ = _a1111_modules(Path(checkout))
        print(json.dumps([schedules(parser, text) for text in json.loads(sys.stdin.read())]))
    elif syntax == "a1111":
        record_a1111(Path(checkout))
    elif syntax == "comfyui":
        record_comfyui(Path(checkout))
    else:
        record_compel()


if __name__ == "__main__":
    main(*sys.argv[1:])
