"""Are the digits the published ones, whole, whichever way they come, and is anything less refused?

Oracles: the published SHA-256s and label counts; files written here byte by byte from the IDX definition; a web server
on 127.0.0.1 that misbehaves on purpose; the real test split where the folder beside the repository has it. No test
reaches the network.
"""

import gzip
import hashlib
import http.server
import importlib
import importlib.util
import io
import socket
import stat
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lowhanging.datasets import MNIST, DigitImages, mnist
from lowhanging.datasets.mnist import BUNDLED_SHA256, SHA256

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "src/lowhanging/datasets/bundled"
REAL = ROOT.parent / "shared/data/mnist"
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the published test split is not at {REAL}")


def idx(array, magic=None):
    """IDX bytes of a uint8 array, by the format's definition."""
    magic = 0x00000800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def stand_ins(num_train=5, num_test=3):
    """The four files as bytes, with random pixels."""
    rng = np.random.default_rng(0)
    files = {}
    for count, (images, labels) in zip((num_train, num_test), (NAMES[:2], NAMES[2:]), strict=True):
        files[images] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[labels] = idx(rng.integers(0, 10, count, dtype=np.uint8))
    return files


def write(folder, files, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


# bundled ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    return mnist()


def test_bundled_is_stratified_and_scaled(bundled):
    for split, per_digit in ((bundled.train, 400), (bundled.test, 100)):
        assert torch.bincount(split.targets).tolist() == [per_digit] * 10
        assert split.inputs.shape == (10 * per_digit, 1, 28, 28)
        assert split.inputs.dtype == torch.float32
        assert split.targets.dtype == torch.int64
        assert split.inputs.min() == 0
        assert split.inputs.max() == 1
        assert split.inputs.mean().item() == pytest.approx(0.1307, abs=0.004)  # the full set's published mean and
        assert split.inputs.std().item() == pytest.approx(0.3081, abs=0.004)  # standard deviation
        assert torch.equal(split.inputs, (split.inputs * 255).round() / 255)  # grey values k / 255


def test_bundled_splits_are_disjoint_and_mixed(bundled):
    images = torch.cat([bundled.train.inputs, bundled.test.inputs]).flatten(1)
    assert len(images.unique(dim=0)) == 5000
    for split in (bundled.train, bundled.test):  # no class gathers anywhere
        for part in split.targets.chunk(10):
            shares = torch.bincount(part, minlength=10) / len(part)
            assert (shares - 0.1).abs().max() < 4 * (0.09 / len(part)) ** 0.5  # four binomial standard deviations


def test_bundled_file_is_the_recorded_one():
    content = (BUNDLED / "mnist_5k.npz").read_bytes()
    assert len(content) < 850_000
    assert hashlib.sha256(content).hexdigest() == BUNDLED_SHA256
    attribution = (BUNDLED / "ATTRIBUTION.md").read_text()
    for part in (BUNDLED_SHA256, "LeCun", "Cortes", "Burges", "Attribution-ShareAlike 3.0"):
        assert part in attribution


def test_damaged_bundle_is_refused(monkeypatch):
    module = importlib.import_module("lowhanging.datasets.mnist")  # the name is also the function's
    monkeypatch.setattr(module, "BUNDLED_SHA256", "0" * 64)
    message = r"bundled mnist_5k\.npz has SHA-256 [0-9a-f]{64}, expected 0{64}\.\nReinstall"
    with pytest.raises(ValueError, match=message):
        mnist()


def test_bundle_script_repeats_the_split_and_its_own_bytes():
    spec = importlib.util.spec_from_file_location("bundle_mnist", ROOT / "scripts/bundle_mnist.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with np.load(BUNDLED / "mnist_5k.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    again = script.arrays_of(arrays["images"], arrays["labels"])
    assert {name: array.dtype for name, array in arrays.items()} == {name: array.dtype for name, array in again.items()}
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    few = {name: array[:100] for name, array in arrays.items()}
    content = script.pack(few)
    assert content == script.pack(few)
    with np.load(io.BytesIO(content)) as repacked:
        assert all(np.array_equal(repacked[name], few[name]) for name in few)


def test_digits_are_a_map_style_dataset(bundled):
    digits = bundled.train
    assert isinstance(digits, Dataset)
    assert len(digits) == 4000
    image, label = digits[7]
    assert image.shape == (1, 28, 28)
    assert torch.equal(image, digits.inputs[7])
    assert label == digits.targets[7]
    with pytest.raises(IndexError):
        digits[4000]
    images, labels = next(iter(DataLoader(digits, batch_size=8)))
    assert torch.equal(images, digits.inputs[:8])
    assert torch.equal(labels, digits.targets[:8])
    assert len(DigitImages(*digits[:500])) == 500


def test_reprs_are_one_line(bundled):
    assert repr(bundled) == "MNIST(train=4000, test=1000, source='bundled')"
    assert repr(bundled.test) == "DigitImages(1000 images of 28 x 28, 10 classes)"
    assert repr(MNIST(test=bundled.test)) == "MNIST(train=absent, test=1000, source='memory')"


# a folder -----------------------------------------------------------------------------------------------------------


@needs_real
def test_published_test_split():
    published = (  # of the unzipped files: gzip headers hold a date
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    )
    found = [gzip.decompress((REAL / f"{name}.gz").read_bytes()) for name in NAMES[2:]]
    assert tuple(hashlib.sha256(content).hexdigest() for content in found) == published
    digits = mnist(REAL)
    assert len(digits.test) == 10_000
    assert digits.test.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert torch.bincount(digits.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert digits.test.inputs.mean().item() == pytest.approx(0.1325, abs=1e-4)
    message = (
        r"(?s)^train split is absent from source '.*', expected train-images-idx3-ubyte and train-labels-idx1-ubyte "
        r".*\nAdd the files, or take that split from elsewhere: MNIST\(train=lh\.mnist\(\)\.train, test=\.\.\.\)\."
    )
    with pytest.raises(ValueError, match=message):
        _ = digits.train


@needs_real
def test_bundled_images_are_none_of_the_published_test_images(bundled):
    ours = {image.numpy().tobytes() for split in (bundled.train, bundled.test) for image in split.inputs}
    assert not any(image.numpy().tobytes() in ours for image in mnist(REAL).test.inputs)


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_torchvision_layouts(tmp_path, place, zipped):
    files = stand_ins()
    write(tmp_path / place, files, zipped)
    digits = mnist(str(tmp_path))
    assert (len(digits.train), len(digits.test)) == (5, 3)
    pixels = np.frombuffer(files[NAMES[0]], dtype=np.uint8, offset=16).reshape(5, 1, 28, 28)
    assert torch.equal(digits.train.inputs, torch.from_numpy(pixels.astype(np.float32)) / 255)
    assert digits.test.targets.tolist() == list(files[NAMES[3]][8:])


def test_folder_with_the_training_split_only(tmp_path):
    files = stand_ins()
    write(tmp_path, {name: files[name] for name in NAMES[:2]})
    digits = mnist(tmp_path)
    assert len(digits.train) == 5
    with pytest.raises(ValueError, match="test split is absent"):
        _ = digits.test


IMAGES, LABELS = NAMES[2:]
GOOD = stand_ins()
DAMAGES = {
    "truncated": (IMAGES, GOOD[IMAGES][:-1], r"is truncated: 2351 bytes .*, expected 2352 for the shape \(3, 28"),
    "too long": (LABELS, GOOD[LABELS] + b"\0", r"is too long: 4 bytes follow .*, expected 3 for the shape \(3,\)"),
    "no header": (IMAGES, GOOD[IMAGES][:9], r"is truncated: it holds 9 bytes, expected a header of 16 bytes"),
    "empty": (LABELS, b"", r"is truncated: it holds 0 bytes, expected a header of 8 bytes"),
    "absurd header": (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), r"is truncated: 0 bytes"),
    "labels for images": (IMAGES, GOOD[LABELS] + b"12345", r"starts with the magic .* 0x00000801, expected 0x00000803"),
    "images for labels": (LABELS, GOOD[IMAGES], r"starts with the magic .* 0x00000803, expected 0x00000801 \(unsigned"),
    "a web page": (IMAGES, b"<html><body>404</body></html>", r"starts with the magic number 0x3c68746d"),
    "wrong shape": (IMAGES, idx(np.zeros((3, 32, 32), np.uint8)), r"has images of shape \(3, 32, 32\), expected "),
    "no image": (IMAGES, idx(np.zeros((0, 28, 28), np.uint8)), r"has images of shape \(0, 28, 28\)"),
    "too few labels": (LABELS, idx(np.zeros(2, np.uint8)), r"holds 2 labels, expected 3, one per image of " + IMAGES),
    "label 10": (LABELS, idx(np.array([0, 10, 9], np.uint8)), r"holds the label 10, expected labels from 0 to 9"),
    "cut gzip": (IMAGES, gzip.compress(GOOD[IMAGES])[:-20], r"is damaged or truncated \(.*\), expected a whole gzip"),
    "damaged gzip": (IMAGES, gzip.compress(GOOD[IMAGES])[:40] + b"\xff" * 40, r"is damaged or truncated"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(tmp_path, damage):
    name, content, message = DAMAGES[damage]
    write(tmp_path, {IMAGES: GOOD[IMAGES], LABELS: GOOD[LABELS]} | {name: content})
    with pytest.raises(ValueError, match=rf"(?s)^source file '.*{name}' {message}.*\nFetch the file again, or let"):
        mnist(tmp_path)


def test_a_file_of_a_pair_is_missing(tmp_path):
    write(tmp_path, {IMAGES: GOOD[IMAGES]}, zipped=True)
    message = rf"source is '.*', which has {IMAGES} but not {LABELS}, expected both files of the test .*\nPut {LABELS}"
    with pytest.raises(FileNotFoundError, match=message):
        mnist(tmp_path)
    (tmp_path / f"{IMAGES}.gz").unlink()
    write(tmp_path, {LABELS: GOOD[LABELS]})
    with pytest.raises(FileNotFoundError, match=f"which has {LABELS} but not {IMAGES}"):
        mnist(tmp_path)


def test_no_files_no_folder_no_path(tmp_path):
    message = r"source is '.*', which has no MNIST files, expected the files t10k-images"
    with pytest.raises(FileNotFoundError, match=message):
        mnist(tmp_path)
    message = r'source is \'bundeld\', which is no folder, expected "bundled", "full" or an existing folder\.\nName'
    with pytest.raises(FileNotFoundError, match=message):
        mnist("bundeld")
    with pytest.raises(TypeError, match=r'source is an int, expected "bundled", "full" or a folder\.\nWrite lh\.mnist'):
        mnist(3)


# tensors of the caller's ---------------------------------------------------------------------------------------------

ZEROS, ONES = torch.zeros(3, 1, 28, 28), torch.ones(3, dtype=torch.int64)
BAD_TENSORS = [
    (np.zeros((3, 1, 28, 28)), ONES, TypeError, r"inputs is a ndarray, expected a tensor of torch\.float32"),
    (ZEROS.double(), ONES, TypeError, r"inputs has dtype torch\.float64, expected a tensor of torch\.float32"),
    (ZEROS, ONES.float(), TypeError, r"targets has dtype torch\.float32, expected a tensor of torch\.int64"),
    (ZEROS[:, 0], ONES, ValueError, r"inputs has shape \(3, 28, 28\), expected \(n, 1, 28, 28\)"),
    (ZEROS[:0], ONES[:0], ValueError, r"inputs has shape \(0, 1, 28, 28\), expected .* with n at least 1"),
    (ZEROS, ONES[:2], ValueError, r"targets has shape \(2,\), expected \(3,\), one label per image"),
    (ZEROS / 0, ONES, ValueError, r"inputs holds 2352 NaN or infinite entries, expected finite numbers"),
    (ZEROS + 255, ONES, ValueError, r"inputs runs from 255 to 255, expected entries in \[0, 1\]"),
    (ZEROS, ONES * 10, ValueError, r"targets runs from 10 to 10, expected entries in \[0, 9\]"),
    (ZEROS, ONES * -1, ValueError, r"targets runs from -1 to -1, expected entries in \[0, 9\]"),
]


@pytest.mark.parametrize(("inputs", "targets", "kind", "message"), BAD_TENSORS)
def test_bad_tensors(inputs, targets, kind, message):
    with pytest.raises(kind, match=rf"^{message}.*\nBuild it as DigitImages\(inputs="):
        DigitImages(inputs, targets)


def test_mnist_of_nothing_or_of_something_else():
    with pytest.raises(ValueError, match=r"train and test are both None, expected at least one split\.\nPass"):
        MNIST()
    with pytest.raises(TypeError, match=r"test is a tuple, expected a DigitImages or None\.\nWrap the tensors"):
        MNIST(test=(ZEROS, ONES))
    with pytest.raises(AttributeError):
        MNIST(test=DigitImages(ZEROS, ONES)).test = None


# download -----------------------------------------------------------------------------------------------------------

FILES = {f"{name}.gz": gzip.compress(content) for name, content in stand_ins().items()}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Server:
    """A mirror on 127.0.0.1: /good/, /corrupt/, /missing/, /interrupted/; it counts the requests."""

    def __init__(self):
        outer, self.requests = self, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                _, mood, name = self.path.split("/")
                content = FILES[name]
                if mood == "missing":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                half = content[: len(content) // 2]
                sent = {"good": content, "corrupt": content[:-1] + b"?", "interrupted": half}
                self.wfile.write(sent[mood])  # after which the connection is closed, HTTP/1.0

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def __getitem__(self, mood):
        return f"http://127.0.0.1:{self.http.server_port}/{mood}/"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.close()


def full(cache, *mirrors, **keywords):
    return mnist("full", cache=cache, mirrors=mirrors, sha256=DIGESTS, **{"progress": False} | keywords)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_then_cache(tmp_path, server, capsys):
    digits = full(tmp_path / "new" / "cache", server["good"])
    assert repr(digits) == "MNIST(train=5, test=3, source='full')"
    assert digits.test.targets.tolist() == list(stand_ins()[NAMES[3]][8:])
    assert names_in(tmp_path / "new" / "cache") == sorted(FILES)
    assert len(server.requests) == 4
    again = full(tmp_path / "new" / "cache", server["good"])
    assert len(server.requests) == 4
    assert torch.equal(again.train.inputs, digits.train.inputs)
    assert capsys.readouterr() == ("", "")


def test_download_draws_a_bar(tmp_path, server, capsys):
    full(tmp_path, server["missing"], server["good"], progress=True)
    shown = capsys.readouterr().err
    assert all(f"{name}: 100%" in shown for name in FILES)
    assert "Downloading data" not in shown  # pooch's own log
    full(tmp_path, server["good"], progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mood", ["corrupt", "missing", "interrupted"])
def test_second_mirror_is_tried(tmp_path, server, mood):
    assert len(full(tmp_path, server[mood], server["good"]).train) == 5
    assert names_in(tmp_path) == sorted(FILES)
    assert [path.split("/")[1] for path in server.requests] == [mood, "good"] * 4


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("corrupt", "a file with another SHA-256"),
        ("missing", "HTTP status 404"),
        ("interrupted", "interrupted"),
    ],
)
def test_no_mirror_delivers(tmp_path, server, mood, reason):
    message = (
        r"source is 'full', but train-images-idx3-ubyte\.gz could not be downloaded \(http://127\.0\.0\.1:\d+/"
        rf"{mood}/: {reason}\), expected a mirror that delivers the published file\.\n"
        r'Without network use source="bundled" .* lh\.mnist\("path/to/MNIST/raw"\)\.$'
    )
    with pytest.raises(OSError, match=message):
        full(tmp_path, server[mood])
    assert names_in(tmp_path) == []


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:  # a port that nobody listens to
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        message = r'(?s)the connection failed; .*the connection failed\), .*source="bundled".*lh\.mnist\("path/to'
        with pytest.raises(OSError, match=message) as caught:
            full(tmp_path, address, address)
    assert caught.value.__cause__ is None  # one error, not a chain of urllib3's
    assert caught.value.__context__ is None
    assert names_in(tmp_path) == []


def test_whole_cache_needs_no_network_and_no_write(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert len(full(tmp_path, "http://nowhere.invalid/").test) == 3
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_damaged_cache_is_replaced_or_removed(tmp_path, server):
    full(tmp_path, server["good"])
    damaged = tmp_path / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(b"damaged")
    with pytest.raises(OSError, match="HTTP status 404"):
        full(tmp_path, server["missing"])
    assert names_in(tmp_path) == sorted(set(FILES) - {damaged.name})
    damaged.write_bytes(b"damaged")
    full(tmp_path, server["good"])
    assert damaged.read_bytes() == FILES[damaged.name]
    assert [path.rsplit("/", 1)[1] for path in server.requests[4:]] == [damaged.name] * 2


def test_unwritable_cache_and_bad_arguments(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = r"cache is '.*file' \(.*\), expected a folder that can be written to\.\nPass cache="
    with pytest.raises(OSError, match=message):
        full(tmp_path / "file", "http://nowhere.invalid/")
    with pytest.raises(ValueError, match=r"mirrors has the names \[\], expected at least one name.*\nPass addresses"):
        full(tmp_path)
    with pytest.raises(ValueError, match=r"sha256 has the files \[\], expected \['t10k-images"):
        mnist("full", cache=tmp_path, sha256={})


def test_default_cache_and_digests(tmp_path, monkeypatch, server):
    assert {name.removesuffix(".gz") for name in SHA256} == set(NAMES)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    mnist("full", mirrors=server["good"], sha256=DIGESTS, progress=False)  # one address needs no list
    assert names_in(tmp_path / "lowhanging") == sorted(FILES)
