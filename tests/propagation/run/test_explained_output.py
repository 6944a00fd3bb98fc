"""What reads the target off the output is no part of the model: no rule set at the model acts on it."""

from __future__ import annotations

import torch
from torch import nn

from relprop import LRP, Rules
from relprop.rules import Block, Pass


def test_a_rule_set_at_the_type_of_the_model_itself_serves_its_operation_alone() -> None:
    x = torch.tensor([[0.5, -2.0]])
    relevance = LRP(nn.Tanh(), Rules().set(nn.Tanh, Pass())).attribute(x, 1)
    torch.testing.assert_close(relevance, torch.tensor([[0.0, torch.tanh(x)[0, 1]]]))


def test_a_filter_at_the_model_itself_acts_once() -> None:
    x = torch.tensor([[0.5, -2.0]])
    assert not LRP(nn.Tanh(), Rules().set(nn.Tanh, Block())).attribute(x, 1).any()


def test_a_target_may_compute_what_a_rule_at_the_model_does_not_serve() -> None:
    x = torch.tensor([[0.5, -2.0]])
    rules = Rules().set(nn.Tanh, Pass())
    relevance = LRP(nn.Tanh(), rules).attribute(x, lambda out: out.square().sum(1))
    torch.testing.assert_close(relevance, torch.tanh(x) ** 2)
