"""Live comparison of LoRA and its family with lycoris, peft and diffusers."""

from pathlib import Path
from typing import NamedTuple

import pytest

from sdjax.adapters.lora import Lora
from tests.golden import adapters, networks
from tests.golden.adapters import CASES, Arrays

pytestmark = pytest.mark.parity

reference = pytest.importorskip(
    "tests.golden.adapter_reference", reason="needs torch: make parity", exc_type=ImportError
)
EVERY_MODULE = ("lora and locon", "loha by tucker, dora", "peft", "diffusers without alpha")
# Not of DoRA: diffusers leaves its scales out, with a warning.
FILES_OF_KOHYA = ("lora and locon",)


class Compared(NamedTuple):
    """What the other library has: parameters and outputs; and sdjax."""

    theirs: tuple[Arrays, Arrays]
    ours: tuple[Arrays, Arrays]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    """Each case with a module of each sort; some with every module; and kohya's files as diffusers loads them."""
    wanted: dict[str, tuple[adapters.Case, Lora, tuple[Arrays, Arrays]]] = {}

    def add(name: str, case: adapters.Case, file: Path, theirs: tuple[Arrays, Arrays]) -> None:
        wanted[name] = (case, adapters.read(case, file), theirs)

    for name, case in CASES.items():
        file, *theirs = reference.made(case, tmp_path_factory.mktemp("some"))
        add(name, case, file, (theirs[0], theirs[1]))
        if name in FILES_OF_KOHYA:
            add(f"{name}, by diffusers", case, file, reference.loaded_by_diffusers(case, file))
    for name in EVERY_MODULE:
        file, *theirs = reference.made(CASES[name], tmp_path_factory.mktemp("every"), every_module=True)
        add(f"{name}, every module", CASES[name], file, (theirs[0], theirs[1]))
    leaves = adapters.changed_by([(case, lora) for case, lora, _ in wanted.values()])
    return {
        name: Compared(theirs, adapters.given(case, each))
        for (name, (case, _, theirs)), each in zip(wanted.items(), leaves, strict=True)
    }


@pytest.mark.parametrize(
    "name",
    [
        *CASES,
        *(f"{name}, by diffusers" for name in FILES_OF_KOHYA),
        *(f"{name}, every module" for name in EVERY_MODULE),
    ],
)
def test_parameters_and_outputs(name: str, compared: dict[str, Compared]) -> None:
    theirs, ours = compared[name]
    tolerances = (adapters.WEIGHTS_TOLERANCE, adapters.OUTPUTS_TOLERANCE)
    for kind, given, wanted, tolerance in zip(("parameters", "outputs"), ours, theirs, tolerances, strict=True):
        assert given.keys() == wanted.keys()
        worst = max(networks.relative_error(given[key], wanted[key]) for key in given)
        print(f"\n{name}: {len(given)} {kind}, at worst {worst:.1e}")
        assert worst < tolerance


@pytest.mark.parametrize("name", CASES)
def test_recordings_are_what_the_libraries_make_now(name: str, compared: dict[str, Compared]) -> None:
    recorded = adapters.recorded()[name]
    merged, outputs = (adapters.sampled(arrays) for arrays in compared[name].theirs)
    assert networks.relative_error(merged, recorded.merged) < adapters.RECORDED_WEIGHTS_TOLERANCE
    assert networks.relative_error(outputs, recorded.outputs) < adapters.OUTPUTS_TOLERANCE
