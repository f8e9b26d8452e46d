"""The life of a job: which states and events follow each other, whatever the user and the work do."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.support.manual_clock import ManualClock
from vblk.errors import BlockError, JobError, StorageError
from vblk.jobs.block_job import BlockJob, OnError
from vblk.jobs.job import Job, Transaction
from vblk.jobs.states import ACCEPTED, FOLLOWING, Status, Verb

Body = Callable[["Work"], Awaitable[None]]


class Work(BlockJob):
    """A job that does what the test says."""

    type = "work"

    def __init__(self, body: Body, told: list[str], *, id: str = "job0", **options: Any) -> None:
        self._body = body
        self.steps: list[str] = []

        def listener(job: Job, event: str, data: Mapping[str, Any]) -> None:
            told.append(data["status"] if event == "JOB_STATUS_CHANGE" else event)

        clock = options.pop("clock", None) or ManualClock()
        super().__init__(id, listener=listener, clock=clock, **options)

    async def run(self) -> None:
        await self._body(self)

    async def prepare(self) -> None:
        self.steps.append("prepare")

    async def commit(self) -> None:
        self.steps.append("commit")

    async def abort(self) -> None:
        self.steps.append("abort")

    async def clean(self) -> None:
        self.steps.append("clean")


async def nothing(work: Work) -> None:
    pass


async def until_cancelled(work: Work) -> None:
    await asyncio.get_running_loop().create_future()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def lived(body: Body, *meanwhile: Callable[[Work], None], **options: Any) -> tuple[list[str], Work]:
    """Let a job live; `meanwhile` are called one after the other, each when the job is at rest."""
    told: list[str] = []

    async def main() -> Work:
        work = Work(body, told, **options)
        work.start()
        for each in meanwhile:
            await turns()
            each(work)
        await work.ended()
        await turns()
        return work

    return told, asyncio.run(main())


def test_a_job_that_succeeds_says_all_its_states_in_order() -> None:
    told, work = lived(nothing)
    assert told == [
        *("created", "running", "waiting", "pending"),
        *("BLOCK_JOB_COMPLETED", "concluded", "null"),
    ]
    assert work.steps == ["prepare", "commit", "clean"]
    assert work.error is None


def test_a_job_that_fails_is_aborted_and_says_why() -> None:
    async def failing(work: Work) -> None:
        raise StorageError(errno.EIO)

    told, work = lived(failing)
    assert told == ["created", "running", "aborting", "BLOCK_JOB_COMPLETED", "concluded", "null"]
    assert work.steps == ["abort", "clean"]
    assert work.error == "Input/output error"


def test_a_defect_in_the_work_ends_the_job_too() -> None:
    async def broken(work: Work) -> None:
        raise ZeroDivisionError("oh")

    told, work = lived(broken)
    assert told[-1] == "null"
    assert work.error == "internal error: ZeroDivisionError: oh"


def test_a_cancelled_job_is_taken_back() -> None:
    told, work = lived(until_cancelled, lambda work: work.cancel())
    assert told == ["created", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
    assert work.steps == ["abort", "clean"]


def test_a_job_cancelled_before_its_first_turn_does_nothing() -> None:
    told: list[str] = []
    done: list[str] = []

    async def main() -> None:
        async def act(work: Work) -> None:
            done.append(work.id)

        work = Work(act, told)
        work.start()
        assert told == ["created", "running"], "what begins says so at once"
        work.cancel()
        await work.ended()

    asyncio.run(main())
    assert not done
    assert told[2] == "aborting"


def test_without_auto_finalize_nothing_is_published_before_the_user_says_so() -> None:
    def look(work: Work) -> None:
        assert work.status is Status.PENDING
        assert work.steps == []
        work.finalize()

    told, work = lived(nothing, look, auto_finalize=False)
    assert told[3:5] == ["pending", "BLOCK_JOB_PENDING"]
    assert work.steps == ["prepare", "commit", "clean"]


def test_a_pending_job_can_still_be_cancelled() -> None:
    told, work = lived(nothing, lambda work: work.cancel(), auto_finalize=False)
    assert told[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
    assert "commit" not in work.steps


def test_without_auto_dismiss_a_job_stays_until_it_is_dismissed() -> None:
    told, work = lived(nothing, auto_dismiss=False)
    assert told[-1] == "concluded"
    work.dismiss()
    assert told[-1] == "null"


def test_a_pause_holds_the_work_at_its_next_point() -> None:
    async def counting(work: Work) -> None:
        for _ in range(3):
            await work.pause_point()
            work.current += 1

    def paused(work: Work) -> None:
        assert (work.status, work.current) == (Status.PAUSED, 0)
        work.resume()

    told: list[str] = []

    async def main() -> Work:
        work = Work(counting, told)
        work.start()
        work.pause()
        await turns()
        paused(work)
        await work.ended()
        return work

    assert asyncio.run(main()).current == 3
    assert told[:4] == ["created", "running", "paused", "running"]


def test_pausing_twice_and_resuming_what_runs_are_refused() -> None:
    def check(work: Work) -> None:
        with pytest.raises(JobError, match="Can't resume a job that was not paused"):
            work.resume()
        work.pause()
        with pytest.raises(JobError, match="Job is already paused"):
            work.pause()
        work.cancel(force=True)

    lived(until_cancelled, check)


def test_a_command_at_the_wrong_time_is_refused_in_qemus_words() -> None:
    def check(work: Work) -> None:
        sentence = "Job 'job0' in state 'running' cannot accept command verb 'dismiss'"
        with pytest.raises(JobError, match=sentence):
            work.dismiss()
        work.cancel()

    lived(until_cancelled, check)


def test_a_failed_request_that_stops_the_job_is_tried_again_after_the_resume() -> None:
    async def stumbling(work: Work) -> None:
        work.failed(StorageError(errno.ENOSPC), OnError.ENOSPC, reading=False)
        await work.pause_point()

    def look(work: Work) -> None:
        assert (work.status, work.io_status) == (Status.PAUSED, "nospace")
        work.resume()

    told, work = lived(stumbling, look)
    assert told[2:5] == ["BLOCK_JOB_ERROR", "paused", "running"]
    assert (work.io_status, work.error) == ("ok", None)


def test_an_ignored_failure_is_said_and_no_more() -> None:
    async def stumbling(work: Work) -> None:
        work.failed(StorageError(errno.EIO), OnError.IGNORE, reading=True)

    told, work = lived(stumbling)
    assert (told[2], work.error) == ("BLOCK_JOB_ERROR", None)


def test_a_reported_failure_ends_the_job() -> None:
    async def stumbling(work: Work) -> None:
        work.failed(StorageError(errno.EIO), OnError.ENOSPC, reading=True)

    assert lived(stumbling)[1].error == "Input/output error"


def test_jobs_of_a_transaction_publish_together_or_not_at_all() -> None:
    async def failing(work: Work) -> None:
        await turns()
        raise StorageError(errno.EIO)

    async def main(second: Body) -> tuple[Work, Work]:
        transaction = Transaction()
        one = Work(nothing, [], id="one", transaction=transaction)
        two = Work(second, [], id="two", transaction=transaction)
        one.start()
        two.start()
        await one.ended()
        await two.ended()
        return one, two

    one, two = asyncio.run(main(nothing))
    assert one.steps == two.steps == ["prepare", "commit", "clean"]
    one, two = asyncio.run(main(failing))
    assert one.steps == two.steps == ["abort", "clean"]
    assert one.cancelled
    assert two.error == "Input/output error"


def test_a_new_speed_counts_for_what_waits_already() -> None:
    clock = ManualClock()

    async def crawling(work: Work) -> None:
        await work.pace(1 << 20)

    def faster(work: Work) -> None:
        assert work.status is Status.RUNNING
        work.set_speed(0)

    told, work = lived(crawling, faster, clock=clock, speed=1)
    assert clock.now() == 100.0
    assert work.error is None
    assert told[-1] == "null"


def test_no_speed_is_negative() -> None:
    with pytest.raises(JobError, match="Parameter 'speed' expects a non-negative value"):
        lived(nothing, speed=-1)


@pytest.mark.parametrize("verb", Verb)
def test_no_verb_is_accepted_by_what_is_gone(verb: Verb) -> None:
    assert Status.NULL not in ACCEPTED[verb]
    assert not FOLLOWING[Status.NULL]


def test_every_state_leads_to_the_end() -> None:
    for status in Status:
        reached, grown = {status}, True
        while grown:
            following = {later for each in reached for later in FOLLOWING[each]}
            grown = not following <= reached
            reached |= following
        assert Status.NULL in reached


def test_the_error_of_a_policy_is_the_one_that_was_met() -> None:
    error = BlockError("it burns")

    async def stumbling(work: Work) -> None:
        work.failed(error, OnError.REPORT, reading=True)

    assert lived(stumbling)[1].error == "it burns"
