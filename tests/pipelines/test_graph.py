"""The graph is as plain as can be, so that every runner runs it: its proto is read as runners get it."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2

from pipelines import generate, runners
from pipelines.config import settings
from pipelines.run import Run
from pipelines.transforms import identity
from sdjax.engine.fingerprint import EngineIdentity

# What Beam has pickled of its own: how `Create` was called. Elements are never in it, nor anything of a coder.
TRANSFORMS = {
    "beam:transform:pardo:v1",
    "beam:transform:group_by_key:v1",
    "beam:transform:flatten:v1",
    "beam:transform:impulse:v1",
    "beam:transform:combine_per_key:v1",
    "beam:transform:combine_grouped_values:v1",
    "beam:transform:generic_composite:v1",
    "beam:transform:pickled_python:v1",
    "",  # the root
}
CODERS = {
    "beam:coder:bytes:v1",
    "beam:coder:string_utf8:v1",
    "beam:coder:varint:v1",
    "beam:coder:kv:v1",
    "beam:coder:iterable:v1",
    "beam:coder:global_window:v1",
}
PAYLOAD_BYTES = 8192
# Settings of XLA and JAX that are in force are part of it: as many letters as a long command line.
IDENTITY = EngineIdentity("0" * 64, "1" * 64, "2" * 64, "12.0", (("jax", "0.9"), ("settings", "x" * 1000)))


@pytest.fixture(params=[1, 8, 1000])
def graph(request, tmp_path) -> Any:
    """The graph as runners get it, for so many workers."""
    keys = {"model": "emoji", "run.seed": 3, "negative_prompt": "blurred", "steps": 20}
    run = Run(settings.make(keys), str(tmp_path), str(tmp_path), "run", request.param, IDENTITY)
    root = runners.pipeline([])
    generate.build(root, ["prompts.txt", "more.csv"], run)
    return root.to_runner_api()


def test_the_graph_that_asks_for_the_identity_has_one_step_and_needs_nothing_of_a_runner(tmp_path):
    run = Run(settings.make({"model": "emoji"}), str(tmp_path), str(tmp_path), "run", 1)
    root = runners.pipeline([])
    identity.build(root, run)
    graph = root.to_runner_api()
    assert list(graph.requirements) == []
    steps = [each.unique_name for each in leaves(graph) if not each.unique_name.startswith("Start/")]
    assert steps == ["Identity"] and not grouped(graph)
    assert {each.spec.urn for each in graph.components.coders.values()} <= CODERS
    assert all(len(each.spec.payload) < PAYLOAD_BYTES for each in graph.components.transforms.values())


def leaves(graph: Any) -> list[Any]:
    """The transforms that have no parts."""
    return [each for each in graph.components.transforms.values() if not each.subtransforms]


def par_dos(graph: Any) -> Iterator[beam_runner_api_pb2.ParDoPayload]:
    for each in leaves(graph):
        if each.spec.urn == "beam:transform:pardo:v1":
            yield beam_runner_api_pb2.ParDoPayload.FromString(each.spec.payload)


def grouped(graph: Any) -> Mapping[str, tuple[str, str]]:
    """What is grouped by key: the coders of keys and values, by step."""
    found = {}
    for each in leaves(graph):
        if each.spec.urn == "beam:transform:group_by_key:v1":
            [source] = each.inputs.values()
            pair = graph.components.coders[graph.components.pcollections[source].coder_id]
            assert pair.spec.urn == "beam:coder:kv:v1"
            key, value = (graph.components.coders[name].spec.urn for name in pair.component_coder_ids)
            found[each.unique_name] = key, value
    return found


def test_it_requires_nothing_of_a_runner(graph):
    assert list(graph.requirements) == []
    for payload in par_dos(graph):
        assert not (payload.side_inputs or payload.state_specs or payload.timer_family_specs)
        assert not (payload.requests_finalization or payload.requires_time_sorted_input or payload.restriction_coder_id)


def test_it_has_one_end_and_no_step_has_two_outputs(graph):
    assert all(len(each.outputs) <= 1 for each in leaves(graph))
    read = {name for each in leaves(graph) for name in each.inputs.values()}
    ends = [each for each in leaves(graph) if not read & set(each.outputs.values())]
    assert [end.unique_name for end in ends] == ["Manifest/Finish"]


def test_its_transforms_and_coders_are_standard_ones(graph):
    assert {each.spec.urn for each in graph.components.transforms.values()} <= TRANSFORMS
    assert {each.spec.urn for each in graph.components.coders.values()} <= CODERS


def test_only_create_is_a_pickled_transform(graph):
    pickled = {
        each.unique_name
        for each in graph.components.transforms.values()
        if each.spec.urn == "beam:transform:pickled_python:v1"
    }
    assert pickled == {"Start", "Start/MaybeReshuffle"}


def test_what_is_grouped_are_texts_and_the_bytes_of_elements_or_numbers(graph):
    for step, (key, value) in grouped(graph).items():
        assert key == "beam:coder:string_utf8:v1", step
        assert value == ("beam:coder:varint:v1" if "/Sum/" in step else "beam:coder:bytes:v1"), step
    assert len(grouped(graph)) == 10


def test_its_payloads_are_small(graph):
    for name, each in graph.components.transforms.items():
        assert len(each.spec.payload) < PAYLOAD_BYTES, name
    for name, each in graph.components.coders.items():
        assert len(each.spec.payload) == 0, name


def test_its_functions_are_those_of_modules_and_their_arguments_small(graph):
    """One that is pickled by value would bring all that it closes over, in the form of one version of Python."""
    called: set[str] = set()
    for payload in par_dos(graph):
        _, arguments, *_ = pickler.loads(payload.do_fn.payload)
        for function in filter(callable, arguments):
            assert getattr(sys.modules[function.__module__], function.__name__) is function
            called.add(function.__name__)
        for others in arguments[1:]:
            assert all(isinstance(each, Run | type | int) for each in others)
    assert {"read", "plan_rows", "existing", "missing", "ranks", "sampled", "write_part", "_finish"} <= called
