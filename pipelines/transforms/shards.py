"""Jobs -> shards: parts of those that can share batches, each of whole batches, and enough of them for all workers.

Images of one batch key are cut where they stand among their sorted ids, so that all batches are full but the last of a
key, whatever the order in which jobs come and the number of workers. The place of an id is known from counts alone: how
many ids begin with each prefix is counted, and within one prefix they are sorted. So nowhere is more in memory at once
than the jobs of a shard, or of a prefix: one in 4096 of a key's, of which ten million take some megabytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipelines.elements import PlannedJob, PrefixCount, PrefixRank, decode, encode
from pipelines.run import Run
from pipelines.transforms import steps

# Jobs in a shard at most, if a batch is not larger: at 1.5 KB each it is small beside one image.
MOST_JOBS = 1024
# Digits of ids by which they are counted.
_PREFIX = 3
_KEY_DIGITS = 16


def shard_size(images: int, shards: int, host_batch: int) -> int:
    """Images in each shard: whole batches, as many shards as are wanted if there are batches for them.

    Args:
      images: of one batch key.
      shards: wanted.
      host_batch: images in a batch.
    """
    batches = max(1, images // (shards * host_batch))
    return host_batch * min(batches, max(1, MOST_JOBS // host_batch))


def ranks(batch_key: str, counts: Iterable[PrefixCount], shards: int, host_batch: int) -> Iterator[PrefixRank]:
    """The rank of each prefix of a batch key."""
    sorted_counts = sorted(counts, key=lambda count: count.prefix)
    size = shard_size(sum(count.images for count in sorted_counts), shards, host_batch)
    rank = 0
    for count in sorted_counts:
        yield PrefixRank(batch_key, count.prefix, rank, size)
        rank += count.images


def with_shards(elements: Iterable[PlannedJob | PrefixRank]) -> Iterator[tuple[str, PlannedJob]]:
    """The jobs of one prefix, and its rank -> the jobs, each with the key of its shard."""
    found = list(elements)
    [place] = (each for each in found if isinstance(each, PrefixRank))
    jobs = (each for each in found if isinstance(each, PlannedJob))
    for rank, job in enumerate(sorted(jobs, key=lambda job: job.id), place.rank):
        yield shard_key(job.batch_key, rank // place.shard_size), job


def shard_key(batch_key: str, number: int) -> str:
    """A short hash."""
    return hashlib.sha256(f"{batch_key} {number}".encode()).hexdigest()[:_KEY_DIGITS]


def prefix_key(element: PlannedJob | PrefixRank) -> str:
    """The batch key and the first digits of the id."""
    return element.batch_key + (element.prefix if isinstance(element, PrefixRank) else element.id[:_PREFIX])


# --- Steps ---


def _count(data: bytes) -> tuple[str, int]:
    job: Any = decode(data)
    return prefix_key(job), 1


def _prefix_count(key: str, images: int) -> tuple[str, bytes]:
    batch_key, prefix = key[:-_PREFIX], key[-_PREFIX:]
    return batch_key, encode(PrefixCount(batch_key, prefix, images))


def _with_shards(_: str, data: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    elements: Any = map(decode, data)
    return ((key, encode(job)) for key, job in with_shards(elements))


class GroupIntoShards(beam.PTransform):
    """Jobs -> a key and the jobs of each shard."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def expand(self, jobs: beam.PCollection) -> beam.PCollection:
        """Counts go ahead of the jobs, to meet them again by prefix."""
        prefix_ranks = (
            jobs
            | "Count" >> beam.Map(_count).with_output_types(tuple[str, int])
            | "Sum" >> beam.CombinePerKey(steps.Total())
            | "Counts" >> beam.MapTuple(_prefix_count).with_output_types(tuple[str, bytes])
            | "ByBatchKey" >> beam.GroupByKey()
            | "Ranks" >> steps.groups(ranks, self._run.shards, self._run.config.run.host_batch)
        )
        return (
            (jobs, prefix_ranks)
            | "Meet" >> beam.Flatten()
            | "Prefix" >> steps.with_keys(prefix_key)
            | "ByPrefix" >> beam.GroupByKey()
            | "Shard" >> beam.FlatMapTuple(_with_shards).with_output_types(tuple[str, bytes])
            | "ByShard" >> beam.GroupByKey()
        )
