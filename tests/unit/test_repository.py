"""What belongs together is together: rules and scripts, schemas and config, pins and lock, the runtime and what it may import."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from axbake.drawing.schedule import SCHEDULERS
from axbake.families import COMPONENTS
from axbake.runtime.txt2img import SAMPLERS

ROOT = Path(__file__).parents[2]
SNAKEFILE = ROOT / "Snakefile"
RULES = {
    name: body
    for path in [ROOT / "Snakefile", *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", path.read_text(), re.MULTILINE)
    if name != "all"
}
SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))
DECISIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.If, ast.IfExp, ast.For, ast.While)
DECISIONS += (ast.Try, ast.Match, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
RUNTIME_MAY_IMPORT = {"numpy", "PIL", "tokenizers", "onnxruntime", "axengine", *sys.stdlib_module_names}

every_rule = pytest.mark.parametrize("rule", RULES)


def schema(name):
    return yaml.safe_load((ROOT / "workflow" / "schemas" / f"{name}.schema.yaml").read_text())


def test_there_are_rules():
    assert len(RULES) >= 16


@every_rule
def test_every_rule_runs_the_function_of_its_name(rule):
    (function,) = re.findall(r'settings\(\s*"(axbake[.\w]+)"', RULES[rule])
    module, _, name = function.rpartition(".")

    assert name == rule
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert 'script:\n        "../scripts/job.py"' in RULES[rule]


@every_rule
def test_the_function_takes_the_rules_inputs_and_outputs_by_name(rule):
    (function,) = re.findall(r'settings\(\s*"(axbake[.\w]+)"', RULES[rule])
    module, _, name = function.rpartition(".")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    (arguments,) = (node.args for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    taken = {argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]}
    (gates,) = re.findall(r'gates=\["(\w+)"\]', RULES[rule]) or [None]
    named = set()
    for part in ("input", "output"):
        (body,) = re.findall(rf"^    {part}:\n((?:        .*\n)+)", RULES[rule], re.MULTILINE)
        named |= set(re.findall(r"^        (\w+)=", body, re.MULTILINE))

    assert named - {"settings", gates} - taken == set()


@every_rule
def test_every_rule_says_what_it_does_and_keeps_a_log(rule):
    body = RULES[rule]

    assert re.match(r'    """.+\."""\n', body)
    for keyword in ("input", "output", "log", "conda", "message"):
        assert f"    {keyword}:\n" in body, keyword
    assert "settings=settings(" in body
    assert "params:" not in body
    assert (ROOT / "workflow" / "rules" / re.search(r'conda:\n        "(.+)"', body)[1]).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_only_joins_rule_and_module(script):
    text = script.read_text()

    assert len(text.splitlines()) < 30
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, DECISIONS)]
    assert not re.search(r"snakemake\.(config|wildcards|params)", text)
    assert ast.get_docstring(ast.parse(text))


def test_the_schema_the_schedules_and_the_samplers_know_the_same_schedulers():
    assert set(schema("models")["properties"]["scheduler"]["enum"]) == set(SCHEDULERS) == set(SAMPLERS)


def test_settings_by_component_name_every_component():
    properties = schema("config")["properties"]

    assert set(properties["precision"]["properties"]) == set(COMPONENTS)
    assert set(properties["parity"]["properties"]["min_psnr"]["properties"]) == set(COMPONENTS)


def test_every_entry_of_the_config_is_commented_where_it_stands():
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())

    assert set(config) == set(schema("config")["properties"])


def test_pins_of_the_environment_are_those_of_the_lock():
    locked = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    dependencies = yaml.safe_load((ROOT / "envs" / "axbake.yaml").read_text())["dependencies"]
    (pins,) = (entry["pip"] for entry in dependencies if isinstance(entry, dict))

    assert len(pins) > 10
    for name, version in (pin.split("==") for pin in pins):
        assert locked[name] == version, name


def test_tools_that_settings_name_are_locked():
    locked = re.findall(r"^(\S+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    known = {name.lower() for name in locked}

    for rule, body in RULES.items():
        for tools in re.findall(r"tools=\[(.*?)\]", body, re.DOTALL):
            assert set(re.findall(r'"(.+?)"', tools)) <= known, rule


def test_everything_that_settings_name_is_in_the_schemas():
    def entry(place):
        found = schema("config")
        for name in place.format(component="unet").split("/"):
            found = found["properties"][name]
        return found

    for body in RULES.values():
        for entries in re.findall(r"entries=\{(.*?)\n?\s*\}[,)]", body, re.DOTALL):
            assert all(entry(place) for place in re.findall(r': "(.+?)"', entries))
        for columns in re.findall(r"row=\[(.*?)\]", body, re.DOTALL):
            assert set(re.findall(r'"(.+?)"', columns)) <= {*schema("models")["properties"], "component", "layout"}


@pytest.mark.parametrize("path", sorted((ROOT / "axbake" / "runtime").glob("*.py")), ids=lambda path: path.name)
def test_the_runtime_imports_nothing_that_a_board_has_not(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= RUNTIME_MAY_IMPORT
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.level == 0 and node.module.split(".")[0] in RUNTIME_MAY_IMPORT)


def test_what_runs_beside_the_card_needs_no_newer_python_than_3_9():
    program = Path(sys.executable).with_name("vermin")
    paths = [ROOT / "axbake" / "runtime", *sorted((ROOT / "resources" / "bundle").glob("*.py"))]
    done = subprocess.run([program, "-t=3.9-", "--violations", *paths], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_the_package_knows_nothing_of_snakemake_but_for_the_planner_of_its_runs():
    for path in sorted({*(ROOT / "axbake").rglob("*.py")} - {ROOT / "axbake" / "plan.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "snakemake"], path


def test_the_cluster_profile_keeps_what_the_default_one_says_and_names_rules_that_there_are():
    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text()) for name in ("default", "slurm")
    )

    assert {name: slurm[name] for name in default if name != "resources"} == {
        name: value for name, value in default.items() if name != "resources"
    }
    assert slurm["resources"].keys() == default["resources"].keys()
    assert set(slurm["set-resources"]) <= set(RULES)


def test_jobs_that_leave_for_a_cluster_say_what_memory_and_time_they_take():
    local = set(
        re.findall(r"\w+", re.search(r"^localrules:\n((?:    \w+,\n)+)", SNAKEFILE.read_text(), re.MULTILINE)[1])
    )

    assert local - {"all"} <= set(RULES)
    for rule in set(RULES) - local:
        assert "mem_mb=more_each_time(" in RULES[rule] and "runtime=more_each_time(" in RULES[rule], rule


def test_every_file_of_tests_is_in_a_place_that_pytest_looks_in():
    places = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]

    assert [path for path in files if not any(path.is_relative_to(place) for place in places)] == []
