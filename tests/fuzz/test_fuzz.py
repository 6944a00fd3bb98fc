"""Random programs are explained as their surrogates are, and what fails is made small."""

from __future__ import annotations

import pytest

from tests.fuzz import surrogate
from tests.fuzz.checks import failure, shrunk
from tests.fuzz.operations import OPERATIONS
from tests.fuzz.programs import RULES, Program, Step, random_program

PROGRAMS, TOGETHER = 500, 20


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, PROGRAMS, TOGETHER), ids=lambda first: f"seeds from {first}")
def test_random_programs_are_explained_as_their_surrogates(first: int) -> None:
    """Maps, values, state, hooks, samples alone, report, losses and float32 of 20 programs agree."""
    for program in map(random_program, range(first, first + TOGETHER)):
        if failure(program) is not None:
            smallest = shrunk(program, lambda smaller: failure(smaller) is not None)
            pytest.fail(f"{failure(smallest)}\n{smallest}", pytrace=False)


def test_every_operation_and_every_rule_is_drawn() -> None:
    """No row of the table, no spelling and no rule stands there for nothing."""
    programs = [random_program(seed) for seed in range(10 * PROGRAMS)]
    assert {program.rule for program in programs} == set(RULES)
    drawn = {(step.operation, step.spelling) for program in programs for step in program.steps}
    rows = OPERATIONS.items()
    assert drawn == {(name, each) for name, row in rows for each in (*row.spellings, *row.writes, *row.aliases)}


def test_a_wrong_formula_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the surrogate has another gamma, a program of several steps shrinks to the one that matters."""
    monkeypatch.setattr(surrogate, "GAMMA", 0.3)
    steps = ("tanh", "torch.tanh({0})"), ("dense", "self.dense({0})"), ("sum", "{0} + {1}"), ("flip", "{0}.flip(-1)")
    reads = ((0,), (1,), (2, 0), (3,))
    program = Program(0, "gamma", 2, tuple(Step(*step, read) for step, read in zip(steps, reads, strict=True)))
    assert failure(program) is not None
    smallest = shrunk(program, lambda smaller: failure(smaller) is not None)
    assert smallest.source == "def forward(self, h0):  # [2, 6]\n    h1 = self.dense(h0)\n    return h1\n"


def test_a_write_is_seen_by_all_that_share_the_memory() -> None:
    """A value and its alias are one in the surrogate, as they are in the model."""
    steps = ("identity", "{0}.view_as({0})", (0,)), ("tanh", "{0}.tanh_()", (1,)), ("sum", "{0} + {1}", (0, 2))
    program = Program(0, "lrp0", 2, tuple(Step(*step) for step in steps))
    assert failure(program) is None
    x = program.numbers("input", *program.shape)
    assert program.surrogate(program.model(), x)[1].equal(2 * x.tanh())
