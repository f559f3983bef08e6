"""Handwritten digits, from three sources.

Five thousand real images travel inside the package, so that every example and test runs on real data without a network.
The full 60,000 + 10,000 are fetched once by pooch, and a folder in torchvision's layout is read where it lies. In all
three cases every byte is checked, by SHA-256 or against its own header, before it becomes an example: a silently cut
data set would be a silently different loss.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowhanging.datasets.examples import Examples
from lowhanging.datasets.idx import SPLITS, find_splits, read_split
from lowhanging.errors import (
    a_type,
    argument_message,
    check_finite,
    check_names,
    check_writable_folder,
    door,
)

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
BUNDLED_SHA256 = "935a2e05dacab2b17d59986ddc02eb23c9e3b013041b3c43d6f586887cb66a86"
_OFFLINE = (
    'Without network use source="bundled" (5,000 images), or a folder that has the files: '
    'lh.mnist("path/to/MNIST/raw").'
)


@dataclass(frozen=True, repr=False, eq=False)
class DigitImages(Examples):
    """Images of digits with their labels; `DigitImages(*digits[:500])` is the first 500 examples.

    Attributes:
        inputs: (n, 1, 28, 28) float32, grey values in [0, 1], 0 = background, 1 = ink.
        targets: (n,) int64, the digit, 0 to 9.
    """

    def __post_init__(self) -> None:
        remedy = "Build it as DigitImages(inputs=images.float()[:, None] / 255, targets=labels.long())."
        for name, dtype in (("inputs", torch.float32), ("targets", torch.int64)):
            value = getattr(self, name)
            received = f"has dtype {value.dtype}" if isinstance(value, Tensor) else f"is {a_type(value)}"
            if received != f"has dtype {dtype}":
                raise TypeError(argument_message(name, received, f"a tensor of {dtype}", remedy))
        if self.inputs.ndim != 4 or self.inputs.shape[1:] != (1, 28, 28) or len(self.inputs) == 0:
            expected = "(n, 1, 28, 28) with n at least 1"
            raise ValueError(argument_message("inputs", f"has shape {tuple(self.inputs.shape)}", expected, remedy))
        if self.targets.shape != (len(self.inputs),):
            expected = f"({len(self.inputs)},), one label per image"
            raise ValueError(argument_message("targets", f"has shape {tuple(self.targets.shape)}", expected, remedy))
        check_finite("inputs", self.inputs, remedy=remedy)
        _check_range("inputs", self.inputs, 0, 1, remedy)
        _check_range("targets", self.targets, 0, 9, remedy)

    def __repr__(self) -> str:
        return f"DigitImages({len(self)} images of 28 x 28, {int((self.targets.bincount() > 0).sum())} classes)"


class MNIST:
    """A training split and a test split, of which one may be absent; read-only.

    Args:
        train: the training images, or None.
        test: the test images, or None. Splits of different origin may be combined:
            `MNIST(train=mnist().train, test=mnist(folder).test)`.
        source: where they came from, for `repr` and for messages.

    Raises:
        TypeError: a split is not a DigitImages.
        ValueError: both are absent; or, on reading `.train` or `.test`, that one is.
    """

    def __init__(self, train: DigitImages | None = None, test: DigitImages | None = None, *, source: str = "memory"):
        for name, split in (("train", train), ("test", test)):
            if split is not None and not isinstance(split, DigitImages):
                remedy = "Wrap the tensors: DigitImages(inputs=..., targets=...)."
                raise TypeError(argument_message(name, f"is {a_type(split)}", "a DigitImages or None", remedy))
        if train is None and test is None:
            message = argument_message("train", "and test are both None", "at least one split", "Pass a DigitImages.")
            raise ValueError(message)
        self._train, self._test, self._source = train, test, source

    @property
    def source(self) -> str:
        return self._source

    @property
    def train(self) -> DigitImages:
        return self._present("train", self._train)

    @property
    def test(self) -> DigitImages:
        return self._present("test", self._test)

    def _present(self, name: str, split: DigitImages | None) -> DigitImages:
        if split is None:
            other = "test" if name == "train" else "train"
            expected = f"{SPLITS[name][0]} and {SPLITS[name][1]} (or .gz) beside the other split"
            remedy = f"Add the files, or take that split from elsewhere: MNIST({name}=lh.mnist().{name}, {other}=...)."
            received = f"is absent from source {self._source!r}"
            raise ValueError(argument_message(f"{name} split", received, expected, remedy))
        return split

    def __repr__(self) -> str:
        train, test = ("absent" if split is None else len(split) for split in (self._train, self._test))
        return f"MNIST(train={train}, test={test}, source={self._source!r})"


@door
def mnist(
    source: str | os.PathLike[str] = "bundled",
    *,
    cache: str | os.PathLike[str] | None = None,
    mirrors: Sequence[str] = MIRRORS,
    sha256: Mapping[str, str] = SHA256,
    progress: bool = True,
) -> MNIST:
    """Handwritten digits: 5,000 bundled ones, all 70,000 by download, or those of a folder.

    Args:
        source: "bundled": 4,000 + 1,000 images inside the package, 500 of each digit in all, a fixed stratified
            split, drawn from MNIST's training images only. "full": 60,000 + 10,000, downloaded once.
            Otherwise a folder with the IDX files, gzipped or not, or one whose `raw` or `MNIST/raw` has them;
            if it has one split only, reading the other raises an error that says so. A folder that is itself
            called bundled or full is written "./full".
        cache: folder for the downloaded files ("full" only); None is `pooch.os_cache("lowhanging")`.
        mirrors: addresses of folders that have the four files, tried in this order for each file ("full" only).
        sha256: the digest of each of the four .gz files ("full" only); other digests, other files.
        progress: whether a download draws a progress bar ("full" only).

    Returns:
        MNIST with `.train` and `.test`, each a Dataset with `.inputs` (n, 1, 28, 28) float32 in [0, 1] and
        `.targets` (n,) int64.

    Raises:
        FileNotFoundError: the folder, or one file of a pair, is not there.
        ValueError: a file is damaged, truncated, of another shape or kind, or its labels don't fit.
        OSError: no mirror delivered a file whole; nothing partial is left in the cache. Or the cache can't be written.

    Cost:
        3.1 kB of memory per image; "full" downloads 11.6 MB once.

    Source:
        Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits"; CC BY-SA 3.0.
    """
    if not isinstance(source, str | os.PathLike):
        expected = '"bundled", "full" or a folder'
        raise TypeError(argument_message("source", f"is {a_type(source)}", expected, 'Write lh.mnist() for "bundled".'))
    if source == "bundled":
        return _bundled()
    if source == "full":
        paths = _download(cache, mirrors, sha256, progress)
        pairs = {split: (paths[f"{images}.gz"], paths[f"{labels}.gz"]) for split, (images, labels) in SPLITS.items()}
        return _from_files(pairs, "full")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        received = f"is {str(source)!r}, which is no folder"
        remedy = 'Name the folder that holds the IDX files, lh.mnist("path/to/MNIST/raw"), or use source="bundled".'
        raise FileNotFoundError(argument_message("source", received, '"bundled", "full" or an existing folder', remedy))
    return _from_files(find_splits(folder), str(folder))


def _bundled() -> MNIST:
    content = resources.files("lowhanging.datasets").joinpath("bundled", "mnist_5k.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != BUNDLED_SHA256:
        received, remedy = f"has SHA-256 {digest}", "Reinstall lowhanging: the installed file is damaged."
        raise ValueError(argument_message("bundled mnist_5k.npz", received, BUNDLED_SHA256, remedy))
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        images, labels, train, test = (stored[name] for name in ("images", "labels", "train", "test"))
    return MNIST(_digits(images[train], labels[train]), _digits(images[test], labels[test]), source="bundled")


def _from_files(splits: Mapping[str, tuple[Path, Path]], source: str) -> MNIST:
    return MNIST(**{split: _digits(*read_split(*paths)) for split, paths in splits.items()}, source=source)


def _digits(images: np.ndarray, labels: np.ndarray) -> DigitImages:
    inputs = torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)  # (n, 28, 28) -> (n, 1, 28, 28)
    return DigitImages(inputs, torch.from_numpy(labels.astype(np.int64)))


def _download(
    cache: str | os.PathLike[str] | None, mirrors: Sequence[str], sha256: Mapping[str, str], progress: bool
) -> dict[str, Path]:
    """Path of each of the four files in `cache`, its digest checked; what is missing or damaged is fetched."""
    # Imported here: most calls download nothing, and pooch is slow to import.
    import pooch

    remedy = 'Pass addresses of folders, mirrors=["https://.../mnist/"], or leave it out.'
    addresses = check_names("mirrors", [mirrors] if isinstance(mirrors, str) else mirrors, remedy=remedy)
    if set(sha256) != set(SHA256):
        received = f"has the files {sorted(sha256)}"
        raise ValueError(argument_message("sha256", received, f"{sorted(SHA256)}", "Leave it out."))
    folder = Path(pooch.os_cache("lowhanging") if cache is None else cache).expanduser()
    paths = {name: folder / name for name in sha256}
    for name, path in paths.items():
        if path.is_file() and pooch.file_hash(str(path)) == sha256[name].lower():
            continue
        check_writable_folder("cache", folder, remedy="Pass cache= a folder of yours; " + _OFFLINE)
        path.unlink(missing_ok=True)  # damaged: it must not outlive a failed download
        _fetch(path, sha256[name], addresses, progress)
    return paths


def _fetch(path: Path, digest: str, addresses: Sequence[str], progress: bool) -> None:
    """Download the file `path.name` to `path` from the first address that delivers it whole."""
    import pooch
    from tqdm.auto import tqdm

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # the bar says what is fetched
    reasons = []
    try:
        for address in addresses:
            url = f"{address.rstrip('/')}/{path.name}"
            # total=1 until the server has sent the size: pooch asks the bar for its truth value, which needs a total.
            with tqdm(total=1, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
                load = pooch.HTTPDownloader(progressbar=bar, timeout=(10, 30))  # seconds to connect, between bytes
                try:
                    pooch.retrieve(url, f"sha256:{digest}", fname=path.name, path=path.parent, downloader=load)
                    return
                except (OSError, ValueError) as error:  # all of requests' are OSErrors, a wrong digest a ValueError
                    reasons.append(f"{address}: {_reason(error)}")
                    bar.leave = False
    finally:
        logger.setLevel(level)
    received = f"is 'full', but {path.name} could not be downloaded ({'; '.join(reasons)})"
    raise OSError(argument_message("source", received, "a mirror that delivers the published file", _OFFLINE))


def _reason(error: Exception) -> str:
    """A few words for what requests and pooch put into paragraphs."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    known = {
        "ValueError": "a file with another SHA-256",
        "ConnectionError": "the connection failed",
        "ConnectTimeout": "no answer",
        "ReadTimeout": "no answer",
        "ProxyError": "the proxy refused",
        "ChunkedEncodingError": "interrupted",
    }
    kind = type(error).__name__  # requests is pooch's dependency, so its classes go by name
    return known.get(kind, f"{kind}: {error}")


def _check_range(argument: str, tensor: Tensor, low: int, high: int, remedy: str) -> None:
    smallest, largest = tensor.min().item(), tensor.max().item()
    if smallest < low or largest > high:
        received = f"runs from {smallest:g} to {largest:g}"
        raise ValueError(argument_message(argument, received, f"entries in [{low}, {high}]", remedy))
