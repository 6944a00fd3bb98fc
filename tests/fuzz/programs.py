"""Programs: lists of steps, each of which runs as a line of Python in a model and as its surrogate."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import Rules
from relprop.rules import AlphaBeta, Epsilon, Gamma, LinearRule, Zero, ZPlus
from tests.fuzz.operations import FEATURES, OPERATIONS, PARTS, PLACES, Operation
from tests.fuzz.surrogate import SURROGATES, Surrogate, Value

SAMPLES = 2
RULES: dict[str, LinearRule | Rules | str] = {
    "lrp0": Zero(),
    "epsilon": Epsilon(1e-6, relative=True),
    "epsilon_absolute": Epsilon(0.1),
    "gamma": Gamma(0.25),
    "epsilon_gamma": "epsilon_gamma",
    "zplus": ZPlus(),
    "alpha2_beta1": AlphaBeta(2, 1),
    "attnlrp": "attnlrp",
    "cp_lrp": "cp_lrp",
}
SIGNED = ("zplus", "alpha2_beta1")


def serves(operation: Operation, rule: str) -> bool:
    """Whether the surrogate of an operation is what the theory says under a rule.

    Rules by sign may have constants and branches share by sign or by size: their surrogates would stand in
    `Surrogate.shift`, `function` and `add`.
    """
    return not ((rule in SIGNED and (operation.offset or operation.joins)) or (rule == "cp_lrp" and operation.cuts))


@dataclass(frozen=True)
class Step:
    """One operation in one spelling, of values by their positions; 0 is the input, and step `i` makes value `i + 1`."""

    operation: str
    spelling: str
    reads: tuple[int, ...]

    @property
    def row(self) -> Operation:
        return OPERATIONS[self.operation]

    @property
    def writes(self) -> bool:
        return self.spelling in self.row.writes

    @property
    def shares_memory(self) -> bool:
        return self.writes or self.spelling in self.row.aliases

    def line(self, position: int) -> str:
        code = self.spelling.format(*(f"h{read}" for read in self.reads))
        return f"{code}; h{position} = h{self.reads[0]}" if self.writes else f"h{position} = {code}"


@dataclass(frozen=True)
class Program:
    """What is explained: steps, the rule, the number of dimensions, and the seed of all numbers."""

    seed: int
    rule: str
    rank: int
    steps: tuple[Step, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (SAMPLES, FEATURES) if self.rank == 2 else (SAMPLES, PLACES, FEATURES)

    @property
    def source(self) -> str:
        lines = [step.line(position) for position, step in enumerate(self.steps, 1)]
        body = "".join(f"    {line}\n" for line in [*lines, f"return h{len(self.steps)}"])
        return f"def forward(self, h0):  # {list(self.shape)}\n{body}"

    def __str__(self) -> str:
        return f"# {self.rule}, seed {self.seed}\n{self.source}"

    def model(self) -> nn.Module:
        """The program as a module, in float64."""
        model = Model()
        for name in sorted(set(re.findall(r"self\.(\w+)", self.source))):
            part = PARTS[name]()
            model.register_buffer(name, part) if type(part) is Tensor else setattr(model, name, part)
        model.double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.numbers(name, *parameter.shape) * 0.5)
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    drawn = self.numbers(name, *buffer.shape) * 0.5
                    buffer.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn)
        scope: dict[str, Any] = {"torch": torch, "F": F}
        exec(self.source, scope)
        model.body = scope["forward"]
        return model

    def numbers(self, name: str, *shape: int) -> Tensor:
        """Numbers of both signs, which depend on the seed and on what they are for alone."""
        seed = zlib.crc32(f"{self.seed} {name}".encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def surrogate(self, parts: nn.Module, x: Tensor) -> tuple[Surrogate, Tensor]:
        """The surrogate of all steps, and its output."""
        s = SURROGATES[self.rule]()
        memory = [Value(x)]
        places = [0]  # of every value, where in memory it lies
        for step in self.steps:
            found = step.row.run(s, parts, *(memory[places[read]] for read in step.reads))
            if step.shares_memory:
                places.append(places[step.reads[0]])
                before, memory[places[-1]] = memory[places[-1]], found
                if step.writes:  # nothing folds into a linear map whose input has changed
                    memory = [each.by_itself if each.map and each.map.of is before else each for each in memory]
            else:
                places.append(len(memory))
                memory.append(found)
        return s, memory[places[-1]].t

    def without(self, step: int) -> Program:
        """The program less one step: what read its value reads the first that it read."""
        gone, instead = step + 1, self.steps[step].reads[0]

        def moved(read: int) -> int:
            return instead if read == gone else read - (read > gone)

        later = (replace(each, reads=tuple(map(moved, each.reads))) for each in self.steps[gone:])
        return replace(self, steps=(*self.steps[:step], *later))

    def smaller(self) -> Iterator[Program]:
        """Programs that are simpler by one change."""
        for at, step in enumerate(self.steps):
            yield self.without(at)
            for simpler in (
                replace(step, spelling=step.row.spellings[0]),
                *(replace(step, reads=(*step.reads[:i], 0, *step.reads[i + 1 :])) for i in range(len(step.reads))),
            ):
                if simpler != step:
                    yield replace(self, steps=(*self.steps[:at], simpler, *self.steps[at + 1 :]))


class Model(nn.Module):
    """The parts that a program names, and its body."""

    body: Any

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self, x)
        return out


def random_program(seed: int) -> Program:
    """A program, the same for the same seed."""
    draw = random.Random(seed)
    rule, rank = draw.choice(list(RULES)), draw.choice((2, 3))
    names = [name for name, row in OPERATIONS.items() if rank in row.ranks and serves(row, rule)]
    linear = [name for name in names if "dense" in name or name in ("conv", "addmm", "mixing of places")]
    steps: list[Step] = []
    for _ in range(draw.randint(3, 10)):
        name = draw.choice(linear if draw.random() < 0.25 else names)
        row = OPERATIONS[name]
        kinds: Sequence[Sequence[str]] = [kind for kind in (row.spellings, row.writes, row.aliases) if kind]
        spelling = draw.choice(draw.choice(kinds))
        reads = tuple(max(0, len(steps) - int(draw.expovariate(0.8))) for _ in range(row.reads))
        steps.append(Step(name, spelling, reads))
    return Program(seed, rule, rank, tuple(steps))
