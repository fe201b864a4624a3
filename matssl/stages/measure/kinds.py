"""The measurements by name; a new one is a file of this folder, a line here, a word in WHAT."""

from __future__ import annotations

from collections.abc import Sequence

from matssl.core.errors import UserError
from matssl.stages.measure.fractions import Fractions
from matssl.stages.measure.grains import Grains
from matssl.stages.measure.kind import Kind
from matssl.stages.measure.layers import Layers
from matssl.stages.measure.objects import Objects
from matssl.stages.measure.point_count import PointCount
from matssl.stages.measure.settings import MeasureSettings

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Fractions, Objects, Grains, Layers)}


def made(
    settings: MeasureSettings,
    names: Sequence[str],
    chosen: Sequence[int],
    labelled: bool,
    predicted: bool = False,
) -> list[Kind]:
    """Return the measurements that a command asks for, each without a field.

    Args:
        settings: flags of the command; without ``--what`` the classes decide.
        names: of the classes.
        chosen: indices of those asked for, empty for none.
        labelled: whether the masks number objects.
        predicted: whether a model made the masks.

    Raises:
        UserError: nothing suits the classes, or a measurement cannot tell what they are.
    """
    asked = [names[i] for i in chosen] or list(names)
    wanted = settings.wanted or tuple(
        name for name, kind in KINDS.items() if kind.suits(asked, labelled)
    )
    if not wanted:
        raise UserError(f"nothing to measure on {', '.join(asked)}; say it with --what")
    found = [KINDS[name](settings, names, chosen) for name in dict.fromkeys(wanted)]
    if settings.grid is not None:
        found.append(PointCount(settings, names, chosen))
    for kind in found:
        kind.predicted = predicted
        kind.ready(labelled)
    return found
