"""What AXERA's programs printed is read; what they never printed is an error."""

import pytest

from axbake.board.errors import MissingDriver, UnreadableOutput
from axbake.board.tools import Process, read_chip, read_run_model, read_smi
from tests.board.played import RECORDED


def recorded(name):
    return (RECORDED / name).read_text()


def smi():
    return recorded("axcl-smi.txt") + recorded("axcl-smi.process.txt")


def test_the_table_of_a_card_is_read():
    state = read_smi(smi())

    assert state.driver == "V3.6.4_20250805020145"
    (card,) = state.cards
    assert (card.index, card.name, card.firmware, card.temperature) == (0, "AX650N", "V3.6.4", 41)
    assert (card.cmm_used, card.cmm, card.cmm_free) == (18, 7040, 7022)
    assert state.processes == (Process(card=0, pid=763, name="/opt/bin/axcl/axcl_run_model"),)


def test_several_cards_are_read():
    lines = recorded("axcl-smi.txt").splitlines(keepends=True)
    second = [
        line.replace("|    0 ", "|    1 ").replace("0001:01", "0002:01").replace("41C", "-3C") for line in lines[6:8]
    ]

    cards = read_smi("".join([*lines[:9], *second, *lines[8:]])).cards

    assert [(card.index, card.temperature) for card in cards] == [(0, 41), (1, -3)]


@pytest.mark.parametrize("spoil", [str.lower, lambda text: text[:600], lambda text: text.replace("7040 MiB", "7 GiB")])
def test_a_table_of_another_form_is_an_error_and_no_empty_card(spoil):
    with pytest.raises(UnreadableOutput, match=r"axcl-smi printed: .*report it"):
        read_smi(spoil(smi()))


def test_a_missing_driver_is_known_by_its_code():
    with pytest.raises(MissingDriver, match=r"0x8030010b.*/dev/axcl_host"):
        read_smi(recorded("axcl-smi.driver.txt"))


def test_the_memory_of_a_boards_own_chip_is_read():
    (card,) = read_chip(recorded("mem_cmm_info.txt") + "52300\n").cards

    assert (card.cmm_used, card.cmm, card.temperature) == (276, 10240, 52)


def test_a_board_that_is_no_ax650_is_said_to_be_none():
    with pytest.raises(MissingDriver, match="kernel modules are not loaded, or this board does not have an AX650"):
        read_chip("cat: /proc/ax_proc/mem_cmm_info: No such file or directory\n41000\n")
    with pytest.raises(UnreadableOutput, match="mem_cmm_info"):
        read_chip("total: many\n")


@pytest.mark.parametrize(
    ("name", "program", "repeat", "wanted"),
    [
        ("axcl_run_model.short.txt", "axcl_run_model", 10, {"min": 3.391, "max": 3.414, "avg": 3.402}),
        (
            "axcl_run_model.long.txt",
            "axcl_run_model",
            100,
            {
                "min": 7.793,
                "max": 7.929,
                "avg": 7.804,
                "median": 7.799,
                "5%": 7.796,
                "90%": 7.808,
                "95%": 7.832,
                "99%": 7.929,
            },
        ),
        ("ax_run_model.txt", "ax_run_model", 10, {"min": 0.719, "max": 0.726, "avg": 0.721}),
    ],
)
def test_both_forms_of_the_benchmark_programs_are_read(name, program, repeat, wanted):
    found = read_run_model(recorded(name), program=program, repeat=repeat)

    assert found.ms == wanted
    assert found.typical_ms == wanted.get("median", wanted["avg"])
    assert found.repeat == repeat
    assert found.versions["pulsar2"]
    assert found.cmm_bytes > 4_000_000


def test_versions_and_cores_are_read():
    found = read_run_model(recorded("ax_run_model.txt"), program="ax_run_model", repeat=10)

    assert (found.kind, found.warmup) == ("1 Core", 3)
    assert found.versions == {"pulsar2": "1.2-patch2 7e6b2b5f", "engine": "2.3.0a", "tool": "2.1.2c"}


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("min =   7.793 ms", "", "min = … ms"),
        ("median =   7.799 ms", "", "median = … ms"),
        ("7.804 ms", "7.804 us", "avg = … ms"),
        ("cmm size: 12730188 Bytes", "cmm size: 12 MB", "cmm size"),
        ("cmm size", "memory", "cmm size"),
        ("pulsar2 ver", "version", "pulsar2 ver"),
        ("repeat: 100", "repeat: many", "a number at repeat"),
        ("repeat: 100", "repeat: 99", "100 repeats"),
        ("max =   7.929 ms", "max =   7.700 ms", "an avg between min and max"),
    ],
)
def test_what_is_missing_of_a_benchmark_is_named(old, new, missing):
    text = recorded("axcl_run_model.long.txt")
    assert text.count(old) == 1

    with pytest.raises(UnreadableOutput) as raised:
        read_run_model(text.replace(old, new), program="axcl_run_model", repeat=100)

    assert missing in str(raised.value)
