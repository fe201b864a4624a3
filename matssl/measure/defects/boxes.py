"""BBox: length of a defect as the diagonal of its upright box, for dislocation lines and loops."""

from __future__ import annotations

import cv2
import numpy as np

from matssl.measure.defects.found import Defects, Mask, Shape


def boxes(inside: Mask) -> Defects:
    """Return the outer parts of a mask with the diagonals of their boxes, sqrt(w^2 + h^2).

    Parts are joined at corners (8); one that lies in a hole of another is none of its own. A box
    has the columns and rows of its part and no more.

    Args:
        inside: pixels of the class (H, W).
    """
    drawn = inside.astype(np.uint8)
    labels = cv2.connectedComponents(drawn, ltype=cv2.CV_32S)[1]
    contours, _ = cv2.findContours(drawn, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    numbers = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    sizes: list[float] = []
    shapes: list[Shape] = []
    for contour in contours:
        left, top, width, height = cv2.boundingRect(contour)
        numbers[labels[contour[0, 0, 1], contour[0, 0, 0]]] = len(sizes) + 1
        sizes.append(float(np.hypot(width, height)))
        corners = np.array([[left, top], [left + width - 1, top + height - 1]], float)
        shapes.append(Shape(corners, box=True))
    steps = {"parts": len(numbers) - 1, "kept": len(sizes)}
    return Defects(np.array(sizes, float), numbers[labels], tuple(shapes), steps)
