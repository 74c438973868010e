"""What the package's code is, is found once for a project, and anew when the package changes."""

import json

import pytest

from axbake.jobs import code, known

FUNCTION = "axbake.graphs.export.export_onnx"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_is_found(monkeypatch):
    def find(*functions):
        raise AssertionError(functions)

    monkeypatch.setattr(code, "code_of", find)
    monkeypatch.setattr(code, "parameters_of", find)


def test_it_is_what_the_code_says():
    for _ in range(2):
        assert known.code_of(FUNCTION) == code.code_of(FUNCTION)
        assert known.parameters_of(FUNCTION) == code.parameters_of(FUNCTION)


def test_it_is_found_once(request):
    before = known.code_of(FUNCTION), known.parameters_of(FUNCTION)
    request.getfixturevalue("nothing_is_found")

    assert (known.code_of(FUNCTION), known.parameters_of(FUNCTION)) == before


def test_another_package_is_read_anew(monkeypatch):
    known.code_of(FUNCTION)
    monkeypatch.setattr(known, "_package", lambda: "edited")
    monkeypatch.setattr(code, "code_of", lambda *functions: {"axbake": "found anew"})

    assert known.code_of(FUNCTION) == {"axbake": "found anew"}


def test_the_digest_of_the_package_follows_every_module(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "ABOVE", tmp_path)
    deep = tmp_path / known.PACKAGE / "deep"
    deep.mkdir(parents=True)
    seen = {known._package.__wrapped__()}
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "")):
        (deep / name).write_text(text)
        seen.add(known._package.__wrapped__())
    (deep / "b.py").rename(deep / "c.py")

    assert len(seen | {known._package.__wrapped__()}) == 5


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"package": 1}', "[" * 100_000, None])
def test_a_damaged_note_counts_as_missing(project, damage):
    right = known.code_of(FUNCTION)
    (note,) = (project / known.MEMORY).iterdir()
    note.write_text(json.dumps({"package": known._package(), "code": 1}) if damage is None else damage)

    assert known.code_of(FUNCTION) == right


def test_where_nothing_can_be_written_it_is_found_each_time(project):
    known.MEMORY.parent.write_text("a file in the directory's place")

    assert known.code_of(FUNCTION) == code.code_of(FUNCTION)
