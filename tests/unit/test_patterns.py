"""A pattern of the schemas takes no line break behind what it takes: Python's `$` does, and values go to shells and paths."""

import re
from pathlib import Path

import pytest
import yaml

from axbake.table import ProjectConfigError, check_config

SCHEMAS = Path(__file__).parents[2] / "workflow" / "schemas"
TAKEN = ["4.2", "U16", "demo", "0123456789", "0" * 64, "", "axbake", "/usr/bin/python3"]  # each pattern takes one


def patterns(entry, place=""):
    """Every pattern below *entry*, by its place."""
    if isinstance(entry, list):
        return {name: found for each in entry for name, found in patterns(each, place).items()}
    if not isinstance(entry, dict):
        return {}
    own = {place: entry["pattern"]} if isinstance(entry.get("pattern"), str) else {}
    return own | {name: text for key in entry for name, text in patterns(entry[key], f"{place}/{key}").items()}


ALL = {
    f"{path.name.partition('.')[0]}{place}": pattern
    for path in sorted(SCHEMAS.glob("*.yaml"))
    for place, pattern in patterns(yaml.safe_load(path.read_text(encoding="utf-8"))).items()
}


@pytest.mark.parametrize("place", ALL)
def test_no_pattern_lets_a_line_break_through_at_the_end(place):
    taken = [value for value in TAKEN if re.search(ALL[place], value)]

    assert taken
    assert not [value for value in taken for end in ("\n", "\nx") if re.search(ALL[place], value + end)]


@pytest.mark.parametrize("name", ["host", "user", "directory", "python"])
def test_a_board_whose_config_ends_in_a_line_break_is_refused(name):
    with pytest.raises(ProjectConfigError, match=f"board/{name}"):
        check_config(
            {"board": {name: "axbake\n"}}, schema=SCHEMAS / "config.schema.yaml", source="config.yaml", components=()
        )
