"""What belongs together is together: rules and scripts, schemas and config, pins and lock, the runtime and what it may import."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from axbake.drawing.schedule import SCHEDULERS
from axbake.families import FAMILIES
from axbake.jobs.identity import files_of, names_of
from axbake.networks.component import ROLES
from axbake.runtime.txt2img import SAMPLERS
from tests.rules import Planned, plan_all
from tests.unit import depends

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
DECISIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.If, ast.IfExp, ast.For, ast.While)
DECISIONS += (ast.Try, ast.Match, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
RUNTIME_MAY_IMPORT = {"numpy", "PIL", "tokenizers", "onnxruntime", "axengine", *sys.stdlib_module_names}
SERVER_MAY_IMPORT = {"starlette", "uvicorn"}
# Rules that are not named after one of the functions that they call
NAMED_OTHERWISE = {"import": "import_denoiser", "calibrate_vae": "calibrate_decoder", "emulate_model": "compile_model"}
# Inputs that no function reads; they only have to be there.
GATES = {"simulate": {"verdict"}, "benchmark_board": {"board"}, "serve_board": {"board"}}
# Modules that know Snakemake: the planner asks it for a dry run, the screen shows what its logger gives.
KNOW_SNAKEMAKE = ("plan.py", "jobs/terminal.py")
LONG = 120  # minutes; the profile of a cluster sends jobs that take more to another partition


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Planned:
    return plan_all(tmp_path_factory.mktemp("planned") / "project")


def without_family(rule: str) -> str:
    """Name of a rule that each family has one of, without the family's."""
    return re.sub(rf"_(of_)?({'|'.join(FAMILIES)})$", "", rule)


def schema(name):
    return yaml.safe_load((ROOT / "workflow" / "schemas" / f"{name}.schema.yaml").read_text())


def test_every_rule_of_the_files_is_read_and_takes_part_in_the_dry_run(planned):
    texts = [path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    written = {name for text in texts for name in re.findall(r"^rule (\w+):", text, re.MULTILINE)}
    generated = {name for text in texts for name in re.findall(r'^ +f"(\w+)_\{family.name}"$', text, re.MULTILINE)}

    assert len(planned.rules) >= 24
    assert written | {f"{name}_sd1" for name in generated} | {"emulate_model"} == set(planned.rules)
    assert {job.rule for job in planned.steps} == set(planned.rules)


def test_every_rule_says_what_it_does_and_keeps_a_log(planned):
    for name, rule in planned.rules.items():
        assert re.fullmatch(r".+\.", rule.docstring or ""), name
        assert rule.log and rule.message and rule.output, name
        assert not rule.params, name
        assert rule.script == "../scripts/job.py", name
        assert Path(rule.snakefile).parent.joinpath(rule.conda_env).is_file(), name


def test_every_rule_is_named_after_a_function_that_it_calls(planned):
    for job, steps in planned.steps.items():
        name = without_family(job.rule)
        assert NAMED_OTHERWISE.get(name, name) in [step.function.rpartition(".")[2] for step in steps]


def test_no_two_jobs_share_a_settings_file_and_each_lies_under_its_rules_name(planned):
    assert max(Counter(job.settings for job in planned.steps).values()) == 1
    for job in planned.steps:
        assert job.settings.parts[3] in (without_family(job.rule), f"{without_family(job.rule)}_model")


def test_every_step_is_given_what_its_function_takes_and_makes_every_output_once(planned):
    for job, steps in planned.steps.items():
        read, made = set(), []
        for step, (reads, makes) in zip(steps, files_of(steps, job.inputs, job.outputs), strict=True):
            module, _, function = step.function.rpartition(".")
            parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
            given = [*reads, *makes, *step.settings, *step.means]
            assert len(given) == len(set(given)), (job.name, function)
            assert set(given) <= set(parameters), (job.name, function)
            needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
            assert needed <= set(given), (job.name, function)
            read |= {name for parameter in reads for name in names_of(step, parameter)}
            made += [name for parameter in makes for name in names_of(step, parameter)]
        assert sorted(made) == sorted(job.outputs), job.name
        assert set(job.inputs) - read == GATES.get(job.rule, set()), job.name


def test_what_the_code_of_each_step_depends_on_is_the_list_in_the_repository(planned):
    assert depends.PLACE.read_text() == depends.text(planned), (
        "run `python -m tests.unit.depends`, and look at the diff"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_only_joins_rule_and_module(script):
    text = script.read_text()

    assert len(text.splitlines()) < 30
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, DECISIONS)]
    assert not re.search(r"snakemake\.(config|wildcards|params)", text)
    assert ast.get_docstring(ast.parse(text))


def test_the_schema_the_schedules_the_samplers_and_the_families_know_the_same_schedulers():
    assert set(schema("models")["properties"]["scheduler"]["enum"]) == set(SCHEDULERS) == set(SAMPLERS)
    assert {name for family in FAMILIES.values() for name in family.process.schedulers} == set(SCHEDULERS)


def test_settings_by_role_name_every_role():
    properties = schema("config")["properties"]
    by_role = [properties["precision"], properties["pulsar2"]]
    by_role += [properties["parity"]["properties"]["min_psnr"], properties["compiled"]["properties"]["min_sqnr"]]

    for entry in by_role:
        assert set(entry["properties"]) == set(ROLES)
        assert isinstance(entry["additionalProperties"], dict)  # a component's, by its name


def known_entries(properties: dict, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Entries that a schema has, down to values."""
    found = set()
    for name, entry in properties.items():
        below = known_entries(entry.get("properties", {}), (*above, name))
        found |= below or {(*above, name)}
    return found


def places(text: str) -> dict[tuple[str, ...], int]:
    """Number of the line of each value of a config, which begins its entry."""

    def found(node: yaml.MappingNode, above: tuple[str, ...]) -> dict[tuple[str, ...], int]:
        lines = {}
        for key, value in node.value:
            place = (*above, key.value)
            below = found(value, place) if isinstance(value, yaml.MappingNode) else {}
            lines |= {**below, place: key.start_mark.line}
        return lines

    return found(yaml.compose(text), ())


def uncommented(text: str) -> set[tuple[str, ...]]:
    """Values of a config without a comment behind them or above them.

    One above several is of all of them, and one of an entry by role of all roles.
    """
    at, lines = places(text), text.splitlines()
    beside = {(line, len(place)) for place, line in at.items()}

    def is_commented(place: tuple[str, ...]) -> bool:
        line = at[place]
        if re.search(r"\s# \S", lines[line]):
            return True
        if place[-1] in ROLES:
            return is_commented(place[:-1])
        while (line - 1, len(place)) in beside and not re.search(r"\s# \S", lines[line - 1]):
            line -= 1
        return line > 0 and re.match(r" *# \S", lines[line - 1]) is not None

    above = {place[:end] for place in at for end in range(1, len(place))}
    return {place for place in at if place not in above and not is_commented(place)}


def test_every_entry_of_the_config_stands_in_it_with_a_comment():
    text = (ROOT / "config" / "config.yaml").read_text()
    entries = known_entries(schema("config")["properties"])

    assert {place for place in places(text) if place in entries} == entries
    assert not uncommented(text)


def test_a_comment_of_the_config_that_is_removed_is_missed():
    text = (ROOT / "config" / "config.yaml").read_text()
    lines, entries = text.splitlines(), known_entries(schema("config")["properties"])

    assert uncommented(re.sub(r"(?m)(^|\s+)# .*$", "", text)) == entries
    for place, line in places(text).items():
        if place in entries and place[-1] not in ROLES and " # " in lines[line]:
            without = [*lines[:line], lines[line].partition(" # ")[0], *lines[line + 1 :]]
            assert uncommented("\n".join(without)) == {place}


def test_pins_of_the_environment_are_those_of_the_lock():
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    dependencies = yaml.safe_load((ROOT / "envs" / "axbake.yaml").read_text())["dependencies"]
    (pins,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))

    assert len(pins) > 10
    for name, version in (pin.split("==") for pin in pins):
        assert locked[name] == version, name


def test_tools_that_settings_name_are_locked(planned):
    locked = re.findall(r"^(\S+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    known = {name.lower().replace("-", "_") for name in locked}

    named = {tool for steps in planned.steps.values() for step in steps for tool in step.tools}
    assert {"torch", "onnx"} <= named
    assert {name.lower().replace("-", "_") for name in named} <= known


def test_the_container_has_all_that_the_package_is_built_of():
    recipe = (ROOT / "envs" / "Containerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE) for path in line.split()]

    wanted = {"pyproject.toml", project["project"]["readme"], *wheel["packages"], *wheel["force-include"]}
    assert sorted(copied) == sorted(wanted)
    assert "--requirement requirements.lock" in recipe


@pytest.mark.parametrize("path", sorted((ROOT / "axbake" / "runtime").rglob("*.py")), ids=lambda path: path.name)
def test_the_runtime_imports_nothing_that_a_board_has_not(path):
    deep = len(path.relative_to(ROOT / "axbake" / "runtime").parents)
    may = RUNTIME_MAY_IMPORT | (SERVER_MAY_IMPORT if path.parent.name == "serve" else set())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= may
        elif isinstance(node, ast.ImportFrom):
            assert 1 <= node.level <= deep or (node.level == 0 and node.module.split(".")[0] in may)


def test_what_runs_beside_the_card_needs_no_newer_python_than_3_9():
    program = Path(sys.executable).with_name("vermin")
    paths = [ROOT / "axbake" / "runtime", *sorted((ROOT / "resources" / "bundle").glob("*.py"))]
    done = subprocess.run([program, "-t=3.9-", "--violations", *paths], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def imported(path: Path) -> set[str]:
    """Packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.partition(".")[0] for name in names}
    return found


def test_the_package_knows_nothing_of_snakemake_but_for_its_planner_and_its_screen():
    package = ROOT / "axbake"
    know = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(re.match("snakemake(_|$)", name) for name in imported(path))
    }

    assert know == set(KNOW_SNAKEMAKE)


def test_the_cluster_profile_keeps_what_the_default_one_says_and_names_rules_that_there_are(planned):
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text()) for name in ("default", "slurm")
    )

    assert {name: slurm[name] for name in default if name != "resources"} == {
        name: value for name, value in default.items() if name != "resources"
    }
    assert slurm["resources"].keys() == default["resources"].keys()
    assert set(slurm["set-resources"]) <= set(planned.rules)


def resource(rule, name: str, attempt: int) -> int:
    """What a rule asks for at its *attempt* for the demo: MiB, minutes."""
    return rule.ruleinfo.resources[1][name](SimpleNamespace(model="demo"), attempt)


def test_jobs_that_leave_for_a_cluster_say_what_memory_and_time_they_take_and_get_more_each_time(planned):
    slurm = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    leaving = {name: rule for name, rule in planned.rules.items() if not rule.ruleinfo.localrule}

    assert {"compile_model", "import_sd1"} <= set(leaving) and {"preflight", "judge"} & set(leaving) == set()
    for name, rule in leaving.items():
        for what in ("mem_mb", "runtime"):
            assert resource(rule, what, 2) == 2 * resource(rule, what, 1) > 0, name
        assert resource(rule, "mem_mb", 1) <= 1500, name  # a small model
    long = {name for name, rule in leaving.items() if resource(rule, "runtime", 1) > LONG}
    assert long <= set(slurm["set-resources"])


@pytest.mark.parametrize("name", ["draw_reference", "record_trajectories", "export_onnx", "simulate"])
def test_jobs_that_hold_a_whole_network_ask_for_as_many_times_the_memory_as_it_is_larger(planned, monkeypatch, name):
    """Of Stable Diffusion 1.5, XL and FLUX.2 [dev], whose denoiser in float32 alone takes 122 GiB."""
    (function,) = {rule.ruleinfo.resources[1]["mem_mb"] for rule in planned.rules.values() if rule.name == name}

    def asked(parameters: float | None) -> int:
        model = SimpleNamespace(parameters=parameters, is_small=False)
        monkeypatch.setitem(function.__globals__, "model_of", lambda wildcards: model)
        return function(SimpleNamespace(model="large"), 1)

    assert 8000 <= asked(1.07e9) == asked(None) <= 12000
    assert 12_000 < asked(3.47e9) < 15_000  # measured: 11.5 GiB
    assert 122 * 1024 < asked(32e9) < 130 * 1024


def without_encoding(source: str) -> list[str]:
    """Calls in *source* that read or write text in the encoding of the user's locale; ruff finds only those of `Path(…)`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        name = ast.unparse(node.func)
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [
            one.value for one in given if isinstance(one, ast.Constant) and one.value in ("r", "w", "a", "x", "rt")
        ]
        opens = name.rpartition(".")[2] in ("open", "fdopen") and name != "tarfile.open" and modes
        programs = {"text", "universal_newlines"} & {keyword.arg for keyword in node.keywords}
        if (
            (isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"))
            or opens
            or programs
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("directory", ["axbake", "docs", "resources", "workflow"])
def test_every_text_that_is_read_or_written_says_its_encoding(directory):
    """In the locale C, Python 3.11 would read it in ASCII."""
    paths = [
        path for path in (ROOT / directory).rglob("*.py") if "demo" not in path.parts
    ]  # the demo's training is a record
    assert {path.name: calls for path in paths if (calls := without_encoding(path.read_text(encoding="utf-8")))} == {}


def test_a_text_without_an_encoding_is_found():
    calls = ["path.read_text()", "open('x', 'w')", "path.open(mode='r')", "run(command, text=True)"]
    assert without_encoding("\n".join([*calls, "path.open('rb')", "path.read_text(encoding='utf-8')"])) == calls


def test_every_file_of_tests_is_in_a_place_that_pytest_looks_in():
    places = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]

    assert [path for path in files if not any(path.is_relative_to(place) for place in places)] == []
