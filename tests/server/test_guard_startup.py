"""Memory that does not suffice is told in words, and the phases of a start are added up."""

import pytest
import torch

from herdsman_server.startup import Startup, check_memory, memory_limit, told
from herdsman_trainer.errors import Temporary

MEMORY = {
    "Python's": MemoryError(),
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory"),
    "that of the allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte"),
}


@pytest.mark.parametrize("whose", MEMORY)
def test_memory_that_runs_out_is(whose):
    found = told(MEMORY[whose])
    assert isinstance(found, Temporary)
    assert found.reason == "OutOfMemory"


def test_other_errors_stay_what_they_are():
    error = RuntimeError("shape")
    assert told(error) is error


def test_the_limit_of_memory_is_positive_and_what_fits_is_let_through():
    assert memory_limit() > 2**20
    check_memory(2**20)
    with pytest.raises(Temporary):
        check_memory(memory_limit() + 1)


def test_parts_of_a_phase_add_up():
    startup = Startup()
    for _ in range(2):
        with startup.phase("open"):
            pass
    with startup.phase("first_token"):
        pass
    assert list(startup.seconds) == ["open", "first_token"]
    assert str(startup) == "open 0.0 s, first token 0.0 s"
