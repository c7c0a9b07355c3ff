"""The folders of csrc are floors: a file includes files of its own folder or of lower floors, and no circle."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from mutants import MUTANTS

CSRC = Path(__file__).parents[1] / "csrc"
FILES = {
    path.relative_to(CSRC).as_posix(): path.read_text()
    for path in CSRC.rglob("*.*")
    if path.suffix in (".h", ".cpp", ".cu")
}
INCLUDES = {name: re.findall(r'#include "([^"]+)"', text) for name, text in FILES.items()}

# From the ground up. Rooms of one floor do not include each other.
FLOORS = (
    ("contract",),
    ("operations.h", "python_arguments.h"),
    ("cuda",),
    ("cpu/machine",),
    ("cpu/layout",),
    ("cpu/weights",),
    ("cpu/gemm",),
    ("cpu/conv", "cpu/wgrad"),
    ("cpu/ops",),
    ("cpu/dispatch.h", "cpu/useful_threads.h"),
    ("cpu/dispatch.cpp", "cpu/isa_table.cpp", "cpu/test", "module.cpp", "cuda_module.cpp"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(name: str) -> str:
    return name if name in FLOOR_OF else name.rpartition("/")[0]


@pytest.mark.parametrize("name", FILES)
def test_includes_run_down(name):
    assert room_of(name) in FLOOR_OF, f"csrc/{name} is in no room of FLOORS"
    for included in INCLUDES[name]:
        assert included in FILES, f"csrc/{name} includes {included!r}: expected a path from csrc"
        if room_of(included) != room_of(name):
            assert FLOOR_OF[room_of(included)] < FLOOR_OF[room_of(name)], f"csrc/{name} includes {included!r}"


def test_there_is_no_circle():
    assert len(list(TopologicalSorter(INCLUDES).static_order())) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_lines_have_at_most_120_columns(name):
    assert [line for line in FILES[name].splitlines() if len(line) > 120] == []


def test_every_room_has_files():
    assert {room_of(name) for name in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("number", ("0xD2511F53", "0xCD9E8D57", "8355711", "32639", "83, 86, 89, 93"))
def test_only_the_contract_states_its_constants(number):
    assert [name for name, text in FILES.items() if number.lower() in text.lower()] in (
        ["contract/philox.h"],
        ["contract/fixed_point.h"],
        ["contract/weights.h"],
    )


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_of_a_mutant_is_there(mutant):
    assert (CSRC.parent / mutant.file).read_text().count(mutant.right) == 1
