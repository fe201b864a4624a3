"""SlotCon: the numeric cases, alignment under all of D4, and what its published code gets wrong."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric import case, close, small_encoder, view_map
from torch import Tensor, nn

from matssl.core import geometry, palette
from matssl.core.batch import Batch
from matssl.methods import momentum
from matssl.methods.slotcon import method as slotcon
from matssl.methods.slotcon.method import SlotCon, SlotConSettings
from matssl.models.encoders import channels_last, pyramid
from matssl.models.heads import CellProjector, RowNorm, row_predictor

pytestmark = pytest.mark.usefixtures("float64")

SMALL = {"prototypes": 6, "hidden_dim": 16, "global_output_dim": 8, "dense_stage": 3}


# --- the numeric cases ---
def test_cells_are_grouped_by_cosine_and_slots_are_means_of_what_was_not_normalised() -> None:
    x, e = case("slotcon.grouping")
    cells, prototypes = torch.tensor([x["x"]]), torch.tensor(x["prototypes"])
    scores, attention, slots = slotcon.assign(cells, prototypes, x["temperature"])
    assert x["eps"] == slotcon.EPS
    close(scores[0], e["dots"])
    close(attention[0], e["attention"])
    close(slots[0], e["slots"])


def test_the_order_and_length_of_prototypes_only_reorder_slots() -> None:
    x, e = case("slotcon.prototype_permutation")
    cells, prototypes = torch.tensor([x["x"]]), torch.tensor(x["prototypes"])

    def slots(cells: Tensor, prototypes: Tensor) -> Tensor:
        return slotcon.assign(cells, prototypes, 0.07)[2][0]

    close(slots(cells, prototypes), e["slots"])
    close(slots(cells, prototypes[x["permutation"]]), e["slots_permuted"])
    close(slots(cells.flip(1), prototypes), e["slots_positions_reversed"])
    close(slots(cells, 3 * prototypes), e["slots"])


def _distilled(x: dict[str, Any], shift: float = 0.0) -> tuple[Tensor, ...]:
    student = torch.tensor(x["student"], requires_grad=True)
    teacher = torch.tensor(x["teacher"], requires_grad=True)
    center = (torch.tensor(x["center"]) + shift).requires_grad_()
    loss = slotcon.distillation(student, teacher, center, 0.1, 0.07).mean()
    return loss, student, teacher, center


def test_the_student_learns_the_centred_sharpened_assignment_of_the_teacher() -> None:
    x, e = case("slotcon.distill")
    close(_distilled(x)[0], e["loss"])
    close(_distilled(x, shift=1.0)[0], e["loss_center_plus_1"])
    mean = torch.tensor(x["teacher"]).mean(0)
    close(slotcon.moved_center(torch.tensor(x["center"]), mean, 0.9), e["center_new"])


def test_only_the_student_gets_a_gradient() -> None:
    x, e = case("slotcon.distill_gradient")
    loss, student, teacher, center = _distilled(x)
    loss.backward()
    close(student.grad, e["grad_student"])
    assert student.grad is not None
    close(student.grad.sum(1), np.zeros(3))
    assert teacher.grad is e["grad_teacher"] and center.grad is e["grad_center"]


def test_slots_active_in_both_views_find_their_own_among_all_active_keys() -> None:
    x, e = case("slotcon.slot_loss")
    query = torch.tensor(x["slots_q"], requires_grad=True)
    key = torch.tensor(x["slots_k"], requires_grad=True)
    masks = [torch.tensor(x[f"active_{side}"]) > 0 for side in "qk"]
    rows = slotcon.slot_contrast(query, key, *masks, nn.Identity(), 0.2)
    close(rows, e["loss_rows"])
    close(2 * 0.2 * rows.mean(), e["loss"])
    rows.mean().backward()
    # Slots that are not active in both views, and keys, learn nothing.
    silent = torch.ones(6, dtype=torch.bool)
    silent[e["query_rows"]] = False
    assert query.grad is not None
    assert bool((query.grad.flatten(0, 1)[silent] == 0).all()) and key.grad is None


def test_a_score_map_is_resampled_as_roi_align_does_and_turned_back() -> None:
    x, e = case("slotcon.inverse_augmentation")
    scores = torch.tensor(x["map"])[None, None]

    def aligned(flip: bool, box: list[float]) -> Tensor:
        affine = view_map(0, 0, 4, 4, flip, size=128)
        # The case gives the box in the (mirrored) view; ours lies in the image.
        corners = np.array([[box[0], box[1]], [box[2], box[3]]]) * 128
        inside = geometry.transform(affine, corners)
        edges = np.concatenate([inside.min(0), inside.max(0)])
        maps = torch.from_numpy(affine)[None]
        return slotcon.align(scores, maps, torch.from_numpy(edges)[None], 128)[0, 0]

    full, half = x["boxes"]
    close(aligned(False, full), e["full"])
    close(aligned(False, half), e["half"])
    close(aligned(True, half), e["half_flipped"])


def test_both_directions_of_both_losses_are_summed() -> None:
    x, e = case("slotcon.total")
    w = x["w"]
    total = w * sum(x["D"]) + (1 - w) * sum(x["C"])
    close(total, e["total"])
    method, batch = _method(), _batch()
    losses = method(batch)
    weighted = 0.5 * losses.parts["group"] + 0.5 * losses.parts["slot"]
    close(losses.total, weighted.item())
    other = _method(group_loss_weight=0.9)(batch)
    close(other.total, (0.9 * losses.parts["group"] + 0.1 * losses.parts["slot"]).item())


def test_the_loss_is_that_of_a_slow_second_version() -> None:
    # Both views are of one box, so that their cells lie on each other without interpolation.
    method, batch = _method(group_loss_weight=0.3, group_negatives="drop").eval(), _batch()
    batch = dataclasses.replace(batch, maps=batch.maps[:1].repeat(2, 1, 1, 1))
    method.center.copy_(torch.linspace(-0.2, 0.3, 6))
    for slow, online in method.followers():
        # A teacher of its own: weights that differ from the student's.
        for a, b in zip(slow.parameters(), online.parameters(), strict=True):
            a.data.copy_(b.data.flip(0))
    with torch.no_grad():
        x = [method.normalise(view) for view in batch.views]
        students = [method.project(v).movedim(1, -1).flatten(1, 2) for v in x]
        teachers = [method.teach(v).movedim(1, -1).flatten(1, 2) for v in x]
        s_proto, t_proto = method.grouping.prototypes, method.teacher_grouping.prototypes

        def scores(cell: Tensor, prototypes: Tensor) -> Tensor:
            return torch.stack([F.cosine_similarity(cell, p, dim=0) for p in prototypes])

        def slots(cells: Tensor, prototypes: Tensor) -> tuple[list[Tensor], set[int]]:
            """Slots of a view and the prototypes that win a cell of it."""
            dots = [scores(cell, prototypes) for cell in cells]
            shares = [(d / 0.07).softmax(0) + 1e-6 for d in dots]
            made = [
                sum(w[k] * cell for w, cell in zip(shares, cells, strict=True))
                / sum(w[k] for w in shares)
                for k in range(6)
            ]
            return made, {int(d.argmax()) for d in dots}

        total = 0.0
        for a, b in ((0, 1), (1, 0)):
            group = []
            for student, teacher in zip(
                students[a].flatten(0, 1), teachers[b].flatten(0, 1), strict=True
            ):
                target = ((scores(teacher, t_proto) - method.center) / 0.07).softmax(0)
                group.append(-(target * (scores(student, s_proto) / 0.1).log_softmax(0)).sum())
            queries = [slots(cells, s_proto) for cells in students[a]]
            keys = [slots(cells, t_proto) for cells in teachers[b]]
            pairs = [(i, k) for i in range(4) for k in sorted(queries[i][1] & keys[i][1])]
            entries = [(i, k) for i in range(4) for k in sorted(keys[i][1])]
            predicted = method.predictor(torch.stack([queries[i][0][k] for i, k in pairs]))
            contrast = []
            for (i, k), row in zip(pairs, predicted, strict=True):
                # Slots of other tiles of the same image are no negatives.
                kept = [(j, n) for j, n in entries if j == i or batch.group[j] != batch.group[i]]
                logits = [F.cosine_similarity(row, keys[j][0][n], dim=0) / 0.2 for j, n in kept]
                at = logits[kept.index((i, k))]
                contrast.append(torch.stack(logits).logsumexp(0) - at)
            total += float(0.3 * sum(group) / len(group))
            total += float(0.7 * 2 * 0.2 * sum(contrast) / len(contrast))
        assert float(method(batch).total) == pytest.approx(total, rel=1e-9)


def test_the_teachers_momentum_rises_to_one() -> None:
    x, e = case("slotcon.momentum")
    close([momentum.cosine_momentum(x["m0"], p) for p in (0, 0.5, 1)], e["m"])
    assert (SlotConSettings().ema_momentum, SlotConSettings().ema_schedule) == (0.99, "cosine")


# --- alignment ---
def _maps(boxes: Any, size: int = 64) -> Tensor:
    """Maps of one view each: (top, left, height, width, flip, turns)."""
    views = [view_map(*b, size=size) for b in boxes]
    return torch.from_numpy(np.stack(views))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("other", [(False, 0), (True, 1), (False, 3)])
def test_aligned_maps_of_two_views_say_the_same_of_the_same_place(
    flip: bool, turns: int, other: tuple[bool, int]
) -> None:
    # Each cell's score is linear in its place in the image, which interpolation keeps.
    maps = torch.stack(
        [_maps([(10, 20, 80, 64, flip, turns)]), _maps([(30, 36, 48, 96, *other)], size=96)]
    )
    sizes, grid = (64, 96), 16
    boxes, share = slotcon.overlap(maps, *sizes)
    assert boxes.tolist() == [[36.0, 30.0, 84.0, 78.0]]
    close(share, [48 * 48 / (48 * 96)])
    aligned = []
    for view, size in zip(maps.numpy(), sizes, strict=True):
        centres = geometry.transform(view[0], geometry.cell_centres(size, grid))
        scores = torch.from_numpy(centres.T.reshape(1, 2, grid, grid).copy())
        aligned.append(slotcon.align(scores, torch.from_numpy(view), boxes, size)[0])
    fine = (np.arange(grid) + 0.5) / grid * 48
    # Beyond the outermost centres of a view the border counts, so the inner cells are compared.
    inner = slice(2, -2)
    for result in aligned:
        close(result[0, grid // 2, inner], fine[inner] + 36)
        close(result[1, inner, grid // 2], fine[inner] + 30)
    close(aligned[0][:, inner, inner], aligned[1][:, inner, inner])


def test_views_side_by_side_share_nothing_and_are_left_out() -> None:
    first = _maps([(0, 0, 50, 50, False, 0)] * 2)
    second = _maps([(0, 60, 50, 50, True, 1), (25, 0, 50, 50, True, 1)])
    _, share = slotcon.overlap(torch.stack([first, second]), 64, 64)
    close(share, [0.0, 0.5])
    method, batch = _method(), _batch(size=2)
    both = Batch(batch.views, torch.stack([first, second]), batch.group, batch.index)
    losses = method(both)
    assert float(losses.parts["overlapping"]) == 0.5
    apart = Batch(batch.views, torch.stack([first, first + 99]), batch.group, batch.index)
    losses = method(apart)
    assert float(losses.parts["group"]) == 0 and float(losses.parts["overlapping"]) == 0
    losses.total.backward()
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    # The slots' loss is left, and reaches all weights.
    assert without == []


def test_turning_a_view_and_its_map_changes_no_group_loss() -> None:
    method = _method(dense_stage=3).eval()
    # A projector per cell on pooled pixels: the encoder itself is not equal under turns.
    scores = torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    base = _maps([(0, 0, 64, 64, False, 0)] * 3)
    views = tuple(torch.zeros(3, 1, 64, 64, dtype=torch.uint8) for _ in range(2))

    def loss(flip: bool, turns: int) -> float:
        turned = scores.numpy()[..., ::-1] if flip else scores.numpy()
        turned = np.rot90(turned, turns, (2, 3)).copy()
        maps = torch.stack([_maps([(0, 0, 64, 64, flip, turns)] * 3), base])
        batch = Batch(views, maps, torch.arange(3), torch.arange(3))
        both = [torch.from_numpy(turned), scores], [torch.from_numpy(turned), teacher]
        return float(method._group_loss(batch, *both)[0])

    values = [loss(flip, turns) for flip in (False, True) for turns in range(4)]
    close(values, [values[0]] * 8)
    # Without the map they would differ.
    wrong = torch.rot90(scores, 1, (2, 3))
    maps = torch.stack([base, base])
    batch = Batch(views, maps, torch.arange(3), torch.arange(3))
    assert float(method._group_loss(batch, [wrong, scores], [wrong, teacher])[0]) != values[0]


# --- behaviour ---
def _method(**settings: Any) -> SlotCon:
    torch.manual_seed(0)
    chosen = SlotConSettings(**{**SMALL, **settings})
    method = SlotCon(small_encoder(), 1, (0.5,), (0.25,), chosen).double()
    channels_last(method)
    return method


def _batch(size: int = 4, seed: int = 0, side: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = tuple(
        torch.randint(0, 256, (size, 1, side, side), generator=generator).to(torch.uint8)
        for _ in range(2)
    )
    boxes = [(5 * i, 3 * i, 60, 70, i % 2 == 0, i % 4) for i in range(size)]
    others = [(4 * i, 5 * i, 70, 60, i % 3 == 0, (i + 1) % 4) for i in range(size)]
    maps = torch.stack([_maps(boxes, side), _maps(others, side)])
    return Batch(views, maps, torch.arange(size) // 2, torch.arange(size))


def test_a_prototype_is_active_where_it_wins_a_cell() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.2], [0.5, 0.2, 0.3], [0.4, 0.1, 0.1]]])
    assert slotcon.active(scores).tolist() == [[True, True, False]]


@pytest.mark.parametrize("count", [0, 1])
def test_few_or_no_active_slots_still_reach_every_weight_of_the_predictor(count: int) -> None:
    predictor = row_predictor(8, 16).train()
    query = torch.randn(2, 3, 8, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, :count] = True
    rows = slotcon.slot_contrast(query, torch.randn(2, 3, 8), mask, mask, predictor, 0.2)
    assert len(rows) == count
    rows.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())


def test_slots_of_other_tiles_of_the_image_can_be_left_out() -> None:
    query, key = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    mask, group = torch.ones(3, 2, dtype=torch.bool), torch.tensor([4, 4, 7])
    rows = slotcon.slot_contrast(query, key, mask, mask, nn.Identity(), 0.2, group)
    logits = F.normalize(query[0, 1], dim=0) @ F.normalize(key.flatten(0, 1), dim=1).T / 0.2
    # Sample 1 shares the image of sample 0; its two slots are no negatives.
    kept = logits[[0, 1, 4, 5]]
    assert float(rows[1]) == pytest.approx(float(kept.logsumexp(0) - logits[1]))


def test_the_centre_follows_the_unaligned_scores_after_the_loss() -> None:
    method, batch = _method().train(), _batch()
    before = copy.deepcopy(method)
    method(batch)
    scores = []
    for view in batch.views:
        cells = before.teach(before.normalise(view)).movedim(1, -1).flatten(0, 2)
        prototypes = before.teacher_grouping.prototypes
        scores.append(F.normalize(cells, dim=1) @ F.normalize(prototypes, dim=1).T)
    close(method.center, 0.1 * torch.cat(scores).mean(0))
    method.eval()
    center = method.center.clone()
    method(batch)
    assert torch.equal(method.center, center)


def test_without_centre_and_sharpening_one_prototype_can_take_all() -> None:
    # The centre takes off what all cells have in common, so that a favourite loses its lead.
    scores = torch.tensor([[0.8, 0.1, 0.0], [0.8, 0.0, 0.1]])
    target = (scores / 0.07).softmax(1)
    assert bool((target.argmax(1) == 0).all())
    student = torch.zeros(2, 3, requires_grad=True)
    slotcon.distillation(student, scores, scores.mean(0), 0.1, 0.07).sum().backward()
    assert student.grad is not None
    # Lowering the loss raises what distinguishes each cell.
    assert (-student.grad).argmax(1).tolist() == [1, 2]


def test_the_projector_is_one_convolution_of_the_stacked_maps() -> None:
    torch.manual_seed(0)
    projector = CellProjector((4, 6), 5, 3)
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    stacked = torch.cat([maps[0], F.interpolate(maps[1], size=(8, 8), mode="bilinear")], dim=1)
    weight = torch.cat([layer.weight for layer in projector.first], dim=1)
    close(projector(maps), projector.rest(F.conv2d(stacked, weight)).detach())


def test_at_the_last_stage_the_projector_has_the_published_size() -> None:
    # 2048-4096-4096-256 and 256-4096-4096-256 without the shifts that a BatchNorm takes off.
    with torch.device("meta"):
        projector, predictor = CellProjector((2048,), 4096, 256), row_predictor(256, 4096)
    norms = 2 * 2 * 4096 + 256
    assert sum(p.numel() for p in projector.parameters()) == 4096 * (2048 + 4096 + 256) + norms
    assert sum(p.numel() for p in predictor.parameters()) == 4096 * (256 + 4096 + 256) + norms


def test_rows_are_normalised_by_their_own_statistics_and_few_by_the_averages() -> None:
    norm, plain = RowNorm(4), nn.BatchNorm1d(4)
    rows = torch.randn(6, 4)
    assert torch.equal(norm(rows), plain(rows))
    close(norm.running_var, plain.running_var)
    close(norm(rows[:1]), plain.eval()(rows[:1]).detach())
    assert norm(rows[:0]).shape == (0, 4)


def test_finer_cells_keep_the_gradient_of_every_stage() -> None:
    for stage in (1, 2, 3, 4):
        method = _method(dense_stage=stage)
        cells = method.project(method.normalise(_batch().views[0])).shape[-1]
        assert cells == 64 // 2 ** (stage + 1)
        method(_batch()).total.backward()
        gradients = [p.grad for p in method.encoder.parameters()]
        assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients)


def test_a_temperature_of_each_kind_changes_the_loss() -> None:
    base = float(_method()(_batch()).total.detach())
    for name in ("teacher_temperature", "student_temperature", "temperature"):
        assert float(_method(**{name: 0.3})(_batch()).total.detach()) != base
    first, second = _method().train(), _method(center_momentum=0.5).train()
    for method in (first, second):
        method(_batch())
    close(second.center, 5 * first.center)


# --- what is logged and shown ---
def test_measures_are_those_of_the_last_probe_and_no_state() -> None:
    method = _method().eval()
    assert method.measures() == {}
    before = copy.deepcopy(method.state_dict())
    with torch.inference_mode():
        embeddings = method.embed_views(_batch())
    assert embeddings.shape == (8, 8)
    assert method.state_dict().keys() == before.keys()
    measures = method.measures()
    assert measures["prototypes"] == 6
    assert 1 <= measures["prototypes_in_use"] <= 6 and 1 <= measures["prototype_usage"] <= 6
    assert 0 <= measures["target_entropy"] <= 1 and 1 <= measures["slots_per_view"] <= 6


def test_measures_tell_collapse_from_an_even_use() -> None:
    method = _method()
    eye = torch.eye(6).repeat(4, 1).T.reshape(1, 6, 4, 6)
    method._look([eye])
    even = method.measures()
    assert even["prototypes_in_use"] == pytest.approx(6) and even["slots_per_view"] == 6
    assert even["target_entropy"] < 0.01
    one = torch.zeros(1, 6, 4, 6)
    one[:, 2] = 1.0
    method._look([one])
    alone = method.measures()
    assert alone["prototypes_in_use"] == pytest.approx(1) and alone["slots_per_view"] == 1
    assert alone["prototype_usage"] < 1.01
    method._look([torch.zeros(1, 6, 4, 6)])
    assert method.measures()["target_entropy"] == pytest.approx(1)


def test_equal_prototypes_take_no_cells_apart() -> None:
    # Their mean attention is as even as that of six in good use; only the single cell tells.
    method = _method().eval()
    method.teacher_grouping.prototypes.data.copy_(torch.ones(6, 8))
    with torch.inference_mode():
        method.embed_views(_batch())
    measures = method.measures()
    assert measures["prototype_usage"] == pytest.approx(6)
    assert measures["target_entropy"] == pytest.approx(1)


def test_the_panel_shows_views_and_where_each_prototype_wins() -> None:
    method, batch = _method().eval(), _batch(size=5)
    with torch.inference_mode():
        panel = method.panel(batch)
        scores = method.prototype_scores(method.normalise(batch.views[0]))
    assert panel is not None and len(panel.rows) == 5 and len(panel.columns) == 3
    labels = F.interpolate(scores, size=(64, 64), mode="bilinear").argmax(1).numpy()
    colours = {tuple(c) for row in panel.rows for c in row[1].reshape(-1, 3)}
    assert len(colours) == len(np.unique(labels))
    for (view, painted, mixed), label in zip(panel.rows, labels, strict=True):
        assert view.shape == (64, 64) and painted.shape == mixed.shape == (64, 64, 3)
        assert view.dtype == painted.dtype == mixed.dtype == np.uint8
        for value in np.unique(label):
            assert len(np.unique(painted[label == value], axis=0)) == 1
    # The prototype that takes most has the first colour.
    most = np.bincount(labels.ravel()).argmax()
    assert tuple(panel.rows[0][1][labels[0] == most][0]) == palette.COLOURS[0]


def test_the_teacher_is_what_is_shown() -> None:
    method = _method().eval()
    x = method.normalise(_batch().views[0])
    maps = pyramid(method.teacher_encoder, x)
    assert torch.equal(method.teach(x), method.teacher_projector(maps[2:]))
    with torch.no_grad():
        method.grouping.prototypes.zero_()
        next(method.encoder.parameters()).zero_()
    assert torch.equal(method.teach(x), method.teacher_projector(maps[2:]))
