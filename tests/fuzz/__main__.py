"""Explain random programs twice and compare; write what was found to `docs/fuzz.md`.

python -m tests.fuzz --programs 20000
python -m tests.fuzz --minutes 5       # of the processor's time
python -m tests.fuzz --seed 17         # one program, as Python, and what is wrong with it
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.checks import DOUBLE, LOSS, SINGLE, failure, shrunk
from tests.fuzz.operations import OPERATIONS
from tests.fuzz.programs import RULES, Program, random_program

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fuzz.md"
MOST = 20  # failures that are made small


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so much processor time")
    parser.add_argument("--seed", type=int, help="look at one program alone")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.seed is not None:
        program = random_program(options.seed)
        found = failure(program)
        sys.stdout.write(f"{program}# {found or 'agrees'}\n")
        return int(found is not None)
    programs: list[Program] = []
    failed: list[Program] = []
    with contextlib.suppress(KeyboardInterrupt):  # the page says how many ran
        while len(programs) < options.programs and time.process_time() < 60 * options.minutes:
            program = random_program(len(programs))
            found = failure(program)
            programs.append(program)
            if found is not None:
                failed.append(program)
                sys.stderr.write(f"{program}# {found}\n")
    minutes = time.process_time() / 60
    PAGE.write_text(page(programs, failed, minutes), encoding="utf-8")
    sys.stdout.write(f"{len(programs) - len(failed)} of {len(programs)} programs agree ({minutes:.1f} minutes).\n")
    return int(bool(failed))


def page(programs: list[Program], failed: list[Program], minutes: float) -> str:
    """The page of the documentation."""
    operations = Counter(step.operation for program in programs for step in program.steps)
    rules = Counter(program.rule for program in programs)
    wrong = Counter(program.rule for program in failed)
    of_rules = "".join(f"| {rule} | {rules[rule]} | {wrong[rule]} |\n" for rule in RULES)
    of_operations = "".join(
        f"| {name} | {len(row.spellings) + len(row.writes) + len(row.aliases)} | {operations[name]} |\n"
        for name, row in OPERATIONS.items()
    )
    return TEXT.format(
        right=len(programs) - len(failed), programs=len(programs), steps=sum(operations.values()), minutes=minutes,
        machine=f"one core ({platform.machine()}), PyTorch {torch.__version__}", rules=of_rules,
        operations=of_operations, failures=failures(failed), double=DOUBLE, single=SINGLE[0], loss=LOSS,
    )  # fmt: skip


def failures(failed: list[Program]) -> str:
    """Every program that fails, as small as it gets."""
    if not failed:
        return ""
    small = [shrunk(program, lambda smaller: failure(smaller) is not None) for program in failed[:MOST]]
    shown = "\n".join(f"{failure(program)}\n\n```\n{program}```\n" for program in small)
    return f"\n## Failures\n\nThe first {len(small)} of {len(failed)}, made small.\n\n{shown}"


TEXT = """\
# Random programs

Programs drawn at random, each of 3 to 10 steps, any of which may read any value before it: dense layers, convolutions
and matrix products, what folds into them, views, sums, activations, products, gates, norms, softmax, attention, LSTM
and GRU; modules used twice, and writes in place that other values see. Each is written twice. Once it is a model, which
relprop explains. Once every step is a surrogate from the formulas of the [theory](theory.md), linear in what it is
computed from and in constants, so that input times gradient by plain autograd is the relevance of the input, and
constant times gradient what that constant absorbs. The surrogate shares no code with relprop.

**{right} of {programs} programs agree** ({steps} steps), in {minutes:.1f} minutes on {machine}. `make fuzz` writes this
page, of 20,000 programs; `make test` runs the first 500; `python -m tests.fuzz --seed 17` prints one.

A program agrees when

- its map is that of the surrogate to {double:g} of the largest of relevance, output and what is absorbed, and so are
  the map with `create_graph=True` and that of each sample alone;
- `delta` and every column of the report are what the constants of the surrogate absorb, and nothing is unexplained;
- a loss on the map has the derivative that differences of the surrogate's map give, to {loss:g};
- what the model returns is bitwise the same as without relprop, in float64 and float32 (LSTM and GRU, which run as
  their steps: to rounding); so are its state and the input, no random number is drawn, and its hooks run once;
- its map in float32 is near that in float64: to {single:g}, and more where the surrogate in float32 errs too.

Not in the programs: constants and branches added under z+ and alpha-beta, softmax by itself under CP-LRP, rules whose
relevance is no multiple of the activation, and gates as the state of a recurrent cell.

| rule | programs | that fail |
| --- | --: | --: |
{rules}
| operation | spellings | steps |
| --- | --: | --: |
{operations}{failures}"""


if __name__ == "__main__":
    sys.exit(main())
