"""No mask is taken for something else in silence: right classes, or one sentence that asks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from mask_situations import SITUATIONS

from matssl.core.errors import UserError
from matssl.data import masks, readers

WAYS_OUT = re.compile(r"classes\.yaml|--classes binary|save (masks|them)|draw one")


@pytest.mark.parametrize("name", SITUATIONS)
def test_masks_mean_what_they_were_drawn_as_or_the_user_is_asked(name: str, tmp_path: Path) -> None:
    """A14 to A18: each situation ends in the drawn classes, counted alike, or in a refusal."""
    situation = SITUATIONS[name]
    truth = situation.write(tmp_path)
    paths = sorted(p for p in tmp_path.iterdir() if p.suffix in (".png", ".tif", ".jpg"))
    try:
        table, notes = masks.find_table(paths, folder=tmp_path, **situation.flags)
    except UserError as error:
        assert situation.asks or situation.only_asks, error
        assert WAYS_OUT.search(str(error)), error
        assert "\n" not in str(error)
        return
    assert not situation.only_asks, f"{table.describe()}\n{notes}"
    decoded = [table.decode(readers.read_mask(path), str(path)) for path in paths]
    for path, own, drawn in zip(paths, decoded, truth, strict=True):
        assert np.array_equal(own == 255, drawn == 255), path.name
        assert (own != drawn).mean() <= situation.tolerance, (path.name, table.describe(), notes)
    counts = np.bincount(np.concatenate([d.ravel() for d in decoded]), minlength=256)
    assert [c.pixels for c in table.classes] == counts[: table.num_classes].tolist()
    assert situation.says in " ".join(notes), notes
    again = masks.ClassTable.from_dict(table.to_dict())
    assert again == table
    for path, own in zip(paths, decoded, strict=True):
        assert np.array_equal(again.decode(readers.read_mask(path), str(path)), own)
