"""The plan: demand before prefetch, no segment twice in flight, and nothing wanted is ever lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from modelvold.fetch.ahead import LONGEST_TRANSFER
from modelvold.fetch.plan import Assignment, Plan
from modelvold.fetch.stretch import Key, Stretch

CONTENTS, SEGMENTS, WORKERS = 3, 8, 3


class Bytes:
    """Which segments are there (fetch.stretch.Segments). Ten contents share a host."""

    def __init__(self, length: int = 1 << 20) -> None:
        self.present: set[Key] = set()
        self.bytes = length

    def is_missing(self, key: Key) -> bool:
        return key not in self.present

    def length(self, _key: Key) -> int:
        return self.bytes

    def count(self, _content: int) -> int:
        return SEGMENTS

    def host(self, content: int) -> str:
        return f"host-{content // 10}"

    def plan(self, connections: int = WORKERS, per_host: int = 99, pace: int = 99) -> Plan:
        return Plan(self, connections, per_host, lambda _: pace)


def _whole(content: int) -> list[Stretch]:
    return [Stretch(content, 0, SEGMENTS)]


def _next(plan: Plan) -> Assignment:
    assignment = plan.next()
    assert assignment is not None
    return assignment


def _next_at(plan: Plan, now: float) -> Assignment:
    assignment = plan.next(now)
    assert assignment is not None
    return assignment


def test_demand_goes_before_prefetch_and_alone() -> None:
    """A segment somebody waits for is asked for first, in a request of its own."""
    plan = Bytes().plan()
    plan.prefetch(_whole(1))
    plan.demand((1, 5))
    assert _next(plan).keys == [(1, 5)]


def test_what_lies_ahead_of_a_reader_goes_before_the_order() -> None:
    """Whoever waits reads upward; what is below comes when there is nothing ahead."""
    plan = Bytes().plan()
    plan.prefetch(_whole(1))
    plan.demand((1, 5))
    plan.end(_next(plan))
    assert _next(plan).keys == [(1, 6), (1, 7)]
    assert _next(plan).keys == [(1, n) for n in range(6)]


def test_prefetch_goes_in_long_requests_but_not_too_long() -> None:
    """Adjacent segments go together up to the longest transfer."""
    plan = Bytes(LONGEST_TRANSFER // 4).plan()
    plan.prefetch([Stretch(1, 0, 100)])
    assert [_next(plan).count, _next(plan).count] == [4, 4]


def test_requests_get_shorter_towards_the_end() -> None:
    """So that all connections end at about one time."""
    mib = 1 << 20
    plan = Bytes(16 * mib).plan(connections=4, per_host=4)
    plan.prefetch([Stretch(1, 0, 40)])
    counts = []
    while (assignment := plan.next()) is not None:
        counts.append(assignment.count)
        plan.end(assignment)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 4
    assert counts[-8:] == [1] * 8


def test_prefetch_never_takes_the_last_worker() -> None:
    """With every prefetch under way a demand still gets a worker."""
    plan = Bytes(LONGEST_TRANSFER).plan()
    plan.prefetch(_whole(1))
    for _ in range(WORKERS - 1):
        _next(plan)
    assert plan.next() is None
    plan.demand((1, 7))
    assert _next(plan).keys == [(1, 7)]


def test_a_demand_takes_a_segment_that_waits_behind_others() -> None:
    """Claimed but not begun: the demand has it, the transfer stops there, and what lay behind it is fetched after all."""
    there = Bytes()
    plan = there.plan()
    plan.prefetch(_whole(1))
    prefetch = _next(plan)
    assert plan.begin(prefetch, (1, 0))
    there.present.add((1, 0))
    plan.demand((1, 3))
    demand = _next(plan)
    assert demand.keys == [(1, 3)]
    for number in (1, 2):
        assert plan.begin(prefetch, (1, number))
        there.present.add((1, number))
    assert not plan.begin(prefetch, (1, 3))
    plan.end(prefetch, [key for key in prefetch.keys if key not in there.present])
    assert _next(plan).keys == [(1, n) for n in range(4, SEGMENTS)]


def test_many_readers_of_one_segment_make_one_request() -> None:
    """Asked for again before its first byte came, a segment stays where it is."""
    plan = Bytes().plan()
    plan.demand((1, 3))
    demand = _next(plan)
    plan.demand((1, 3))
    assert plan.next() is None
    assert plan.begin(demand, (1, 3))


def test_a_failure_rewinds() -> None:
    """What a transfer left is wanted as it was: prefetch from where it ended, a demand as a demand."""
    there = Bytes()
    plan = there.plan()
    plan.prefetch(_whole(1))
    prefetch = _next(plan)
    plan.begin(prefetch, (1, 0))
    there.present.add((1, 0))
    plan.begin(prefetch, (1, 1))
    plan.demand((1, 1))
    plan.end(prefetch, prefetch.keys[1:])
    demand, rest = _next(plan), _next(plan)
    assert (demand.is_demand, demand.keys) == (True, [(1, 1)])
    assert rest.keys == [(1, n) for n in range(2, SEGMENTS)]


def test_a_demand_nobody_waits_for_is_not_tried_for_ever() -> None:
    """Released in flight, a failed demand is gone, unless the content is to be fetched whole."""
    plan = Bytes().plan()
    plan.demand((1, 3))
    plan.release((1, 3))
    assert plan.next() is None
    plan.demand((1, 3))
    demand = _next(plan)
    plan.release((1, 3))
    plan.end(demand, demand.keys)
    assert plan.next() is None


def test_forgotten_stays_forgotten() -> None:
    """A transfer of a forgotten content that fails is not begun again."""
    plan = Bytes().plan()
    plan.prefetch(_whole(1))
    prefetch = _next(plan)
    plan.forget(1)
    plan.end(prefetch, prefetch.keys)
    assert plan.next() is None
    assert not plan.is_prefetching(1)


def test_what_failed_rests_and_others_go_on() -> None:
    """A demand that failed waits its time, though somebody asks for it once more; another is given out at once."""
    plan = Bytes().plan()
    plan.demand((1, 3))
    failed = plan.next(0.0)
    assert failed
    plan.end(failed, failed.keys, until=5.0)
    plan.demand((1, 3))
    assert (plan.next(0.0), plan.next_time()) == (None, 5.0)
    plan.demand((2, 0))
    other = plan.next(0.0)
    assert other
    assert other.keys == [(2, 0)]
    again = plan.next(5.0)
    assert again
    assert again.keys == [(1, 3)]


def test_one_that_rests_is_asked_for_at_once_by_whoever_comes_after_it_was_released() -> None:
    """The gate's deadline has passed; the next reader finds out whether it was mended."""
    plan = Bytes().plan()
    plan.demand((1, 3))
    failed = _next(plan)
    plan.end(failed, failed.keys, until=5.0)
    plan.release((1, 3))
    assert (plan.next(9.0), plan.next_time()) == (None, None)
    plan.demand((1, 3))
    assert _next(plan).keys == [(1, 3)]


def test_a_prefetch_that_failed_rests_as_a_whole_and_goes_behind_others() -> None:
    """No request for each of its segments, and nobody waits behind it."""
    plan = Bytes().plan()
    plan.prefetch(_whole(1))
    plan.prefetch(_whole(2))
    failed = _next(plan)
    assert failed.content == 1
    plan.end(failed, failed.keys, until=5.0)
    second = _next(plan)
    assert second.content == 2
    assert plan.next(4.0) is None
    assert plan.is_prefetching(1)
    assert plan.next_time() == 5.0
    again = plan.next(5.0)
    assert again
    assert again.keys == failed.keys


def test_what_fails_takes_half_of_the_workers_and_its_prefetch_less() -> None:
    """Four workers: contents of a registry that lets every request hang hold two of them, and of these one is for demands."""
    plan = Bytes().plan(4)
    for content in range(3):
        plan.prefetch(_whole(content))
    for _ in range(3):
        failed = _next(plan)
        plan.end(failed, failed.keys, until=1.0)
    hanging = plan.next(2.0)
    assert hanging
    assert plan.next(2.0) is None
    plan.demand((1, 7))
    plan.demand((2, 7))
    assert _next(plan).keys == [(1, 7)]
    assert plan.next(2.0) is None
    plan.demand((9, 0))
    assert _next(plan).keys == [(9, 0)]
    plan.end(hanging)  # it went well after all
    assert _next(plan).keys == [(2, 7)]


def test_a_suspended_prefetch_is_resumed() -> None:
    """With what it lacks; and not what was never to be fetched whole."""
    there = Bytes()
    plan = there.plan()
    plan.prefetch(_whole(1))
    failed = _next(plan)
    plan.suspend_prefetch(1)
    plan.suspend_prefetch(2)
    plan.end(failed, failed.keys, until=5.0)
    assert plan.next(9.0) is None
    assert not plan.is_prefetching(1)
    there.present.update((1, n) for n in range(4))
    plan.resume_prefetch(1)
    plan.resume_prefetch(2)
    assert _next(plan).keys == [(1, n) for n in range(4, SEGMENTS)]
    assert plan.next(9.0) is None


# -- hosts and connections


def test_requests_to_one_host_are_bounded() -> None:
    """Of both; one more is for a demand. Another host has its own."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=9, per_host=2)
    plan.prefetch(_whole(1))
    plan.prefetch(_whole(11))
    hosts = [_next(plan).host for _ in range(4)]
    assert hosts == ["host-0", "host-0", "host-1", "host-1"]
    assert plan.next() is None
    plan.demand((2, 0))
    assert _next(plan).keys == [(2, 0)]
    plan.demand((2, 1))
    assert plan.next() is None


def test_prefetch_keeps_to_the_pace() -> None:
    """What the host is found to give; a demand goes beyond it."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=9, pace=2)
    plan.prefetch(_whole(1))
    assert [_next(plan).count, _next(plan).count] == [1, 1]
    assert plan.next() is None
    plan.demand((2, 0))
    assert _next(plan).is_demand


def test_prefetch_makes_way_for_demands() -> None:
    """One connection is kept for the first; for each of the next a prefetch ends, the last begun first, and comes back later."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=4)
    plan.prefetch(_whole(1))
    running = [_next(plan) for _ in range(3)]
    plan.demand((2, 0))
    _next(plan)
    assert not any(plan.must_cede(assignment) for assignment in running)
    plan.demand((2, 4))
    assert [plan.must_cede(assignment) for assignment in running] == [False, False, True]
    plan.end(running[2], running[2].keys)
    assert _next(plan).keys == [(2, 4)]
    plan.end(running[0])
    assert _next(plan).keys == running[2].keys


def test_a_prefetch_that_somebody_waits_for_makes_no_way() -> None:
    """Nor does a demand."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=2)
    plan.prefetch(_whole(1))
    prefetch = _next(plan)
    plan.begin(prefetch, (1, 0))
    plan.demand((1, 0))
    plan.demand((2, 0))
    demand = _next(plan)
    plan.demand((2, 4))
    assert not plan.must_cede(prefetch)
    assert not plan.must_cede(demand)


def test_demands_whose_rest_is_over_have_way_made_for_them() -> None:
    """All of them at once, as after a registry's restart."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=8)
    for number in range(7):
        plan.demand((2, number))
        failed = _next(plan)
        plan.end(failed, failed.keys, until=5.0)
    plan.prefetch([Stretch(1, 0, 99)])
    running = [_next(plan) for _ in range(7)]
    assert _next_at(plan, 6.0).keys == [(2, 0)]
    assert sum(plan.must_cede(assignment) for assignment in running) == 6


def test_way_is_made_where_it_is_short() -> None:
    """What makes way for one host's demand does not count for another's."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=8, per_host=3)
    plan.prefetch([Stretch(1, 0, 99)])
    plan.prefetch([Stretch(11, 0, 99)])
    running = {assignment.id: assignment for assignment in (_next(plan) for _ in range(6))}
    for number in range(2):
        plan.demand((21, number))
        _next(plan)
    plan.demand((21, 2))
    plan.demand((2, 0))
    assert sum(plan.must_cede(assignment) for assignment in running.values()) == 2


def test_more_demands_than_prefetches_to_make_way() -> None:
    """All of those do."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=4)
    plan.prefetch([Stretch(1, 0, 99)])
    running = [_next(plan) for _ in range(3)]
    for number in range(5):
        plan.demand((2, number))
    assert all(plan.must_cede(assignment) for assignment in running)


# -- readers


def test_who_reads_upward_is_expected() -> None:
    """Somebody who waits where nobody was is not; who waits next for what lies ahead of him is, and so is who comes back a little."""
    there = Bytes(LONGEST_TRANSFER)
    plan = there.plan(connections=9)
    plan.prefetch(_whole(1))
    plan.demand((1, 2))
    first = _next(plan)
    assert plan.rushed("host-0") == {first.id}
    there.present.add((1, 2))
    plan.end(first)
    assert plan.rushed("host-0") == set()
    plan.demand((1, 3))
    plan.demand((1, 4))
    _next(plan)
    _next(plan)
    assert plan.rushed("host-0") == set()
    plan.demand((1, 0))
    sudden = _next(plan)
    assert plan.rushed("host-0") == {sudden.id}


def test_who_leaps_ahead_is_not_expected() -> None:
    """Over what has not been asked for yet."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=9)
    plan.prefetch(_whole(1))
    leaps = set()
    for number in (0, 4):
        plan.demand((1, number))
        leaps.add(_next(plan).id)
    assert plan.rushed("host-0") == leaps


def test_several_readers_of_one_file_are_followed() -> None:
    """Whoever waited last first, each from where he is."""
    there = Bytes(LONGEST_TRANSFER)
    plan = there.plan(connections=9)
    plan.prefetch([Stretch(1, 0, SEGMENTS)])
    for number in (0, 4):
        plan.demand((1, number))
        demand = _next(plan)
        there.present.add((1, number))
        plan.end(demand)
    assert [_next(plan).first for _ in range(6)] == [5, 6, 7, 1, 2, 3]


def test_nothing_is_fetched_ahead_where_nobody_asked_for_that() -> None:
    """With prefetch off a reader gets what he waits for."""
    plan = Bytes().plan()
    plan.demand((1, 2))
    plan.end(_next(plan))
    assert plan.next() is None


def test_where_there_is_no_room_a_little_ahead_of_readers_comes() -> None:
    """And nothing else, until it is asked for again."""
    there = Bytes(LONGEST_TRANSFER)
    plan = there.plan(connections=9)
    plan.prefetch(_whole(1))
    plan.confine_prefetch(1)
    assert plan.next() is None
    assert not plan.is_prefetching(1)
    plan.demand((1, 1))
    demand, *led = [_next(plan) for _ in range(3)]
    assert demand.is_demand
    assert [(assignment.keys, assignment.is_led) for assignment in led] == [([(1, 2)], True), ([(1, 3)], True)]
    assert plan.next() is None
    plan.prefetch(_whole(1))
    assert _next(plan).keys == [(1, 0)]


# -- the order


def test_stretches_come_in_their_order() -> None:
    """Heads before the rest; what came with a head is not asked for again."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=9)
    plan.prefetch([Stretch(1, 0, 1), Stretch(2, 0, 2), Stretch(1, 0, 3), Stretch(2, 0, 3)])
    assert [_next(plan).keys[0] for _ in range(6)] == [(1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (2, 2)]


def test_a_better_order_takes_the_place_of_the_first() -> None:
    """And not one behind what was asked for later."""
    plan = Bytes(LONGEST_TRANSFER).plan(connections=9)
    plan.prefetch([Stretch(1, 0, 2)])
    plan.prefetch([Stretch(2, 0, 1)])
    plan.prefetch([Stretch(1, 1, 2), Stretch(1, 0, 1)])
    assert [_next(plan).keys[0] for _ in range(3)] == [(1, 1), (1, 0), (2, 0)]


# -- registries without ranges


def test_without_ranges_all_comes_in_one_stream() -> None:
    """Whatever is demanded of it meanwhile, nothing is asked for beside it."""
    there = Bytes()
    plan = there.plan(connections=9)
    plan.demand((1, 5))
    found_out = _next(plan)
    plan.stream(1)
    plan.end(found_out, found_out.keys)
    there.present.add((1, 1))
    stream = _next(plan)
    assert (stream.is_stream, stream.is_demand, stream.count) == (True, True, SEGMENTS)
    plan.demand((1, 7))
    assert plan.next() is None
    assert not plan.begin(stream, (1, 1))
    plan.end(stream, [(1, 6), (1, 7)])
    again = _next(plan)
    assert (again.is_stream, again.is_demand) == (True, True)


def test_a_demand_whose_stream_failed_is_a_demand_again() -> None:
    """Whether it began the stream, rested or waited when that began; and nobody asked for anything ahead."""
    plan = Bytes().plan(connections=9)
    plan.demand((1, 2))
    rests = _next(plan)
    plan.end(rests, rests.keys, until=5.0)
    plan.stream(1)
    plan.demand((1, 5))
    stream = _next(plan)
    assert stream.is_stream
    plan.end(stream, stream.keys, until=9.0)
    assert plan.next(8.0) is None
    again = _next_at(plan, 9.0)
    assert (again.is_stream, again.is_demand) == (True, True)
    plan.end(again, again.keys)
    assert _next_at(plan, 9.0).is_demand


def test_a_host_that_knows_ranges_ends_the_stream() -> None:
    """It has answered in place of one that does not."""
    plan = Bytes().plan(connections=9)
    plan.stream(1)
    plan.demand((1, 5))
    stream = _next(plan)
    plan.unstream(1)
    plan.end(stream, stream.keys)
    assert _next(plan).keys == [(1, 5)]


class PlanMachine(RuleBasedStateMachine):
    """Workers that do anything at any time, against the plan's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.there = Bytes()
        self.plan = self.there.plan()
        self.running: dict[int, tuple[Assignment, int]] = {}  # with how many of its keys it is through
        self.filling: dict[int, Key] = {}
        self.waited: set[Key] = set()
        self.wanted: set[int] = set()
        self.now = 0.0
        self.rests: dict[Key, float] = {}

    keys = st.tuples(st.integers(0, CONTENTS - 1), st.integers(0, SEGMENTS - 1))

    @rule(key=keys)
    def demand(self, key: Key) -> None:
        self.plan.demand(key)
        if key not in self.there.present:
            self.waited.add(key)

    @rule(key=keys)
    def release(self, key: Key) -> None:
        self.plan.release(key)
        self.waited.discard(key)
        self.rests.pop(key, None)

    @rule(content=st.integers(0, CONTENTS - 1))
    def prefetch(self, content: int) -> None:
        self.plan.prefetch(_whole(content))
        self.wanted.add(content)

    @rule(content=st.integers(0, CONTENTS - 1))
    def forget(self, content: int) -> None:
        self.plan.forget(content)
        self.wanted.discard(content)
        self.rests = {key: until for key, until in self.rests.items() if key[0] != content}
        self.waited = {key for key in self.waited if key[0] != content}

    @rule(content=st.integers(0, CONTENTS - 1))
    def suspend(self, content: int) -> None:
        """Until its next transfer ends well, or the end."""
        self.plan.suspend_prefetch(content)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.running) < WORKERS)
    @rule()
    def take(self) -> None:
        assignment = self.plan.next(self.now)
        if assignment is not None:
            assert all(self.rests.pop(key, 0.0) <= self.now for key in assignment.keys), "one that rests was asked for"
            self.running[assignment.id] = (assignment, 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans(), pause=st.sampled_from([0.0, 5.0]))
    def step(self, data: st.DataObject, fails: bool, pause: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self._step(name, fails=fails, pause=pause)

    def _step(self, name: int, *, fails: bool, pause: float = 0.0) -> None:
        """A transfer begins its next segment, or is through with the one it has, or ends early."""
        assignment, through = self.running[name]
        if fails:
            self._end(name, pause)
        elif name in self.filling:
            key = self.filling.pop(name)
            self.there.present.add(key)
            self.waited.discard(key)
            self.running[name] = (assignment, through + 1)
            if through + 1 == assignment.count:
                self._end(name)
        elif self.plan.begin(assignment, assignment.keys[through]):
            key = assignment.keys[through]
            assert key not in self.filling.values(), "one segment in two transfers"
            self.filling[name] = key
        else:
            self._end(name)

    def _end(self, name: int, pause: float = 0.0) -> None:
        assignment, _ = self.running.pop(name)
        self.filling.pop(name, None)
        until = self.now + pause if pause else 0.0
        if until:
            self.rests |= {
                key: until for key in assignment.keys if self.plan.is_awaited(key) and self._has(assignment, key)
            }
        else:
            self.plan.resume_prefetch(assignment.content)
        self.plan.end(assignment, [key for key in assignment.keys if key not in self.there.present], until)

    def _has(self, assignment: Assignment, key: Key) -> bool:
        return key not in self.there.present and self.plan._claims.get(key) == assignment.id

    @invariant()
    def prefetch_leaves_a_worker(self) -> None:
        assert sum(not assignment.is_demand for assignment, _ in self.running.values()) < WORKERS

    def teardown(self) -> None:
        """Left to itself, with workers that do their work, everything wanted comes."""
        self.now += 1e6
        for content in range(CONTENTS):
            self.plan.resume_prefetch(content)
        for _ in range(400):
            if len(self.running) < WORKERS:
                self.take()
            if not self.running:
                break
            self._step(min(self.running), fails=False)
        assert not self.running
        assert not self.waited - self.there.present, "a demand was lost"
        whole = {(content, number) for content in self.wanted for number in range(SEGMENTS)}
        assert not whole - self.there.present, "a prefetch left something out"


TestPlanMachine = PlanMachine.TestCase
TestPlanMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
