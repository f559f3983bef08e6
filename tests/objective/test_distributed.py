"""Two ranks, one loss: everything is what one process gets, the same bits on both ranks; and what does not fit together
is refused on both, without a rank left waiting.

Oracles: the same calls in one process, in float64 to 1e-12 (eigenvectors and what rests on random probes to 1e-9); each
rank's bits against the other's. The two ranks run once, by torchrun, in distributed_scene.py.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import distributed_scene as scene
import lowhanging as lh
from lowhanging.objective.batches import Batches
from lowhanging.objective.distributed import is_silent

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

LIMIT = 240  # seconds for the two ranks: a hang is a failure, not a wait
LOOSE = ("eigenvectors", "density", "trace")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | loopback
    process = subprocess.Popen(
        [*torchrun, scene.__file__, str(folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The same, found by this process alone."""
    return scene.all_answers(None)[0]


def test_two_ranks_find_what_one_process_finds(both: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    found = both[0]["found"]
    assert len(expected) == 4 * 6 + 15 and set(expected) <= set(found)
    for name, value in expected.items():
        rtol = 1e-9 if name.endswith(LOOSE) else 1e-12
        message = f"{name}: {found[name]}, in one process {value}"
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol, msg=message)


def test_every_rank_has_the_same_bits(both: list[dict[str, Any]]) -> None:
    first, second = (rank["found"] for rank in both)
    assert set(first) == set(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == ["local"]  # that was asked at another theta
    for name in ("whole", "not kept", "sequences", "given"):
        for beside in ("the gradient", "the accuracy"):
            assert torch.equal(first[f"{name}: value"], first[f"{name}: value beside {beside}"])


def test_shards_are_those_asked_for(both: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Given ones of 16 and 7 examples; a whole of 23 in shards of 12 and 11."""
    for rank, length in enumerate((16, 7)):
        words = both[rank]["words"]
        assert words["num_examples"] == 23
        assert sum(words["batches"]) == length
        pattern = rf"23 examples in batches of \d+, rank {rank} of 2, cross_entropy"
        assert re.search(pattern, words["repr"]) is not None
        assert "rank" not in words["local"]
        settings: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float64, "cache": True}
        kept = Batches(scene.data(), micro_batch=5, shard=(rank, 2), **settings)
        torch.testing.assert_close(torch.cat([x for x, _ in kept]), scene.data()[0][rank::2], rtol=0, atol=0)
        assert [len(x) for x, _ in kept] == [[5, 5, 2], [5, 5, 1]][rank]
        assert (kept.num_examples, kept.num_read) == (12 - rank, 23)
    whole = lh.Objective(scene.model(torch.float32), scene.data(torch.float32), engine="kept graph")
    product = whole.hvp(whole.theta0, scene.direction(whole.num_params))
    torch.testing.assert_close(both[0]["found"]["float32"], product, rtol=1e-5, atol=1e-6)
    again = both[0]["found"]["after all that"]
    torch.testing.assert_close(again, expected["whole: gradient"], rtol=1e-12, atol=1e-14)


def test_engine_and_blocks_are_decided_together(both: list[dict[str, Any]]) -> None:
    loss = lh.Objective(scene.model(), scene.data())
    v = scene.direction(loss.num_params)
    product = lh.hessian(loss) @ torch.stack([v, v.cos()], 1)
    for rank in both:
        torch.testing.assert_close(rank["found"]["columns by vote"], product, rtol=1e-12, atol=1e-13)
        assert (rank["words"]["engine"], rank["words"]["block"]) == ("double backward", "loop")
    assert both[0]["words"]["reason"] == "kept graph is right here, but not on another rank"
    assert both[1]["words"]["reason"] == "None"


def test_only_rank_0_shows_bars(both: list[dict[str, Any]]) -> None:
    assert [rank["words"]["silent"] for rank in both] == [[False, False, True], [True, True, True]]
    assert [is_silent(progress) for progress in (None, True, False)] == [False, False, True]


def test_the_example_prints_what_one_process_prints(
    both: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = runpy.run_path(str(scene.EXAMPLE), run_name="__main__")["pairs"]
    torch.testing.assert_close(both[0]["found"]["example"], alone.values, rtol=1e-5, atol=0)


# What does not fit together -------------------------------------------------------------------------------------------

SAME = "expected the same on every rank.\n"
SAME_ARGUMENTS = (
    SAME + "Make it of the same model and with the same arguments on every rank, or pass distributed=False."
)
SAME_DATA = (
    SAME
    + "Read the same examples in the same order on every rank (shuffle with a generator of the same seed); or pass "
    'Objective(..., shards="given") loaders that yield each rank its own part.'
)
SAME_CALLS = (
    "expected one question at a time.\n"
    "Let every rank make the same calls in the same order, also where only one prints the result."
)
SAME_BITS = (
    "expected the same bits on every rank.\nDraw random vectors from a generator with the same seed on every rank, or "
    "broadcast them; where they come from equal computations, the processors or the numbers of threads differ."
)
ELSEWHERE = "expected every rank's part of it.\nSee the traceback of that rank."
MAKE_IT_THERE = "Make it on every rank, or pass distributed=False for a loss of this process alone."

REFUSED_ON_BOTH = {
    "other order": f"ValueError: data is 23 examples (#) on rank 0 and 23 examples (#) on rank 1, {SAME_DATA}",
    "fewer examples": f"ValueError: data is 23 examples (#) on rank 0 and 22 examples (#) on rank 1, {SAME_DATA}",
    "sampled": f"ValueError: data is 12 examples (#) on rank 0 and 12 examples (#) on rank 1, {SAME_DATA}",
    "other weights": f"ValueError: theta0 is # on rank 0 and # on rank 1, {SAME}Give all ranks the same whole weights "
    "first (torch.distributed.broadcast), or pass distributed=False.",
    **{
        f"other {what}": f"ValueError: constants is # on rank 0 and # on rank 1, {SAME}Give all ranks the same frozen "
        "parameters and buffers first: in training each rank gathers BatchNorm statistics of its own."
        for what in ("statistics", "class weights")
    },
    "other model": "ValueError: model is Linear with 15 parameters in torch.float64 on rank 0 and Linear with 20 "
    f"parameters in torch.float64 on rank 1, {SAME_ARGUMENTS}",
    "other loss": f"ValueError: loss is multi_margin_loss on rank 0 and cross_entropy on rank 1, {SAME_ARGUMENTS}",
    "other mode": f"ValueError: mode is eval on rank 0 and as_is on rank 1, {SAME_ARGUMENTS}",
    "other shards": f"ValueError: shards is split on rank 0 and given on rank 1, {SAME_ARGUMENTS}",
    "given twice": "ValueError: data is the same on several ranks, expected a part of its own on each rank.\n"
    'Pass shards="split" where every rank has all of the data.',
    "padded": "ValueError: data repeats 1 example (DistributedSampler makes all shards equally long), expected every "
    'example once.\nPass the whole with shards="split", or Subset(data, range(rank, len(data), num_ranks)) on each '
    "rank.",
    "wrapped": "ValueError: model is wrapped in DistributedDataParallel, expected the model itself.\n"
    "Pass model.module.",
    "foreign group": "ValueError: distributed is no group that this process is in, expected True, False, None or a "
    "process group.\nMake the objective on the members of the group only.",
    "another theta": f"ValueError: theta or v differs between the ranks (a value), {SAME_BITS}",
    "another v": f"ValueError: theta or v differs between the ranks (a product of the Hessian), {SAME_BITS}",
}
REFUSED = {
    "bad data": (
        "RuntimeError: the loss failed on rank 1 (ValueError: data holds 92 NaN or infinite entries, expected finite "
        f"numbers.), {ELSEWHERE}",
        "ValueError: data holds 92 NaN or infinite entries, expected finite numbers.\n"
        "Drop or repair those examples before building the loader.",
    ),
    "one example": (
        "RuntimeError: the loss failed on rank 1 (ValueError: data is too little for 2 processes: nothing is left for "
        f"number 1, expected an example or a batch for each.), {ELSEWHERE}",
        "ValueError: data is too little for 2 processes: nothing is left for number 1, expected an example or a batch "
        "for each.\nStart fewer processes, cut the data into more batches, or pass distributed=False.",
    ),
    "another question": tuple(
        f"RuntimeError: the ranks were asked for different things (this one for {question}), {SAME_CALLS}"
        for question in ("a product of the Hessian", "a value")
    ),
    "another loss": 2
    * (f"RuntimeError: the ranks were asked for different things (this one for a value), {SAME_CALLS}",),
    "in double": tuple(
        f"ValueError: the loss is shared (rank {rank} of 2), expected all data in one process.\nPass distributed=False."
        for rank in range(2)
    ),
    "failure": (
        f'RuntimeError: the loss failed on rank 1 (KeyError: "a loss of one\'s own"), {ELSEWHERE}',
        'KeyError: "a loss of one\'s own"',
    ),
    "out of memory": (
        f"OutOfMemoryError: the loss failed on rank 1 (OutOfMemoryError: too much), {ELSEWHERE}",
        "OutOfMemoryError: too much",
    ),
    "alone": (
        "RuntimeError: the loss is made on rank 0 of 2, and not on rank [1] within 0.4 s, expected one on all 2 ranks."
        f"\n{MAKE_IT_THERE}",
        "RuntimeError: the loss failed on rank 0 (RuntimeError: the loss is made on rank 0 of 2, and not on rank [1] "
        f"within 0.4 s, expected one on all 2 ranks.), {ELSEWHERE}",
    ),
}


def without_digests(message: str) -> str:
    return re.sub(r"\b([0-9a-f]{16}){1,2}\b", "#", message)


@pytest.mark.parametrize("name", REFUSED_ON_BOTH)
def test_what_differs_is_refused_on_both_ranks(name: str, both: list[dict[str, Any]]) -> None:
    first, second = (rank["refused"][name] for rank in both)
    assert first == second
    assert without_digests(first) == REFUSED_ON_BOTH[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_on_one_rank_fails_on_both(name: str, both: list[dict[str, Any]]) -> None:
    assert tuple(rank["refused"][name] for rank in both) == REFUSED[name]


def test_every_refusal_is_tested(both: list[dict[str, Any]]) -> None:
    assert {*both[0]["refused"]} - {"a note"} == {*both[1]["refused"]} == {*REFUSED, *REFUSED_ON_BOTH}
    note = "RuntimeWarning: rank 0 of 2 waits for rank [1] to make the same loss. "
    assert both[0]["refused"]["a note"] == note + MAKE_IT_THERE


# One process ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shards", ["split", "given"])
def test_a_group_of_one_changes_nothing(shards: Any, group_of_one: None) -> None:
    settings: dict[str, Any] = {"micro_batch": 5, "engine": "kept graph"}
    alone = scene.few_answers(lh.Objective(scene.model(), scene.data(), distributed=False, **settings))
    for distributed in (None, True, dist.group.WORLD):
        loss = lh.Objective(scene.model(), scene.data(), distributed=distributed, shards=shards, **settings)
        assert loss.ranks is None and "rank" not in repr(loss)
        found = scene.few_answers(loss)
        assert [name for name in alone if not torch.equal(found[name], alone[name])] == []


def test_without_torch_distributed() -> None:
    assert lh.Objective(scene.model(), scene.data()).ranks is None
    message = (
        "distributed is True, expected torch.distributed to be initialised.\nStart the script with torchrun and call "
        "torch.distributed.init_process_group(), or leave it out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lh.Objective(scene.model(), scene.data(), distributed=True)
    with pytest.raises(
        ValueError, match=r"^shards is 'parts', expected one of 'split', 'given'\.\nName one of them\.$"
    ):
        lh.Objective(scene.model(), scene.data(), shards="parts")  # type: ignore[arg-type]


def test_a_group_is_a_group(group_of_one: None) -> None:
    message = "distributed is a str, expected True, False, None or a process group."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        lh.Objective(scene.model(), scene.data(), distributed="gloo")  # type: ignore[arg-type]
