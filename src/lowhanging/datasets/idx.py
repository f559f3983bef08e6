"""MNIST's own files: the IDX format, and where in a folder they are.

An IDX file is a header (magic number, then the size of each axis, all big-endian 32-bit) and then one byte per entry.
Nothing the header claims is believed before it is compared with the bytes that are there: a download cut short still
has a perfect header, and reshaping what is left would fail far from the cause.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from lowhanging.errors import argument_message

# (images, labels) of each split, as first published; each may carry ".gz".
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MAGIC = {3: (0x00000803, "unsigned bytes on 3 axes, images"), 1: (0x00000801, "unsigned bytes on 1 axis, labels")}
_MOST = 2**30  # bytes of images: over a million of them
_REMEDY = 'Fetch the file again, or let lh.mnist("full") do so; source="bundled" needs no file.'


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not (by its content), with 1 or 3 axes."""
    argument = f"source file {str(path)!r}"
    content = _unzipped(path.read_bytes(), argument, num_axes)
    header = 4 + 4 * num_axes
    if len(content) < header:
        expected = f"a header of {header} bytes"
        raise ValueError(argument_message(argument, f"is truncated: it holds {len(content)} bytes", expected, _REMEDY))
    magic, *shape = np.frombuffer(content, dtype=">u4", count=1 + num_axes).tolist()
    wanted, meaning = _MAGIC[num_axes]
    if magic != wanted:
        expected = f"0x{wanted:08x} ({meaning})"
        raise ValueError(argument_message(argument, f"starts with the magic number 0x{magic:08x}", expected, _REMEDY))
    size = math.prod(shape)  # of Python integers: a damaged header can't overflow
    found = len(content) - header
    if found != size:
        received = f"{'is truncated' if found < size else 'is too long'}: {found} bytes follow its header"
        expected = f"{size} for the shape {tuple(shape)} that the header states"
        raise ValueError(argument_message(argument, received, expected, _REMEDY))
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def read_split(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,) in 0..9, both uint8, n >= 1."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28) or len(images) == 0:
        argument, expected = f"source file {str(images_path)!r}", "(n, 28, 28) with n at least 1"
        raise ValueError(argument_message(argument, f"has images of shape {images.shape}", expected, _REMEDY))
    argument = f"source file {str(labels_path)!r}"
    if len(labels) != len(images):
        expected = f"{len(images)}, one per image of {images_path.name}"
        raise ValueError(argument_message(argument, f"holds {len(labels)} labels", expected, _REMEDY))
    if labels.max() > 9:
        raise ValueError(argument_message(argument, f"holds the label {labels.max()}", "labels from 0 to 9", _REMEDY))
    return images, labels


def find_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Paths (images, labels) of the splits in `folder`, its `raw` or its `MNIST/raw`, the first that has any file."""
    for where in (folder, folder / "raw", folder / "MNIST" / "raw"):
        found = {split: [_existing(where, name) for name in names] for split, names in SPLITS.items()}
        if any(path for paths in found.values() for path in paths):
            return {split: _both(split, paths, where) for split, paths in found.items() if any(paths)}
    names = ", ".join(SPLITS["test"])
    expected = f"the files {names} (and train-..., gzipped or not) there, in raw/ or in MNIST/raw/"
    remedy = 'Name the folder that holds them, lh.mnist("path/to/MNIST/raw"), or use source="bundled" or "full".'
    received = f"is {str(folder)!r}, which has no MNIST files"
    raise FileNotFoundError(argument_message("source", received, expected, remedy))


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _both(split: str, paths: list[Path | None], folder: Path) -> tuple[Path, Path]:
    images, labels = paths
    if images is None or labels is None:
        there, missing = SPLITS[split] if labels is None else SPLITS[split][::-1]
        received = f"is {str(folder)!r}, which has {there} but not {missing}"
        expected = f"both files of the {split} split, gzipped or not"
        remedy = f"Put {missing} there as well, or take both away."
        raise FileNotFoundError(argument_message("source", received, expected, remedy))
    return images, labels


def _unzipped(content: bytes, argument: str, num_axes: int) -> bytes:
    """The header and as many bytes as it claims, and one more: a small file can unpack to any size."""
    if content[:2] != b"\x1f\x8b":  # gzip's magic; an IDX file starts with two zero bytes
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            header = stream.read(4 + 4 * num_axes)
            claimed = math.prod(np.frombuffer(header[4 : 4 + 4 * num_axes], dtype=">u4").tolist())
            if claimed > _MOST:
                expected = f"at most {_MOST:,}"
                raise ValueError(argument_message(argument, f"claims to hold {claimed:,} bytes", expected, _REMEDY))
            return header + stream.read(claimed + 1)
    except (EOFError, OSError, zlib.error) as error:
        received = f"is damaged or truncated ({error})"
        raise ValueError(argument_message(argument, received, "a whole gzip file", _REMEDY)) from error
