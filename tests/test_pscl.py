"""PSCL: its numeric cases, its sampling and losses against slow versions, its repaired faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric import CASES, case, close
from processes import start

from matssl import weights
from matssl.core import geometry, optim
from matssl.core.batch import Batch
from matssl.core.errors import UserError
from matssl.methods import method_class
from matssl.methods.contrastive import nt_xent
from matssl.methods.pscl import cells, patches
from matssl.methods.pscl.cells import STRIDES
from matssl.methods.pscl.moco.method import PSCLMoCo, StampedQueue, weighted_mean
from matssl.methods.pscl.moco.settings import PSCLMoCoSettings
from matssl.methods.settings import PoolFacts
from matssl.models.decoders import build_decoder, fine_channels, fine_maps
from matssl.models.encoders import build_encoder
from matssl.models.heads import GroupedLinear, grouped_head
from matssl.models.segmentation import build_model
from matssl.models.small_unet import SmallUnet, from_published

pytestmark = pytest.mark.usefixtures("float64")

BOTH = ("pscl-simclr", "pscl-moco")


def _unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _maps(boxes: Any, flips: Any, turns: Any, size: int) -> torch.Tensor:
    maps = [geometry.affines(b, f, t, size) for b, f, t in zip(boxes, flips, turns, strict=True)]
    return torch.from_numpy(np.stack(maps))


def _batch(
    images: int = 4, side: int = 32, classes: int = 4, seed: int = 0, crops: bool = True
) -> Batch:
    """Views of noise, with stripes of classes in the first."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 1, side, side)
    base = torch.randint(0, 256, shape, generator=generator)
    views = [
        (base + torch.randint(-20, 21, shape, generator=generator)).clamp(0, 255).to(torch.uint8)
        for _ in range(2)
    ]
    random = np.random.default_rng(seed)
    boxes = np.tile([0.0, 0.0, side, side], (2, images, 1))
    flips, turns = np.zeros((2, images), bool), np.zeros((2, images), int)
    if crops:
        boxes[1, :, :2] = random.uniform(0, 0.1, (images, 2)) * side
        boxes[1, :, 2:] = random.uniform(0.8, 0.9, (images, 2)) * side
        flips[1], turns[1] = random.random(images) < 0.5, random.integers(0, 4, images)
    labels = torch.full((images, side, side), 255, dtype=torch.uint8)
    labels[0] = (torch.arange(side) * classes // side).to(torch.uint8)
    index = torch.arange(images)
    index[0] = -1
    maps = _maps(boxes, flips, turns, side)
    return Batch((views[0], views[1]), maps, index // 2, index, labels, index // 2)


def _method(name: str, encoder: str = "small_unet", **settings: Any) -> Any:
    torch.manual_seed(0)
    values = {"decoder": "small_unet", "top_k": 3, "queue_size": 12, "hidden_dim": 16, **settings}
    values = {"global_output_dim": 8, "dense_output_dim": 8, **values}
    built = build_encoder(encoder, 1)
    return method_class(name).from_settings(built, 1, (0.5,), (0.25,), values).train()


# --- the numeric cases ---
def test_cells_of_a_turned_and_cropped_view_are_paired_by_their_centres() -> None:
    x, e = case("pscl.geometry")
    # Published order: vertical flip, rot90^k, crop of 4 x 4 at row 1, column 0. A vertical flip is
    # a mirror and two turns; taken before those, the crop is at row 1, column 0 of the image too.
    side = x["fh"]
    height = round(x["r1"] * side)
    boxes = [[[0.0, 0.0, side, side]], [[1.0, 0.0, height, height]]]
    maps = _maps(boxes, [[False], [x["flip"]]], [[0], [(x["rot"] + 2) % 4]], side)
    view = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    batch = Batch((view, view), maps, torch.zeros(1), torch.zeros(1))
    index, valid = patches.cell_pairs(batch, side)
    expected = dict(zip(e["query_index"], e["key_index_repaired"], strict=True))
    assert {q: int(index[0, q]) for q in range(side**2) if valid[0, q]} == expected
    assert list(expected.values()) != e["key_index_upstream"]


def test_each_class_takes_the_cells_it_covers_most_and_none_twice() -> None:
    x, e = case("pscl.class_sampling")
    cells, weight, keep = patches.take_cells(torch.tensor(x["coverage"]), x["n"])
    assert cells.tolist() == e["index"] and keep.tolist() == e["keep"]
    close(weight, e["weight"])


def test_templates_take_the_most_similar_cell_that_is_left() -> None:
    x, e = case("pscl.greedy_matching")
    taken = torch.zeros(1, 3)
    index = patches.take_most_similar(torch.tensor(x["similarity"])[None], taken)
    # Negative similarities: subtracting the largest would raise a taken cell.
    assert index[0].tolist() == e["repaired"] != e["upstream"]
    assert torch.equal(taken, torch.full((1, 3), float("-inf")))


def test_prototypes_are_weighted_means_of_unit_keys_and_unit_rows_themselves() -> None:
    x, e = case("pscl.prototype")
    keys = F.normalize(torch.tensor(x["keys_raw"]), dim=1)
    weight = torch.tensor(x["weight"])
    close(weight @ keys, e["weighted_sum"])
    close((weight @ keys).norm(), e["norm"])
    kind, valid = torch.tensor([1, 1]), torch.ones(1, 2, dtype=torch.bool)
    rows, present = patches.prototypes(keys[None], weight, kind, valid, 3)
    close(rows[0, 1], e["stored"])
    assert present.tolist() == [[False, True, False]]


def test_soft_positives_fade_with_their_age() -> None:
    x, e = case("pscl.age_weights")
    age = torch.tensor(x["a"], dtype=torch.float64)
    lots, kinds = torch.full((3,), 7), torch.full((3,), 1)
    close(patches.image_targets(torch.tensor([7]), lots, age)[0], e["global_same"])
    same, other = patches.cell_targets(torch.tensor([7, 8]), 2, lots, kinds, age)
    close(same[1], e["patch_same_class_same_batch"])
    close(other[1], e["patch_same_class_other_batch"])
    close(same[0], [e["other_class"]] * 3)
    unknown = torch.tensor([-1])
    assert patches.image_targets(unknown, unknown.expand(3), age).tolist() == [[0, 0, 0]]


def _soft(x: dict[str, Any], target: list[float], shares: bool = True) -> torch.Tensor:
    """The loss where the cosines are those given: rows in the plane of the query and one axis."""
    cosines = torch.tensor(x["similarity"])
    rows = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
    query = torch.tensor([[1.0, 0.0]])
    pull, mass = patches.pulls(torch.tensor([target[1:]]), rows[1:])
    return patches.soft_info_nce_rows(
        query, rows[:1], rows[1:], x["tau"], pull, mass, shares=shares
    )[0]


def test_soft_targets_are_divided_by_their_sum() -> None:
    x, e = case("pscl.moco_soft_loss")
    close(F.log_softmax(torch.tensor(x["similarity"]) / x["tau"], 0), e["log_p"])
    close(_soft(x, x["target"])[0], e["repaired"])
    # B16: as they are, as published.
    close(_soft(x, x["target"], shares=False)[0], e["upstream"])
    close(_soft(x, [1.0, 0.0, 0.0, 0.0])[0], e["hard_target"])


def test_cells_are_contrasted_with_those_of_other_classes() -> None:
    x, e = case("pscl.simclr_masked_ntxent")
    q, k, kind = torch.tensor(x["q"]), torch.tensor(x["k"]), torch.tensor(x["cls"])
    loss, rows = patches.class_nt_xent(q, k, kind, x["tau"])
    close(rows, e["loss_rows"])
    close(loss, e["loss"])
    close(nt_xent(q, k, x["tau"]), e["plain_ntxent_for_comparison"])
    others = (kind[:, None] != kind).sum(1) * 2
    assert others.tolist() == [e["negatives_per_row"]] * 4


def test_one_class_alone_has_no_negatives_and_classes_of_one_are_plain_ntxent() -> None:
    x, e = case("pscl.single_class")
    q, k = torch.tensor(x["q"]), torch.tensor(x["k"])
    close(patches.class_nt_xent(q, k, torch.zeros(4), x["tau"])[0], e["all_same"])
    close(patches.class_nt_xent(q, k, torch.arange(4), x["tau"])[0], e["all_distinct"])


def test_gradient_of_the_cell_loss_reaches_both_views() -> None:
    x, e = case("pscl.simclr_gradient")
    q, k = torch.tensor(x["q"]).requires_grad_(), torch.tensor(x["k"]).requires_grad_()
    patches.class_nt_xent(q, k, torch.tensor(x["cls"]), x["tau"])[0].backward()
    close(q.grad, e["grad_q"])
    close(k.grad, e["grad_k"])


def test_scales_count_alike_whatever_their_number_of_cells() -> None:
    x, e = case("pscl.total")
    scales = [torch.tensor(loss) for loss in x["L_scale"]]
    close(cells.combined(torch.tensor(x["L_global"]), scales, x["rho"]), e["total"])
    # B16: by their numbers of cells, as published.
    weights = cells.cell_counts(30, 2.0)
    assert weights == [30, 60, 120]
    close(cells.combined(torch.tensor(x["L_global"]), scales, x["rho"], weights), e["row_pooled"])


def test_published_targets_and_scales_are_settings_of_the_method() -> None:
    """B16: soft targets as they are, scales by their cells, a queue of any length."""
    settings = PSCLMoCoSettings(queue_size=504, queue_limit="none")
    pool = PoolFacts(9, 132, {"a": 0.5, "b": 0.5})
    found, notes = settings.resolved(pool)
    assert found.queue_size == 504 and not any("queue" in note for note in notes)
    assert dataclasses.replace(settings, queue_limit="half").resolved(pool)[0].queue_size == 63
    numbers = {}
    for name, values in {
        "ours": {},
        "raw": {"soft_targets": "raw"},
        "cells": {"scale_mix": "cells"},
    }.items():
        method, batch = _method("pscl-moco", top_k=3, **values), _batch()
        batch = dataclasses.replace(batch, lot=torch.tensor([5, 5, 5, 5]))
        method(batch)
        method.after_step(0.5)
        numbers[name] = {k: float(v.detach()) for k, v in method(batch).parts.items()}
    ours, raw, by_cells = numbers.values()
    # Keys one step old of the same production batch: 0.2 each of four beside the own key.
    assert raw["global"] == pytest.approx(ours["global"] * 1.8, rel=1e-5)
    assert all(raw[f"patch_{s}"] > 1.2 * ours[f"patch_{s}"] for s in STRIDES)
    mean = sum(ours[f"patch_{s}"] * n for s, n in zip(STRIDES, (3, 6, 12), strict=True)) / 21
    assert by_cells["patch"] == pytest.approx(mean, rel=1e-5)
    assert by_cells["global"] == ours["global"]


def test_every_case_of_the_file_is_tested_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [c for c in CASES if c.startswith("pscl.") and f'"{c}"' not in source] == []


# --- geometry and sampling ---
def test_paired_cells_show_the_same_place() -> None:
    size, images = 64, 6
    random = np.random.default_rng(3)
    boxes = np.concatenate(
        [random.uniform(0, 30, (2, images, 2)), random.uniform(40, 90, (2, images, 2))], axis=2
    )
    maps = _maps(boxes, random.random((2, images)) < 0.5, random.integers(0, 4, (2, images)), size)
    view = torch.zeros(images, 1, size, size, dtype=torch.uint8)
    batch = Batch((view, view), maps, torch.arange(images), torch.arange(images))
    for grid in (16, 32, 64):
        index, valid = patches.cell_pairs(batch, grid)
        assert valid.any(1).all() and (index[~valid] == -1).all()
        centres = geometry.cell_centres(size, grid)
        for b in range(images):
            q = valid[b].nonzero()[:, 0]
            k = index[b, q]
            assert len(k.unique()) == len(k), "no cell of the second view is compared twice"
            places = [
                geometry.transform(maps[v, b].numpy(), centres[cells.numpy()])
                for v, cells in enumerate((q, k))
            ]
            # In units of the second view's cells, which lie along the axes.
            cell = np.abs(maps[1, b, :, :2].numpy()).sum(1) * size / grid
            assert (np.abs(places[0] - places[1]) <= cell / 2 + 1e-9).all()


def test_coverage_is_the_share_of_a_classs_pixels() -> None:
    labels = torch.tensor([[0, 0, 1, 255], [0, 2, 1, 255]], dtype=torch.uint8).repeat(2, 1)
    shares = patches.coverage(labels, 3, 2)
    assert shares.tolist() == [[0.75, 0, 0.75, 0], [0, 0.5, 0, 0.5], [0.25, 0, 0.25, 0]]


def test_jitter_lets_equal_cells_take_turns_and_never_brings_in_another_class() -> None:
    shares = torch.zeros(2, 50)
    shares[0, :20], shares[1, 20] = 1.0, 0.01
    drawn = {
        tuple(patches.take_cells(shares, 5, 0.1 * _random(50, seed))[0][0].tolist())
        for seed in range(5)
    }
    assert len(drawn) == 5 and max(max(cells) for cells in drawn) < 20
    for seed in range(20):
        cells, weight, keep = patches.take_cells(shares, 5, 0.1 * _random(50, seed))
        assert int(cells[1, 0]) == 20 and weight[1].tolist() == [1, 0, 0, 0, 0] and keep.all()


def _random(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_only_cells_with_a_partner_stand_for_a_class() -> None:
    shares = torch.ones(1, 4)
    free = torch.tensor([False, True, False, True])
    cells, weight, _ = patches.take_cells(shares, 3, None, free)
    assert cells[0, :2].tolist() == [1, 3] and weight[0].tolist() == [0.5, 0.5, 0.0]


def _slow_greedy(similarity: torch.Tensor, free: torch.Tensor) -> list[int]:
    """One template after the other, one cell after the other."""
    left, chosen = {int(j) for j in free.nonzero()}, []
    for row in similarity.tolist():
        best = max(left, key=lambda j: (row[j], -j), default=-1)
        left.discard(best)
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("block", [1, 40, 2**22])
@pytest.mark.parametrize("kind", ["any", "alike", "ties", "crowded"])
def test_matching_in_blocks_is_the_greedy_one(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "NUMBERS_AT_ONCE", {"cpu": block})
    templates, cells = _unit(12, 5, seed=1), _unit(3, 20, 5, seed=2)
    if kind == "alike":
        templates = F.normalize(templates[:1] + 0.01 * templates, dim=1)
    if kind == "ties":
        # Eighths, whose products are exact in any order of summation.
        templates, cells = (8 * templates[:3]).round() / 8, (8 * cells[:, :4]).round() / 8
        templates, cells = templates.repeat(4, 1), cells.repeat(1, 5, 1)
    free = torch.ones(3, 20, dtype=torch.bool)
    free[1, ::3] = False
    if kind == "crowded":
        free[2, 5:] = False
    got = patches.match(templates, cells, free)
    for b in range(3):
        assert got[b].tolist() == _slow_greedy(templates @ cells[b].T, free[b])
    if kind == "crowded":
        assert got[2, 5:].tolist() == [-1] * 7


class _Longer(torch.nn.Module):
    """A head whose embeddings have other lengths, each its own."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        embedding = self.head(rows)
        return embedding * (0.1 + 50 * embedding[..., :1].square())


def test_matching_is_by_cosine_not_by_length() -> None:
    batch, method = _batch(), _method("pscl-simclr")
    keys = method._look(batch.views[1])[1:]
    longer = torch.nn.ModuleList(_Longer(head) for head in method.cell_heads)
    for heads in zip(
        cells.sample_scales(batch, keys, method.cell_heads, 4, 3, 2.0, 0),
        cells.sample_scales(batch, keys, longer, 4, 3, 2.0, 0),
        strict=True,
    ):
        assert torch.equal(heads[0].query, heads[1].query)


@pytest.mark.parametrize(
    ("ratio", "counts"), [(2.0, (3, 6, 12)), (1.0, (3, 3, 3)), (0.5, (3, 2, 1))]
)
def test_finer_scales_have_more_cells_a_class(ratio: float, counts: tuple[int, ...]) -> None:
    method, batch = _method("pscl-simclr", sample_ratio=ratio), _batch(crops=False)
    scales = method._sample(batch, method._look(batch.views[1])[1:])
    assert tuple(int((cells.kind == 0).sum()) for cells in scales) == counts


@pytest.mark.parametrize("classes", [2, 3, 5, 7])
@pytest.mark.parametrize("name", BOTH)
def test_any_number_of_classes(name: str, classes: int) -> None:
    method, batch = _method(name, num_classes=classes), _batch(classes=classes, crops=False)
    for _ in range(2):
        losses = method(batch)
        method.after_step(0.5)
    losses.total.backward()
    assert losses.total.isfinite() and float(losses.parts["patch"]) > 0
    assert float(losses.parts["classes"]) == classes


@pytest.mark.parametrize("name", BOTH)
def test_a_class_that_the_labelled_view_lacks_is_left_out(name: str) -> None:
    method, batch = _method(name, num_classes=5), _batch(classes=4)
    batch.labels[0][batch.labels[0] == 2] = 255
    keys = method._look(batch.views[1])[1:] if name == "pscl-simclr" else None
    keys = keys or method._keys(batch.views[1])[1:]
    for s, found in enumerate(method._sample(batch, keys)):
        assert sorted(found.kind.unique().tolist()) == [0, 1, 3]
        assert (found.weight > 0).all() and found.valid.all()
        for kind in (0, 1, 3):
            assert float(found.weight[found.kind == kind].sum()) == pytest.approx(1)
        stride = 32 // keys[s].shape[-1]
        seen = patches.coverage(batch.labels[0], 5, 32 // stride)
        assert (seen[found.kind, found.query[0]] > 0).all(), "its cells hold pixels of the class"
        for image in found.query:
            assert len(image.unique()) == len(image), "no cell twice"
    losses = method(batch)
    assert float(losses.parts["classes"]) == 3
    if name == "pscl-moco":
        queue = method.cell_queues[0]
        assert sorted(queue.kind[: int(queue.filled)].unique().tolist()) == [0, 1, 3]


@pytest.mark.parametrize("name", BOTH)
def test_classes_may_go_by_any_number(name: str) -> None:
    order = torch.tensor([2, 0, 3, 1], dtype=torch.uint8)
    results = []
    for change in (False, True):
        method, batch = _method(name), _batch()
        # Classes of different shares, so that their order is one of the image's.
        batch.labels[0] = (torch.arange(32)[:, None] * 32 + torch.arange(32)).sqrt().to(
            torch.uint8
        ) // 9
        if change:
            batch.labels[0] = order[batch.labels[0].long()]
        for _ in range(3):
            losses = method(batch)
            losses.total.backward()
            method.after_step(0.5)
        results.append((losses.total.item(), method.cell_heads[0][0].weight.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_without_labels_the_images_alone_are_contrasted(name: str) -> None:
    batch = _batch()
    unlabelled = dataclasses.replace(batch, labels=None, lot=None)
    unknown = dataclasses.replace(batch, labels=torch.full_like(batch.labels, 255), lot=None)
    for other in (unlabelled, unknown):
        method = _method(name)
        for _ in range(2):
            losses = method(other)
            method.after_step(0.5)
        losses.total.backward()
        assert float(losses.parts["patch"]) == 0 == float(losses.parts["classes"])
        whole = float(losses.parts["global"])
        assert losses.total.item() == pytest.approx(0.3 * whole) and whole > 0
        # Every parameter has a gradient, so that processes can exchange them.
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", BOTH)
def test_the_monitor_needs_two_views_and_no_labels(name: str) -> None:
    method = _method(name).eval()
    batch = dataclasses.replace(_batch(5), labels=None, lot=None)
    with torch.inference_mode():
        embeddings = method.embed_views(batch)
        expected = method(batch).embeddings
    assert embeddings.shape == (10, 8) and torch.allclose(embeddings, expected)


@pytest.mark.parametrize("name", BOTH)
def test_what_is_drawn_changes_with_the_step_in_training_alone(name: str) -> None:
    method, batch = _method(name, classes=2), _batch(classes=2)

    def drawn() -> list[int]:
        keys = (
            method._look(batch.views[1]) if name == "pscl-simclr" else method._keys(batch.views[1])
        )
        return method._sample(batch, keys[1:])[0].query[0].tolist()

    first = drawn()
    assert drawn() == first
    method.after_step(0.5)
    assert drawn() != first
    method.eval()
    fixed = drawn()
    method.after_step(0.5)
    assert drawn() == fixed


# --- losses against slow versions ---
def test_the_cell_loss_in_parts_equals_autograd_on_all_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(11, 6, generator=generator) for _ in range(2))
    kind = torch.arange(11) % 3
    valid = torch.arange(11) % 4 != 1
    wanted = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    rows = F.normalize(torch.cat(wanted), dim=1)
    both, there = kind.repeat(2), valid.repeat(2)
    logits = rows @ rows.T / 0.3
    partner = torch.arange(22).roll(11)
    positive = logits[torch.arange(22), partner][:, None]
    others = (both[:, None] != both) & there
    logits = torch.cat([positive, logits.masked_fill(~others, float("-inf"))], dim=1)
    expected = (logits.logsumexp(1) - positive[:, 0])[there].mean()
    expected.backward()
    for block in (1, 150, 2**22):
        monkeypatch.setattr(patches, "NUMBERS_AT_ONCE", {"cpu": block})
        views = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        loss, _ = patches.class_nt_xent(*views, kind, 0.3, valid)
        (2 * loss).backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
        for view, other in zip(views, wanted, strict=True):
            assert torch.allclose(view.grad, 2 * other.grad, atol=1e-12)
    loss, _ = patches.class_nt_xent(*views, kind, 0.3, torch.zeros(11, dtype=torch.bool))
    assert loss.item() == 0


def test_the_soft_loss_equals_a_soft_cross_entropy() -> None:
    query = _unit(7, 5, seed=1).requires_grad_()
    key, rows = _unit(7, 5, seed=2), _unit(9, 5, seed=3)
    target = torch.rand(7, 9, generator=torch.Generator().manual_seed(4))
    own, other = torch.arange(7) % 3, torch.arange(9) % 3
    same = own[:, None] == other
    target = target.masked_fill(same, 0.0)
    positive = (F.normalize(query, dim=1) * key).sum(1, keepdim=True)
    negative = (F.normalize(query, dim=1) @ rows.T).masked_fill(same, -1e9)
    y = torch.cat([torch.ones(7, 1), target], dim=1)
    log_p = F.log_softmax(torch.cat([positive, negative], dim=1) / 0.2, dim=1)
    expected = -(y / y.sum(1, keepdim=True) * log_p).sum(1)
    (wanted,) = torch.autograd.grad(expected.sum(), query)
    pull, mass = patches.pulls(target, rows)
    loss, _ = patches.soft_info_nce_rows(query, key, rows, 0.2, pull, mass, own, other)
    (got,) = torch.autograd.grad(loss.sum(), query)
    assert torch.allclose(loss, expected, atol=1e-12) and torch.allclose(got, wanted, atol=1e-12)


def test_rows_count_by_their_share_in_the_class() -> None:
    values, weight = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.75, 0.25, 0.0])
    assert float(weighted_mean(values, weight)) == 1.5
    assert float(weighted_mean(values, 0 * weight)) == 0


def test_a_head_of_rows_is_the_grouped_convolution_of_the_map() -> None:
    torch.manual_seed(0)
    head, x = grouped_head(16, 16, 64), torch.randn(2, 16, 3, 3)
    first, norm, _, last = head

    def convolved(layer: GroupedLinear, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, layer.weight[..., None, None], layer.bias, groups=layer.groups)

    hidden = norm(convolved(first, x).movedim(1, -1)).relu().movedim(-1, 1)
    expected = convolved(last, hidden)
    rows = head(x.movedim(1, -1).flatten(0, 2))
    assert torch.allclose(rows, expected.movedim(1, -1).flatten(0, 2))
    assert (first.groups, last.groups) == (4, 4)
    # Widths that four does not divide have fewer groups.
    odd = grouped_head(6, 9, 7)
    assert (odd[0].groups, odd[3].groups) == (1, 1) and odd(torch.randn(5, 6)).shape == (5, 7)


# --- queues ---
def test_a_queue_of_any_length_takes_unit_rows_and_knows_their_age() -> None:
    queue, step = StampedQueue(5, 3), torch.tensor(0)
    assert len(queue.written(step)[0]) == 0, "noise is never a negative"
    for number in range(4):
        keys = 7.0 * torch.eye(3)[torch.full((2,), number % 3)]
        facts = torch.full((2,), number)
        queue.push(keys, facts, facts + 10, facts + 20, torch.tensor(number))
    rows, kind, lot, group, age = queue.written(torch.tensor(4))
    assert torch.allclose(rows.norm(dim=1), torch.ones(5))
    assert kind.tolist() == [2, 3, 3, 1, 2], "written round the end of the ring"
    assert lot.tolist() == [12, 13, 13, 11, 12] and group.tolist() == [22, 23, 23, 21, 22]
    assert age.tolist() == [2, 1, 1, 3, 2]
    queue.push(torch.eye(3).repeat(3, 1)[:7], *([torch.arange(7)] * 3), torch.tensor(4))
    assert sorted(queue.kind.tolist()) == [2, 3, 4, 5, 6], "of too many keys the last stay"
    again = StampedQueue(5, 3)
    again.load_state_dict(queue.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(again.written(step), queue.written(step), strict=True)
    )


def test_keys_and_prototypes_enter_after_the_loss_and_in_training_alone() -> None:
    method, batch = _method("pscl-moco"), _batch()
    assert method(batch).total.item() == 0, "no negatives yet"
    assert method.measures() == {"queue_filled": 4 / 12, "prototypes_filled": 16 / 48}
    assert [int(q.filled) for q in method.cell_queues] == [16, 16, 16]
    for queue in (method.queue, *method.cell_queues):
        rows = queue.written(method.step)[0]
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))
    method.eval()
    method(batch)
    assert method.measures()["queue_filled"] == 4 / 12


def test_the_production_batch_makes_soft_positives_and_may_be_unknown() -> None:
    batch = _batch(crops=False)
    same = dataclasses.replace(batch, lot=torch.zeros(4, dtype=torch.long))
    unknown = dataclasses.replace(batch, lot=torch.full((4,), -1))
    none = dataclasses.replace(batch, lot=None)
    results = []
    for used in (same, unknown, none):
        method = _method("pscl-moco")
        method(used)
        method.after_step(0.5)
        losses = method(used)
        results.append([float(losses.parts[key]) for key in ("global", "patch")])
    assert results[1] == results[2] != results[0]
    assert all(abs(a - b) > 1e-4 for a, b in zip(results[0], results[1], strict=True))


@pytest.mark.parametrize("negatives", ["keep", "drop"])
def test_the_loss_of_images_is_that_of_the_formula(negatives: str) -> None:
    method = _method("pscl-moco", global_local_ratio=0.25, group_negatives=negatives)
    batch = dataclasses.replace(_batch(), lot=torch.tensor([3, 3, 3, -1]))
    method(batch)
    method.after_step(0.5)
    query, key = (method.head, method.key_head)
    deep = [
        method.encoder(method.normalise(batch.views[0]))[-1].mean((2, 3)),
        method.key_encoder(method.normalise(batch.views[1]))[-1].mean((2, 3)),
    ]
    q, k = F.normalize(query(deep[0]), dim=1), F.normalize(key(deep[1]), dim=1)
    rows = method.queue.rows[:4]
    s = torch.cat([(q * k).sum(1, keepdim=True), q @ rows.T], dim=1) / 0.5
    lot, group = batch.lot, batch.group
    y = torch.cat([torch.ones(4, 1), 0.2 * ((lot[:, None] == lot) & (lot >= 0))], dim=1)
    if negatives == "drop":
        own = torch.cat([torch.zeros(4, 1, dtype=torch.bool), group[:, None] == group], dim=1)
        s, y = s.masked_fill(own, -1e9), y.masked_fill(own, 0.0)
    expected = -(y / y.sum(1, keepdim=True) * s.log_softmax(1)).sum(1).mean().item()
    losses = method(batch)
    assert float(losses.parts["global"]) == pytest.approx(expected, rel=1e-6)
    patch = float(losses.parts["patch"])
    scales = [float(losses.parts[f"patch_{s}"]) for s in (4, 2, 1)]
    assert patch == pytest.approx(np.mean(scales))
    assert losses.total.item() == pytest.approx(0.75 * expected + 0.25 * patch, rel=1e-6)


def _cells_of(method: Any, batch: Batch, momentum: bool) -> list[list[list[torch.Tensor]]]:
    """Unit embeddings of all cells of both views, [scale][view] (B, D, S, S), map by map."""
    result = []
    for view in (0, 1):
        slow = momentum and view == 1
        encoder = method.key_encoder if slow else method.encoder
        decoder = method.key_decoder if slow else method.decoder
        heads = method.key_cell_heads if slow else method.cell_heads
        maps = fine_maps(decoder, encoder(method.normalise(batch.views[view])))
        embedded = [h(m.movedim(1, -1)) for h, m in zip(heads, maps, strict=True)]
        result.append([F.normalize(m, dim=-1).movedim(-1, 1) for m in embedded])
    return [list(pair) for pair in zip(*result, strict=True)]


def _at(stage: torch.Tensor, image: int, cell: torch.Tensor) -> torch.Tensor:
    return stage[image, :, int(cell) // stage.shape[-1], int(cell) % stage.shape[-1]]


def test_the_loss_of_cells_is_that_of_the_formula_with_negatives_in_the_batch() -> None:
    method, batch = _method("pscl-simclr", top_k=2), _batch()
    scales = method._sample(batch, method._look(batch.views[1])[1:])
    for s, (q_map, k_map) in enumerate(_cells_of(method, batch, momentum=False)):
        cells, rows, kinds = scales[s], [], []
        for which, stage in ((cells.query, q_map), (cells.key, k_map)):
            for image in range(4):
                rows += [_at(stage, image, cell) for cell in which[image]]
                kinds += cells.kind.tolist()
        losses = []
        for i, row in enumerate(rows):
            own = (row @ rows[(i + len(rows) // 2) % len(rows)]).item() / 0.5
            others = [(row @ rows[j]).item() / 0.5 for j, k in enumerate(kinds) if k != kinds[i]]
            losses.append(np.log(np.exp([own, *others]).sum()) - own)
        loss = float(method(batch).parts[f"patch_{STRIDES[s]}"])
        assert loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_loss_of_cells_is_that_of_the_formula_with_a_queue() -> None:
    method, batch = _method("pscl-moco", top_k=2), _batch()
    batch = dataclasses.replace(batch, lot=torch.tensor([5, 5, -1, 6]))
    # Classes that cover cells in part, so that weights differ.
    known = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) < 0.4
    batch.labels[0][~known] = 255
    method(batch)
    method.after_step(0.5)
    method.after_step(0.5)
    scales = method._sample(batch, method._keys(batch.views[1])[1:])
    everything = _cells_of(method, batch, momentum=True)
    losses = method(batch)
    for s, (q_map, k_map) in enumerate(everything):
        cells, queue = scales[s], method.cell_queues[s]
        rows, kinds, lots = queue.rows[:16], queue.kind[:16].tolist(), queue.lot[:16].tolist()
        total, mass = 0.0, 0.0
        for image, lot in enumerate(batch.lot.tolist()):
            for t, kind in enumerate(cells.kind.tolist()):
                q = _at(q_map, image, cells.query[image, t])
                k = _at(k_map, image, cells.key[image, t])
                logits = torch.cat([(q @ k)[None], rows @ q]) / 0.5
                y = [1.0]
                for other, where in zip(kinds, lots, strict=True):
                    same = lot == where and lot >= 0
                    y.append((other == kind) * (0.2**2 + 0.5**2 * same))
                soft = torch.tensor(y) / sum(y)
                weight = float(cells.weight[t])
                total -= weight * (soft @ logits.log_softmax(0)).item()
                mass += weight
        if s < 2:
            assert len(cells.weight.unique()) > 4
        loss = float(losses.parts[f"patch_{STRIDES[s]}"])
        assert loss == pytest.approx(total / mass, rel=1e-6)
        # What has just entered: of each image and class the mean of its cells' keys by weight.
        new = {}
        for image in range(4):
            for kind in cells.kind.unique().tolist():
                turns = (cells.kind == kind).nonzero()[:, 0]
                key = sum(cells.weight[t] * _at(k_map, image, cells.key[image, t]) for t in turns)
                new[image, kind] = F.normalize(key, dim=0)
        written = [queue.rows[place % 48] for place in range(16, 16 + len(new))]
        assert torch.allclose(torch.stack(written), torch.stack(list(new.values())), atol=1e-6)


def test_sampled_cells_show_the_same_place_and_are_the_most_similar_ones() -> None:
    method, batch = _method("pscl-simclr", top_k=2), _batch(crops=True)
    scales = method._sample(batch, method._look(batch.views[1])[1:])
    for found, (_, k_map) in zip(scales, _cells_of(method, batch, momentum=False), strict=True):
        grid = k_map.shape[-1]
        centres = geometry.cell_centres(32, grid)
        index, free = patches.cell_pairs(batch, grid)
        templates = torch.stack([_at(k_map, 0, cell) for cell in found.key[0]])
        for b in range(4):
            places = [
                geometry.transform(batch.maps[v, b].numpy(), centres[which[b].numpy()])
                for v, which in enumerate((found.query, found.key))
            ]
            assert np.abs(places[0] - places[1]).max() <= 32 / grid / 2
            if b:
                keys = k_map[b].flatten(1).T[index[b].clamp(min=0)]
                assert found.query[b].tolist() == _slow_greedy(templates @ keys.T, free[b])


def test_split_batchnorm_reaches_the_decoder() -> None:
    method = _method("pscl-moco", "resnet18", decoder="unet", bn_splits=2)
    layers = [m for m in method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert layers and all(getattr(layer, "splits", 1) == 2 for layer in layers)


# --- networks ---
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("resnet18", "unet"), ("resnet18", "unetplusplus"), ("small_unet", "small_unet")],
)
def test_encoder_and_decoder_are_trained_and_fit_a_segmentation_model(
    name: str, encoder: str, decoder: str
) -> None:
    method = _method(name, encoder, decoder=decoder)
    parts = method.weights()
    model = build_model(encoder, decoder, 3, 1)
    model.encoder.load_state_dict(parts["encoder"])
    model.decoder.load_state_dict(parts["decoder"])
    method(_batch())
    method(_batch()).total.backward()
    for part in (method.encoder, method.decoder):
        moved = [p.grad.abs().max() for p in part.parameters()]
        assert all(value > 0 for value in moved)


@pytest.mark.parametrize("decoder", ["unet", "unetplusplus", "small_unet"])
def test_maps_of_the_decoder_have_strides_four_two_one(decoder: str) -> None:
    encoder = build_encoder("small_unet" if decoder == "small_unet" else "resnet18", 1)
    part = build_decoder(decoder, encoder)
    features = encoder(torch.zeros(2, 1, 64, 64))
    maps = fine_maps(part, features)
    assert [m.shape[-1] for m in maps] == [16, 32, 64]
    assert tuple(m.shape[1] for m in maps) == fine_channels(part)
    assert torch.equal(maps[2], part(features)), "the last one is what the head gets"
    assert not any(module._forward_hooks for module in part.modules())


def test_what_does_not_go_together_is_said_in_a_sentence() -> None:
    for encoder, decoder in (("small_unet", "unet"), ("resnet18", "small_unet")):
        with pytest.raises(UserError, match="small U-Net is one piece"):
            build_model(encoder, decoder, 2)
        with pytest.raises(UserError, match="small U-Net is one piece"):
            build_decoder(decoder, build_encoder(encoder))
    with pytest.raises(UserError, match="--decoder light has none"):
        _method("pscl-simclr", "resnet18", decoder="light")
    method = _method("pscl-simclr", "resnet18", decoder="unetplusplus")
    with pytest.raises(UserError, match="multiple of 32, not 48"):
        method.check_views(48)


def test_the_small_unet_is_the_published_one() -> None:
    model = SmallUnet(in_channels=3, classes=4)
    assert sum(p.numel() for p in model.parameters()) == 2_142_148
    assert len(model.state_dict()) == 83
    assert isinstance(model.encoder.down3.norm2, torch.nn.BatchNorm2d)
    up = model.decoder.up3.conv
    assert isinstance(up.norm1, torch.nn.BatchNorm2d) and isinstance(up.norm2, torch.nn.LayerNorm)


def test_the_small_unet_lays_the_skip_before_what_comes_from_below() -> None:
    torch.manual_seed(0)
    model = SmallUnet().eval()
    features = model.encoder(torch.randn(1, 3, 16, 16))
    other = [features[0], *[f + 1 for f in features[1:]]]
    assert not torch.allclose(model.decoder(features), model.decoder(other))
    with torch.no_grad():
        model.decoder.up3.conv.conv1.weight[:, 32:] = 0
    assert torch.equal(model.decoder(features), model.decoder(other))
    # Of 16 rows the transposed convolution gives 15: the last is zeros.
    up = model.decoder.up3
    with torch.no_grad():
        up.conv.conv1.weight.zero_()
        up.conv.conv1.weight[:, 32:, 1, 1] = 1
    seen = up.conv.conv1(torch.cat([features[0], F.pad(up.up(features[1]), [0, 1, 0, 1])], dim=1))
    assert (seen[..., -1, :] == 0).all() and (seen[..., -1] == 0).all() and seen.any()
    expected = F.leaky_relu(up.conv.norm1(seen))
    expected = up.conv.norm2(up.conv.conv2(expected).movedim(1, -1))
    assert torch.allclose(up(*features[1::-1]), F.leaky_relu(expected).movedim(-1, 1))


@pytest.mark.parametrize("size", [(188, 188), (33, 70), (20, 100), (9, 11)])
def test_the_small_unet_takes_images_of_any_size(size: tuple[int, int]) -> None:
    model = build_model("small_unet", "small_unet", 3, in_channels=1).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, *size)).shape == (1, 3, *size)
        assert model.encoder(torch.zeros(1, 1, *size))[0].shape == (1, 32, *size)


def _published() -> dict[str, torch.Tensor]:
    """Tensors under the published names, written down one by one."""
    state, shift = {}, 0.0

    def block(name: str, inner: int, outer: int, last: str) -> None:
        state[f"{name}.con1.weight"] = torch.randn(outer, inner, 3, 3)
        state[f"{name}.con2.weight"] = torch.randn(outer, outer, 3, 3)
        for number, kind in ((1, "BN"), (2, last)):
            state[f"{name}.norm{number}.weight"] = torch.rand(outer) + shift
            state[f"{name}.norm{number}.bias"] = torch.rand(outer)
            if kind == "BN":
                state[f"{name}.norm{number}.running_mean"] = torch.rand(outer)
                state[f"{name}.norm{number}.running_var"] = torch.rand(outer) + 1
                state[f"{name}.norm{number}.num_batches_tracked"] = torch.tensor(3)

    widths = (3, 32, 64, 128, 256)
    block("encode.inc", 3, 32, "BN")
    for n in (1, 2, 3):
        block(f"encode.down{n}.conv", widths[n], widths[n + 1], "BN")
    for n, (inner, outer) in enumerate(((256, 128), (128, 64), (64, 32)), start=1):
        state[f"encode.up{n}.up.weight"] = torch.randn(inner, outer, 3, 3)
        state[f"encode.up{n}.up.bias"] = torch.randn(outer)
        block(f"encode.up{n}.conv", inner, outer, "LN")
    state["decode.outc.fc1.weight"] = torch.randn(4, 32)
    state["decode.outc.fc1.bias"] = torch.randn(4)
    return state


def test_published_files_are_read_by_renaming() -> None:
    state = _published()
    assert len(state) == 83
    model = SmallUnet()
    found = from_published(state)
    assert found is not None
    model.load_state_dict(found, strict=True)
    assert torch.equal(model.encoder.down2.conv1.weight, state["encode.down2.conv.con1.weight"])
    assert torch.equal(model.decoder.up1.conv.norm2.bias, state["encode.up1.conv.norm2.bias"])
    # A linear layer of each pixel is the published output.
    x = torch.randn(1, 32, 2, 2)
    expected = F.linear(
        x.movedim(1, -1), *(state[f"decode.outc.fc1.{k}"] for k in ("weight", "bias"))
    )
    assert torch.allclose(model.segmentation_head(x).movedim(1, -1), expected)


def test_of_a_published_pretraining_encoder_and_decoder_are_read() -> None:
    state = {k: v for k, v in _published().items() if k.startswith("encode.")}
    both = {f"encoder_q.{k}": v for k, v in state.items()}
    both |= {f"encoder_k.{k}": v + 1 for k, v in state.items()}
    both |= {"encoder_q.decode.mlp.0.weight": torch.zeros(1), "queue": torch.zeros(1)}
    found = from_published(both)
    assert found is not None and len(found) == 81
    assert {name.split(".")[0] for name in found} == {"encoder", "decoder"}
    model = SmallUnet()
    result = model.load_state_dict(found, strict=False)
    assert set(result.missing_keys) == {f"segmentation_head.0.{k}" for k in ("weight", "bias")}
    assert not result.unexpected_keys
    stem = model.encoder.stem.conv1.weight
    assert torch.equal(stem, state["encode.inc.con1.weight"]), "the query network's"
    assert from_published(build_encoder("resnet18").state_dict()) is None
    assert from_published({k: v for k, v in state.items() if "up3" not in k}) is None


# --- learning, pictures, memory ---
def test_cells_of_other_images_come_to_be_of_the_templates_class() -> None:
    torch.set_default_dtype(torch.float32)
    method = _method("pscl-simclr", num_classes=2, top_k=6, temperature=0.2)
    optimizer = optim.build_optimizer("adamw", optim.parameter_groups(method, 0.0), 1e-3)

    def agreement() -> float:
        batch, truth = _stripes(8, seed=1000)
        method.eval()
        with torch.no_grad():
            keys = method._look(batch.views[1])[1:]
            cells = method._sample(batch, keys)[2]
        method.train()
        found = truth.flatten(1).gather(1, cells.query)
        return float((found == cells.kind)[1:].double().mean())

    before = agreement()
    for step in range(30):
        batch, _ = _stripes(8, seed=step)
        optimizer.zero_grad()
        method(batch).total.backward()
        optimizer.step()
        method.after_step(0.5)
    assert agreement() > max(0.9, before)


def _stripes(images: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Two phases of the same mean grey, told apart by the direction of their stripes."""
    random = np.random.default_rng(seed)
    side = 32
    y, x = np.mgrid[:side, :side]
    views: list[list[Any]] = [[], []]
    truth = []
    for _ in range(images):
        phase = (x < random.integers(10, 22)) ^ (random.random() < 0.5)
        for view in views:
            wave = np.where(phase, np.sin(1.2 * x), np.sin(1.2 * y)) * random.uniform(40, 70)
            noisy = 128 + wave + random.normal(0, 10, phase.shape)
            view.append(np.clip(noisy, 0, 255).astype(np.uint8))
        truth.append(phase.astype(np.uint8))
    known = torch.from_numpy(np.stack(truth))
    labels = torch.full_like(known, 255)
    labels[0] = known[0]
    stacked = [torch.from_numpy(np.stack(view))[:, None] for view in views]
    index = torch.arange(images)
    maps = torch.eye(2, 3).expand(2, images, 2, 3)
    return Batch((stacked[0], stacked[1]), maps, index, index, labels), known.long()


@pytest.mark.parametrize("name", BOTH)
def test_the_picture_shows_the_same_cells_in_both_views(name: str) -> None:
    method, batch = _method(name).eval(), _batch(crops=False)
    views = tuple(torch.full_like(view, 128) for view in batch.views)
    batch = dataclasses.replace(batch, views=views)
    with torch.inference_mode():
        panel = method.panel(batch)
        assert method.panel(dataclasses.replace(batch, labels=None)) is None
    assert panel is not None and len(panel.rows) == 4
    for row in panel.rows:
        assert [image.shape for image in row] == [(32, 32, 3)] * len(panel.columns)
        assert all(image.dtype == np.uint8 for image in row)
        # Views of one place: the same cells, three of each of four classes, 4 x 4 pixels each.
        assert np.array_equal(row[1], row[2])
        coloured = (row[1] != 128).any(axis=2)
        assert coloured.sum() == 3 * 4 * 16
    tinted = (panel.rows[0][0] != 128).any(axis=2)
    assert tinted.all() and not (panel.rows[1][0] != 128).any()


MEMORY = """
import resource, sys, torch
from matssl.core.batch import Batch
from matssl.methods import method_class, settings_class
from matssl.models.encoders import build_encoder
torch.set_num_threads(1)
side, images = 376, 9
values = {"decoder": "small_unet", "top_k": 30, "queue_size": 504}
statistics = 1, (0.5,), (0.25,)
methods = [
    method_class(name).from_settings(build_encoder("small_unet", 1), *statistics, values)
    for name in sys.argv[1:]
]
labels = torch.full((images, side, side), 255, dtype=torch.uint8)
labels[0] = torch.arange(side) * 4 // side
view = torch.zeros(images, 1, side, side, dtype=torch.uint8)
index = torch.arange(images)
batch = Batch((view, view), torch.eye(2, 3).expand(2, images, 2, 3), index, index, labels, index)
maps = [torch.randn(images, s, s, c).movedim(-1, 1) for c, s in ((128, 94), (64, 188), (32, 376))]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for method in methods:
    cells = method._sample(batch, maps)
    if hasattr(method, "cell_queues"):
        for queue in method.cell_queues:
            rows = torch.randn(len(queue.rows), 64)
            queue.push(rows, *[torch.arange(len(rows)) % 4] * 3, torch.tensor(0))
        loss = sum(method._cell_loss(s, maps[s], maps[s], cells[s], index)[0] for s in range(3))
    else:
        loss = sum(map(method._cell_loss, method.cell_heads, maps, maps, cells))
    loss.backward()
    assert [c.query.shape[1] for c in cells] == [120, 240, 480] and loss.isfinite() and loss > 0
    print(peak() - before)
"""


@pytest.mark.slow
def test_the_published_sampling_of_whole_images_stays_below_a_gigabyte(tmp_path: Path) -> None:
    # Pairs of rows times channels would take 19 GB; the similarities of one scale alone 2.4 GB.
    (tmp_path / "memory.py").write_text(MEMORY)
    command = start(tmp_path / "printed.txt", str(tmp_path / "memory.py"), *BOTH)
    code, printed = command.wait(), command.printed.read_text()
    assert code == 0, printed
    peaks = [float(line) for line in printed.split()]
    assert len(peaks) == 2 and peaks[-1] < 1024


def test_the_slow_networks_are_four_and_get_no_gradient() -> None:
    method = _method("pscl-moco")
    assert isinstance(method, PSCLMoCo) and len(method.followers()) == 4
    for _ in range(2):
        method(_batch()).total.backward()
    slow = [p for part, _ in method.followers() for p in part.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in slow)
    online = {id(p) for _, part in method.followers() for p in part.parameters()}
    assert online == {id(p) for p in method.parameters() if p.requires_grad}


def test_a_published_file_fills_the_small_u_net_by_the_usual_flag(tmp_path: Path) -> None:
    state = _published()
    torch.save({"finetune": state, "epoch": 3, "acc": 0.9}, tmp_path / "fine.pt")
    model = build_model("small_unet", "small_unet", 4, 3).double()
    report = weights.load(model, tmp_path / "fine.pt", in_channels=3)
    assert report.layout == "PSCL (published)" and report.parts == ("encoder", "decoder")
    assert weights.architecture(tmp_path / "fine.pt") == ("small_unet", "small_unet")
    assert set(report.dropped) == {f"decode.outc.fc1.{k}" for k in ("weight", "bias")}
    stem = model.get_parameter("encoder.stem.conv1.weight")
    assert torch.equal(stem, state["encode.inc.con1.weight"])
    last = model.get_parameter("decoder.up3.conv.conv2.weight")
    assert torch.equal(last, state["encode.up3.conv.con2.weight"])
    with pytest.raises(UserError, match="small_unet encoder .* the model has a resnet18"):
        weights.load(build_encoder("resnet18", 3), tmp_path / "fine.pt", in_channels=3)
