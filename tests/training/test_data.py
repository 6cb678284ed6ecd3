"""Data: the digits, IDX files whole and damaged, and an order that a step decides."""

import gzip
import itertools
import struct

import jax
import numpy as np
import pytest

from diffeq_gen.training.data import batches, digits, idx_folder, read_idx


def idx(array, kind=8):
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_digits_are_real_and_split_without_overlap():
    data = digits()
    assert data.train.shape == (1500, 8, 8, 1) and data.held_out.shape == (297, 8, 8, 1) and data.levels == 17
    assert data.train.min() == 0 and data.train.max() == 16
    whole = np.concatenate([data.train, data.held_out]).reshape(1797, -1)
    assert np.isclose(whole.mean(), 4.884165) and len(np.unique(whole, axis=0)) == 1797
    with pytest.raises(ValueError, match="held_out must leave pictures on both sides, got held_out=1797"):
        digits(held_out=1797)


def test_levels_are_bins_of_the_unit_square():
    data = digits()
    x0 = np.asarray(data.scaled(data.train))
    assert x0.dtype == np.float32 and np.isclose(x0.min(), -1 + 1 / 17) and np.isclose(x0.max(), 1 - 1 / 17)
    drawn = np.asarray(data.dequantised(jax.random.key(0), data.train))
    assert np.all(np.abs(drawn - x0) <= data.bin_width / 2 * (1 + 1e-6)) and abs(np.mean(drawn - x0)) < 1e-3
    assert np.isclose(np.std(drawn - x0), data.bin_width / np.sqrt(12), rtol=0.01)


def test_idx_files_plain_and_gzipped(tmp_path):
    pictures = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pictures))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures[:1])))
    data = idx_folder(tmp_path)
    assert data.train.shape == (2, 4, 3, 1) and data.held_out.shape == (1, 4, 3, 1) and data.levels == 256
    np.testing.assert_array_equal(data.train[..., 0], pictures)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros((2, 2), np.uint8))[:-1], r"must hold 16 bytes for shape \(2, 2\), got 15"),
        (idx(np.zeros((2, 2), np.uint8)) + b"x", r"must hold 16 bytes for shape \(2, 2\), got 17"),
        (idx(np.zeros((2, 2), np.uint8))[:7], "cut short: a header of 12 bytes was expected, got 7"),
        (b"PNG!" * 8, "no IDX file of bytes: it must begin with 0 0 8, got"),
        (b"", "no IDX file of bytes"),
        (idx(np.zeros((2, 2), np.float32), 13), "no IDX file of bytes"),
    ],
)
def test_damaged_idx_files_say_what_was_expected(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_a_gzip_file_cut_short_is_named(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((20, 20), np.uint8)))[:-9])
    with pytest.raises(ValueError, match=r"file.gz is no complete gzip file"):
        read_idx(path)
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        idx_folder(tmp_path)


def test_order_is_decided_by_seed_and_step():
    pictures = np.arange(10)
    first = list(itertools.islice(batches(pictures, 3, seed=1), 7))
    for start in (0, 2, 3, 5):
        later = list(itertools.islice(batches(pictures, 3, seed=1, start=start), 2))
        np.testing.assert_array_equal(later, first[start : start + 2])
    assert len({*np.concatenate(first[:3])}) == 9 and len({*np.concatenate(first[3:6])}) == 9
    assert not np.array_equal(first[0], next(batches(pictures, 3, seed=2)))
    with pytest.raises(ValueError, match="a batch must have 1 to 10 pictures, got size=11"):
        next(batches(pictures, 11))
