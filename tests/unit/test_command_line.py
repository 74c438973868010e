"""The command line takes its words in any order among its options."""

import pytest

from axbake.__main__ import parser

LINES = {
    "add --name x FILE": {"checkpoint": "FILE", "name": "x"},
    "add FILE --name x": {"checkpoint": "FILE", "name": "x"},
    "add --pin x": {"checkpoint": None, "pin": "x"},
    "bake --cores 4 FILE --name y": {"what": "FILE", "cores": 4, "name": "y"},
    "cache": {"action": "usage", "targets": []},
    "cache --yes remove": {"action": "remove", "yes": True},
    "cache push --remote X --yes A B": {"action": "push", "remote": "X", "yes": True, "targets": ["A", "B"]},
    "cache --remote X push A --yes B": {"action": "push", "remote": "X", "yes": True, "targets": ["A", "B"]},
}


@pytest.mark.parametrize("line", LINES)
def test_words_stand_before_between_and_behind_options(line):
    words = line.split()

    found = vars(parser(words[0]).parse_args(words))

    assert {name: found[name] for name in LINES[line]} == LINES[line]


@pytest.mark.parametrize(
    "line, said",
    {
        "add --nonsense FILE": "unrecognized arguments: --nonsense",
        "add FILE OTHER": "unrecognized arguments: OTHER",
        "cache nonsense": "invalid choice: 'nonsense'",
        "bake --cores 4": "required: FILE_OR_LINK",
    }.items(),
)
def test_what_a_command_does_not_take_is_refused(line, said, capsys):
    words = line.split()

    with pytest.raises(SystemExit) as ended:
        parser(words[0]).parse_args(words)

    assert ended.value.code == 2 and said in capsys.readouterr().err
