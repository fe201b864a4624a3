"""CHAC: grains whose outline is convex (convex hull approximation of contours).

Xu et al., J. Nucl. Mater. 2024, as unet-compare has it: what is not kept is a selection, so that
kept and total belong to every result.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from matssl.measure.defects.found import Defects, Mask, Shape

# Pixels along the border in which a grain counts as cut, side of the opening, share of the
# perimeter by which the polygon may lie off the outline.
BORDER, OPENING, TOLERANCE = 2, 3, 0.02


def chac(boundary: Mask) -> Defects:
    """Return the well outlined grains of a mask of grain boundaries.

    The rest is opened (3 x 3), parts (8-connected) within a pixel of the border are left out, the
    outer contour becomes a polygon (Douglas and Peucker 1973), and grains stay whose polygon is
    convex. The size is the diameter of the circle of equal area, 2 sqrt(A / pi), from the number of
    pixels: a contour runs through their centres and holds less.

    Args:
        boundary: pixels of boundaries (H, W).
    """
    grains = np.where(boundary, 0, 255).astype(np.uint8)
    before = cv2.connectedComponents(grains)[0] - 1
    opened = cv2.morphologyEx(grains, cv2.MORPH_OPEN, np.ones((OPENING, OPENING), np.uint8))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(opened, ltype=cv2.CV_32S)
    sides = (labels[:BORDER], labels[-BORDER:], labels[:, :BORDER], labels[:, -BORDER:])
    cut = np.zeros(count, bool)
    for side in sides:
        cut[side] = True
    cut[0] = True
    inner = np.where(cut[labels], 0, 255).astype(np.uint8)
    # A grain within the hole of another has a contour of its own.
    contours, levels = cv2.findContours(inner, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = (
        []
        if levels is None
        else [c for c, one in zip(contours, levels[0], strict=True) if one[3] < 0]
    )
    numbers = np.zeros(count, np.int32)
    sizes: list[float] = []
    shapes: list[Shape] = []
    for contour in outer:
        polygon = cv2.approxPolyDP(contour, TOLERANCE * cv2.arcLength(contour, True), True)
        if not cv2.isContourConvex(polygon):
            continue
        own = labels[contour[0, 0, 1], contour[0, 0, 0]]
        numbers[own] = len(sizes) + 1
        sizes.append(2 * math.sqrt(facts[own, cv2.CC_STAT_AREA] / math.pi))
        hull = cv2.convexHull(polygon).reshape(-1, 2)
        shapes.append(Shape(hull.astype(float)))
    steps = {
        "parts": before,
        "after opening": count - 1,
        "at the border": int(cut.sum()) - 1,
        "not convex": len(outer) - len(sizes),
        "kept": len(sizes),
    }
    return Defects(np.array(sizes, float), numbers[labels], tuple(shapes), steps)
