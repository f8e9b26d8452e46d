"""The page cache keeps what is used, drops what is not, and never drops a pin."""

import pytest

from vblk.runtime.page_cache import PageCache


def filled(limit: int, pages: int) -> PageCache[int]:
    cache: PageCache[int] = PageCache(limit_pages=limit)
    for page in range(pages):
        cache.put(page * 4096, page)
    return cache


def present(cache: PageCache[int], pages: int) -> set[int]:
    return {page for page in range(pages) if page * 4096 in cache}


def test_a_page_that_was_put_is_found() -> None:
    cache = filled(4, 1)
    assert cache.get(0) == 0
    assert cache.get(4096) is None


def test_a_page_is_replaced_by_a_later_one() -> None:
    cache = filled(4, 2)
    cache.put(0, 77)
    assert cache.get(0) == 77
    assert len(cache) == 2


def test_there_are_never_more_pages_than_the_limit() -> None:
    cache: PageCache[int] = PageCache(limit_pages=5)
    for page in range(100):
        cache.put(page * 4096, page)
        assert len(cache) <= 5


def test_pages_that_are_never_used_leave_in_the_order_they_came() -> None:
    assert present(filled(3, 5), 5) == {2, 3, 4}


def test_a_page_in_use_outlives_a_scan() -> None:
    cache = filled(8, 8)
    for page in range(8, 200):
        assert cache.get(0) == 0
        cache.put(page * 4096, page)
    assert cache.get(0) == 0


def test_a_pinned_page_never_leaves() -> None:
    cache = filled(3, 3)
    cache.pin(4096)
    for page in range(3, 50):
        cache.put(page * 4096, page)
    assert cache.get(4096) == 1
    assert len(cache) == 3


def test_pins_count() -> None:
    cache = filled(1, 1)
    cache.pin(0)
    cache.pin(0)
    cache.unpin(0)
    cache.put(4096, 1)
    assert cache.get(0) == 0
    cache.unpin(0)
    assert len(cache) == 1


def test_a_pin_waits_for_a_page_that_is_put_later() -> None:
    cache = filled(2, 2)
    with cache.pinned([81920, 0]):
        cache.put(81920, 20)
        cache.put(12288, 3)
        cache.put(16384, 4)
        assert cache.get(81920) == 20
        assert cache.get(0) == 0
    assert len(cache) == 2


def test_more_pins_than_room_are_kept_and_nothing_else_is() -> None:
    cache: PageCache[int] = PageCache(limit_pages=2)
    with cache.pinned(range(0, 5 * 4096, 4096)):
        for page in range(6):
            cache.put(page * 4096, page)
        assert present(cache, 6) == {0, 1, 2, 3, 4}
    assert len(cache) == 2


def test_pins_are_taken_back_when_the_block_raises() -> None:
    cache = filled(2, 2)
    with pytest.raises(KeyError), cache.pinned([0, 4096]):
        raise KeyError
    assert cache._pins == {}


def test_a_dropped_page_is_gone_and_its_pin_stays() -> None:
    cache = filled(2, 2)
    cache.pin(0)
    cache.drop(0)
    cache.drop(4096)
    assert len(cache) == 0
    cache.put(0, 5)
    cache.put(4096, 6)
    cache.put(8192, 7)
    assert cache.get(0) == 5


def test_clear_forgets_all_pages() -> None:
    cache = filled(4, 4)
    cache.pin(0)
    cache.clear()
    assert len(cache) == 0
    assert cache.get(0) is None


@pytest.mark.parametrize(("size", "limit"), [(0, 1), (4096, 0)])
def test_a_cache_without_room_is_refused(size: int, limit: int) -> None:
    with pytest.raises(ValueError, match="room"):
        PageCache[int](size, limit_pages=limit)
