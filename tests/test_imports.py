"""Dependencies point one way, and the library runs where Beam is not installed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A part imports itself and what is below it, and nothing beside it. A module that stands elsewhere
# than the rest of its folder is named in full.
LAYERS = (
    {"sdjax.messages", "sdjax.version", "sdjax.extensions"},
    {"sdjax.storage"},
    {
        "sdjax.models",
        "sdjax.assets",
        "sdjax.checkpoints.name_table",
        "sdjax.engine.device",
        "sdjax.engine.xla_settings",
        "sdjax.library.finding",
    },
    {"sdjax.library.folder", "sdjax.library.store"},
    {"sdjax.diffusion"},
    {"sdjax.text", "sdjax.images"},
    {"sdjax.families"},
    {"sdjax.checkpoints"},
    {"sdjax.adapters"},
    {"sdjax.jobs"},
    {"sdjax.library"},
    {"sdjax.model"},
    {"sdjax.upscaling"},
    {"sdjax.engine"},
    {"sdjax.api"},
    {"sdjax"},
    {"sdjax.training"},
    {"pipelines"},
)
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# What the library is built on, by the names under which it is imported.
LIBRARY = {
    "PIL", "cachetools", "flax", "huggingface_hub", "jax", "jaxlib", "jaxtyping", "numpy", "regex", "safetensors",
    "transformers", "yaml",
}  # fmt: skip
TRAINING = LIBRARY | {"optax", "rich", "scipy"}
# What one module takes besides, imported where it is used.
OWN = {"sdjax.storage.remote": {"apache_beam"}}
NOT_NEEDED = ("apache_beam", "pyarrow", "torch")

FORBIDDEN_NAMES = re.compile(r"(?<![a-z])(utils?|helpers?|common|misc|managers?)(?![a-z])")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources("sdjax", "pipelines")}


def imported(path: Path) -> Iterator[str]:
    """The modules which a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def part_of(module: str) -> str:
    """The part of the layout to which a module of ours belongs."""
    if module in RANKS:
        return module
    return "pipelines" if module.split(".")[0] == "pipelines" else ".".join(module.split(".")[:2])


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("sdjax", "pipelines")


EVERY_MODULE = pytest.mark.parametrize("module", MODULES)


@EVERY_MODULE
def test_imports_point_down(module):
    part = part_of(module)
    assert part in RANKS, f"{part} is new: give it a place in LAYERS"
    for other in map(part_of, filter(is_ours, imported(MODULES[module]))):
        assert other == part or RANKS[other] < RANKS[part], f"{module} imports {other}, which does not stand below it"


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) != "pipelines"])
def test_the_library_stands_on_few_packages(module):
    allowed = TRAINING if part_of(module) == "sdjax.training" else LIBRARY
    others = {name.split(".")[0] for name in imported(MODULES[module]) if not is_ours(name)}
    assert others - sys.stdlib_module_names <= allowed | OWN.get(module, set())


@EVERY_MODULE
def test_nothing_needs_torch(module):
    assert not {name.split(".")[0] for name in imported(MODULES[module])} & {"torch", "diffusers", "torchvision"}


def test_the_library_imports_where_beam_and_its_company_are_not_installed():
    program = f"""
import sys

sys.modules |= dict.fromkeys({NOT_NEEDED!r})  # None there is a package that is not installed
import sdjax
assert sdjax.load and sdjax.generate and sdjax.Job
from sdjax import storage
assert storage.open_store("/").path("x") == "/x" and not storage.exists("/none")
print(sorted(name for name in {NOT_NEEDED!r} if sys.modules[name]), "pipelines" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "[] False"


def test_files_and_folders_are_named_after_what_is_in_them():
    named = [str(path.relative_to(ROOT)) for path in sources("sdjax", "pipelines", "tests", "configs", "docs")]
    assert named
    assert [name for name in named if FORBIDDEN_NAMES.search(name)] == []
