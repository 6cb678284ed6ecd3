"""Data: pictures as bytes until they reach the device, in an order that a seed and a step decide.

x0 = (level + u) / levels * 2 - 1,        u ~ U[0, 1) for training, likelihoods and distances; u = 1/2 for pictures

A density of x0 with u ~ U[0, 1) bounds the probability of the levels (Theis et al. 2016).  A model trained on u = 1/2 would put
all its mass on the levels, and none where x0 is measured: its ELBO is then worse than that of a uniform law.
"""

import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffeq_gen.dequantisation import Bins
from diffeq_gen.types import Key, Sample, require

__all__ = ["Dataset", "batches", "digits", "idx_folder", "read_idx"]

TYPES = {0x08: np.dtype(np.uint8)}


class Dataset(NamedTuple):
    """Pictures (n, height, width, channels) of whole numbers 0 ... levels - 1, for training and held out."""

    name: str
    train: np.ndarray
    held_out: np.ndarray
    levels: int

    @property
    def bins(self) -> Bins:
        """Of the levels, on [-1, 1]."""
        return Bins(self.levels)

    def scaled(self, pictures: np.ndarray) -> Sample:
        """Levels to the middles of their bins on [-1, 1], in float32."""
        return self.bins.place(pictures, jax.numpy.float32(0.5))

    def dequantised(self, key: Key, pictures: np.ndarray) -> Sample:
        """Levels to uniform draws from their bins on [-1, 1], in float32.  Theis et al. 2016."""
        return self.bins.place(pictures, jax.random.uniform(key, pictures.shape, jax.numpy.float32))

    @property
    def bin_width(self) -> float:
        """The distance of two levels, in the units of x0."""
        return self.bins.width


def digits(*, held_out: int = 297, seed: int = 0) -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels and 17 levels inside scikit-learn's wheel.  Alpaydin & Kaynak 1998.

    Raises: ValueError where held_out leaves nothing to train on.
    """
    from sklearn.datasets import load_digits

    pictures = load_digits().images.astype(np.uint8)[..., None]
    require(
        lambda held_out: 0 < held_out < len(pictures), "held_out must leave pictures on both sides", held_out=held_out
    )
    order = np.random.default_rng(seed).permutation(len(pictures))
    return Dataset("digits", pictures[order[held_out:]], pictures[order[:held_out]], 17)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format of MNIST, plain or gzipped: magic 0 0 8 ndim, big-endian sizes, then the bytes.

    Raises: ValueError naming the file, what was expected and what was found, where it is no such file or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no complete gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise ValueError(f"{path} is no IDX file of bytes: it must begin with 0 0 8, got {list(content[:3])}")
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise ValueError(f"{path} is cut short: a header of {4 + 4 * axes} bytes was expected, got {len(content)}")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    expected = 4 + 4 * axes + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"{path} must hold {expected} bytes for shape {shape}, got {len(content)}")
    return np.frombuffer(content, TYPES[content[2]], offset=4 + 4 * axes).reshape(shape)


def idx_folder(folder: Path) -> Dataset:
    """MNIST or Fashion-MNIST from a folder with its four IDX files: train and t10k images, plain or gzipped.

    Raises: FileNotFoundError naming the missing file; ValueError where a file is damaged or holds no pictures.
    """

    def pictures(part: str) -> np.ndarray:
        for name in (f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte"):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.exists():
                    found = read_idx(path)
                    require(
                        lambda shape: len(shape) == 3,
                        f"{path} must hold pictures (n, height, width)",
                        shape=found.shape,
                    )
                    return found[..., None]
        raise FileNotFoundError(f"no {part}-images-idx3-ubyte or {part}-images-idx3-ubyte.gz in {folder}")

    return Dataset(folder.absolute().name, pictures("train"), pictures("t10k"), 256)


def batches(pictures: np.ndarray, size: int, *, seed: int = 0, start: int = 0) -> Iterator[np.ndarray]:
    """An endless sequence of batches, each epoch in a new order; number i is the same whether or not those before were read.

    Raises: ValueError where size is not positive or exceeds the number of pictures.
    """
    require(lambda size: 1 <= size <= len(pictures), f"a batch must have 1 to {len(pictures)} pictures", size=size)
    per_epoch = len(pictures) // size
    step = start
    while True:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(pictures))
        while place < per_epoch:
            yield pictures[order[place * size : (place + 1) * size]]
            step, place = step + 1, place + 1
