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
from matssl.core.batch import Batch
from matssl.methods import contrastive, densecl, momentum
from matssl.methods.contrastive import info_nce, info_nce_rows, negative_cosine, nt_xent
from matssl.methods.matssl import GatedFusion
from matssl.methods.mocov2 import MoCoV2, MoCoV2Settings
from matssl.models.encoders import build_encoder
from matssl.models.heads import projector, split_batchnorm

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


def _lars(
    w: list[Any], x: dict[str, Any], adapt: bool = True, classic: bool = True
) -> list[torch.Tensor]:
    parameter = torch.nn.Parameter(torch.tensor(w))
    group = {"params": [parameter], "weight_decay": x["wd"], "adapt": adapt}
    optimizer = optim.LARS([group], lr=0.0, momentum=x["mu"], eta=x["eta"], classic=classic)
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
    first, second = _lars(x["w"], x, classic=False)
    _close(name, first, e["popular_w1"])
    _close(name, second, e["popular_w2"])
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


# --- momentum networks and queues ---
def test_momentum_network_is_a_moving_average() -> None:
    name = "common.ema_closed_form"
    x, e = _case(name)
    slow, online = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(3, 1, bias=False)
    slow.weight.data = torch.tensor([x["theta0"]])
    online.weight.data = torch.tensor([x["theta_q"]])
    for step in range(1, 6):
        momentum.follow(slow, online, x["m"])
        if f"after_{step}" in e:
            _close(name, slow.weight[0], e[f"after_{step}"])
    _close(name, [math.log(0.5) / math.log(m) for m in x["m_list"]], e["half_life_steps"])


def test_running_statistics_of_the_momentum_network_are_its_own() -> None:
    name = "common.ema_not_for_buffers"
    x, e = _case(name)
    slow, online = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    online.running_mean.fill_(x["online_running_mean"])
    momentum.follow(slow, online, 0.5)
    slow(torch.tensor(x["x"])[:, None])
    _close(name, slow.running_mean[0], e["running_mean"])
    _close(name, slow.running_var[0], e["running_var"])


def _pushed(length: int, batches: list[list[int]]) -> Iterator[momentum.KeyQueue]:
    """Yield the queue after each batch; key n has group n and a direction of its own."""
    queue = momentum.KeyQueue(length, 2)
    for batch in batches:
        angle = torch.tensor(batch) * 0.1
        queue.push(3 * torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor(batch))
        yield queue


def test_the_queue_is_a_ring() -> None:
    x, e = _case("common.queue_ring_wraparound")
    for queue, expected in zip(_pushed(x["K"], x["batches"]), e["steps"], strict=True):
        filled = expected["valid"]
        assert queue.group.tolist()[:filled] == expected["buffer"][:filled]
        assert int(queue.pointer) == expected["ptr"] and int(queue.filled) == filled
        angle = queue.group[:filled] * 0.1
        rows = torch.stack([angle.cos(), angle.sin()], dim=1)
        assert torch.allclose(queue.negatives()[0], rows), "keys are kept as unit rows"
    (queue,) = _pushed(x["K"], [x["oversize_batch"]])
    assert queue.group.tolist() == e["oversize_from_empty"]["buffer"]
    assert int(queue.pointer) == e["oversize_from_empty"]["ptr"]


def test_the_loss_of_a_step_uses_the_queue_as_it_was() -> None:
    name = "moco.enqueue_after_loss"
    x, e = _case(name)
    q, k = torch.tensor(x["q"]), torch.tensor(x["k"])
    queue = momentum.KeyQueue(4, 3)
    queue.push(torch.tensor(x["queue_raw"]), torch.zeros(4, dtype=torch.long))
    _close(name, info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_step1"])
    queue.push(k, torch.zeros(2, dtype=torch.long))
    _close(name, queue.rows, e["queue_after"])
    assert int(queue.pointer) == e["ptr_after"]
    _close(name, info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_step2_same_batch"])


def test_the_method_itself_asks_the_queue_before_it_fills_it() -> None:
    method = _tiny_moco()
    batch = _tiny_batch()
    rows = method.queue.negatives()[0]
    assert len(rows) == 0 and float(method(batch).total.detach()) == 0
    before = method.queue.negatives()[0].clone()
    query, key = method.query(batch.views[0]), method.key(batch.views[1])
    expected = info_nce(query, key, before, 0.2)
    assert float(method(batch).total) == pytest.approx(float(expected), rel=1e-6)
    assert len(method.queue.negatives()[0]) == 8
    method.eval()
    method(batch)
    assert len(method.queue.negatives()[0]) == 8, "looking at the health must not fill it"


def _tiny_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, 4, 1, 32, 32), generator=generator, dtype=torch.uint8)
    index = torch.arange(4)
    return Batch((views[0], views[1]), torch.zeros(2, 4, 2, 3), index, index)


def _tiny_moco(**settings: Any) -> MoCoV2:
    torch.manual_seed(0)
    values = {"queue_size": 12, "temperature": 0.2, "global_output_dim": 8, **settings}
    return MoCoV2(build_encoder("resnet18"), 1, (0.5,), (0.25,), MoCoV2Settings(**values)).train()


def _split_layer(splits: int) -> torch.nn.BatchNorm2d:
    layer = torch.nn.BatchNorm2d(1)
    split_batchnorm(layer, splits)
    return layer


def test_split_batchnorm_normalises_sample_n_with_those_n_mod_s() -> None:
    name = "moco.split_bn"
    x, e = _case(name)
    values = torch.tensor(x["x"]).view(4, 1, 1, 1)
    for splits in x["splits"]:
        layer = _split_layer(splits)
        _close(name, layer(values).flatten(), e[f"s{splits}"])
        _close(name, layer.running_var[0], e[f"running_var_s{splits}"])
        _close(name, layer.running_mean[0], e["running_mean_s2"])
        plain = torch.nn.BatchNorm2d(1).eval()
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer.eval()(values), plain(values))


def test_shuffled_keys_change_nothing_without_split_batchnorm() -> None:
    name = "moco.shuffle_single_device"
    x, e = _case(name)
    values, order = torch.tensor(x["x"]).view(4, 1, 1, 1), torch.tensor(x["permutation"])
    for splits in (1, 2):
        layer = _split_layer(splits)
        shuffled = layer(values[order])[order.argsort()]
        _close(name, shuffled.flatten(), e[f"s{splits}_shuffled"])
        _close(name, layer(values).flatten(), e[f"s{splits}_plain"])


def test_keys_are_shuffled_where_batchnorm_is_split_and_come_back_in_order() -> None:
    method, view = _tiny_moco(bn_splits=2), _tiny_batch().views[0]
    seen = []

    def embed(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(part)
        return (part.double().mean((1, 2, 3))[:, None],)

    orders = []
    for step in range(6):
        method.step.fill_(step)
        (result,) = method.shuffled(view, embed)
        assert torch.equal(result, embed(view)[0])
        orders.append([int(p.double().sum()) for p in seen[-2]])
    assert len({tuple(order) for order in orders}) > 1
    method.eval()
    method.shuffled(view, embed)
    assert seen[-1] is view


def _masked(x: dict[str, Any], query: list[int], queue: list[int]) -> torch.Tensor:
    q, k, rows = torch.tensor(x["q"]), torch.tensor(x["k"]), _unit(x["queue_raw"])
    groups = torch.tensor(query), torch.tensor(queue)
    return info_nce_rows(q, k, rows, x["tau"], *groups)[0]


def test_keys_of_the_querys_own_group_are_no_negatives() -> None:
    name = "moco.group_mask"
    x, e = _case(name)
    rows = _masked(x, x["query_group"], x["queue_group"])
    _close(name, rows, e["loss_rows"])
    _close(name, rows.mean(), e["loss"])
    _close(name, _masked(x, [1, 1], [1, 1, 1, 1]), [e["loss_all_masked"]] * 2)


def test_only_written_slots_are_negatives() -> None:
    name = "moco.valid_mask"
    x, e = _case(name)
    queue = momentum.KeyQueue(4, 3)
    keys = torch.tensor(x["queue_raw"])
    queue.push(keys[:2], torch.zeros(2, dtype=torch.long))
    q, k = torch.tensor(x["q"]), torch.tensor(x["k"])
    _close(name, info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss"])
    queue.push(keys[2:], torch.zeros(2, dtype=torch.long))
    _close(name, info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_unmasked"])


def test_symmetric_moco_sums_the_directions() -> None:
    name = "moco.symmetric"
    x, e = _case(name)
    a, b, rows = torch.tensor(x["a"]), torch.tensor(x["b"]), _unit(x["queue_raw"])
    _close(name, info_nce(a, b, rows, x["tau"]) + info_nce(b, a, rows, x["tau"]), e["loss"])
    method, batch = _tiny_moco(symmetric=True), _tiny_batch()
    method(batch)
    keys = torch.cat([method.key(view) for view in batch.views])
    assert torch.allclose(method.queue.negatives()[0], F.normalize(keys, dim=1), atol=1e-6)


def test_a_query_meets_its_own_older_key_as_often_as_computed() -> None:
    name = "moco.own_stale_key"
    x, e = _case(name)
    generator, n = np.random.default_rng(0), x["N"]
    for length, expected in zip(x["K"], e["fraction"], strict=True):
        seen: list[int] = []
        met = total = 0
        for epoch in range(6):
            for item in generator.permutation(n).tolist():
                met += epoch > 0 and item in seen[-length:]
                total += epoch > 0
                seen.append(item)
        assert met / total == pytest.approx(expected, abs=CASES[name]["tolerance"]["atol"])


def test_infonce_in_parts_equals_autograd_on_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(23, 6, generator=generator).requires_grad_()
    k, rows = torch.randn(23, 6, generator=generator), torch.randn(40, 6, generator=generator)
    rows = F.normalize(rows, dim=1)
    own, other = torch.arange(23) % 5, torch.arange(40) % 5
    unit = F.normalize(q, dim=1)
    positive = (unit * F.normalize(k, dim=1)).sum(1, keepdim=True)
    logits = (unit @ rows.T).masked_fill(own[:, None] == other[None], float("-inf"))
    target = torch.zeros(23, dtype=torch.long)
    weights = torch.rand(23, generator=generator)
    expected = F.cross_entropy(torch.cat([positive, logits], 1) / 0.1, target, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), q)
    for rows_at_once, negatives_at_once in ((1, 1), (4, 7), (1024, 1024)):
        monkeypatch.setattr(contrastive, "ROWS_AT_ONCE", rows_at_once)
        monkeypatch.setattr(contrastive, "NEGATIVES_AT_ONCE", {"cpu": negatives_at_once})
        loss, hit = info_nce_rows(q, k, rows, 0.1, own, other)
        (got,) = torch.autograd.grad((loss * weights).sum(), q)
        assert torch.allclose(loss, expected, atol=1e-12)
        assert torch.allclose(got, wanted, atol=1e-12)
        assert torch.equal(hit, positive[:, 0] >= logits.amax(1))


# --- DenseCL ---
def _dense_loss(x: dict[str, Any], index: torch.Tensor) -> torch.Tensor:
    q, k = torch.tensor(x["dense_q"]), torch.tensor(x["dense_k"])
    positive = k.gather(1, index[..., None].expand(-1, -1, k.shape[2]))
    rows = _unit(x["queue_dense_raw"])
    return info_nce(q.flatten(0, 1), positive.flatten(0, 1), rows, x["tau"])


def test_cells_are_matched_by_backbone_features() -> None:
    name = "densecl.correspondence"
    x, e = _case(name)
    index = densecl.match(torch.tensor(x["backbone_q"]), torch.tensor(x["backbone_k"]))
    assert index.tolist() == e["index"]
    _close(name, _dense_loss(x, index), e["dense_loss"])
    wrong = densecl.match(torch.tensor(x["dense_q"]), torch.tensor(x["dense_k"]))
    assert wrong.tolist() == e["index_from_projection"]


def test_densecl_weighs_the_global_and_the_dense_loss() -> None:
    name = "densecl.total_loss"
    x, e = _case(name)
    rows = _unit(x["queue_global_raw"])
    whole = info_nce(torch.tensor(x["global_q"]), torch.tensor(x["global_k"]), rows, x["tau"])
    cells = _case("densecl.correspondence")[0]
    match = densecl.match(torch.tensor(cells["backbone_q"]), torch.tensor(cells["backbone_k"]))
    dense = _dense_loss(cells, match)
    _close(name, whole, e["L_global"])
    _close(name, dense, e["L_dense"])
    for weight, key in ((0.5, "total_0_5"), (0.0, "total_0"), (1.0, "total_1"), (0.3, "total_0_3")):
        _close(name, (1 - weight) * whole + weight * dense, e[key])


def test_the_total_of_the_method_is_that_weighted_sum() -> None:
    for weight in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        settings = densecl.DenseCLSettings(queue_size=8, dense_weight=weight, dense_stage=3)
        method = densecl.DenseCL(build_encoder("resnet18"), 1, (0.5,), (0.25,), settings).train()
        method(_tiny_batch())
        losses = method(_tiny_batch())
        expected = (1 - weight) * losses.parts["global"] + weight * losses.parts["dense"]
        assert float(losses.total) == pytest.approx(float(expected), rel=1e-12)
        assert float(losses.parts["dense"]) > 0 and float(losses.parts["global"]) > 0


def test_the_match_follows_the_content_not_the_position() -> None:
    name = "densecl.key_position_permutation"
    x, e = _case(name)
    order = torch.tensor(x["permutation"])
    keys = torch.tensor(x["backbone_k"])[:, order]
    index = densecl.match(torch.tensor(x["backbone_q"]), keys)
    assert index.tolist() == e["index"]
    moved = {**x, "dense_k": torch.tensor(x["dense_k"])[:, order].tolist()}
    _close(name, _dense_loss(moved, index), e["dense_loss"])
    own = densecl.match(torch.tensor(x["backbone_q"]), torch.tensor(x["backbone_k"]))
    _close(name, _dense_loss(moved, own), e["loss_dense_map_only_permuted"])


def test_the_dense_queue_keeps_the_mean_of_the_cells() -> None:
    name = "densecl.queue_key"
    x, e = _case(name)
    _close(name, densecl.queue_key(torch.tensor(x["dense_k"])), e["queue_key"])


def test_identical_views_match_cell_by_cell() -> None:
    name = "densecl.identical_views"
    x, e = _case(name)
    features, dense = torch.tensor(x["backbone"]), torch.tensor(x["dense"]).flatten(0, 1)
    assert densecl.match(features, features).tolist() == e["index"]
    rows, _ = info_nce_rows(dense, dense, _unit(x["queue_dense_raw"]), x["tau"])
    _close(name, rows, e["loss_rows"])
    _close(name, rows.mean(), e["loss"])


def test_the_dense_loss_can_wait() -> None:
    x, e = _case("densecl.warmup")
    weights = [densecl.dense_weight(x["lam"], n, x["start_iters"]) for n in x["iterations"]]
    assert weights == e["weight"]


def test_gradient_of_the_dense_loss_reaches_the_queries_alone() -> None:
    name = "densecl.gradient"
    x, e = _case(name)
    q = torch.tensor(x["dense_q"], requires_grad=True)
    k = torch.tensor(x["dense_k"], requires_grad=True)
    features = torch.tensor(x["backbone_q"], requires_grad=True)
    index = densecl.match(features, torch.tensor(x["backbone_k"]))
    positive = k.gather(1, index[..., None].expand(-1, -1, k.shape[2]))
    rows = _unit(x["queue_dense_raw"])
    info_nce(q.flatten(0, 1), positive.flatten(0, 1), rows, x["tau"]).backward()
    _close(name, q.grad, e["grad_dense_q"])
    assert k.grad is None and features.grad is None


def test_cells_at_the_same_place_are_paired_by_geometry() -> None:
    settings = densecl.DenseCLSettings(queue_size=8, dense_match="geometry", dense_stage=3)
    method = densecl.DenseCL(build_encoder("resnet18"), 1, (0.5,), (0.25,), settings)
    size = 64
    first = geometry.View(0, 0, 64, 64, flip=False, turns=0, size=size).affine()
    mirrored = geometry.View(0, 0, 64, 64, flip=True, turns=0, size=size).affine()
    far = geometry.View(500, 500, 64, 64, flip=False, turns=0, size=size).affine()
    maps = torch.tensor(np.array([[first, first], [mirrored, far]]))
    views = tuple(torch.zeros(2, 1, size, size, dtype=torch.uint8) for _ in range(2))
    batch = Batch(views, maps, torch.arange(2), torch.arange(2))
    features = torch.randn(2, 16, 8)
    index, valid = method._pairs(batch, features, features)
    assert index[0].view(4, 4).tolist() == [[4 * r + 3 - c for c in range(4)] for r in range(4)]
    assert valid.tolist() == [[True] * 16, [False] * 16]


# --- BYOL ---
def _byol(p1: Any, p2: Any, t1: Any, t2: Any) -> torch.Tensor:
    return (negative_cosine(p1, t2) + negative_cosine(p2, t1)).mean()


def test_byol_value() -> None:
    name = "byol.loss"
    x, e = _case(name)
    p1, p2, t1, t2 = (torch.tensor(x[k]) for k in ("pred1", "pred2", "target1", "target2"))
    _close(name, negative_cosine(p1, t2), e["direction_12"])
    _close(name, negative_cosine(p2, t1), e["direction_21"])
    _close(name, _byol(p1, p2, t1, t2), e["loss"])


def test_byol_gradient_reaches_the_predictions_alone() -> None:
    name = "byol.gradient"
    x, e = _case(name)
    p1, p2, t1, t2 = (
        torch.tensor(x[k], requires_grad=True) for k in ("pred1", "pred2", "target1", "target2")
    )
    _byol(p1, p2, t1, t2).backward()
    _close(name, p1.grad, e["grad_pred1"])
    _close(name, (p1.grad * p1).sum(1), [0, 0])
    assert t1.grad is None and t2.grad is None


def test_byol_bounds() -> None:
    name = "byol.bounds"
    x, e = _case(name)
    p1, p2, t1, t2 = (torch.tensor(x[k]) for k in ("pred1", "pred2", "target1", "target2"))
    _close(name, _byol(p1, p2, p2, p1), e["match"])
    _close(name, _byol(p1, p2, -p2, -p1), e["antipodal"])
    axes = torch.eye(2)
    _close(name, _byol(axes, axes, axes.flip(0), axes.flip(0)), e["orthogonal"])
    _close(name, _byol(3 * p1, 0.2 * p2, 7 * t1, t2), e["scaled"])


def test_byol_momentum_rises_to_one() -> None:
    name = "byol.ema_schedule"
    x, e = _case(name)
    for start, key in zip(x["tau0"], ("tau_099", "tau_0996"), strict=True):
        values = [momentum.cosine_momentum(start, t / x["T"]) for t in x["t"]]
        _close(name, values, e[key])


def test_the_target_follows_the_weights_after_the_step() -> None:
    name = "byol.update_order"
    x, e = _case(name)
    online, slow = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    online.weight.data, slow.weight.data = torch.tensor([x["online"]]), torch.tensor([x["target"]])
    optimizer = torch.optim.SGD(online.parameters(), lr=x["lr"])
    online.weight.grad = torch.tensor([x["grad"]])
    optimizer.step()
    momentum.follow(slow, online, x["tau"])
    _close(name, online.weight[0], e["online_new"])
    _close(name, slow.weight[0], e["target_new"])


def test_byol_rates_follow_the_batch() -> None:
    name = "byol.lr"
    x, e = _case(name)
    for base, key in ((0.45, "base_045"), (0.3, "base_03"), (0.2, "base_02")):
        _close(name, [optim.scaled_lr(base, b, "linear") for b in x["B"]], e[key])


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


def test_every_case_of_the_file_is_tested() -> None:
    folder = Path(__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    # A method with a test file of its own answers for its cases there.
    here = [n for n in CASES if not (folder / f"test_{n.split('.')[0]}.py").is_file()]
    assert [name for name in here if f'"{name}"' not in source] == []
