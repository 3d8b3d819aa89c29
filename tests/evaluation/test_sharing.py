"""Several ranks: one queue, the same sums, and a rank that dies is noticed."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import start_ranks
from ttt_cases import LENGTHS, score, small_config, small_gpt, small_split

from golf_lightning.__main__ import end_process
from golf_lightning.errors import GolfError
from golf_lightning.evaluation.sharing import DocumentQueue


def share_of(rank, world_size, folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    queue = DocumentQueue(rank, world_size, patience_seconds=3.0)
    if kind == "scores":
        order = list(range(len(LENGTHS)))
        scores = score(
            small_gpt(), small_split(), small_config(slots=2), documents=queue.share("x", order, 2), ranks=world_size
        )
        queue.finish("x")
        result = {"nats": scores.nats, "targets": scores.targets, "bytes": scores.bytes}
    elif kind == "turns":
        share = queue.share("x", list(range(40)), 3)
        taken = [next(share)]
        dist.barrier()  # so that none has emptied the queue before the other asked
        taken += share
        queue.finish("x")
        if rank == 1:
            dist.barrier()  # so that rank 0 could empty it first
        few = list(queue.share("few", [3, 1, 4, 2, 5], 8))
        if rank == 0:
            dist.barrier()
        result = {"taken": torch.tensor(taken, dtype=torch.int64), "few": torch.tensor(few)}
    else:
        next(queue.share("x", [0, 1, 2], 1))
        dist.barrier()
        if rank == int(kind):
            os._exit(0)
        try:
            queue.finish("x")
            result = {"error": ""}
        except GolfError as error:
            result = {"error": str(error)}
    torch.save(result, f"{folder}/{rank}.pt")
    end_process(0)


def on_ranks(world_size, folder, kind):
    start_ranks(share_of, (world_size, str(folder), kind), world_size)
    paths = (Path(folder) / f"{rank}.pt" for rank in range(world_size))
    return [torch.load(path, weights_only=True) for path in paths if path.exists()]


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_gives_the_same_sums(world_size, tmp_path):
    parts = on_ranks(world_size, tmp_path, "scores")
    alone = score(small_gpt(), small_split(), small_config(slots=2))
    torch.testing.assert_close(sum(part["nats"] for part in parts), alone.nats, rtol=1e-9, atol=0)
    for name in ("targets", "bytes"):
        assert torch.equal(sum(part[name] for part in parts), getattr(alone, name))


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("turns"), "turns")


def test_every_document_goes_to_one_rank_and_each_takes_them_in_order(turns):
    parts = [part["taken"].tolist() for part in turns]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    assert all(part == sorted(part) and part for part in parts)


def test_the_first_rank_does_not_take_all_of_few_documents(turns):
    assert [part["few"].tolist() for part in turns] == [[3, 4, 5], [1, 2]]


@pytest.mark.parametrize(("dead", "message"), [(1, "Rank 1 has not answered"), (0, "Rank 0, which hands out")])
def test_a_rank_that_dies_fails_the_others_with_its_name(dead, message, tmp_path):
    (left,) = on_ranks(2, tmp_path, str(dead))
    assert message in left["error"]
    assert "start the same command again" in left["error"]


def test_one_rank_alone_shares_with_nobody():
    queue = DocumentQueue(0, 1)
    assert list(queue.share("x", [4, 2, 9], 2)) == [4, 2, 9]
    queue.finish("x")
