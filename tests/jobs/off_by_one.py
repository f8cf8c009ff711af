"""The tiny job with a fault planted in its sampler: in the first step of an epoch ranks begin one sample too early.

It is here to prove that the audit of what the datasets gave notices what the sampler's own ledger cannot.
"""

from collections.abc import Iterator

import tiny

import edl_collective as edl
from edl_collective.sampler import RankStep


class OffByOne(edl.ElasticBatchSampler):
    """In the first step of an epoch its chunk begins one sample of the permutation too early."""

    def steps(self) -> Iterator[RankStep]:
        for step in super().steps():
            indices = step.indices
            if step.begin == 0 and self._rank > 0:
                indices = indices.copy()
                indices[1:], indices[0] = indices[:-1].copy(), self._order[self._rank * len(indices) - 1]
            yield step._replace(indices=indices)


if __name__ == "__main__":
    edl.ElasticBatchSampler = OffByOne  # type: ignore[misc]
    tiny.main()
