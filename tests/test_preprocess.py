"""One record, one application: what training saw is what prediction sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from matssl.core.errors import UserError
from matssl.data import crops, preprocess, synthetic
from matssl.data.crops import CropAugmentation, CropLoader
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.data.readers import Micrograph


def _micrograph(pixels: np.ndarray, bits: int = 8, **facts: object) -> Micrograph:
    values = {"pixel_size": None, "unit": None, "source": "x.tif", **facts}
    return Micrograph(pixels=pixels, bits=bits, **values)  # type: ignore[arg-type]


RAMP16 = np.arange(65_536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("window", ["dtype", "percentile", "standard"])
def test_a_16_bit_ramp_keeps_60000_levels(window: str) -> None:
    plane = Preprocess(window=window).plane(_micrograph(RAMP16, bits=16))
    assert len(np.unique(plane)) >= 60_000


def test_12_bit_data_is_not_dark() -> None:
    plane = Preprocess(window="dtype").plane(_micrograph(RAMP16 // 16, bits=12))
    assert plane.mean() == pytest.approx(0.5, abs=0.01)


def test_percentiles_go_to_zero_and_one() -> None:
    pixels = np.linspace(50, 150, 10_001).astype(np.float32).reshape(73, 137)
    plane = Preprocess(window="percentile", low=10, high=90).plane(_micrograph(pixels, bits=32))
    assert np.percentile(plane, 10) == pytest.approx(0, abs=1e-3)
    assert np.percentile(plane, 90) == pytest.approx(1, abs=1e-3)


def test_standard_window_ignores_how_bright_an_image_is() -> None:
    image, _ = synthetic.micrograph("two_phase", 64, 64, 0)
    darker = (image.astype(np.float32) * 0.5 + 20).astype(np.float32)
    record = Preprocess(window="standard")
    first = record.plane(_micrograph(image.astype(np.float32), bits=32))
    second = record.plane(_micrograph(darker, bits=32))
    assert np.allclose(first, second, atol=1e-5)
    assert first.mean() == pytest.approx(0.5, abs=1e-2)


def test_fixed_window_takes_the_grey_values_given() -> None:
    plane = Preprocess(window="fixed", low=100, high=200).plane(
        _micrograph(np.array([[100, 150, 200]], np.uint8))
    )
    assert plane.tolist() == [[0.0, 0.5, 1.0]]


def test_a_constant_image_is_finite() -> None:
    for window in preprocess.WINDOWS[:3]:
        plane = Preprocess(window=window).plane(_micrograph(np.full((8, 8), 7, np.uint8)))
        assert np.isfinite(plane).all()


def test_bars_are_cut_by_metadata_by_number_or_by_their_looks() -> None:
    image, mask = synthetic.micrograph("two_phase", 200, 200, 0, bar=True)
    rows = mask.shape[0]
    assert Preprocess(crop_bottom="auto").plane(_micrograph(image)).shape[0] == rows
    assert Preprocess(crop_bottom=9).plane(_micrograph(image)).shape[0] == len(image) - 9
    told = _micrograph(image, bar_height=30)
    assert Preprocess(crop_bottom="auto").plane(told).shape[0] == len(image) - 30
    assert Preprocess(crop_bottom=0).plane(told).shape[0] == len(image)


def test_image_and_mask_are_cut_alike_and_a_lower_mask_fits() -> None:
    image, mask = synthetic.micrograph("two_phase", 200, 200, 0, bar=True)
    record = Preprocess(crop_bottom="auto")
    full = np.vstack([mask, np.zeros((len(image) - 200, 200), np.uint8)])
    assert np.array_equal(record.mask(full, _micrograph(image)), mask)
    assert np.array_equal(record.mask(mask, _micrograph(image)), mask)
    with pytest.raises(UserError, match=r"200 x 214 pixels and its mask 200 x 150"):
        record.mask(mask[:150], _micrograph(image))


def test_a_target_pixel_size_rescales_image_and_mask() -> None:
    record = Preprocess(target_pixel_size=20.0)
    micrograph = _micrograph(np.zeros((100, 60), np.uint8), pixel_size=10.0, unit="nm")
    assert record.plane(micrograph).shape == (50, 30)
    assert record.mask(np.zeros((100, 60), np.uint8), micrograph).shape == (50, 30)
    with pytest.raises(UserError, match="--pixel_size"):
        record.plane(_micrograph(np.zeros((10, 10), np.uint8)))


def test_measured_mean_and_std_normalise_the_training_set() -> None:
    planes = [np.random.default_rng(i).random((40, 50)).astype(np.float32) for i in range(3)]
    record = preprocess.measure(Preprocess(), planes)
    stack = np.concatenate([record.tensor(plane).ravel() for plane in planes])
    assert stack.mean() == pytest.approx(0, abs=1e-5)
    assert stack.std() == pytest.approx(1, abs=1e-5)


def test_the_record_survives_its_dictionary() -> None:
    record = Preprocess(window="fixed", low=3, high=9, crop_bottom="auto", mean=(0.1,), std=(0.2,))
    assert Preprocess.from_dict(record.to_dict()) == record
    with pytest.raises(UserError, match="newer"):
        Preprocess.from_dict({**record.to_dict(), "flat_field": True})


def test_training_path_and_prediction_path_give_equal_tensors(tmp_path: Path) -> None:
    image, mask = synthetic.micrograph("two_phase", 96, 96, 0)
    tifffile.imwrite(tmp_path / "i.tif", image.astype(np.uint16) * 257)
    tifffile.imwrite(tmp_path / "m.tif", mask)
    classes = tuple(MaskClass(i, str(i), (i,)) for i in range(3))
    pair = Pair(tmp_path / "i.tif", tmp_path / "m.tif", "g", "train")
    data = crops.load([pair], Preprocess(), ClassTable("index", classes))
    record = preprocess.measure(Preprocess(), data.planes)
    plain = CropAugmentation(size=96, rare_p=0, d4="none")
    trained = CropLoader(data, record, 3, plain, 1, seed=0).batch(0)[0][0].numpy()
    predicted = record.tensor(record.plane(record.read(tmp_path / "i.tif")))
    assert np.array_equal(trained, predicted)


def test_flags_become_the_record() -> None:
    record = Preprocess.chosen(
        channels=3, crop_bottom="12", target_pixel_size="0.05um", window="dtype"
    )
    assert (record.crop_bottom, record.target_pixel_size, record.channels) == (12, 50.0, 3)
    with pytest.raises(UserError, match="--crop_bottom"):
        Preprocess.chosen(channels=1, crop_bottom="some")
