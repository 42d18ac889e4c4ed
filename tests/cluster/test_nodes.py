"""A Ray node is removed in mid-training and another one is added: the same parameters, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from slow import Slow

from shoal import PPO, Cluster, Local, Trainer
from shoal.execution.cluster import session

PLAN: dict[str, Any] = {
    "algorithm": PPO(rollout_length=16, epochs=1, minibatches=2, hidden=(16,)),
    "env": "CartPole-v1",
    "wrappers": [Slow],
    "seed": 3,
}
SHAPE: dict[str, Any] = {"envs": 8, "groups": 4}
NODE: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False}  # room for one runner
NOTICED_SECONDS = 10.0
JOINED_SECONDS = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster as Nodes

    there = Nodes(initialize_head=True, head_node_args=NODE)
    try:
        yield there
    finally:
        session.release()
        there.shutdown()


def prints(trainer: Trainer, until: Callable[[], bool], seconds: float) -> list[str]:
    """The fingerprint after each iteration, until something holds."""
    found: list[str] = []
    deadline = time.monotonic() + seconds
    while not found or not until():
        assert time.monotonic() < deadline, trainer._run._pool.take_events()  # type: ignore[attr-defined]
        trainer.train()
        found.append(trainer.fingerprint())
    return found


def test_a_node_is_removed_and_another_added(nodes: Any) -> None:
    node = nodes.add_node(**NODE)
    with Trainer(**PLAN, on=Cluster(runners=2, address=nodes.address, **SHAPE)) as trainer:
        pool: Any = trainer._run._pool  # type: ignore[attr-defined]
        lost: dict[int, float] = {}
        lose = pool._lose

        def noticing(number: int, *what: Any, **how: Any) -> None:
            lost[number] = time.monotonic()
            lose(number, *what, **how)

        def hosting() -> dict[int, str]:
            """Runner -> its node, of those that host groups."""
            identities = pool._fleet.identities()
            return {g.home: identities[g.home][0] for g in pool._groups.values() if g.home in identities}

        pool._lose = noticing
        got = prints(trainer, lambda: len(hosting()) == 2, JOINED_SECONDS)
        (gone,) = [runner for runner, where in hosting().items() if where == node.node_id]

        removed = time.monotonic()
        nodes.remove_node(node, allow_graceful=False)  # SIGKILL for its raylet
        got += prints(trainer, lambda: bool(lost), NOTICED_SECONDS)
        print(f"a lost node noticed after {lost[gone] - removed:.2f} s")
        got += prints(trainer, lambda: len(hosting()) == 1, NOTICED_SECONDS)
        assert node.node_id not in hosting().values()

        added = time.monotonic()
        node = nodes.add_node(**NODE)
        got += prints(trainer, lambda: node.node_id in hosting().values(), JOINED_SECONDS)
        print(f"groups on the new node after {time.monotonic() - added:.2f} s")
        got += prints(trainer, lambda: True, NOTICED_SECONDS)  # with it
        assert list(lost) == [gone]
    with Trainer(**PLAN, on=Local(**SHAPE)) as trainer:
        for iteration, expected in enumerate(got):
            trainer.train()
            assert trainer.fingerprint() == expected, iteration
