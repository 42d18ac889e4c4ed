"""An env runner without a policy: it steps environments and asks a policy actor what to do. No JAX here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock, local
from time import perf_counter
from typing import Any

import numpy as np

from shoal import trees
from shoal.envs import resolve
from shoal.execution.cluster.inference import Answer, Ask, asking
from shoal.execution.cluster.letters import sealed
from shoal.execution.cluster.luggage import Luggage, unpack
from shoal.execution.cluster.orders import Order, Report
from shoal.execution.rollout import host_unroll
from shoal.keys import fold, key_for
from shoal.types import Group, Trajectory


class _Hosted:
    def __init__(self, group: Group, carry: Any, lease: int) -> None:
        self.group, self.carry, self.lease = group, carry, lease


class Stepper:
    """The Ray actor, with as many threads as it may hold orders, which wait for answers in turn.

    One group has at most one order under way: the driver sees to it.
    """

    def begin(
        self, luggage: Luggage, rows: int, carry: Any, seed: int, size: int, policy: Any, token: bytes
    ) -> Any:
        """luggage: the arguments of `resolve`. policy, token: the policy actor, and what it wants to be
        shown. For the rest see `prepare`. Returns the identity of this process."""
        env, threads = unpack(luggage), local()
        from shoal.execution.cluster.session import process_identity

        def ask(row: Ask, params: list[Any]) -> Answer:
            if not hasattr(threads, "ask"):
                threads.ask = asking(policy, token)
            return threads.ask(row, params)

        self.prepare(env, rows, carry, seed, size, ask)
        return process_identity()

    def prepare(
        self,
        env: Mapping[str, Any],
        rows: int,
        carry: Any,
        seed: int,
        size: int,
        ask: Callable[[Ask, list[Any]], Answer],
    ) -> None:
        """env: the arguments of `resolve`. rows: of a fragment. carry: the memory of a fresh group. ask: see
        `inference.asking`; every thread calls it."""
        self._source = resolve(**env)
        self._rows, self._fresh, self._seed, self._size = rows, carry, seed, size
        self._ask = ask
        self._hosted: dict[int, _Hosted] = {}
        self._opening = Lock()

    def collect(self, order: Order, params: list[Any]) -> tuple[Any, Any]:
        report, trajectory = self.follow(order, params)
        return sealed(report), sealed(trajectory)

    def follow(self, order: Order, params: list[Any]) -> tuple[Report, Trajectory]:
        number, size, begun = order.group, self._size, perf_counter()
        hosted, rebuilt = self._hosted.get(number), False
        if hosted is None or hosted.lease != order.lease:
            hosted, rebuilt = self._open(order), True
        rebuild = perf_counter() - begun
        key = np.asarray(fold(key_for(self._seed, "act", number), order.fragment))
        versions: list[int] = []

        def act(obs: Any, first: Any, reward: Any, t: int, carry: Any) -> tuple[Any, Any, Any]:
            row = Ask(obs, first, reward, carry, key, t, number * size, order.version)
            answer = self._ask(row, params)
            versions.append(answer.version)
            return answer.action, answer.carry, answer.extras

        spent = {"env": 0.0, "act": 0.0, "rebuild": rebuild if rebuilt else 0.0}
        trajectory, hosted.carry = host_unroll(
            act, hosted.group, self._rows, hosted.carry, order.version, spent
        )
        each_row = np.repeat(np.array(versions, np.int32)[:, None], size, axis=1)
        after = {"env": hosted.group.save(), "carry": hosted.carry}
        info = dict(hosted.group.info())
        report = Report(number, order.fragment, order.lease, order.version, after, info, spent)
        return report, trajectory._replace(version=each_row)

    def _open(self, order: Order) -> _Hosted:
        self.drop(order.group)
        with self._opening:
            group = self._source.make_group(self._seed, order.group, self._size)
        carry = trees.each(np.asarray, self._fresh)
        if order.saved is not None:
            group.load(order.saved["env"])
            carry = order.saved["carry"]
        hosted = self._hosted[order.group] = _Hosted(group, carry, order.lease)
        return hosted

    def drop(self, group: int) -> None:
        hosted = self._hosted.pop(group, None)
        if hosted is not None:
            hosted.group.close()
