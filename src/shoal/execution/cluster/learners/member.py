"""One member of a learner group: a process with one device, which does as all the others do at the same time.

    begin -> fresh | load -> warm | learn | observe | observe_and_learn | save | acting

All members follow the same orders in the same sequence, since their devices compute one program together. As
in a runner, nothing that imports JAX may be imported before `begin`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.errors import ShoalError
from shoal.execution.cluster.luggage import Luggage, unpack

if TYPE_CHECKING:
    import numpy as np

    from shoal.execution.cluster.learners.parts import Holds, Part
    from shoal.execution.learner import Learned
    from shoal.mesh import Mesh
    from shoal.recipe import Recipe
    from shoal.types import EnvSpec, Key, State

JOIN_SECONDS = 60  # until all members have found each other


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a member is to learn, with whom. gpu: its device is a GPU, else the CPU."""

    recipe: Recipe
    spec: EnvSpec
    seed: int
    mesh: Mesh
    gpu: bool


class Begun(NamedTuple):
    """holds: of each leaf of the state, what lies here. base: bytes of memory before there was any."""

    holds: Holds
    base: int


class Told(NamedTuple):
    """What a member says of an order that changes the state. Only the first one says more than `peak`: the
    most bytes of memory that the process (with a GPU: the device) has had."""

    peak: int
    seconds: float = 0.0
    env_steps: int = 0
    metrics: Mapping[str, np.ndarray] | None = None
    priorities: np.ndarray | None = None


class Member:
    """The Ray actor. It is ready when `begin` has returned."""

    def identity(self) -> Any:
        """Of this process (see `session.process_identity`)."""
        from shoal.execution.cluster.session import process_identity

        return process_identity()

    def meeting(self) -> str:
        """ "host:port" where the members can meet: on this machine, on a port that is free now."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{host}:{probe.getsockname()[1]}"

    def begin(self, luggage: Luggage, gpu: bool, number: int, meeting: str) -> Begun:
        """Meet the others. luggage: the Task. Raises ShoalError where this process does not see exactly the
        device that it should."""
        task: Task = unpack(luggage, gpu=gpu)
        _meet(task, number, meeting)
        import jax

        from shoal.execution.cluster.learners import parts
        from shoal.execution.learner import Functions
        from shoal.execution.split import Split
        from shoal.keys import key_for

        agent, self._key = task.recipe.agent(task.spec), key_for(task.seed, "init")
        self._plan, self._split = agent.plan, Split(task.mesh, jax.devices(), agent)
        self._functions = self._split.compiled(Functions.of(agent))
        form = jax.eval_shape(agent.init, self._key)
        self._number, self._device = number, jax.local_devices()[0]
        self._forms, self._structure = jax.tree.flatten(form)
        self._shardings = jax.tree.leaves(self._split.state)
        self._policy = jax.jit(agent.policy)  # each leaf where it lies, and not a copy on every device
        return Begun(parts.holds_of(self._forms, self._shardings, self._device), self._bytes())

    def fresh(self) -> None:
        """Have the state that the seed gives."""
        self._have(self._functions.init(self._key))

    def warm(self, form: Any) -> None:
        """Compile what can be: form is of an update's trajectory."""
        self._learner.warm(form)

    def learn(self, experience: Any, key: Key) -> Told:
        from shoal.execution.cluster.learners.parts import full

        begun = perf_counter()
        return self._told(begun, self._learner.learn(full(experience), key))

    def observe(self, trajectory: Any) -> Told:
        from shoal.execution.cluster.learners.parts import full

        begun = perf_counter()
        self._learner.observe(full(trajectory))
        return self._told(begun, None)

    def observe_and_learn(self, trajectory: Any, draws: Any, key: Key) -> Told:
        from shoal.execution.cluster.learners.parts import full

        begun = perf_counter()
        return self._told(begun, self._learner.observe_and_learn(full(trajectory), full(draws), key))

    def acting(self) -> list[Part]:
        """This member's own parts of what acting needs."""
        from shoal.execution.cluster.learners.parts import own_parts

        return own_parts(self._policy(self._learner.state))

    def save(self) -> list[Part]:
        """This member's own parts of the state."""
        from shoal.execution.cluster.learners.parts import own_parts

        return own_parts(self._learner.state)

    def load(self, values: list[np.ndarray]) -> None:
        """Have a state of which this member's parts are `values`."""
        import jax

        from shoal.execution.cluster.learners.parts import placed

        leaves = placed(self._forms, self._shardings, values, self._device)
        self._have(jax.tree.unflatten(self._structure, leaves))

    def _have(self, state: State) -> None:
        from shoal.execution.learner import LearnerHere

        self._learner = LearnerHere(self._plan, self._functions, state, self._split)

    def _told(self, begun: float, learned: Learned | None) -> Told:
        import jax
        import numpy as np

        jax.block_until_ready(self._learner.state)
        peak = self._bytes(peak=True)
        if self._number:
            return Told(peak)
        told = Told(peak, perf_counter() - begun, self._learner.env_steps)
        if learned is None:
            return told
        here = lambda x: np.asarray(x.addressable_shards[0].data)  # noqa: E731
        metrics, priorities = jax.tree.map(here, (dict(learned.metrics), learned.priorities))
        return told._replace(metrics=metrics, priorities=priorities)

    def _bytes(self, *, peak: bool = False) -> int:
        if self._device.platform != "cpu":
            return (self._device.memory_stats() or {}).get("peak_bytes_in_use" if peak else "bytes_in_use", 0)
        name = b"VmHWM:" if peak else b"VmRSS:"
        try:
            with Path("/proc/self/status").open("rb") as status:
                return next((int(line.split()[1]) << 10 for line in status if line.startswith(name)), 0)
        except OSError:  # there is no /proc on this system
            return 0


def _meet(task: Task, number: int, meeting: str) -> None:
    """Start JAX as one process of several, of which each has one device."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    os.environ["no_grpc_proxy"] = meeting.partition(":")[0]  # noqa: SIM112  (as gRPC reads it)
    import jax
    from jax._src import distributed

    from shoal.runtime import configure

    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from Ray
    jax.distributed.initialize(
        meeting,
        task.mesh.size,
        number,
        cluster_detection_method="deactivate",
        initialization_timeout=JOIN_SECONDS,
    )
    configure(task.recipe.threads)
    kind = jax.devices()[0].platform
    if (kind != "cpu") != task.gpu or len(jax.local_devices()) != 1:
        wanted = "one GPU" if task.gpu else "the CPU"
        raise ShoalError(
            f"a learner was to use {wanted}, but JAX gives it {len(jax.local_devices())} devices ({kind}): "
            "look at learner_gpus, JAX_PLATFORMS and whether JAX was installed with CUDA"
        )
    if kind == "cpu":
        # Compiled programs are kept by process 0 alone, though on CPUs each process has a key of its own for
        # them, so that the others would compile anew whenever a group is started.
        distributed.global_state.process_id = 0
