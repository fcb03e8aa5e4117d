import pytest
import torch

from vit_pytorch.data import ArrayImages
from vit_pytorch.data.plan import BatchPlan


def made(count: int) -> ArrayImages:
    return ArrayImages(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.long), origin=""
    )


def batches(
    count: int,
    *,
    epoch: int = 0,
    start: int = 0,
    batch_size: int,
    train: bool,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    plan = BatchPlan(
        made(count), batch_size=batch_size, train=train, seed=3, rank=rank, world_size=world_size
    )
    plan.set_epoch(epoch)
    requests = list(plan.requests(start))
    assert [request.batch for request in requests] == list(range(start, len(plan)))
    assert {request.epoch for request in requests} <= {epoch}
    return [request.indices for request in requests]


def test_training_order_is_a_function_of_seed_and_epoch() -> None:
    first = batches(103, batch_size=10, train=True)
    assert first == batches(103, batch_size=10, train=True)
    assert first != batches(103, batch_size=10, train=True, epoch=1)
    assert [len(batch) for batch in first] == [10] * 10
    assert len({index for batch in first for index in batch}) == 100


@pytest.mark.parametrize("start", [0, 1, 7, 10])
def test_starting_later_is_the_rest_of_the_epoch(start: int) -> None:
    whole = batches(103, batch_size=10, train=True, epoch=2)
    assert batches(103, batch_size=10, train=True, epoch=2, start=start) == whole[start:]


@pytest.mark.parametrize(("count", "world_size"), [(103, 2), (64, 4), (7, 2), (5, 3)])
def test_ranks_together_see_the_global_batches_of_one_process(count: int, world_size: int) -> None:
    parts = [
        batches(count, batch_size=4, train=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    alone = batches(count, batch_size=4 * world_size, train=True)
    assert len({len(part) for part in parts}) == 1
    for number, expected in enumerate(alone):
        shares = [part[number] for part in parts]
        assert len({len(share) for share in shares}) == 1
        joined = [index for share in shares for index in share]
        assert joined == expected[: len(joined)]
        assert len(expected) - len(joined) < world_size


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 4, 5, 7, 24, 25, 31, 100])
def test_evaluation_sees_each_image_once_in_as_many_batches_on_each_rank(
    count: int, world_size: int, batch_size: int
) -> None:
    parts = [
        batches(count, batch_size=batch_size, train=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    sizes = [len(batch) for part in parts for batch in part]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + 1
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(count))
    if world_size == 1:
        assert max(sizes) <= batch_size
        assert [index for batch in parts[0] for index in batch] == list(range(count))


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    assert [len(batch) for batch in batches(5, batch_size=64, train=True)] == [5]


def test_more_processes_than_images() -> None:
    with pytest.raises(ValueError, match="each of 4 processes needs an image, got 3 images"):
        batches(3, batch_size=1, train=False, world_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank must be 0 to 1, got 2"),
    ],
)
def test_impossible_plans(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchPlan(made(3), train=True, seed=0, **options)
