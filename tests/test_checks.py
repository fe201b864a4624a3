"""The numeric cases of checks.json: formulas, gradients and limits that every method must meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric import CASES, case, close, view_map

from matssl import monitor
from matssl.core import geometry, optim
from matssl.core.batch import Batch
from matssl.methods import contrastive, momentum
from matssl.methods.contrastive import info_nce_rows, negative_cosine, nt_xent
from matssl.methods.densecl import method as densecl
from matssl.methods.matssl.method import GatedFusion
from matssl.methods.mocov2.method import MoCoV2, MoCoV2Settings
from matssl.models.encoders import build_encoder
from matssl.models.heads import projector, split_batchnorm

pytestmark = pytest.mark.usefixtures("float64")


def _unit(rows: Any) -> torch.Tensor:
    return F.normalize(torch.tensor(rows), dim=1)


def _info_nce(
    query: torch.Tensor, key: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    return info_nce_rows(query, key, negatives, temperature)[0].mean()


def test_infonce_gradient_is_orthogonal_to_the_query_and_falls_with_its_length() -> None:
    x, e = case("common.normalised_gradient")
    for factor, loss, gradient in ((1, "loss", "grad_q"), (3, "loss_q_times_3", "grad_at_3q")):
        q = (factor * torch.tensor(x["q"])).requires_grad_()
        k, queue = torch.tensor(x["k"], requires_grad=True), _unit(x["queue_raw"]).requires_grad_()
        value = _info_nce(q, k, queue, x["tau"])
        value.backward()
        close(value, e[loss])
        close(q.grad, e[gradient])
        close((q.grad * q).sum(1), [0, 0])
        assert k.grad is None and queue.grad is None


def test_infonce_equals_the_published_logits() -> None:
    x, e = case("moco.loss")
    loss = _info_nce(torch.tensor(x["q"]), torch.tensor(x["k"]), _unit(x["queue_raw"]), x["tau"])
    close(loss, e["loss"])


def test_d4_elements_are_flip_first_then_counter_clockwise_turns() -> None:
    x, e = case("common.d4_table")
    for flip in (0, 1):
        for turns in range(4):
            key = f"f{flip}k{turns}"
            result = geometry.apply_d4(np.array(x["x"]), bool(flip), turns)
            assert result.ravel().tolist() == e["row_major"][key]
            other = e["inverse"][key]
            back = geometry.apply_d4(result, other[1] == "1", int(other[3]))
            assert back.tolist() == x["x"]


def test_cells_correspond_by_their_centres() -> None:
    x, e = case("common.cell_correspondence")
    for pair, expected in zip(x["cases"], e["results"], strict=True):
        maps = [
            view_map(*box, bool(flip), turns, size=64)[None]
            for box, flip, turns in (pair["q"], pair["k"])
        ]
        index, valid = geometry.correspondence(*maps, 64, 64, x["S"])
        assert index[0].tolist() == expected["index"]
        assert valid[0].tolist() == expected["valid"]


def test_chance_levels_are_logarithms_of_the_number_of_choices() -> None:
    x, e = case("common.chance_levels")
    same = torch.ones(1, 4)
    values = [_info_nce(same, same, F.normalize(torch.ones(k, 4)), 0.2) for k in x["K"]]
    close(torch.stack(values), e["infonce"])
    pairs = [nt_xent(torch.ones(n, 4), torch.ones(n, 4), 0.5) for n in x["N"]]
    close(torch.stack(pairs), e["ntxent"])


def _fused(x: dict[str, Any], gates: list[Any] | None) -> tuple[GatedFusion, torch.Tensor]:
    maps = [torch.tensor(x[f"F{i}"])[None] for i in range(1, 5)]
    fusion = GatedFusion([m.shape[1] for m in maps])
    if gates is not None:
        for gate, values in zip(fusion.gates, gates, strict=True):
            gate.data = torch.tensor(values)
    return fusion, fusion(maps)


def test_gated_fusion_is_sigmoid_of_gate_times_pooled_stage() -> None:
    x, e = case("matssl.gate_values")
    close(_fused(x, None)[1][0], e["u_init"])
    close(_fused(x, x["gates"])[1][0], e["u"])
    close(torch.ones(()).sigmoid(), e["sigmoid_of_1"])


def test_gradient_of_a_gate_is_slope_times_pooled_value() -> None:
    x, e = case("matssl.gate_gradient")
    shapes = case("matssl.gate_values")[0]
    fusion, u = _fused(shapes, shapes["gates"])
    (u[0] * torch.tensor(x["c"])).sum().backward()
    close(torch.cat([g.grad for g in fusion.gates]), e["grad_gates"])


def _head(x: dict[str, Any], eps: float = 1e-5) -> torch.nn.Sequential:
    head = projector(4, 3, 2)
    head[0].weight.data = torch.tensor(x["W1"])
    head[3].weight.data = torch.tensor(x["W2"])
    head[1].eps = head[4].eps = eps
    return head


def test_matssl_head_has_batch_statistics_per_view() -> None:
    x, e = case("matssl.head_and_loss")
    gate = torch.tensor(x["gate"]).sigmoid()
    views = [gate * torch.tensor(x[key]) for key in ("u_view1", "u_view2")]
    first, second = (_head(x)(view) for view in views)
    close(first, e["z_view1"])
    close(second, e["z_view2"])
    close(nt_xent(first, second, x["tau"]), e["loss_separate_bn"])
    joint = _head(x)(torch.cat(views)).chunk(2)
    close(nt_xent(*joint, x["tau"]), e["loss_joint_bn"])


def test_gates_fold_into_the_first_linear_layer_and_their_scale_is_free() -> None:
    x, e = case("matssl.gate_folding")
    u, gate = torch.tensor(x["u_view1"]), torch.tensor(x["gate"]).sigmoid()
    close(_head(x)(gate * u), e["z_gated"])
    folded = _head(x)
    folded[0].weight.data = folded[0].weight.data * gate
    close(folded(u), e["z_folded"])
    close(_head(x, eps=1e-30)(gate * u), e["z_eps0"])
    close(_head(x, eps=1e-30)(x["common_factor"] * gate * u), e["z_eps0_scaled"])


def test_head_and_gates_have_the_published_number_of_parameters() -> None:
    x, e = case("matssl.dims")
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
    x, e = case("simclr.ntxent")
    z1, z2 = torch.tensor(x["z1"]), torch.tensor(x["z2"])
    close(nt_xent(z1, z2, x["tau"]), e["loss"])
    close(nt_xent(z1, z2, 0.1), e["loss_tau_0_1"])
    close(2 * nt_xent(z1, z2, x["tau"]), e["tensorflow_reference_value"])


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
    x, e = case("simclr.invariances")
    z1, z2 = torch.tensor(x["z1"]), torch.tensor(x["z2"])
    p, scale = x["permutation"], torch.tensor(x["row_scale"])[:, None]
    rotation = torch.linalg.qr(torch.arange(9.0).reshape(3, 3).sin())[0]
    tau = x["tau"]
    close(nt_xent(z1, z2, tau), e["base"])
    close(nt_xent(z2, z1, tau), e["swapped"])
    close(nt_xent(z1[p], z2[p], tau), e["permuted"])
    close(nt_xent(z1 @ rotation, z2 @ rotation, tau), e["rotated"])
    scaled = scale if len(scale) == len(z1) else scale[: len(z1)]
    close(nt_xent(z1 * scaled, z2, tau), e["scaled"])
    close(nt_xent(z1[p], z2, tau), e["one_view_permuted"])


def test_ntxent_limits() -> None:
    x, e = case("simclr.limits")
    one, axes = torch.tensor([[0.3, -2.0]]), torch.eye(2)
    close(nt_xent(one, -one, x["tau"]), e["n1"])
    close(nt_xent(torch.ones(3, 2), torch.ones(3, 2), x["tau"]), e["all_equal_n3"])
    close(nt_xent(axes, axes, x["tau"]), e["orthogonal_n2"])


def test_ntxent_gradient_reaches_both_views() -> None:
    x, e = case("simclr.gradient")
    z1 = torch.tensor(x["z1"], requires_grad=True)
    z2 = torch.tensor(x["z2"], requires_grad=True)
    nt_xent(z1, z2, x["tau"]).backward()
    close(z1.grad, e["grad_z1"])
    close(z2.grad, e["grad_z2"])
    close((z1.grad * z1).sum(1), [0, 0, 0])


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
    x, e = case("simclr.lars_step")
    first, second = _lars(x["w"], x)
    close(first, e["classic_w1"])
    close(second, e["classic_w2"])
    close(_lars(x["w"], x, adapt=False)[0], e["excluded_w1"])
    first, second = _lars(x["w"], x, classic=False)
    close(first, e["popular_w1"])
    close(second, e["popular_w2"])
    zero = torch.zeros(2, 2).tolist()
    close(_lars(zero, x)[0], e["zero_weight_w1"])


def test_lars_trust_ratio_divides_by_the_decayed_gradient() -> None:
    x, e = case("simclr.lars_trust_variants")
    w, g = torch.tensor(x["w"]), torch.tensor(x["grad"])
    close(optim.trust_ratio(w, g + x["wd"] * w, x["eta"]), e["a"])


def test_learning_rate_rules_and_simclr_schedule() -> None:
    x, e = case("simclr.lr")
    close([optim.scaled_lr(0.3, b, "linear") for b in x["B"]], e["linear"])
    close([optim.scaled_lr(0.075, b, "sqrt") for b in x["B"]], e["sqrt"])
    warmup = x["warmup_epochs"] * (x["n"] // x["batch"])
    total = x["n"] * x["epochs"] // x["batch"] + 1
    peak = optim.scaled_lr(0.3, x["batch"], "linear")
    rates = [peak * optim.cosine(step, total, warmup) for step in x["steps"]]
    close(rates, e["lr"])


def test_moco_schedule_is_constant_within_an_epoch() -> None:
    x, e = case("moco.lr_schedule")
    rates = [
        optim.learning_rate("cosine_epoch", 0.03, epoch * 10 + 7, x["E"] * 10, 0, 10)
        for epoch in x["epochs"]
    ]
    close(rates, e["lr_b256"])


# --- momentum networks and queues ---
def test_momentum_network_is_a_moving_average() -> None:
    x, e = case("common.ema_closed_form")
    slow, online = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(3, 1, bias=False)
    slow.weight.data = torch.tensor([x["theta0"]])
    online.weight.data = torch.tensor([x["theta_q"]])
    for step in range(1, 6):
        momentum.follow(slow, online, x["m"])
        if f"after_{step}" in e:
            close(slow.weight[0], e[f"after_{step}"])
    close([math.log(0.5) / math.log(m) for m in x["m_list"]], e["half_life_steps"])


def test_running_statistics_of_the_momentum_network_are_its_own() -> None:
    x, e = case("common.ema_not_for_buffers")
    slow, online = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    online.running_mean.fill_(x["online_running_mean"])
    momentum.follow(slow, online, 0.5)
    slow(torch.tensor(x["x"])[:, None])
    close(slow.running_mean[0], e["running_mean"])
    close(slow.running_var[0], e["running_var"])


def _pushed(length: int, batches: list[list[int]]) -> Iterator[momentum.KeyQueue]:
    """Yield the queue after each batch; key n has group n and a direction of its own."""
    queue = momentum.KeyQueue(length, 2)
    for batch in batches:
        angle = torch.tensor(batch) * 0.1
        queue.push(3 * torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor(batch))
        yield queue


def test_the_queue_is_a_ring() -> None:
    x, e = case("common.queue_ring_wraparound")
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
    x, e = case("moco.enqueue_after_loss")
    q, k = torch.tensor(x["q"]), torch.tensor(x["k"])
    queue = momentum.KeyQueue(4, 3)
    queue.push(torch.tensor(x["queue_raw"]), torch.zeros(4, dtype=torch.long))
    close(_info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_step1"])
    queue.push(k, torch.zeros(2, dtype=torch.long))
    close(queue.rows, e["queue_after"])
    assert int(queue.pointer) == e["ptr_after"]
    close(_info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_step2_same_batch"])


def test_the_method_itself_asks_the_queue_before_it_fills_it() -> None:
    method = _tiny_moco()
    batch = _tiny_batch()
    rows = method.queue.negatives()[0]
    assert len(rows) == 0 and float(method(batch).total.detach()) == 0
    before = method.queue.negatives()[0].clone()
    query, key = method.query(batch.views[0]), method.key(batch.views[1])
    expected = _info_nce(query, key, before, 0.2)
    assert method(batch).total.item() == pytest.approx(expected.item(), rel=1e-6)
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
    x, e = case("moco.split_bn")
    values = torch.tensor(x["x"]).view(4, 1, 1, 1)
    for splits in x["splits"]:
        layer = _split_layer(splits)
        close(layer(values).flatten(), e[f"s{splits}"])
        close(layer.running_var[0], e[f"running_var_s{splits}"])
        close(layer.running_mean[0], e["running_mean_s2"])
        plain = torch.nn.BatchNorm2d(1).eval()
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer.eval()(values), plain(values))


def test_shuffled_keys_change_nothing_without_split_batchnorm() -> None:
    x, e = case("moco.shuffle_single_device")
    values, order = torch.tensor(x["x"]).view(4, 1, 1, 1), torch.tensor(x["permutation"])
    for splits in (1, 2):
        layer = _split_layer(splits)
        shuffled = layer(values[order])[order.argsort()]
        close(shuffled.flatten(), e[f"s{splits}_shuffled"])
        close(layer(values).flatten(), e[f"s{splits}_plain"])


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
    x, e = case("moco.group_mask")
    rows = _masked(x, x["query_group"], x["queue_group"])
    close(rows, e["loss_rows"])
    close(rows.mean(), e["loss"])
    close(_masked(x, [1, 1], [1, 1, 1, 1]), [e["loss_all_masked"]] * 2)


def test_only_written_slots_are_negatives() -> None:
    x, e = case("moco.valid_mask")
    queue = momentum.KeyQueue(4, 3)
    keys = torch.tensor(x["queue_raw"])
    queue.push(keys[:2], torch.zeros(2, dtype=torch.long))
    q, k = torch.tensor(x["q"]), torch.tensor(x["k"])
    close(_info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss"])
    queue.push(keys[2:], torch.zeros(2, dtype=torch.long))
    close(_info_nce(q, k, queue.negatives()[0], x["tau"]), e["loss_unmasked"])


def test_symmetric_moco_sums_the_directions() -> None:
    x, e = case("moco.symmetric")
    a, b, rows = torch.tensor(x["a"]), torch.tensor(x["b"]), _unit(x["queue_raw"])
    close(_info_nce(a, b, rows, x["tau"]) + _info_nce(b, a, rows, x["tau"]), e["loss"])
    method, batch = _tiny_moco(symmetric=True), _tiny_batch()
    method(batch)
    keys = torch.cat([method.key(view) for view in batch.views])
    assert torch.allclose(method.queue.negatives()[0], F.normalize(keys, dim=1), atol=1e-6)


def test_a_query_meets_its_own_older_key_as_often_as_computed() -> None:
    x, e = case("moco.own_stale_key")
    generator, n = np.random.default_rng(0), x["N"]
    for length, expected in zip(x["K"], e["fraction"], strict=True):
        seen: list[int] = []
        met = total = 0
        for epoch in range(6):
            for item in generator.permutation(n).tolist():
                met += epoch > 0 and item in seen[-length:]
                total += epoch > 0
                seen.append(item)
        assert met / total == pytest.approx(
            expected, abs=CASES["moco.own_stale_key"]["tolerance"]["atol"]
        )


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
    return _info_nce(q.flatten(0, 1), positive.flatten(0, 1), rows, x["tau"])


def test_cells_are_matched_by_backbone_features() -> None:
    x, e = case("densecl.correspondence")
    index = densecl.match(torch.tensor(x["backbone_q"]), torch.tensor(x["backbone_k"]))
    assert index.tolist() == e["index"]
    close(_dense_loss(x, index), e["dense_loss"])
    wrong = densecl.match(torch.tensor(x["dense_q"]), torch.tensor(x["dense_k"]))
    assert wrong.tolist() == e["index_from_projection"]


def test_densecl_weighs_the_global_and_the_dense_loss() -> None:
    x, e = case("densecl.total_loss")
    rows = _unit(x["queue_global_raw"])
    whole = _info_nce(torch.tensor(x["global_q"]), torch.tensor(x["global_k"]), rows, x["tau"])
    cells = case("densecl.correspondence")[0]
    match = densecl.match(torch.tensor(cells["backbone_q"]), torch.tensor(cells["backbone_k"]))
    dense = _dense_loss(cells, match)
    close(whole, e["L_global"])
    close(dense, e["L_dense"])
    for weight, key in ((0.5, "total_0_5"), (0.0, "total_0"), (1.0, "total_1"), (0.3, "total_0_3")):
        close((1 - weight) * whole + weight * dense, e[key])


def test_the_total_of_the_method_is_that_weighted_sum() -> None:
    for weight in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        settings = densecl.DenseCLSettings(queue_size=8, dense_weight=weight, dense_stage=3)
        method = densecl.DenseCL(build_encoder("resnet18"), 1, (0.5,), (0.25,), settings).train()
        method(_tiny_batch())
        losses = method(_tiny_batch())
        expected = (1 - weight) * losses.parts["global"] + weight * losses.parts["dense"]
        assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
        assert float(losses.parts["dense"]) > 0 and float(losses.parts["global"]) > 0


def test_the_match_follows_the_content_not_the_position() -> None:
    x, e = case("densecl.key_position_permutation")
    order = torch.tensor(x["permutation"])
    keys = torch.tensor(x["backbone_k"])[:, order]
    index = densecl.match(torch.tensor(x["backbone_q"]), keys)
    assert index.tolist() == e["index"]
    moved = {**x, "dense_k": torch.tensor(x["dense_k"])[:, order].tolist()}
    close(_dense_loss(moved, index), e["dense_loss"])
    own = densecl.match(torch.tensor(x["backbone_q"]), torch.tensor(x["backbone_k"]))
    close(_dense_loss(moved, own), e["loss_dense_map_only_permuted"])


def test_the_dense_queue_keeps_the_mean_of_the_cells() -> None:
    x, e = case("densecl.queue_key")
    close(densecl.queue_key(torch.tensor(x["dense_k"])), e["queue_key"])


def test_identical_views_match_cell_by_cell() -> None:
    x, e = case("densecl.identical_views")
    features, dense = torch.tensor(x["backbone"]), torch.tensor(x["dense"]).flatten(0, 1)
    assert densecl.match(features, features).tolist() == e["index"]
    rows, _ = info_nce_rows(dense, dense, _unit(x["queue_dense_raw"]), x["tau"])
    close(rows, e["loss_rows"])
    close(rows.mean(), e["loss"])


def test_the_dense_loss_can_wait() -> None:
    x, e = case("densecl.warmup")
    weights = [densecl.dense_weight(x["lam"], n, x["start_iters"]) for n in x["iterations"]]
    assert weights == e["weight"]


def test_gradient_of_the_dense_loss_reaches_the_queries_alone() -> None:
    x, e = case("densecl.gradient")
    q = torch.tensor(x["dense_q"], requires_grad=True)
    k = torch.tensor(x["dense_k"], requires_grad=True)
    features = torch.tensor(x["backbone_q"], requires_grad=True)
    index = densecl.match(features, torch.tensor(x["backbone_k"]))
    positive = k.gather(1, index[..., None].expand(-1, -1, k.shape[2]))
    rows = _unit(x["queue_dense_raw"])
    _info_nce(q.flatten(0, 1), positive.flatten(0, 1), rows, x["tau"]).backward()
    close(q.grad, e["grad_dense_q"])
    assert k.grad is None and features.grad is None


def test_cells_at_the_same_place_are_paired_by_geometry() -> None:
    settings = densecl.DenseCLSettings(queue_size=8, dense_match="geometry", dense_stage=3)
    method = densecl.DenseCL(build_encoder("resnet18"), 1, (0.5,), (0.25,), settings)
    size = 64
    first = view_map(0, 0, 64, 64, size=size)
    mirrored = view_map(0, 0, 64, 64, True, size=size)
    far = view_map(500, 500, 64, 64, size=size)
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
    x, e = case("byol.loss")
    p1, p2, t1, t2 = (torch.tensor(x[k]) for k in ("pred1", "pred2", "target1", "target2"))
    close(negative_cosine(p1, t2), e["direction_12"])
    close(negative_cosine(p2, t1), e["direction_21"])
    close(_byol(p1, p2, t1, t2), e["loss"])


def test_byol_gradient_reaches_the_predictions_alone() -> None:
    x, e = case("byol.gradient")
    p1, p2, t1, t2 = (
        torch.tensor(x[k], requires_grad=True) for k in ("pred1", "pred2", "target1", "target2")
    )
    _byol(p1, p2, t1, t2).backward()
    close(p1.grad, e["grad_pred1"])
    close((p1.grad * p1).sum(1), [0, 0])
    assert t1.grad is None and t2.grad is None


def test_byol_bounds() -> None:
    x, e = case("byol.bounds")
    p1, p2, t1, t2 = (torch.tensor(x[k]) for k in ("pred1", "pred2", "target1", "target2"))
    close(_byol(p1, p2, p2, p1), e["match"])
    close(_byol(p1, p2, -p2, -p1), e["antipodal"])
    axes = torch.eye(2)
    close(_byol(axes, axes, axes.flip(0), axes.flip(0)), e["orthogonal"])
    close(_byol(3 * p1, 0.2 * p2, 7 * t1, t2), e["scaled"])


def test_byol_momentum_rises_to_one() -> None:
    x, e = case("byol.ema_schedule")
    for start, key in zip(x["tau0"], ("tau_099", "tau_0996"), strict=True):
        values = [momentum.cosine_momentum(start, t / x["T"]) for t in x["t"]]
        close(values, e[key])


def test_the_target_follows_the_weights_after_the_step() -> None:
    x, e = case("byol.update_order")
    online, slow = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    online.weight.data, slow.weight.data = torch.tensor([x["online"]]), torch.tensor([x["target"]])
    optimizer = torch.optim.SGD(online.parameters(), lr=x["lr"])
    online.weight.grad = torch.tensor([x["grad"]])
    optimizer.step()
    momentum.follow(slow, online, x["tau"])
    close(online.weight[0], e["online_new"])
    close(slow.weight[0], e["target_new"])


def test_byol_rates_follow_the_batch() -> None:
    x, e = case("byol.lr")
    for base, key in ((0.45, "base_045"), (0.3, "base_03"), (0.2, "base_02")):
        close([optim.scaled_lr(base, b, "linear") for b in x["B"]], e[key])


def test_health_std() -> None:
    x, e = case("health.std")
    z = torch.tensor(x["z"])
    close(monitor.std(z), e["std"])
    close(monitor.std(torch.ones(4, 3)), e["collapsed"])


def test_health_rankme() -> None:
    x, e = case("health.rankme")
    z = torch.tensor(x["z"])
    close(monitor.rankme(z), e["rankme"])
    close(monitor.rankme(5 * z), e["rankme_scaled"])
    close(monitor.rankme(torch.eye(4)), e["identity4"])
    close(monitor.rankme(torch.tensor(x["rank1"])), e["rank1_value"])


def test_health_alignment_and_uniformity() -> None:
    x, e = case("health.alignment_uniformity")
    first, second = torch.tensor(x["x"]), torch.tensor(x["y"])
    close(monitor.alignment(first, second), e["alignment"])
    close(monitor.uniformity(first), e["uniformity"])
    same = torch.ones(4, 3)
    assert float(monitor.alignment(same, same)) == pytest.approx(0)
    assert float(monitor.uniformity(same)) == pytest.approx(0)


def test_health_gap() -> None:
    x, e = case("health.gap")
    difference, auc, top1 = monitor.gap(torch.tensor(x["x"]), torch.tensor(x["y"]))
    close(difference, e["gap"])
    close(auc, e["auc"])
    close(top1, e["top1"])


def test_rank_sees_a_collapse_that_the_spread_does_not() -> None:
    x, e = case("health.dimensional_collapse")
    points = torch.tensor(x["points_axis"])
    rotated = points @ torch.tensor(x["rotation"])
    close(monitor.rankme(points), e["rankme_axis"])
    close(monitor.rankme(rotated), e["rankme_rotated"])
    close(monitor.std(points), e["std_axis"])
    close(monitor.std(rotated), e["std_rotated"])


def test_health_queue_age() -> None:
    x, e = case("health.queue_age")
    assert monitor.queue_age(x["K"], x["B"]) == e["oldest_age"]


def test_every_case_of_the_file_is_tested() -> None:
    files = Path(__file__).parent.glob("test_*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [name for name in CASES if f'"{name}"' not in source] == []
