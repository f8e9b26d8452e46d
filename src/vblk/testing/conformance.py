"""The conformance suite: what every node promises, as checks that any node can be put through.

Owns: the list of checks. A factory makes the node and says what it holds.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_node(check: Check) -> None:
        asyncio.run(check(my_factory))

Ordering rule: each check gets a subject of its own and leaves it closed.
"""

from vblk.testing.changing_checks import (
    a_cancelled_request_is_over,
    a_flush_keeps_everything,
    a_read_only_node_refuses_changes,
    discard_reads_as_before_or_as_zeros,
    growth_reads_as_zeros,
    impossible_sizes_are_refused,
    placing_covers_the_range,
    reads_during_a_write_see_old_or_new,
    reopening_keeps_the_content,
    write_zeroes_reads_as_zeros,
    writes_are_seen_through_every_path,
    writes_side_by_side_all_arrive,
)
from vblk.testing.promises import Check, Factory
from vblk.testing.reading_checks import (
    closing_twice_is_closing_once,
    empty_requests_do_nothing,
    facts_are_plain,
    reads_agree_at_any_alignment,
    reads_side_by_side_do_not_disturb_each_other,
    spans_are_gapless_and_true,
    what_is_out_of_range_is_refused,
)

CHECKS: tuple[Check, ...] = (
    reads_agree_at_any_alignment,
    empty_requests_do_nothing,
    what_is_out_of_range_is_refused,
    spans_are_gapless_and_true,
    reads_side_by_side_do_not_disturb_each_other,
    writes_are_seen_through_every_path,
    writes_side_by_side_all_arrive,
    reads_during_a_write_see_old_or_new,
    write_zeroes_reads_as_zeros,
    discard_reads_as_before_or_as_zeros,
    a_flush_keeps_everything,
    growth_reads_as_zeros,
    impossible_sizes_are_refused,
    placing_covers_the_range,
    a_read_only_node_refuses_changes,
    reopening_keeps_the_content,
    a_cancelled_request_is_over,
    facts_are_plain,
    closing_twice_is_closing_once,
)
"""Every check: coroutine functions whose docstrings are the promises."""


async def check_conformance(factory: Factory) -> None:
    """Put a node through every check.

    Raises:
        ConformanceError: A promise is broken.
    """
    for check in CHECKS:
        await check(factory)
