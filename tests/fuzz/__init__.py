"""Random programs, each explained twice: by relprop, and by the plain gradient of a surrogate.

- `programs.py`: a program is a list of steps; `random_program` draws one, `source` writes it as Python.
- `operations.py`: the table a step is drawn from, each operation in its spellings, with its surrogate.
- `surrogate.py`: the formulas of `docs/theory.md` as a network that is linear in its input and in its constants.
- `checks.py`: what is compared; `shrinking.py` makes what fails small.

`python -m tests.fuzz --programs 20000` (`make fuzz`) writes `docs/fuzz.md`.
"""
