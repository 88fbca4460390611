"""What pages keep in memory of the files of runs."""

from __future__ import annotations

import numpy as np

from dashboard.shell.store import ArrayCache, Arrays


def kilobytes(n: int) -> Arrays:
    return {"a": np.zeros(1000 * n, dtype=np.uint8)}


def test_what_was_used_longest_ago_is_forgotten_where_bytes_run_out() -> None:
    cache, loaded = ArrayCache(5000), []

    def get(key: int, size: int) -> Arrays:
        def load() -> Arrays:
            loaded.append(key)
            return kilobytes(size)

        return cache.get(key, load)

    first = get(1, 2)
    get(2, 2)
    assert get(1, 2) is first
    get(3, 3)  # 7,000 bytes: the second goes, used longer ago than the first
    assert (cache.nbytes, loaded) == (5000, [1, 2, 3])
    assert get(1, 2) is first
    get(2, 2)
    assert loaded == [1, 2, 3, 2]
    assert len(get(4, 9)["a"]) == 9000  # larger than all that may be kept: it takes nothing else's place
    assert cache.nbytes == 4000
    assert get(1, 2) is first
