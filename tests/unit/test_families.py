"""Every family is whole: its components, their graphs and what they are made of agree, and jobs can be given them by value."""

import importlib.util
import itertools
import json
import shutil
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from axbake import families
from axbake.checkpoints.finding import _fits
from axbake.drawing.schedule import PREDICTION_TYPES, SCHEDULERS
from axbake.families import FAMILIES
from axbake.graphs.programs import PROGRAMS
from axbake.jobs.values import decode, encode
from axbake.networks.component import DENOISER, ROLES, TEXT, address, addresses, as_files
from axbake.networks.sampling import Flow
from axbake.runtime.values import Conditioning
from axbake.table import read_schema
from axbake.weights.files import read_description
from tests.unit.conftest import every_family

ROOT = Path(__file__).parents[2]
COLUMNS = read_schema(ROOT / "workflow" / "schemas" / "models.schema.yaml")["properties"]
#: Cells that graphs may depend on, each with several values
ROWS = {"height": [64, 128], "width": [128, 256], "prompt_chunks": [1, 3], "program": list(PROGRAMS)}
EVERY_COMPONENT = [
    pytest.param(name, component, id=f"{name}-{component.name}")
    for name, family in FAMILIES.items()
    for component in family.components
]


def rows_of(component):
    """Every combination of `ROWS` in the columns of *component*."""
    values = itertools.product(*(ROWS[column] for column in component.columns))
    return [dict(zip(component.columns, row, strict=True)) for row in values]


@every_family
def test_a_family_has_one_denoiser_and_both_halves_of_an_autoencoder(family):
    family = FAMILIES[family]
    roles = [component.role for component in family.components]

    assert roles == sorted(roles, key=ROLES.index) and set(roles) == set(ROLES)
    assert [roles.count(role) for role in ROLES if role != TEXT] == [1, 1, 1]
    assert family.denoiser.role == DENOISER
    assert [half.role for half in family.autoencoder] == ["encoder", "decoder"]


@every_family
def test_names_are_unique_and_can_stand_in_paths(family):
    family = FAMILIES[family]
    graphs = [graph for component in family.components for graph in addresses(component)]

    assert FAMILIES[family.name] is family
    assert len(set(family.names)) == len(family.names)
    assert len(set(graphs)) == len(graphs)
    for name in [family.name, *family.names, *(part for graph in graphs for part in graph.split("/"))]:
        assert name.isascii() and name.replace("_", "").isalnum(), name
    assert [family.component(name).name for name in family.names] == list(family.names)


@every_family
def test_conditioning_names_all_text_encoders(family):
    family = FAMILIES[family]
    texts = [component.name for component in family.components if component.role == TEXT]

    assert sorted(family.conditioning.encoders) == sorted(texts)
    assert [component.name for component in family.text_encoders] == list(family.conditioning.encoders)


@every_family
def test_what_a_family_draws_with_is_known(family):
    process = FAMILIES[family].process

    assert process.prediction_type in (None, *PREDICTION_TYPES, Flow().prediction_type)
    assert set(process.schedulers) <= set(SCHEDULERS)
    assert set(FAMILIES[family].specification) in (set(), set(PREDICTION_TYPES))
    for folder in FAMILIES[family].resources:
        assert (ROOT / folder).is_dir(), folder


@pytest.mark.parametrize(("family", "component"), EVERY_COMPONENT)
def test_a_component_has_what_its_role_is_asked_for(family, component):
    assert component.example
    assert (component.width is not None) == (component.role in (TEXT, DENOISER))
    assert (component.rows is not None) == (component.with_rows is not None) == (component.role == DENOISER)
    assert set(component.columns) <= set(COLUMNS) & set(ROWS)
    assert component.files.averaged <= (component.role == DENOISER)


@pytest.mark.parametrize(("family", "component"), EVERY_COMPONENT)
def test_types_of_a_graphs_inputs_are_those_of_its_interface(family, component, model_of):
    config = read_description(model_of(family).weights[component.name]).config
    rows = rows_of(component)

    assert component.graphs and rows
    for row in rows:
        given: set[str] = set()
        for piece in component.graphs:
            face = piece.interface(config, **row)
            types = {name: tensor.dtype for name, tensor in face.inputs.items()}
            if not component.host:
                assert list(piece.inputs(**row).items()) == list(types.items())  # in order: programs count on it
            assert len(set(face.outputs)) == len(face.outputs) > 0
            assert not given & set(face.outputs)
            for name, tensor in face.inputs.items():
                assert tensor.shape and all(type(side) is int and side > 0 for side in tensor.shape), name
            given |= set(face.outputs)


@pytest.mark.parametrize(("family", "component"), EVERY_COMPONENT)
def test_a_graph_depends_on_the_columns_that_its_component_says_and_on_no_others(family, component, model_of):
    config = read_description(model_of(family).weights[component.name]).config
    faces = [[str(piece.interface(config, **row)) for piece in component.graphs] for row in rows_of(component)]

    for column in component.columns:
        others = [name for name in component.columns if name != column]
        alike: dict[str, set[str]] = {}
        for row, face in zip(rows_of(component), faces, strict=True):
            alike.setdefault(str([row[name] for name in others]), set()).add(str(face))
        assert any(len(found) > 1 for found in alike.values()), f"{column} changes nothing"
        with pytest.raises(TypeError):
            component.graphs[0].interface(config, **{name: rows_of(component)[0][name] for name in others})


@every_family
def test_text_encoders_give_as_many_channels_as_the_denoiser_takes(family, model_of):
    model = model_of(family)
    widths = {
        component.name: component.width(read_description(model.weights[component.name]).config)
        for component in model.family.components
        if component.width
    }
    wanted = widths.pop(model.family.denoiser.name)

    how = model.family.conditioning
    if how.conditioner:
        widths = {how.conditioner: widths[how.conditioner]}
    if how.joined == "language":
        widths = {name: width for name, width in widths.items() if model.family.component(name).language}
    behind = [name for name in widths if len(widths) > 1 and model.family.component(name).language]
    assert all(widths.pop(name) == wanted for name in behind)  # tokens of their own
    told = how.width or sum(widths.values())  # filled up with zeros
    assert sum(widths.values()) <= told == wanted


def test_a_denoiser_is_of_one_family_alone(model_of):
    for name in FAMILIES:
        model = model_of(name)
        network = model.networks.component(model.family.denoiser.name)
        shapes = {key: tuple(t.shape) for key, t in network.state_dict().items()}

        # With T5 or without, a transformer is the same.
        fitting = [other for other, family in FAMILIES.items() if _fits(family.fits, shapes)]
        assert {other.removesuffix("_t5") for other in fitting} == {name.removesuffix("_t5")}


def callables_of(value: Any, place: str):
    """Every function in *value*, with where it stands."""
    if is_dataclass(value):
        for field in fields(value):
            yield from callables_of(getattr(value, field.name), f"{place}.{field.name}")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from callables_of(item, f"{place}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from callables_of(item, f"{place}[{name}]")
    elif callable(value):
        yield place, value


@every_family
def test_every_function_is_one_that_its_name_finds_again(family):
    found = list(callables_of(FAMILIES[family], family))

    assert len(found) > 20
    for place, function in found:
        module = sys.modules[function.__module__]
        assert getattr(module, function.__qualname__, None) is function, place
        assert function.__module__.startswith("axbake."), place  # or else no code of it would be in a job's key


@every_family
def test_a_job_gets_back_what_it_is_given_of_a_family(family):
    family = FAMILIES[family]
    values = [*family.components, *map(as_files, family.components), family.latents, family.conditioning]

    for value in [*values, family.process, family]:
        encoded = json.loads(json.dumps(encode(value)[0]))
        assert decode(encoded) == value
        assert encode(decode(encoded))[0] == encoded
    named = set(encode(family)[1])
    assert {f"{function.__module__}.{function.__qualname__}" for _, function in callables_of(family, "")} <= named


def test_a_component_for_an_import_has_nothing_of_its_graphs():
    for family in FAMILIES.values():
        for component in family.components:
            files = as_files(component)

            assert (files.name, files.role, files.files, files.build) == (
                component.name,
                component.role,
                component.files,
                component.build,
            )
            graphs = {f"{piece.cut.__module__}.{piece.cut.__qualname__}" for piece in component.graphs}
            assert not graphs & set(encode(files)[1])


def test_a_component_of_one_graph_has_its_name_and_of_several_a_directory():
    single = FAMILIES["sd1"].component("unet")
    (piece,) = single.graphs
    several = replace(single, graphs=(replace(piece, name="down"), replace(piece, name="up")))

    assert addresses(single) == ["unet"]
    assert addresses(several) == ["unet/down", "unet/up"]
    assert address(several, several.graphs[1]) == "unet/up"


def test_text_encoders_come_in_the_order_in_which_they_are_joined():
    family = FAMILIES["sd1"]
    first = family.component("text_encoder")
    second = replace(first, name="text_encoder_2")
    both = replace(
        family,
        components=(first, second, *family.components[1:]),
        conditioning=Conditioning(("text_encoder_2", "text_encoder")),
    )

    assert both.text_encoders == (second, first)
    with pytest.raises(ValueError):
        both.of_role(TEXT)  # there are two


DROPPED = '''
"""A family that somebody adds."""
from dataclasses import replace
from axbake.families import sd1
FAMILY = replace(sd1.FAMILY, name="dropped", title="Dropped in")
'''


def loaded(folder: Path, name: str) -> ModuleType:
    """The package in *folder*, under another name than the one that is there."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_file_that_is_dropped_in_is_a_family(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "modules", dict(sys.modules))  # what is loaded here is gone afterwards
    copy = shutil.copytree(Path(families.__file__).parent, tmp_path / "families")
    known = loaded(copy, "families_as_they_are").FAMILIES
    (copy / "dropped.py").write_text(DROPPED)
    (copy / "helper.py").write_text("NOTHING = 0\n")

    found = loaded(copy, "families_with_another").FAMILIES

    assert set(known) == set(FAMILIES)
    assert set(found) - set(known) == {"dropped"}
    assert found["dropped"].title == "Dropped in"
    assert found["dropped"].components == FAMILIES["sd1"].components
