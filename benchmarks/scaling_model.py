"""Where each way of sharing the learning stops scaling: a model in closed form, and a simulation beside it.

    python benchmarks/scaling_model.py                 tables out to 1,024 workers, from costs.toml
    python benchmarks/scaling_model.py --costs FILE    from other costs

The model is written down in docs/scaling.md. The simulation moves every message through every queue, with
fragments whose times vary, and knows none of the model's formulas. Standard library and NumPy.
"""

from __future__ import annotations

import argparse
import heapq
import math
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds, and bytes; of one machine. What a worker needs for itself is not shared with another's."""

    parameters: float  # bytes
    collect: float  # a worker's fragment
    variation: float  # of that: standard deviation / mean
    gradient: float  # one gradient, whatever its size
    gradient_row: float  # and for each row of the minibatch
    rows: int  # of a minibatch, of all learners together
    minibatches: int  # of an update
    order: float  # the driver's work for one gradient order
    order_shard: float  # and for each shard that it passes the gradient on to
    apply: float  # a shard's work for one gradient
    apply_byte: float  # and for each byte of its share
    message: float  # latency between two processes
    message_byte: float
    hop: float  # one step of a ring all-reduce
    hop_byte: float
    dispatch: float  # the driver's work for each learner and update
    layers: int  # pairs of layers whose activations are exchanged, model parallel
    width: int  # of these activations, numbers in a row


# -- the model -------------------------------------------------------------------------------------------


def asynchronous(costs: Costs, workers: int, shards: int) -> float:
    """Gradients/s of the parameter server, asynchronous: a closed network of a driver and shards, in which
    each worker is a customer (mean value analysis, Reiser and Lavenberg 1980)."""
    think = _own(costs)
    demands = [_driver(costs, shards), _shard(costs, shards)]
    waiting = [0.0] * len(demands)
    throughput = 0.0
    for customers in range(1, workers + 1):
        stay = [d * (1 + q) for d, q in zip(demands, waiting, strict=True)]
        throughput = customers / (think + sum(stay))
        waiting = [throughput * s for s in stay]
    return throughput


def asynchronous_limit(costs: Costs, shards: int) -> float:
    """Workers beyond which the busiest queue decides (the knee of the asymptotic bounds)."""
    demands = [_driver(costs, shards), _shard(costs, shards)]
    return (_own(costs) + sum(demands)) / max(demands)


def synchronous(costs: Costs, workers: int, shards: int) -> float:
    """Updates/s of the parameter server, synchronous: the slowest of the fragments, then for each minibatch
    all shares: ordered and applied one after another, computed side by side."""
    share = costs.gradient + costs.gradient_row * costs.rows / workers
    queues = _driver(costs, shards), _shard(costs, shards)
    step = workers * max(queues) + min(queues) + share + _transfer(costs) + 2 * costs.message
    return 1 / (_slowest(costs, workers) + costs.minibatches * step)


def data_parallel(costs: Costs, learners: int) -> float:
    """Updates/s of a learner group that divides each minibatch: a ring all-reduce after every gradient
    (Patarasuk and Yuan 2009)."""
    ring = 2 * (learners - 1) * (costs.hop + costs.parameters / learners * costs.hop_byte)
    share = costs.gradient + costs.gradient_row * costs.rows / learners
    return 1 / (learners * costs.dispatch + costs.minibatches * (share + ring))


def model_parallel(costs: Costs, learners: int) -> float:
    """Updates/s of a learner group that divides every layer: activations are summed forward and backward for
    each pair of layers (Shoeybi et al. 2019)."""
    piece = costs.rows * costs.width * 4 / learners
    ring = 2 * (learners - 1) * (costs.hop + piece * costs.hop_byte)
    share = costs.gradient + costs.gradient_row * costs.rows / learners
    return 1 / (learners * costs.dispatch + costs.minibatches * (share + 2 * costs.layers * ring))


def half_efficient(rate: Callable[[int], float], sizes: Sequence[int] = SIZES) -> int:
    """The largest size that still works half as fast as so many alone would."""
    return max((n for n in sizes if rate(n) >= 0.5 * n * rate(1)), default=1)


def _driver(costs: Costs, shards: int) -> float:
    return costs.order + costs.order_shard * shards


def _shard(costs: Costs, shards: int) -> float:
    return costs.apply + costs.apply_byte * costs.parameters / shards


def _transfer(costs: Costs) -> float:
    """Parameters to a worker, its gradient back."""
    return 2 * (costs.message + costs.parameters * costs.message_byte)


def _own(costs: Costs) -> float:
    """What a worker needs between two gradients, of its own fragment."""
    return costs.collect + costs.gradient + costs.gradient_row * costs.rows + _transfer(costs)


def _slowest(costs: Costs, workers: int) -> float:
    """The expected longest of so many normal times (Blom 1958)."""
    if workers == 1:
        return costs.collect
    from statistics import NormalDist

    return costs.collect * (1 + costs.variation * NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25)))


# -- the simulation --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """rate: gradients or updates per second. staleness: mean and greatest, in versions."""

    rate: float
    staleness: float = 0.0
    stalest: int = 0


def simulate_server(
    costs: Costs, workers: int, shards: int, *, bound: int | None = None, each: int = 30, seed: int = 0
) -> Simulated:
    """The asynchronous parameter server. bound: no worker is more than so many fragments ahead of the slowest
    (stale-synchronous); None: no bound."""
    rng, total = np.random.default_rng(seed), workers * each
    times = _times(costs, rng, total + workers)
    fixed = _own(costs) - costs.collect
    heap = [(float(times[w]) + fixed, w, 0) for w in range(workers)]  # (ready, worker, version it has)
    heapq.heapify(heap)
    clock = [0] * workers
    at_clock = {0: workers}  # how many workers have so many fragments behind them
    slowest, parked = 0, deque[int]()
    driver = shard = 0.0
    version, drawn, stale = 0, workers, []
    start, warm = 0.0, total // 5
    while version < total:
        ready, worker, had = heapq.heappop(heap)
        driver = max(driver, ready) + _driver(costs, shards)
        shard = max(shard, driver) + _shard(costs, shards)
        if version >= warm:
            stale.append(version - had)
        version += 1
        start = shard if version == warm else start
        at_clock[clock[worker]] -= 1
        clock[worker] += 1
        at_clock[clock[worker]] = at_clock.get(clock[worker], 0) + 1
        while not at_clock.get(slowest):
            slowest += 1
        parked.append(worker)
        for _ in range(len(parked)):
            one = parked.popleft()
            if bound is not None and clock[one] - slowest > bound:
                parked.append(one)
                continue
            heapq.heappush(heap, (shard + fixed + float(times[drawn % len(times)]), one, version))
            drawn += 1
    return Simulated(
        rate=(version - warm) / (shard - start), staleness=float(np.mean(stale)), stalest=max(stale)
    )


def simulate_barrier(
    costs: Costs, workers: int, shards: int, *, updates: int = 30, seed: int = 0
) -> Simulated:
    """The synchronous parameter server, message by message."""
    rng, now = np.random.default_rng(seed), 0.0
    share = costs.gradient + costs.gradient_row * costs.rows / workers
    for _ in range(updates):
        now += float(_times(costs, rng, workers).max())
        for _ in range(costs.minibatches):
            sent = now + _driver(costs, shards) * np.arange(1, workers + 1)
            arrived = np.sort(sent + _transfer(costs) + share)
            shard = now
            for at in arrived + costs.message:
                shard = max(shard, float(at)) + _shard(costs, shards)
            now = shard + costs.message
    return Simulated(rate=updates / now)


def simulate_ring(
    costs: Costs, learners: int, *, by_model: bool, updates: int = 3, seed: int = 0
) -> Simulated:
    """A learner group: every hop of every all-reduce waits for its neighbour's."""
    rng = np.random.default_rng(seed)
    share = costs.gradient + costs.gradient_row * costs.rows / learners
    rings, piece = 1, costs.parameters / learners
    if by_model:
        rings, piece = 2 * costs.layers, costs.rows * costs.width * 4 / learners
    at = np.zeros(learners)
    for _ in range(updates):
        at = at.max() + costs.dispatch * np.arange(1, learners + 1)
        for _ in range(costs.minibatches):
            parts = share / rings * (1 + 0.02 * rng.standard_normal((rings, learners)))
            for part in parts:
                at = at + part
                for _ in range(2 * (learners - 1)):
                    at = np.maximum(at, np.roll(at, 1)) + costs.hop + piece * costs.hop_byte
    return Simulated(rate=updates / float(at.max()))


def _times(costs: Costs, rng: np.random.Generator, count: int) -> np.ndarray:
    """Of fragments: log-normal, with the mean and the variation that were measured."""
    sigma = math.sqrt(math.log1p(costs.variation**2))
    return costs.collect * rng.lognormal(-0.5 * sigma * sigma, sigma, count)


# -- tables ----------------------------------------------------------------------------------------------


def table(costs: Costs, shards: int, sizes: Sequence[int] = SIZES) -> str:
    """Markdown: model, simulation and efficiency at each size, for each way of sharing."""
    lines = []
    ways: list[tuple[str, Callable[[int], float], Callable[[int], Simulated], bool]] = [
        (
            f"Parameter server, asynchronous, {shards} shards (gradients/s)",
            lambda n: asynchronous(costs, n, shards),
            lambda n: simulate_server(costs, n, shards),
            True,
        ),
        (
            f"Parameter server, synchronous, {shards} shards (updates/s)",
            lambda n: synchronous(costs, n, shards),
            lambda n: simulate_barrier(costs, n, shards),
            False,
        ),
        (
            f"Data parallel, minibatches of {costs.rows} rows (updates/s)",
            lambda n: data_parallel(costs, n),
            lambda n: simulate_ring(costs, n, by_model=False),
            False,
        ),
        (
            f"Model parallel, {costs.layers} pairs of layers (updates/s)",
            lambda n: model_parallel(costs, n),
            lambda n: simulate_ring(costs, n, by_model=True),
            False,
        ),
    ]
    for name, model, simulated, stale in ways:
        last = "share of ideal | staleness (mean, most)" if stale else "against one"
        lines += [f"## {name}", "", f"| workers | model | simulated | difference | {last} |"]
        lines.append("|" + "---|" * (6 if stale else 5))
        for n in sizes:
            here, there = model(n), simulated(n)
            row = f"| {n:,} | {here:.4g} | {there.rate:.4g} | {here / there.rate - 1:+.1%} "
            row += f"| {there.rate / (n * model(1)):.1%} |" if stale else f"| {there.rate / model(1):.2f} x |"
            lines.append(row + (f" {there.staleness:.1f}, {there.stalest} |" if stale else ""))
        lines.append("")
    return "\n".join(lines)


def load(path: Path) -> dict[str, tuple[Costs, int]]:
    """Sets of costs by name, each with its number of shards."""
    names = {field.name for field in fields(Costs)}
    sets = tomllib.loads(path.read_text())
    return {
        name: (Costs(**{k: v for k, v in given.items() if k in names}), int(given["shards"]))
        for name, given in sets.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", type=Path, default=HERE / "costs.toml")
    options = parser.parse_args()
    for name, (costs, shards) in load(options.costs).items():
        print(
            f"# {name}\n\nThe asynchronous server's queue decides from "
            f"{asynchronous_limit(costs, shards):.0f} workers on.\n\n{table(costs, shards)}"
        )


if __name__ == "__main__":
    main()
