"""Which cases `make quick` keeps (`tests/quick.py`)."""

from __future__ import annotations

from tests.quick import stride


def test_a_test_of_few_cases_keeps_them_all() -> None:
    assert [stride(count, most=8) for count in (1, 2, 7, 8)] == [1, 1, 1, 1]


def test_at_most_so_many_are_kept_and_every_parameter_has_its_turn() -> None:
    for layers, rules in ((47, 12), (5, 8), (9, 9), (2, 30), (1, 13)):
        kept = range(0, layers * rules, stride(layers * rules, most=8))
        assert 1 < len(kept) <= 8, (layers, rules)
        assert len({case % rules for case in kept}) == min(len(kept), rules), (layers, rules)
