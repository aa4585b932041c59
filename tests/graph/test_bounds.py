"""The bounds of a run: rounds summed over nested loops, deadlines, cancelling from another thread, and its bytes summed."""

import gc
import threading
import time

import numpy as np
import pytest

from graph.errors import LimitError, RunCancelledError, RunTimeoutError
from graph.run.bounds import ARRAY_BYTES, RunBounds
from graph.run.executor import Executor
from kernels.errors import EdgewiseError
from kernels.spec import Spec
from tests.graph.loops import nested_loops
from tests.graph.oracle import BOOL, FLOAT, INT64, NATIVE, STRING, X, body, build, constant, make, node, port

F32 = np.dtype(np.float32)
F4K = Spec((1024,), F32)


def nested(*trips: int) -> Executor:
    return build(nested_loops(*trips))


ZERO = {"x": np.zeros(1, np.float32)}


def test_rounds_are_summed_over_nested_loops() -> None:
    executor = nested(3, 4, 5)
    rounds = 3 + 3 * 4 + 3 * 4 * 5
    assert executor.run(ZERO, RunBounds(rounds=rounds))["y"] == 60
    place = r"\(node 'loop3'\) \(node 'loop2'\) \(node 'loop1'\)"
    with pytest.raises(LimitError, match=rf"Loop: not done after {rounds - 1} rounds .*, the limit is {rounds - 1} {place}"):
        executor.run(ZERO, RunBounds(rounds=rounds - 1))
    assert executor.run(ZERO, RunBounds(rounds=rounds))["y"] == 60  # the next run begins anew


def test_rounds_of_a_scan_count() -> None:
    scanned = body([node("Add", ["s", "e"], ["t"])], [port("s", []), port("e", [])], [port("t", [])])
    proto = make(
        [node("Scan", ["zero", "x"], ["y"], body=scanned, num_scan_inputs=1)], ["y"], [constant("zero", 0)], [port("x", [5])]
    )
    feeds = {"x": np.ones(5, np.float32)}
    assert build(proto).run(feeds, RunBounds(rounds=5))["y"] == 5
    with pytest.raises(LimitError, match="Scan: not done after 4 rounds"):
        build(proto).run(feeds, RunBounds(rounds=4))


def test_the_default_number_of_rounds_ends_an_endless_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunBounds.__init__, "__kwdefaults__", {"rounds": 100, "memory_bytes": None})
    with pytest.raises(LimitError, match="not done after 100 rounds"):
        nested(999_999, 999_999, 999_999).run(ZERO)


def test_a_deadline_ends_nested_loops() -> None:
    executor = nested(999_999, 999_999, 999_999)
    with pytest.raises(RunTimeoutError, match=r"run: not done at its deadline, 0\.\d+ s after it began.*\(node 'loop1'\)"):
        executor.run(ZERO, RunBounds(time.monotonic_ns() + 100_000_000))


def test_a_deadline_that_has_passed_starts_no_step() -> None:
    executor = build(make([node("Relu", ["x"], ["y"], "only")], ["y"]))
    executor._program._calls = [lambda: pytest.fail("it was started")]
    with pytest.raises(RunTimeoutError):
        executor.run({"x": X}, RunBounds(time.monotonic_ns()))


def test_a_deadline_that_does_not_pass_changes_nothing() -> None:
    executor = build(make([node("Relu", ["x"], ["y"], "only")], ["y"]))
    assert executor.run({"x": X}, RunBounds(time.monotonic_ns() + 10**12))["y"].shape == X.shape


def test_steps_do_not_read_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = nested(50)
    executor.run(ZERO)  # which prepares the body
    unbounded, bounded = RunBounds(), RunBounds(time.monotonic_ns() + 10**12)
    reads = []
    real = time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: reads.append(threading.get_ident()) or real())
    executor.run(ZERO, unbounded)
    executor.run(ZERO, bounded)
    assert reads.count(threading.get_ident()) == 1  # before the run that has a deadline


def test_a_run_is_cancelled_from_another_thread() -> None:
    executor, bounds = nested(999_999, 999_999), RunBounds()
    threading.Timer(0.1, bounds.cancel, ["its client left"]).start()
    with pytest.raises(RunCancelledError, match=r"run: cancelled, its client left \(node"):
        executor.run(ZERO, bounds)


@pytest.fixture(scope="module")
def chain() -> Executor:
    """Products of x by w, one after another, as one native segment of 107 GFLOP."""
    if NATIVE is None:
        pytest.skip("needs the native backend")
    nodes = [node("MatMul", ["x" if not n else f"v{n}", "w"], [f"v{n + 1}" if n < 399 else "y"]) for n in range(400)]
    executor = build(make(nodes, ["y"], inputs=[port(name, [512, 512]) for name in ("x", "w")]), backend=NATIVE, threads=1)
    assert len(executor._program._positions) == 1
    return executor


SQUARE = {"x": np.ones((512, 512), np.float32), "w": np.full((512, 512), 1 / 512, np.float32)}


@pytest.mark.parametrize(("ends", "kind"), [("deadline", RunTimeoutError), ("cancelled", RunCancelledError)])
def test_a_native_segment_ends_between_two_kernels(chain: Executor, ends: str, kind: type[EdgewiseError]) -> None:
    """In less than half of the processor's time of a whole run, though it is one step. The next run is whole."""
    began_s = time.process_time()
    expected = chain.run(SQUARE)["y"]
    whole_s = time.process_time() - began_s
    bounds = RunBounds(time.monotonic_ns() + 50_000_000) if ends == "deadline" else RunBounds()
    if ends == "cancelled":
        threading.Timer(0.05, bounds.cancel, ["its client left"]).start()
    began_s = time.process_time()
    with pytest.raises(kind):
        chain.run(SQUARE, bounds)
    assert time.process_time() - began_s < whole_s / 2
    np.testing.assert_array_equal(chain.run(SQUARE, RunBounds(time.monotonic_ns() + 10**12))["y"], expected)


def test_the_first_reason_of_cancelling_counts() -> None:
    bounds = RunBounds()
    bounds.check()
    bounds.cancel("one")
    bounds.cancel("two")
    with pytest.raises(RunCancelledError, match=r"^run: cancelled, one$"):
        bounds.check()


def test_a_run_that_waits_for_another_one_ends_at_its_deadline() -> None:
    executor, first = nested(999_999, 999_999), RunBounds()

    def run() -> None:
        with pytest.raises(RunCancelledError):
            executor.run(ZERO, first)

    thread = threading.Thread(target=run)
    thread.start()
    while not executor._lock.locked():
        time.sleep(0.001)
    with pytest.raises(RunTimeoutError):
        executor.run(ZERO, RunBounds(time.monotonic_ns() + 10_000_000))
    assert thread.is_alive()
    first.cancel("the test is over")
    thread.join()


def test_bytes_are_given_back_with_the_memory() -> None:
    bounds = RunBounds(memory_bytes=10_000)
    first, view = bounds.empty(F4K, "a"), None
    view = first[1:]
    bounds.empty(F4K, "b")  # freed at once
    second = bounds.empty(F4K, "c")
    assert bounds.held_bytes == 2 * (4096 + ARRAY_BYTES)
    with pytest.raises(LimitError, match=r"^d: 4224 bytes beside the 8448 that the run holds, its limit is 10000$"):
        bounds.empty(F4K, "d")
    del first
    assert bounds.held_bytes == 2 * (4096 + ARRAY_BYTES)  # the view keeps it
    del view, second
    assert bounds.held_bytes == 0


def test_scratch_counts_while_it_is_used() -> None:
    bounds = RunBounds(memory_bytes=100)
    with bounds.scratch(60, "one"), pytest.raises(LimitError, match="two: 41 bytes beside the 60"), bounds.scratch(41, "two"):
        pass
    assert bounds.held_bytes == 0


def test_without_a_limit_no_bytes_are_counted() -> None:
    bounds = RunBounds()
    kept = bounds.empty(F4K, "a")
    with bounds.scratch(100, "b"):
        assert bounds.held_bytes == 0
    del kept
    assert bounds.held_bytes == 0


def test_bytes_may_be_freed_while_others_are_taken() -> None:
    """A collection of garbage may come at any allocation, also at one inside `take`, on the thread that holds the lock."""
    bounds = RunBounds(memory_bytes=10**6)
    bounds._lock.acquire()
    bounds.give(0)
    bounds._lock.release()


def test_values_of_run_time_shapes_are_summed_over_a_run() -> None:
    """Three of 4 KB; each by itself fits, and so do two."""
    nodes = [node("Expand", ["x", "s"], [f"v{n}"], f"grow{n}") for n in range(3)]
    nodes.append(node("Concat", ["v0", "v1", "v2"], ["c"], "join", axis=0))
    nodes.append(node("ReduceSum", ["c"], ["y"], keepdims=0))
    executor = build(make(nodes, ["y"], inputs=[port("x", [1]), port("s", [1], INT64)]))
    feeds = {"x": np.ones(1, np.float32), "s": np.array([1024])}
    with pytest.raises(
        LimitError, match=r"Expand: 4224 bytes beside the \d+ that the run holds, its limit is 12000 \(node 'grow2'\)"
    ):
        executor.run(feeds, RunBounds(memory_bytes=12_000))
    bounds = RunBounds(memory_bytes=100_000)
    outputs = executor.run(feeds, bounds)
    assert outputs["y"] == 3072
    del outputs
    gc.collect()
    assert bounds.held_bytes == 0


def test_values_that_are_read_no_more_make_room() -> None:
    """A chain of 4 KB values, of which two live at a time; their sum works in 8 KB."""
    nodes = [node("Expand", ["x", "s"], ["v0"])]
    nodes += [node("Neg", [f"v{n}"], [f"v{n + 1}"]) for n in range(10)]
    nodes.append(node("ReduceSum", ["v10"], ["y"], keepdims=0))
    executor = build(make(nodes, ["y"], inputs=[port("x", [1]), port("s", [1], INT64)]))
    feeds = {"x": np.ones(1, np.float32), "s": np.array([1024])}
    assert executor.run(feeds, RunBounds(memory_bytes=20_000))["y"] == 1024


def test_what_a_loop_stacks_is_summed() -> None:
    rounds = body(
        [node("Identity", ["go"], ["again"]), node("Add", ["s", "x"], ["t"]), node("Neg", ["t"], ["seen"])],
        [port("i", [], INT64), port("go", [], BOOL), port("s", [1024])],
        [port("again", [], BOOL), port("t", [1024]), port("seen", [1024])],
    )
    proto = make(
        [node("Loop", ["n", "", "x"], ["y", "all"], "rounds", body=rounds)],
        {"y": FLOAT, "all": FLOAT},
        inputs=[port("x", [1024]), port("n", [], INT64)],
    )
    executor = build(proto)

    def run(count: int) -> dict[str, np.ndarray]:
        return executor.run({"x": np.ones(1024, np.float32), "n": np.array(count)}, RunBounds(memory_bytes=100_000))

    assert run(8)["all"].shape == (8, 1024)  # 8 arrays and then their stack: 64 KB, with the carried ones
    with pytest.raises(LimitError, match=r"bytes beside the \d+ that the run holds, its limit is 100000 .*\(node 'rounds'\)"):
        run(1000)


def test_scratch_of_a_step_counts() -> None:
    """A convolution whose input's shape only the run knows gathers its windows into scratch memory."""
    nodes = [
        node("Reshape", ["x", "s"], ["v"]),
        node("Conv", ["v", "w"], ["c"], "conv"),
        node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    proto = make(nodes, ["y"], [constant("w", np.ones((1, 1, 5, 5)))], [port("x", [10_000]), port("s", [4], INT64)])
    executor = build(proto)
    feeds = {"x": np.ones(10_000, np.float32), "s": np.array([1, 1, 100, 100])}
    assert executor.run(feeds, RunBounds(memory_bytes=10**7))["y"] == 96 * 96 * 25
    with pytest.raises(LimitError, match=r"Conv: scratch memory: \d+ bytes beside .* \(node 'conv'\)"):
        executor.run(feeds, RunBounds(memory_bytes=150_000))


def test_strings_and_copies_of_outputs_are_counted() -> None:
    executor = build(make([node("Identity", ["x"], ["y"])], {"y": STRING}, inputs=[port("x", [2], STRING)]))
    bounds = RunBounds(memory_bytes=1000)
    outputs = executor.run({"x": np.array(["a", "b"], object)}, bounds)
    assert (outputs["y"].tolist(), bounds.held_bytes) == (["a", "b"], 16 + ARRAY_BYTES)


def test_stopped_runs_are_no_faults_of_data() -> None:
    for kind in (RunCancelledError, RunTimeoutError):
        assert issubclass(kind, EdgewiseError)
        assert not issubclass(kind, LimitError)
