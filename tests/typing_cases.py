"""What type checkers know of the public calls: `make check` runs mypy on this file, and nothing runs the file itself.

Where a line must be refused it ends in `type: ignore`, which is an error itself where mypy finds nothing to ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import relprop
from relprop import Contract, Method, Registered, Rules, explain
from relprop.metrics import Curve, Selectivity, deletion, faithfulness_estimate, irof, perturbation_curve, selectivity
from relprop.rules import Epsilon

if TYPE_CHECKING:
    from typing import assert_type


@dataclass
class Graph:
    nodes: Tensor
    edges: Tensor


def tensors_and_structures(x: Tensor, p: nn.Parameter, ids: dict[str, Tensor], graph: Graph, flag: bool) -> None:
    method = relprop.LRP(nn.Linear(2, 1))
    assert_type(method.attribute(x), Tensor)
    assert_type(method.attribute(p, 1), Tensor)
    assert_type(method.attribute((x, x), target=[1, 2]), tuple[Tensor, Tensor])
    assert_type(method.attribute([x, x]), tuple[Tensor, ...])
    assert_type(method.attribute(ids, None, x), dict[str, Tensor])
    assert_type(method.attribute(relprop.Keywords(x=x)), relprop.Keywords)
    assert_type(method.attribute(graph, create_graph=True), Graph)
    assert_type(method.attribute(x, 1, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(method.attribute((x,), 1, return_convergence_delta=True), tuple[tuple[Tensor], Tensor])
    assert_type(method.attribute([x], return_convergence_delta=True), tuple[tuple[Tensor, ...], Tensor])
    assert_type(method.attribute(graph, return_convergence_delta=True), tuple[Graph, Tensor])
    assert_type(method.attribute(x, return_convergence_delta=flag), Any)
    assert_type(method.attribute_layers(x, "0", 1), dict[str, Tensor | Any])
    assert_type(method.attribute_targets(x, [1, 2]), Tensor)
    assert_type(method.attribute_targets((x, x), [1, 2], create_graph=True), tuple[Tensor, Tensor])
    assert_type(method.report(x, 1, condition={"0": [1]}), relprop.ConservationReport)
    assert_type(method.explained(x, 1), Tensor)
    method.attribute(x, 1, creat_graph=True)  # type: ignore[call-overload]
    method.attribute(x, "1")  # type: ignore[arg-type]
    method.attribute(x, 1, condition=[1])  # type: ignore[call-overload]
    method.attribute(x, 1, None, True)  # type: ignore[call-overload]
    method.attribute_layers(x, "0", creat_graph=True)  # type: ignore[call-arg]
    method.attribute_targets(x, 1)  # type: ignore[call-overload]
    method.report(x, create_graph=True)  # type: ignore[call-arg]


def one_backward(model: nn.Module, x: Tensor) -> None:
    assert_type(relprop.Gradient(model).attribute(x, 1), Tensor)
    assert_type(relprop.GradientXInput(model).attribute((x, x), 1), tuple[Tensor, Tensor])
    assert_type(relprop.Sensitivity(model).attribute(x, 1), Tensor)
    assert_type(relprop.Deconvolution(model).attribute(x, 1), Tensor)
    assert_type(relprop.GuidedBackprop(model).attribute(x, 1), Tensor)
    assert_type(relprop.Input(model).attribute(x, 1), Tensor)
    assert_type(relprop.Random(model).attribute(x, 1), Tensor)
    assert_type(relprop.DeepTaylor(model).attribute(x, 1, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(relprop.ExcitationBackprop(model).attribute(x, 1), Tensor)
    assert_type(relprop.ContrastiveExcitationBackprop(model).attribute(x, 1), Tensor)
    assert_type(relprop.PatternNet(model).fit([x], "linear").attribute(x, 1), Tensor)
    assert_type(relprop.PatternAttribution(model).attribute((x, x), 1), tuple[Tensor, Tensor])
    cam = relprop.LayerGradCam(model, "0")
    assert_type(cam.attribute(x, 1), Tensor | Any)  # with interpolate_mode one for every input
    cam.attribute(x, 1, interpolate="bilinear")  # type: ignore[call-arg]
    assert_type(relprop.GuidedGradCam(model, "0").attribute((x, x), 1), tuple[Tensor, Tensor])
    relprop.GuidedGradCam(model, "0").attribute(x, 1, condition={})  # type: ignore[call-overload]


def against_baselines(model: nn.Module, x: Tensor) -> None:
    deep = relprop.DeepLift(model)
    assert_type(deep.attribute(x, 0.0, 1, None, False), Tensor)
    assert_type(deep.attribute((x, x), (x, 0), target=1), tuple[Tensor, Tensor])
    assert_type(deep.attribute(x, target=1, return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(deep.attribute_layers(x, ["0"], 0.0, 1), dict[str, Tensor | Any])
    deep.attribute(x, 0.0, 1, baseline=x)  # type: ignore[call-overload]
    shap = relprop.DeepLiftShap(model)
    assert_type(shap.attribute(x, x, 1, progress=True), Tensor)
    shap.attribute(x)  # type: ignore[call-overload]
    paths = relprop.IntegratedGradients(model)
    assert_type(paths.attribute(x, None, 1, None, 50, "riemann_left", 8), Tensor)
    assert_type(paths.attribute((x, x), n_steps=8, return_convergence_delta=True), tuple[tuple[Tensor, Tensor], Tensor])
    paths.attribute(x, method="gauss")  # type: ignore[call-overload]
    paths.attribute(x, nsteps=8)  # type: ignore[call-overload]
    expected = relprop.GradientShap(model)
    assert_type(expected.attribute(x, x, 10, 0.1, 1, seed=3), Tensor)
    assert_type(expected.attribute(x, x, return_convergence_delta=True), tuple[Tensor, Tensor])
    taylor = relprop.SimpleTaylor(model)
    assert_type(taylor.attribute(x, 1), Tensor)
    assert_type(taylor.attribute((x, x), 1, return_convergence_delta=True), tuple[tuple[Tensor, Tensor], Tensor])
    assert_type(taylor.expand(x, 1), relprop.Expansion)
    taylor.attribute(x, create_graph=True)  # type: ignore[call-overload]


def perturbed(model: nn.Module, x: Tensor) -> None:
    assert_type(relprop.FeatureAblation(model).attribute(x, 0, 1, None, x, progress=True), Tensor)
    assert_type(relprop.Occlusion(model).attribute((x, x), ((2,), (2,))), tuple[Tensor, Tensor])
    relprop.Occlusion(model).attribute(x)  # type: ignore[call-overload]
    relprop.FeatureAblation(model).attribute(x, create_graph=True)  # type: ignore[call-overload]
    assert_type(relprop.ShapleyValueSampling(model).attribute(x, n_samples=3), Tensor)
    kernel = relprop.KernelShap(model)
    assert_type(kernel.attribute(x, internal_batch_size=3, return_convergence_delta=True), tuple[Tensor, Tensor])


def wrappers(model: nn.Module, x: Tensor) -> None:
    method = relprop.Gradient(model)
    assert_type(relprop.NoiseTunnel(method).attribute(x, 1, nt_type="vargrad"), Tensor)
    relprop.NoiseTunnel(method).attribute(x, 1, nt_type="var")  # type: ignore[call-overload]
    assert_type(relprop.SmoothGrad(method).attribute((x, x), 1, create_graph=True), tuple[Tensor, Tensor])
    assert_type(relprop.SmoothGradSquared(method).attribute(x, 1), Tensor)
    assert_type(relprop.VarGrad(method).attribute(x, 1), Tensor)
    shifted = relprop.Translated(method)
    assert_type(shifted.attribute(x, 1, condition={"0": [1]}), Tensor)
    assert_type(shifted.attribute((x, x), 1, return_lost=True), tuple[tuple[Tensor, Tensor], Tensor])
    several = relprop.Combined([method, (relprop.LRP(model), 0.5)])
    assert_type(several.attribute(x, 1), Tensor)
    assert_type(several.attribute(x, 1, return_convergence_delta=True), tuple[Tensor, Tensor])


class Mirrored(Method, name="mirrored"):
    """A method of one's own, as docs/own_method.md writes it."""

    contract = Contract("1", "relevance")

    def attribute(self, inputs: Tensor, target: relprop.targets.Target = None, **options: object) -> Tensor:
        return inputs


def names(model: nn.Module, x: Tensor, name: str) -> None:
    assert_type(explain(model, x, 1), Tensor)
    assert_type(explain(model, (x, x), 1, "integrated_gradients", n_steps=8), tuple[Tensor, Tensor])
    assert_type(explain(model, {"x": x}, method="gradient"), dict[str, Tensor])
    assert_type(explain(model, x, 1, "lrp", rules="flat", return_convergence_delta=True), tuple[Tensor, Tensor])
    assert_type(explain(model, x, 1, Mirrored), Tensor)
    assert_type(explain(model, x, 1, Registered("mirrored")), Tensor)
    explain(model, x, 1, "gradeint")  # type: ignore[call-overload]
    relprop.LRP(model, "epsilon_gamma")
    relprop.LRP(model, Epsilon())
    relprop.LRP(model, rules="epsilon_gama")  # type: ignore[arg-type]
    Rules.preset("epsilon_plus_flat", epsilon=0.1)
    Rules.preset("epsilon_pluss")  # type: ignore[arg-type]
    Rules().set(nn.Linear, "gamma").first("wsquare").last("zero").until(3, "flat")
    Rules().set(nn.Linear, "gama")  # type: ignore[arg-type]
    Rules().first("w_square")  # type: ignore[arg-type]
    mine = Rules.register("my_rule", Epsilon)
    Rules().set(nn.Linear, mine).first(Registered(name))


def metrics(by: relprop.metrics._explain.Explain, model: nn.Module, x: Tensor, options: Mapping[str, Any]) -> None:
    assert_type(perturbation_curve(by, model, x, 1, order="lerf", features="pixels", progress=True), Curve)
    assert_type(deletion(by, model, x, 1, baseline=0.5), Curve)
    assert_type(irof(by, model, x, 1, 2, seed=3), Curve)
    assert_type(selectivity(by, model, x, 1, **options), Selectivity)
    assert_type(faithfulness_estimate(by, model, x, 1, output="logit"), Tensor)
    perturbation_curve(by, model, x, 1, baseline="zeros")  # type: ignore[arg-type]
    perturbation_curve(by, model, x, 1, base_line="zero")  # type: ignore[call-arg]
    deletion(by, model, x, 1, oder="lerf")  # type: ignore[call-arg]
