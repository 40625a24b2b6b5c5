"""Turns to ask hosts, under a clock that jumps to the next thing that happens: every time in here is exact."""

import asyncio
import random
import selectors
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from pydantic import ValidationError

from lvd.tasks.hosts import HostGone, Hosts, Politeness


class Selector(selectors.DefaultSelector):
    """Sleeps by moving the clock of its loop."""

    now = 0.0
    sleeps = 0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout != 0:
            assert timeout is not None, "everybody waits, and nothing is left that could happen"
            self.now += timeout
            self.sleeps += 1
        return ready


class FakeClock(asyncio.SelectorEventLoop):
    def __init__(self):
        self.selector, self.timers = Selector(), 0
        super().__init__(self.selector)

    def call_at(self, when, callback, *args, context=None):
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)

    def time(self):
        return self.selector.now


def run(main: Callable[[], Awaitable]):
    with asyncio.Runner(loop_factory=FakeClock) as runner:
        return runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def close_to(expected):
    return pytest.approx(expected, abs=1e-6)


async def ask(hosts: Hosts, host: str, index: int, seconds: float = 1.0, **options) -> float:
    """When the request had its turn, which it keeps for so long."""
    async with hosts.turn(host, index, **options):
        started = now()
        await asyncio.sleep(seconds)
    return started


async def outcomes(requests) -> list:
    """What came of each request: its start, or why there was none."""
    return [
        outcome.reason if isinstance(outcome, HostGone) else outcome
        for outcome in await asyncio.gather(*requests, return_exceptions=True)
    ]


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_no_host_is_asked_by_more_at_once_than_its_limit(limit):
    inside, most = Counter(), Counter()

    async def request(hosts, host, index, seconds):
        async with hosts.turn(host, index):
            inside[host] += 1
            most[host] = max(most[host], inside[host])
            await asyncio.sleep(seconds)
            inside[host] -= 1

    async def main():
        hosts, rng = Hosts(Politeness(connections_per_host=limit)), random.Random(0)
        requests = [(f"{i % 5}.org", i, rng.choice([0, 0, 0.1, 1, 7])) for i in range(1000)]
        await asyncio.gather(*(request(hosts, *each) for each in requests))
        return len(hosts)

    assert run(main) == 0
    assert most == {f"{i}.org": limit for i in range(5)}


def test_free_connections_are_used_at_once():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=4))
        return sorted(await outcomes(ask(hosts, "a.org", i) for i in range(10)))

    assert run(main) == close_to([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])


def test_a_dead_host_and_a_slow_one_hold_nobody_up():
    ends = []

    async def dead(hosts, index):
        async with hosts.turn("dead.org", index):
            await asyncio.sleep(10)
            hosts.unreachable("dead.org", "connection timed out")
            ends.append(now())

    async def fine(hosts, index):
        return await ask(hosts, f"{index}.org", index) + 1

    async def main():
        hosts = Hosts(Politeness(connections_per_host=8, dead_after=8, dead_after_s=0))
        stuck = [asyncio.create_task(dead(hosts, i)) for i in range(500)]
        slow = [asyncio.create_task(ask(hosts, "slow.org", i, 60)) for i in range(500, 1000)]
        done = await asyncio.gather(*(fine(hosts, i) for i in range(1000, 2000)))
        gone = await outcomes(stuck[15:]), now()
        await asyncio.gather(*stuck[:15])
        return done, gone, await asyncio.gather(*slow)

    done, (reasons, gone_at), starts = run(main)
    assert done == close_to([1.0] * 1000)
    assert reasons == ["dead_host"] * 485 and gone_at == close_to(10)
    assert ends == close_to([10] * 8 + [20] * 7)  # as the first 7 gave up, 7 others took their turns
    assert starts == close_to([60 * (i // 8) for i in range(500)])


@pytest.mark.parametrize("seconds", [0.0, 0.9, 10.0])  # the pace is of starts, however long a request takes
def test_starts_keep_the_pace_and_none_is_late(seconds):
    async def main():
        hosts = Hosts(Politeness(connections_per_host=64, requests_per_second_per_host=4))
        first = await outcomes(ask(hosts, "a.org", i, seconds) for i in range(40))
        await asyncio.sleep(100)
        later, other = await outcomes([ask(hosts, "a.org", 40, 1), ask(hosts, "b.org", 40, 1)])
        assert len(hosts) == 0  # a second is longer than the pace: nothing is worth keeping
        return first, later, other

    first, later, other = run(main)
    assert first == close_to([i / 4 for i in range(40)])
    assert later == other == close_to(first[-1] + seconds + 100)  # a rest earns no burst, and costs nothing


def test_the_pace_holds_for_requests_that_come_at_any_time():
    async def late(hosts, index, comes_at, seconds):
        await asyncio.sleep(comes_at)
        return await ask(hosts, "a.org", index, seconds)

    async def main():
        hosts, rng = Hosts(Politeness(connections_per_host=3, requests_per_second_per_host=8)), random.Random(1)
        requests = [(i, rng.uniform(0, 40), rng.expovariate(4)) for i in range(400)]
        starts = sorted(await outcomes(late(hosts, *each) for each in requests))
        await asyncio.sleep(1)
        assert len(hosts) == 0
        return starts

    starts = run(main)
    assert min(after - before for before, after in pairwise(starts)) > 1 / 8 - 1e-6


def test_a_hosts_own_delay_counts_if_it_is_longer_than_the_pace():
    async def main():
        hosts = Hosts(Politeness(requests_per_second_per_host=1))
        slow = outcomes(ask(hosts, "slow.org", i, 0, delay_s=3) for i in range(4))
        fast = outcomes(ask(hosts, "fast.org", i, 0, delay_s=0.5) for i in range(4))
        return await asyncio.gather(slow, fast)

    assert run(main) == [close_to([0, 3, 6, 9]), close_to([0, 1, 2, 3])]


@pytest.mark.parametrize(
    ("share", "at_once", "interval_s"),
    [(1, 8, 0.5), (2, 4, 1.0), (3, 2, 1.5), (8, 1, 4.0), (100, 1, 50.0)],  # 3 x 2 stay within 8
)
def test_processes_share_the_limits(share, at_once, interval_s):
    async def main():
        hosts = Hosts(Politeness(connections_per_host=8), share=share)
        together = await outcomes(ask(hosts, "a.org", i) for i in range(16))
        hosts = Hosts(Politeness(requests_per_second_per_host=2), share=share)
        begin = now()
        paced = await outcomes(ask(hosts, "a.org", i, 0) for i in range(4))
        own = await outcomes(ask(hosts, "b.org", i, 0, delay_s=10) for i in range(2))
        return together, [start - begin for start in paced], own[1] - own[0]

    together, paced, own = run(main)
    assert Counter(round(start) for start in together) == dict.fromkeys(range(16 // at_once), at_once)
    assert paced == close_to([i * interval_s for i in range(4)])
    assert own == close_to(10 * share)


def test_the_lowest_index_goes_first():
    order = []

    async def request(hosts, index):
        async with hosts.turn("a.org", index):
            order.append(index)
            await asyncio.sleep(1)

    async def main():
        hosts, indices = Hosts(Politeness(connections_per_host=1)), list(range(1, 100))
        random.Random(2).shuffle(indices)
        holder = asyncio.create_task(request(hosts, 1000))
        await asyncio.sleep(0.5)
        rest = [asyncio.create_task(request(hosts, index)) for index in indices]
        await asyncio.sleep(10)
        await asyncio.gather(request(hosts, 0), holder, *rest)  # index 0 comes back: a retry

    run(main)
    assert order == [1000, *range(1, 11), 0, *range(11, 100)]


def test_a_pause_holds_back_those_who_wait_and_those_who_come():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=2))
        first = [asyncio.create_task(ask(hosts, "a.org", i, 3)) for i in range(6)]
        await asyncio.sleep(1)
        hosts.wait("a.org", 10)  # until 11
        await asyncio.sleep(1)
        hosts.wait("a.org", 20)  # until 22
        hosts.wait("a.org", 1)  # shorter: changes nothing
        hosts.wait("a.org", 0)
        hosts.wait("a.org", -5)
        hosts.wait("a.org", float("nan"))
        late, other = asyncio.create_task(ask(hosts, "a.org", 6, 3)), asyncio.create_task(ask(hosts, "b.org", 6, 3))
        found = await outcomes([*first, late, other])
        return found, len(hosts)

    found, num_known = run(main)
    assert found == close_to([0, 0, 22, 22, 25, 25, 28, 2])
    assert num_known == 0


def test_a_pause_that_is_too_long_ends_the_requests_until_it_is_over():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=1, max_retry_after_s=60))
        first = [asyncio.create_task(ask(hosts, "a.org", i, 5)) for i in range(100)]
        await asyncio.sleep(1)
        hosts.wait("a.org", 60)  # as long as it may be
        await asyncio.sleep(1)
        hosts.wait("a.org", 60.5)  # until 62.5
        with pytest.raises(HostGone) as caught:
            await ask(hosts, "a.org", 100)
        assert now() == close_to(2)
        found = await outcomes(first)
        assert now() == close_to(5)  # the one that had its turn went on
        await asyncio.sleep(57)
        assert await outcomes([ask(hosts, "a.org", 101)]) == ["retry_later"]
        await asyncio.sleep(1)
        known = len(hosts)
        return found, caught.value, known, await ask(hosts, "a.org", 102)

    found, gone, num_known, again = run(main)
    assert found == [0.0] + ["retry_later"] * 99
    assert gone.reason == "retry_later"
    assert str(gone) == "the pause that a.org asked for must be at most max_retry_after_s = 60 s, was 60.5 s"
    assert num_known == 0 and again == close_to(63)


def test_the_longest_pause_that_may_be_is_waited_for():
    async def main():
        hosts = Hosts(Politeness(max_retry_after_s=60))
        hosts.wait("a.org", 60)
        return await outcomes([ask(hosts, "a.org", 0)])

    assert run(main) == close_to([60])


def test_a_host_with_failures_is_asked_again_after_its_pause():
    async def main():
        hosts = Hosts(Politeness())
        hosts.unreachable("a.org", "refused")
        hosts.wait("a.org", 100)
        first = await outcomes([ask(hosts, "a.org", 0)])
        await asyncio.sleep(100)
        return first + await outcomes([ask(hosts, "a.org", 0)])

    assert run(main) == ["retry_later", close_to(100)]


def test_a_pause_without_end_ends_the_requests():
    async def main():
        hosts = Hosts(Politeness())
        hosts.wait("a.org", float("inf"))
        return await outcomes([ask(hosts, "a.org", 0), ask(hosts, "b.org", 0)])

    assert run(main) == ["retry_later", 0.0]


def test_a_dead_host_stays_dead_and_says_why():
    async def main():
        hosts = Hosts(Politeness(dead_after=3, dead_after_s=0))
        for error in ("refused", "reset", "no route to host"):
            async with hosts.turn("a.org", 0):
                hosts.unreachable("a.org", error)
        await asyncio.sleep(10**6)
        with pytest.raises(HostGone) as caught:
            await ask(hosts, "a.org", 1)
        assert await outcomes([ask(hosts, "a.org:81", 1)]) == [10**6]
        return caught.value

    gone = run(main)
    assert gone.reason == "dead_host"
    assert str(gone).startswith("a.org must answer within 3 attempts, gave none in 3 and ")
    assert str(gone).endswith(" s, the last error: no route to host")


def test_those_who_wait_are_told_at_once_that_the_host_is_dead():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=1, dead_after=2, dead_after_s=0))
        first = asyncio.create_task(ask(hosts, "a.org", 0, 100))
        rest = asyncio.gather(*(ask(hosts, "a.org", i) for i in range(1, 10)), return_exceptions=True)
        await asyncio.sleep(1)
        hosts.unreachable("a.org", "refused")  # by others, whose turns are over
        hosts.unreachable("a.org", "refused")
        reasons = {gone.reason for gone in await rest}
        return reasons, now(), await first

    assert run(main) == ({"dead_host"}, close_to(1), 0)


def test_an_answer_resets_the_count():
    async def main():
        hosts = Hosts(Politeness(dead_after=2, dead_after_s=0))
        hosts.answered("a.org")
        for _ in range(5):
            hosts.unreachable("a.org", "refused")
            await ask(hosts, "a.org", 0)
            hosts.answered("a.org")
            assert len(hosts) == 0
        hosts.unreachable("a.org", "refused")
        hosts.unreachable("a.org", "refused")
        dead = await outcomes([ask(hosts, "a.org", 0)])
        hosts.answered("a.org")  # one that was still under way
        return dead + await outcomes([ask(hosts, "a.org", 0)])

    assert run(main) == ["dead_host", 5.0]


def test_no_number_of_failures_makes_a_host_dead_if_none_may():
    async def main():
        hosts = Hosts(Politeness(dead_after=0))
        for _ in range(1000):
            hosts.unreachable("a.org", "refused")
        return await ask(hosts, "a.org", 0)

    assert run(main) == 0


def test_a_cancelled_request_takes_no_turn():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=1))
        requests = [asyncio.create_task(ask(hosts, "a.org", i, 10)) for i in range(4)]
        await asyncio.sleep(1)
        requests[1].cancel()  # one that waits
        await asyncio.sleep(1)
        requests[0].cancel()  # the one that has its turn
        found = await outcomes(requests)
        assert len(hosts) == 0
        return found

    found = run(main)
    assert [type(outcome) for outcome in found[:2]] == [asyncio.CancelledError] * 2
    assert found[2:] == close_to([2, 12])


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_request_cancelled_in_the_moment_of_its_turn_gives_it_back(is_dead):
    async def main():
        hosts = Hosts(Politeness(connections_per_host=1, dead_after=1, dead_after_s=0))
        requests = []

        async def holder():
            async with hosts.turn("a.org", 0):
                await asyncio.sleep(1)
                if is_dead:
                    hosts.unreachable("a.org", "refused")
            requests[1].cancel()  # its ticket is there, but it has not woken up

        requests += [asyncio.create_task(holder()), *(asyncio.create_task(ask(hosts, "a.org", i)) for i in (1, 2))]
        _, cancelled, other = await outcomes(requests)
        hosts.answered("a.org")
        begin = now()
        later = [start - begin for start in await outcomes(ask(hosts, "a.org", i) for i in (3, 4))]
        return cancelled, other, later, len(hosts)

    cancelled, other, later, num_known = run(main)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert other == ("dead_host" if is_dead else close_to(1))
    assert later == close_to([0, 1]) and num_known == 0


def test_an_error_inside_frees_the_turn():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=1))
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with hosts.turn("a.org", 0):
                    _ = 1 / 0
        return len(hosts)

    assert run(main) == 0


def test_waiting_costs_no_polling():
    async def main():
        hosts = Hosts(Politeness(connections_per_host=8, max_retry_after_s=10**6))
        loop = asyncio.get_running_loop()
        hosts.wait("paused.org", 80_000)  # asyncio itself sleeps for at most a day
        paused = [asyncio.create_task(ask(hosts, "paused.org", i, 0)) for i in range(1000)]
        busy = [asyncio.create_task(ask(hosts, "busy.org", i, 70_000)) for i in range(16)]
        await asyncio.gather(*paused, *busy)
        return loop.selector.sleeps, loop.timers - len(busy)

    assert run(main) == (3, 1)  # sleeps until 70,000, 80,000 and 140,000 s; one timer for those that are paused


def test_a_host_that_comes_back_is_not_the_one_that_was_forgotten():
    async def main():
        hosts = Hosts(Politeness(requests_per_second_per_host=1))
        async with hosts.turn("a.org", 0):
            asyncio.get_running_loop().selector.now += 2  # a long step: the pace is over, its timer has not fired
        assert len(hosts) == 0
        async with hosts.turn("a.org", 1):
            await asyncio.sleep(0.5)
            return len(hosts)

    assert run(main) == 1


def test_hosts_are_forgotten():
    async def main():
        tracemalloc.start()
        begin = tracemalloc.get_traced_memory()[0]
        hosts = Hosts(Politeness())
        for index in range(20_000):
            async with hosts.turn(f"{index}.org", index):
                hosts.answered(f"{index}.org")
        grown = tracemalloc.get_traced_memory()[0] - begin
        tracemalloc.stop()
        return grown, len(hosts)

    grown, num_known = run(main)
    assert num_known == 0 and grown < 100_000

    async def remembered():
        hosts = Hosts(Politeness(requests_per_second_per_host=10))
        await asyncio.gather(*(ask(hosts, f"{i}.org", i, 0) for i in range(1000)))
        hosts.wait("paused.org", 5)
        hosts.unreachable("failing.org", "refused")
        counts = [len(hosts)]
        for seconds in (0.2, 5):
            await asyncio.sleep(seconds)
            counts.append(len(hosts))
        return counts

    assert run(remembered) == [1002, 2, 1]  # paced, paused and failing; without the paced; failing


def test_a_politeness_out_of_range_is_refused():
    wrong = (
        *({"connections_per_host": 0}, {"connections_per_host": 4097}, {"requests_per_second_per_host": 0}),
        *({"requests_per_second_per_host": float("nan")}, {"max_retry_after_s": -1}, {"dead_after": -1}, {"typo": 1}),
        {"max_retry_after_s": float("inf")},
    )
    for options in wrong:
        with pytest.raises(ValidationError):
            Politeness(**options)
    with pytest.raises(ValueError, match="share must be at least 1, was 0"):
        Hosts(Politeness(), share=0)


def test_a_host_that_is_silent_for_a_moment_only_is_not_dead():
    async def main():
        hosts = Hosts(Politeness(dead_after=3, dead_after_s=10))
        for _ in range(20):  # a restart: all refused at once
            hosts.unreachable("a.org", "refused")
        early = await outcomes([ask(hosts, "a.org", 0)])
        await asyncio.sleep(9)
        hosts.answered("a.org")
        for _ in range(3):
            hosts.unreachable("a.org", "refused")
        again = await outcomes([ask(hosts, "a.org", 0)])
        await asyncio.sleep(11)
        return early, again, await outcomes([ask(hosts, "a.org", 0)])

    early, again, late = run(main)
    assert "dead_host" not in (*early, *again) and late == ["dead_host"]
