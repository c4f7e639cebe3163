"""Shards are whole batches, the same for the same jobs, and as many as there are workers for."""

import random
from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import settings
from pipelines.elements import PlannedJob, PrefixCount, PrefixRank, decode, encode
from pipelines.run import Run
from pipelines.transforms import steps
from pipelines.transforms.sample import batches
from pipelines.transforms.shards import MOST_JOBS, GroupIntoShards, ranks, shard_size, with_shards


def jobs(count: int, buckets: int = 1, seed: int = 0) -> list[PlannedJob]:
    """As many of each bucket, mixed."""
    chance = random.Random(seed)
    found = [
        PlannedJob(
            f"{chance.randrange(16**32):032x}", {"prompt": "a"}, f"{n % buckets:016x}", {}, "", "p.txt", n, False
        )
        for n in range(count)
    ]
    return chance.sample(found, count)


def shards_of(planned: list[PlannedJob], shards: int, host_batch: int) -> list[list[PlannedJob]]:
    """What the transform gives, without Beam."""
    counts = Counter((job.batch_key, job.id[:3]) for job in planned)
    found: dict[str, list[PlannedJob]] = {}
    for batch_key in {job.batch_key for job in planned}:
        of_key = [PrefixCount(key, prefix, n) for (key, prefix), n in counts.items() if key == batch_key]
        for place in ranks(batch_key, of_key, shards, host_batch):
            of_prefix = [job for job in planned if (job.batch_key, job.id[:3]) == (batch_key, place.prefix)]
            for key, job in with_shards([*of_prefix, place]):
                found.setdefault(key, []).append(job)
    return list(found.values())


def full_and_others(shards: list[list[PlannedJob]], host_batch: int) -> tuple[int, int]:
    """How many batches are full, and how many are not."""
    sizes = [len(batch) for shard in shards for batch in batches(shard, host_batch)]
    return sizes.count(host_batch), len(sizes) - sizes.count(host_batch)


@pytest.mark.parametrize("shards", [1, 3, 8, 64, 1000])
@pytest.mark.parametrize("buckets", [1, 3])
def test_batches_are_full_however_many_shards_are_wanted(shards, buckets):
    found = shards_of(jobs(96, buckets), shards, host_batch=8)
    assert full_and_others(found, 8) == (12, 0)
    assert min(12, shards) <= len(found) <= 12


@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 100), st.integers(1, 70))
def test_no_more_than_one_batch_of_a_bucket_is_partial_and_nothing_is_lost(count, buckets, shards, host_batch):
    planned = jobs(count, buckets)
    found = shards_of(planned, shards, host_batch)
    assert sorted(job.id for shard in found for job in shard) == sorted(job.id for job in planned)
    assert all(len({job.batch_key for job in shard}) == 1 for shard in found)
    per_bucket = Counter(job.batch_key for job in planned)
    assert sum(full_and_others(found, host_batch)) == sum(-(-n // host_batch) for n in per_bucket.values())
    for batch_key, n in per_bucket.items():
        own = [shard for shard in found if shard[0].batch_key == batch_key]
        assert len(own) >= min(shards, n // host_batch)  # enough for all workers, as far as there are full batches


def test_the_same_jobs_are_in_the_same_shards_in_whatever_order_they_come():
    planned = jobs(100, 2)
    expected = {tuple(sorted(job.id for job in shard)) for shard in shards_of(planned, 4, 8)}
    for seed in range(3):
        mixed = random.Random(seed).sample(planned, len(planned))
        assert {tuple(sorted(job.id for job in shard)) for shard in shards_of(mixed, 4, 8)} == expected


def test_a_shard_is_bounded_however_many_images_there_are():
    for host_batch in (1, 8, 64, 1000, 5000):
        size = shard_size(10**9, 4, host_batch)
        assert size % host_batch == 0 and size <= max(MOST_JOBS, host_batch)


def test_ranks_of_prefixes_follow_each_other():
    counts = [PrefixCount("k", prefix, n) for prefix, n in (("fff", 2), ("000", 3), ("00a", 1))]
    assert list(ranks("k", counts, 1, 4)) == [
        PrefixRank("k", "000", 0, 4),
        PrefixRank("k", "00a", 3, 4),
        PrefixRank("k", "fff", 4, 4),
    ]


@pytest.mark.parametrize("workers, shards", [(1, 1), (2, 12), (16, 12)])
def test_the_transform_gives_full_batches_on_any_number_of_workers(workers, shards, tmp_path):
    planned = jobs(96)
    run = Run(settings.make({"run.host_batch": 8}), str(tmp_path), str(tmp_path), "run", workers)

    def check(found: list[tuple[str, list[bytes]]]) -> None:
        grouped = [list(map(decode, data)) for _, data in found]
        assert len(grouped) == shards and full_and_others(grouped, 8) == (12, 0)
        assert {job.id for shard in grouped for job in shard} == {job.id for job in planned}

    with beam.Pipeline("FnApiRunner") as root:
        assert_that(root | steps.create(planned) | GroupIntoShards(run), check)


def test_elements_that_are_grouped_are_as_long_as_they_look():
    """What docs/runners.md says of memory: 1.5 KB for a job is on the safe side."""
    assert len(encode(jobs(1)[0])) < 1500
