"""The numeric cases of checks.json: formulas, gradients and limits that every method must meet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from matssl import monitor
from matssl.core import geometry, optim
from matssl.methods.contrastive import info_nce, nt_xent
from matssl.methods.matssl import GatedFusion
from matssl.models.heads import projector

CASES = {
    c["id"]: c for c in json.loads((Path(__file__).parent / "checks.json").read_text())["cases"]
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    case = CASES[name]
    inputs = dict(case["inputs"])
    if "same_as" in inputs:
        inputs = {**CASES[inputs["same_as"]]["inputs"], **inputs}
    return inputs, case["expected"]


def _close(name: str, got: Any, expected: Any) -> None:
    tolerance = CASES[name].get("tolerance") or {"rtol": 1e-8, "atol": 1e-8}
    value = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(value, np.asarray(expected, float), **tolerance)


def _unit(rows: Any) -> torch.Tensor:
    return F.normalize(torch.tensor(rows), dim=1)


def test_infonce_gradient_is_orthogonal_to_the_query_and_falls_with_its_length() -> None:
    name = "common.normalised_gradient"
    x, e = _case(name)
    for factor, loss, gradient in ((1, "loss", "grad_q"), (3, "loss_q_times_3", "grad_at_3q")):
        q = (factor * torch.tensor(x["q"])).requires_grad_()
        k, queue = torch.tensor(x["k"], requires_grad=True), _unit(x["queue_raw"]).requires_grad_()
        value = info_nce(q, k, queue, x["tau"])
        value.backward()
        _close(name, value, e[loss])
        _close(name, q.grad, e[gradient])
        _close(name, (q.grad * q).sum(1), [0, 0])
        assert k.grad is None and queue.grad is None


def test_infonce_equals_the_published_logits() -> None:
    name = "moco.loss"
    x, e = _case(name)
    loss = info_nce(torch.tensor(x["q"]), torch.tensor(x["k"]), _unit(x["queue_raw"]), x["tau"])
    _close(name, loss, e["loss"])


def test_d4_elements_are_flip_first_then_counter_clockwise_turns() -> None:
    x, e = _case("common.d4_table")
    for flip in (0, 1):
        for turns in range(4):
            key = f"f{flip}k{turns}"
            result = geometry.apply_d4(np.array(x["x"]), bool(flip), turns)
            assert result.ravel().tolist() == e["row_major"][key]
            other = e["inverse"][key]
            back = geometry.apply_d4(result, other[1] == "1", int(other[3]))
            assert back.tolist() == x["x"]


def test_cells_correspond_by_their_centres() -> None:
    x, e = _case("common.cell_correspondence")
    for case, expected in zip(x["cases"], e["results"], strict=True):
        maps = [
            geometry.View(*box, flip=bool(flip), turns=turns, size=64).affine()[None]
            for box, flip, turns in (case["q"], case["k"])
        ]
        index, valid = geometry.correspondence(*maps, 64, 64, x["S"])
        assert index[0].tolist() == expected["index"]
        assert valid[0].tolist() == expected["valid"]


def test_chance_levels_are_logarithms_of_the_number_of_choices() -> None:
    name = "common.chance_levels"
    x, e = _case(name)
    same = torch.ones(1, 4)
    values = [info_nce(same, same, F.normalize(torch.ones(k, 4)), 0.2) for k in x["K"]]
    _close(name, torch.stack(values), e["infonce"])
    pairs = [nt_xent(torch.ones(n, 4), torch.ones(n, 4), 0.5) for n in x["N"]]
    _close(name, torch.stack(pairs), e["ntxent"])


def _fused(x: dict[str, Any], gates: list[Any] | None) -> tuple[GatedFusion, torch.Tensor]:
    maps = [torch.tensor(x[f"F{i}"])[None] for i in range(1, 5)]
    fusion = GatedFusion([m.shape[1] for m in maps])
    if gates is not None:
        for gate, values in zip(fusion.gates, gates, strict=True):
            gate.data = torch.tensor(values)
    return fusion, fusion(maps)


def test_gated_fusion_is_sigmoid_of_gate_times_pooled_stage() -> None:
    name = "matssl.gate_values"
    x, e = _case(name)
    _close(name, _fused(x, None)[1][0], e["u_init"])
    _close(name, _fused(x, x["gates"])[1][0], e["u"])
    _close(name, torch.ones(()).sigmoid(), e["sigmoid_of_1"])


def test_gradient_of_a_gate_is_slope_times_pooled_value() -> None:
    name = "matssl.gate_gradient"
    x, e = _case(name)
    shapes = _case("matssl.gate_values")[0]
    fusion, u = _fused(shapes, shapes["gates"])
    (u[0] * torch.tensor(x["c"])).sum().backward()
    _close(name, torch.cat([g.grad for g in fusion.gates]), e["grad_gates"])


def _head(x: dict[str, Any], eps: float = 1e-5) -> torch.nn.Sequential:
    head = projector(4, 3, 2)
    head[0].weight.data = torch.tensor(x["W1"])
    head[3].weight.data = torch.tensor(x["W2"])
    head[1].eps = head[4].eps = eps
    return head


def test_matssl_head_has_batch_statistics_per_view() -> None:
    name = "matssl.head_and_loss"
    x, e = _case(name)
    gate = torch.tensor(x["gate"]).sigmoid()
    views = [gate * torch.tensor(x[key]) for key in ("u_view1", "u_view2")]
    first, second = (_head(x)(view) for view in views)
    _close(name, first, e["z_view1"])
    _close(name, second, e["z_view2"])
    _close(name, nt_xent(first, second, x["tau"]), e["loss_separate_bn"])
    joint = _head(x)(torch.cat(views)).chunk(2)
    _close(name, nt_xent(*joint, x["tau"]), e["loss_joint_bn"])


def test_gates_fold_into_the_first_linear_layer_and_their_scale_is_free() -> None:
    name = "matssl.gate_folding"
    x, e = _case(name)
    u, gate = torch.tensor(x["u_view1"]), torch.tensor(x["gate"]).sigmoid()
    _close(name, _head(x)(gate * u), e["z_gated"])
    folded = _head(x)
    folded[0].weight.data = folded[0].weight.data * gate
    _close(name, folded(u), e["z_folded"])
    _close(name, _head(x, eps=1e-30)(gate * u), e["z_eps0"])
    _close(name, _head(x, eps=1e-30)(x["common_factor"] * gate * u), e["z_eps0_scaled"])


def test_head_and_gates_have_the_published_number_of_parameters() -> None:
    x, e = _case("matssl.dims")
    for stages, width, hidden, key in (
        ("stages_r50", "width_r50", 2048, "head_r50"),
        ("stages_r18", "width_r18", 512, "head_r18_h512"),
        ("stages_r18", "width_r18", 2048, "head_r18_h2048"),
    ):
        fusion = GatedFusion(x[stages])
        assert sum(g.numel() for g in fusion.gates) == e[width]
        head = projector(e[width], hidden, 128)
        assert sum(p.numel() for p in head.parameters()) == e[key]


def test_ntxent_value() -> None:
    name = "simclr.ntxent"
    x, e = _case(name)
    z1, z2 = torch.tensor(x["z1"]), torch.tensor(x["z2"])
    _close(name, nt_xent(z1, z2, x["tau"]), e["loss"])
    _close(name, nt_xent(z1, z2, 0.1), e["loss_tau_0_1"])
    _close(name, 2 * nt_xent(z1, z2, x["tau"]), e["tensorflow_reference_value"])


def test_ntxent_equals_an_independent_slow_version() -> None:
    generator = torch.Generator().manual_seed(3)
    z1, z2 = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    rows = [r / r.norm() for r in torch.cat([z1, z2])]
    losses = []
    for i in range(14):
        partner = (i + 7) % 14
        others = [math.exp(float(rows[i] @ rows[j]) / 0.3) for j in range(14) if j != i]
        losses.append(-float(rows[i] @ rows[partner]) / 0.3 + math.log(sum(others)))
    assert float(nt_xent(z1, z2, 0.3)) == pytest.approx(np.mean(losses), abs=1e-12)
    assert float(nt_xent(z1.float(), z2.float(), 0.3)) == pytest.approx(np.mean(losses), abs=1e-5)


def test_ntxent_invariances() -> None:
    name = "simclr.invariances"
    x, e = _case(name)
    z1, z2 = torch.tensor(x["z1"]), torch.tensor(x["z2"])
    p, scale = x["permutation"], torch.tensor(x["row_scale"])[:, None]
    rotation = torch.linalg.qr(torch.arange(9.0).reshape(3, 3).sin())[0]
    tau = x["tau"]
    _close(name, nt_xent(z1, z2, tau), e["base"])
    _close(name, nt_xent(z2, z1, tau), e["swapped"])
    _close(name, nt_xent(z1[p], z2[p], tau), e["permuted"])
    _close(name, nt_xent(z1 @ rotation, z2 @ rotation, tau), e["rotated"])
    scaled = scale if len(scale) == len(z1) else scale[: len(z1)]
    _close(name, nt_xent(z1 * scaled, z2, tau), e["scaled"])
    _close(name, nt_xent(z1[p], z2, tau), e["one_view_permuted"])


def test_ntxent_limits() -> None:
    name = "simclr.limits"
    x, e = _case(name)
    one, axes = torch.tensor([[0.3, -2.0]]), torch.eye(2)
    _close(name, nt_xent(one, -one, x["tau"]), e["n1"])
    _close(name, nt_xent(torch.ones(3, 2), torch.ones(3, 2), x["tau"]), e["all_equal_n3"])
    _close(name, nt_xent(axes, axes, x["tau"]), e["orthogonal_n2"])


def test_ntxent_gradient_reaches_both_views() -> None:
    name = "simclr.gradient"
    x, e = _case(name)
    z1 = torch.tensor(x["z1"], requires_grad=True)
    z2 = torch.tensor(x["z2"], requires_grad=True)
    nt_xent(z1, z2, x["tau"]).backward()
    _close(name, z1.grad, e["grad_z1"])
    _close(name, z2.grad, e["grad_z2"])
    _close(name, (z1.grad * z1).sum(1), [0, 0, 0])


def test_ntxent_leaves_out_negatives_of_the_same_group() -> None:
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    rows = F.normalize(torch.cat([z1, z2]), dim=1)
    s = rows @ rows.T / 0.2
    # Samples 0 and 1 share a group: row 0 keeps its positive 3 and the rows of sample 2.
    row = -s[0, 3] + torch.logsumexp(s[0, [3, 2, 5]], 0)
    lonely = nt_xent(z1[:2], z2[:2], 0.2, torch.tensor([4, 4]))
    assert float(lonely) == 0.0
    rows_of = [(0, 3, (2, 5)), (1, 4, (2, 5)), (2, 5, (0, 1, 3, 4))]
    rows_of += [(3, 0, (2, 5)), (4, 1, (2, 5)), (5, 2, (0, 1, 3, 4))]
    expected = torch.stack(
        [-s[i, p] + torch.logsumexp(s[i, [p, *n]], 0) for i, p, n in rows_of]
    ).mean()
    assert torch.allclose(row, -s[0, 3] + torch.logsumexp(s[0, [3, 2, 5]], 0))
    assert float(nt_xent(z1, z2, 0.2, torch.tensor([7, 7, 8]))) == pytest.approx(float(expected))


def _lars(w: list[Any], x: dict[str, Any], adapt: bool = True) -> list[torch.Tensor]:
    parameter = torch.nn.Parameter(torch.tensor(w))
    group = {"params": [parameter], "weight_decay": x["wd"], "adapt": adapt}
    optimizer = optim.LARS([group], lr=0.0, momentum=x["mu"], eta=x["eta"])
    states = []
    for lr in x["lr"]:
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = torch.tensor(x["grad"])
        optimizer.step()
        states.append(parameter.detach().clone())
    return states


def test_lars_takes_the_classic_step() -> None:
    name = "simclr.lars_step"
    x, e = _case(name)
    first, second = _lars(x["w"], x)
    _close(name, first, e["classic_w1"])
    _close(name, second, e["classic_w2"])
    _close(name, _lars(x["w"], x, adapt=False)[0], e["excluded_w1"])
    zero = torch.zeros(2, 2).tolist()
    _close(name, _lars(zero, x)[0], e["zero_weight_w1"])


def test_lars_trust_ratio_divides_by_the_decayed_gradient() -> None:
    name = "simclr.lars_trust_variants"
    x, e = _case(name)
    w, g = torch.tensor(x["w"]), torch.tensor(x["grad"])
    _close(name, optim.trust_ratio(w, g + x["wd"] * w, x["eta"]), e["a"])


def test_learning_rate_rules_and_simclr_schedule() -> None:
    name = "simclr.lr"
    x, e = _case(name)
    _close(name, [optim.scaled_lr(0.3, b, "linear") for b in x["B"]], e["linear"])
    _close(name, [optim.scaled_lr(0.075, b, "sqrt") for b in x["B"]], e["sqrt"])
    warmup = x["warmup_epochs"] * (x["n"] // x["batch"])
    total = x["n"] * x["epochs"] // x["batch"] + 1
    peak = optim.scaled_lr(0.3, x["batch"], "linear")
    rates = [peak * optim.cosine(step, total, warmup) for step in x["steps"]]
    _close(name, rates, e["lr"])


def test_moco_schedule_is_constant_within_an_epoch() -> None:
    name = "moco.lr_schedule"
    x, e = _case(name)
    rates = [
        optim.learning_rate("cosine_epoch", 0.03, epoch * 10 + 7, x["E"] * 10, 0, 10)
        for epoch in x["epochs"]
    ]
    _close(name, rates, e["lr_b256"])


def test_health_std() -> None:
    name = "health.std"
    x, e = _case(name)
    z = torch.tensor(x["z"])
    _close(name, monitor.std(z), e["std"])
    _close(name, monitor.std(torch.ones(4, 3)), e["collapsed"])


def test_health_rankme() -> None:
    name = "health.rankme"
    x, e = _case(name)
    z = torch.tensor(x["z"])
    _close(name, monitor.rankme(z), e["rankme"])
    _close(name, monitor.rankme(5 * z), e["rankme_scaled"])
    _close(name, monitor.rankme(torch.eye(4)), e["identity4"])
    _close(name, monitor.rankme(torch.tensor(x["rank1"])), e["rank1_value"])


def test_health_alignment_and_uniformity() -> None:
    name = "health.alignment_uniformity"
    x, e = _case(name)
    first, second = torch.tensor(x["x"]), torch.tensor(x["y"])
    _close(name, monitor.alignment(first, second), e["alignment"])
    _close(name, monitor.uniformity(first), e["uniformity"])
    same = torch.ones(4, 3)
    assert float(monitor.alignment(same, same)) == pytest.approx(0)
    assert float(monitor.uniformity(same)) == pytest.approx(0)


def test_health_gap() -> None:
    name = "health.gap"
    x, e = _case(name)
    difference, auc, top1 = monitor.gap(torch.tensor(x["x"]), torch.tensor(x["y"]))
    _close(name, difference, e["gap"])
    _close(name, auc, e["auc"])
    _close(name, top1, e["top1"])


def test_rank_sees_a_collapse_that_the_spread_does_not() -> None:
    name = "health.dimensional_collapse"
    x, e = _case(name)
    points = torch.tensor(x["points_axis"])
    rotated = points @ torch.tensor(x["rotation"])
    _close(name, monitor.rankme(points), e["rankme_axis"])
    _close(name, monitor.rankme(rotated), e["rankme_rotated"])
    _close(name, monitor.std(points), e["std_axis"])
    _close(name, monitor.std(rotated), e["std_rotated"])


def test_every_case_of_the_file_is_tested_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in CASES if f'"{name}"' not in source] == []
