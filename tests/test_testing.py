"""check_agent and check_env find every planted fault, and pass what is healthy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shoal import A2C, PPO, REINFORCE, counters
from shoal.errors import ShoalError
from shoal.keys import gumbel
from shoal.returns import gae
from shoal.sgd import learner
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from shoal.testing import Identity, Masked, check_agent
from shoal.transforms import normalize_observations, scale_rewards
from shoal.types import Agent, Batch, EnvSpec, Gradient, OnPolicy, State

SPEC = EnvSpec(id="x", observation=Box((3,)), action=Discrete(4))
MASKED = dataclasses.replace(SPEC, masked=True)


# A linear actor and critic with a memory (the mean of what it saw): healthy, and quick to compile.


def init(key: Any) -> State:
    params = {"policy": 0.1 * jnp.ones((3, 4)), "value": jnp.ones(3)}
    return State(params, (), {"mine": jnp.zeros(())}, counters.zero(), counters.zero())


def act(params: Any, carry: Any, obs: Any, first: Any, acting: Any) -> Any:
    x = 0.5 * jnp.where(first[..., None], 0.0, carry) + obs.policy
    logits = x @ params["policy"]
    if obs.mask is not None:
        logits = jnp.where(obs.mask, logits, -1e8)
    action = jnp.argmax(jnp.where(acting.explore, logits + gumbel(acting.key, 4), logits), -1)
    return action.astype(jnp.int32), x, {"x": x}


def batches(state: State, trajectory: Any, key: Any) -> Batch:
    value = trajectory.obs.policy @ state.params["value"]
    advantage, target = gae(trajectory.reward, trajectory.terminated, trajectory.first, value, 0.9, 0.9)
    rows = {"x": trajectory.extras["x"], "action": trajectory.action, "advantage": advantage}
    rows |= {"obs": trajectory.obs.policy[:-1], "target": target, "weight": trajectory.weight}
    rows = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), rows)
    return Batch(rows, jnp.arange(rows["weight"].size, dtype=jnp.int32).reshape(2, -1))


def grads(state: State, rows: Any, key: Any) -> Gradient:
    def loss(params: Any) -> Any:
        log_prob = jax.nn.log_softmax(rows["x"] @ params["policy"])
        log_prob = jnp.take_along_axis(log_prob, rows["action"][:, None], 1)[:, 0]
        error = jnp.square(rows["obs"] @ params["value"] - rows["target"])
        return ((error - rows["advantage"] * log_prob) * rows["weight"]).sum()

    total, gradient = jax.value_and_grad(loss)(state.params)
    return Gradient(gradient, rows["weight"].sum(), {"loss/total": total})


def apply(state: State, gradient: Gradient) -> State:
    step = 0.01 / jnp.maximum(gradient.weight, 1.0)
    params = jax.tree.map(lambda p, g: p - step * g, state.params, gradient.sum)
    return state._replace(params=params, updates=counters.add(state.updates, 1))


def observe(state: State, trajectory: Any) -> State:
    return state._replace(env_steps=counters.add(state.env_steps, trajectory.weight.astype(jnp.int32).sum()))


HEALTHY = Agent(
    plan=OnPolicy(rows=6),
    init=init,
    policy=lambda state: state.params,
    begin=lambda size: jnp.zeros((size, 3)),
    act=act,
    batches=batches,
    grads=grads,
    apply=apply,
    observe=observe,
    learn=learner(batches, grads, apply, observe),
)


def small(**faults: Callable[..., Any]) -> Agent:
    """The healthy agent with faults put around some of its functions, and `learn` made of the result."""
    parts = {name: fault(getattr(HEALTHY, name)) for name, fault in faults.items()}
    agent = dataclasses.replace(HEALTHY, **parts)
    if parts.keys() & {"batches", "grads", "apply", "observe"}:
        learn = learner(agent.batches, agent.grads, agent.apply, agent.observe)
        agent = dataclasses.replace(agent, learn=learn)
    return agent


def changed(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A fault that changes what a function gives."""
    return lambda function: lambda *args: change(function(*args))


def given(change: Callable[..., tuple[Any, ...]]) -> Callable[[Any], Any]:
    """A fault that changes what a function is given."""
    return lambda function: lambda *args: function(*change(*args))


def noisy(update: Any) -> Any:
    rng = np.random.default_rng()
    noise = jax.pure_callback(lambda: np.float32(rng.normal()), jax.ShapeDtypeStruct((), np.float32))
    return update._replace(metrics={"loss/total": noise})


def times(factor: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Gradient sums scaled by something of the rows."""
    return lambda grads: (
        lambda state, rows, key: (lambda g: g._replace(sum=jax.tree.map(lambda x: x * factor(rows), g.sum)))(
            grads(state, rows, key)
        )
    )


AGENT_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a weak type at the start": (
        {"init": changed(lambda s: s._replace(extra={"mine": jnp.asarray(0.0)}))},
        r"init: \.extra\['mine'\] is of a weak type",
    ),
    "counts that do not begin at 0": (
        {"init": changed(lambda s: s._replace(updates=counters.add(s.updates, 1)))},
        "counts of 0",
    ),
    "a carry of another dtype": (
        {"act": changed(lambda out: (out[0], out[1].astype(jnp.float16), out[2]))},
        r"the carry of act changes its form: .* was float32\[4, 3\] and becomes float16\[4, 3\]",
    ),
    "an action out of bounds": (
        {"act": changed(lambda out: (out[0] + 3, *out[1:]))},
        "act leaves the action space",
    ),
    "an action of real numbers": (
        {"act": changed(lambda out: (out[0].astype(jnp.float32), *out[1:]))},
        r"the action is float32\[4\], it should be integers\[4\]",
    ),
    "extras without environments": (
        {"act": changed(lambda out: (*out[:2], {"x": out[2]["x"], "n": jnp.zeros(())}))},
        r"extras\['n'\] has shape \(\)",
    ),
    "rows that mix": (
        {"act": given(lambda p, c, o, f, a: (p, c, o._replace(policy=o.policy - o.policy.mean(0)), f, a))},
        "a row of act changes when only other rows do",
    ),
    "one key for all rows": (
        {"act": given(lambda p, c, o, f, a: (p, c, o, f, a._replace(key=jnp.roll(a.key, 1, axis=0))))},
        "a row of act changes when only other rows do",
    ),
    "a memory that outlives its episode": (
        {"act": given(lambda p, c, o, f, a: (p, c, o, jnp.zeros_like(f), a))},
        "forget its carry",
    ),
    "exploring when told not to": (
        {"act": given(lambda p, c, o, f, a: (p, c, o, f, a._replace(explore=jnp.ones((), bool))))},
        "explore=False",
    ),
    "a type that learning weakens": (
        {"observe": changed(lambda s: s._replace(extra={"mine": jnp.asarray(1.0)}))},
        "the state, in learn,: .* weak type",
    ),
    "a structure that learning changes": (
        {"observe": changed(lambda s: s._replace(extra={**s.extra, "more": jnp.zeros(())}))},
        "the state, in learn, changes its structure",
    ),
    "reset rows counted as steps": (
        {
            "observe": lambda _: lambda s, t: s._replace(env_steps=counters.add(s.env_steps, t.reward.size)),
        },
        r"learn counts 24 environment steps where \d+ were real",
    ),
    "updates not counted": (
        {"apply": lambda apply: lambda s, g: apply(s, g)._replace(updates=s.updates)},
        "count its updates",
    ),
    "a metric without a group": (
        {"learn": changed(lambda u: u._replace(metrics={"total": u.metrics["loss/total"]}))},
        "'total' must be named group/name",
    ),
    "a metric that is NaN": (
        {"learn": changed(lambda u: u._replace(metrics={"loss/total": u.metrics["loss/total"] * jnp.nan}))},
        "'loss/total' is nan",
    ),
    "parameters that are NaN": (
        {"apply": changed(lambda s: s._replace(params=jax.tree.map(lambda p: p * jnp.nan, s.params)))},
        "is not finite|is nan",
    ),
    "randomness of its own": ({"learn": changed(noisy)}, "another result the second time"),
    "a learn that is something else": (
        {
            "learn": lambda learn: (
                lambda s, t, k: learn(s._replace(params=jax.tree.map(lambda p: 0.99 * p, s.params)), t, k)
            )
        },
        "learn is not batches",
    ),
    "a learn that counts twice": (
        {
            "learn": changed(
                lambda u: u._replace(state=u.state._replace(updates=counters.add(u.state.updates, 1)))
            )
        },
        "count updates differently",
    ),
    "an index out of range": (
        {"batches": changed(lambda b: b._replace(index=b.index + 1))},
        "points outside its 24 rows",
    ),
    "rows of two lengths": (
        {"batches": changed(lambda b: b._replace(rows={**b.rows, "more": jnp.zeros(30)}))},
        r"must all have one first axis, not \[24, 30\]",
    ),
    "gradients that see reset rows": (
        {
            "batches": lambda batches: (
                lambda s, t, k: (lambda b: b._replace(rows={**b.rows, "advantage": t.reward.reshape(-1)}))(
                    batches(s, t, k)
                )
            ),
            "grads": given(lambda s, rows, k: (s, {**rows, "weight": jnp.ones_like(rows["weight"])}, k)),
        },
        "reward, action or extras of rows that only reset",
    ),
    "values past a termination": (
        {"batches": given(lambda s, t, k: (s, t._replace(terminated=jnp.zeros_like(t.terminated)), k))},
        "observation of rows that only reset",
    ),
    "a mean that claims to be a sum": (
        {"grads": times(lambda rows: 1 / jnp.maximum(rows["weight"].sum(), 1.0))},
        "halves do not add up to its gradient",
    ),
    "a weight that is no sum": (
        {"grads": changed(lambda g: g._replace(weight=jnp.ones(())))},
        "weights of a minibatch's halves",
    ),
}


@pytest.mark.parametrize("name", AGENT_FAULTS)
def test_check_agent_finds(name: str) -> None:
    parts, message = AGENT_FAULTS[name]
    with pytest.raises(ShoalError, match=f"^check_agent: .*({message})") as caught:
        check_agent(small(**parts), SPEC)
    assert "\n" not in str(caught.value)


def test_check_agent_finds_an_action_that_the_mask_forbids() -> None:
    blind = small(act=given(lambda p, c, o, f, a: (p, c, o._replace(mask=jnp.ones_like(o.mask)), f, a)))
    with pytest.raises(ShoalError, match="an action that the mask forbids"):
        check_agent(blind, MASKED)


def test_check_agent_passes_a_healthy_agent_and_says_what_it_looked_at() -> None:
    report = check_agent(small(), MASKED)
    assert len(report.passed) == 9
    assert "ok  a row of act depends on that row alone" in str(report)
    mean = small(grads=times(lambda rows: 1 / jnp.maximum(rows["weight"].sum(), 1.0)))
    assert len(check_agent(mean, SPEC, additive=False).passed) == 8


TINY: dict[str, Any] = {"hidden": (4,), "rollout_length": 6}
CHOICES = Masked(MultiDiscrete((2, 3), (1, 5))).spec
MANY = Tuple((Box((2,), -1.0, 3.0), MultiBinary((2,)), Dict.of({"a": Discrete(3, -1)})))
ALGORITHMS: dict[str, Callable[[], tuple[Agent, EnvSpec]]] = {
    "PPO": lambda: (PPO(**TINY, epochs=1, minibatches=2).bind(SPEC), SPEC),
    "A2C, masked, with memory and both transforms": lambda: (
        scale_rewards(normalize_observations(A2C(**TINY, memory=3).bind(MASKED), MASKED), 0.9),
        MASKED,
    ),
    "REINFORCE, every kind of space": lambda: (
        REINFORCE(**TINY).bind(Identity(MANY).spec),
        Identity(MANY).spec,
    ),
    "REINFORCE, masks of several choices": lambda: (REINFORCE(**TINY).bind(CHOICES), CHOICES),
}


SLOW = ("A2C, masked, with memory and both transforms", "REINFORCE, masks of several choices")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ALGORITHMS]
)
def test_the_algorithms_pass(name: str) -> None:
    agent, spec = ALGORITHMS[name]()
    assert len(check_agent(agent, spec).passed) == 9
