"""Q-learning and SARSA: the textbook's updates, the same in every executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import SARSA, Cluster, Compiled, Local, ParameterServer, QLearning, Trainer
from shoal.errors import ShoalError
from shoal.fingerprint import fingerprint
from shoal.keys import key_for
from shoal.recipe import Experiment, Recipe
from shoal.spaces import Box, Discrete
from shoal.tabular import MDPEnv, random_mdp
from shoal.tabular.learning import share_in_turn
from shoal.testing import check_agent
from shoal.types import EnvSpec, Observation, Trajectory

ALGORITHMS: dict[str, Any] = {
    "q": QLearning(rollout_length=6),
    "double": QLearning(rollout_length=6, double=True, visit_exponent=0.7),
    "sarsa": SARSA(rollout_length=6),
    "expected": SARSA(rollout_length=6, expected=True),
}
S, A, START = 4, 3, 5
SPEC = EnvSpec(id="test", observation=Discrete(S, START), action=Discrete(A, -1))


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_keeps_what_executors_rely_on(name: str, masked: bool) -> None:
    spec = EnvSpec(id="test", observation=SPEC.observation, action=SPEC.action, masked=masked)
    assert len(check_agent(ALGORITHMS[name].bind(spec), spec).passed) == 9


def fragment(rng: np.random.Generator, rows: int, envs: int, masked: bool = False) -> Trajectory:
    """Random steps, with terminations, time limits and rows that only reset."""
    first, terminated = np.zeros((rows + 1, envs), bool), np.zeros((rows, envs), bool)
    for b in range(envs):
        ended = False
        for t in range(rows):
            first[t + 1, b] = ended
            terminated[t, b] = not ended and rng.random() < 0.2
            ended = not ended and (bool(terminated[t, b]) or rng.random() < 0.2)
    mask = rng.random((rows + 1, envs, A)) < 0.6
    mask[..., 0] = True
    raw = rng.integers(0, A, (rows, envs)).astype(np.int32)
    return Trajectory(
        obs=Observation(
            rng.integers(START, START + S, (rows + 1, envs)).astype(np.int32), mask=mask if masked else None
        ),
        first=first,
        action=raw - 1,
        reward=np.where(first[1:], 0.0, rng.normal(size=(rows, envs))).astype(np.float32),
        terminated=terminated,
        version=np.zeros((rows, envs), np.int32),
        extras={"raw_action": raw},
        carry=(),
    )


def textbook(algorithm: Any, exp: Trajectory, q: np.ndarray, epsilon: float) -> np.ndarray:
    """One environment's fragment, a step after another, as Sutton and Barto's boxes have it."""
    q, visits = q.copy(), np.zeros_like(q)
    rows = len(exp.reward)
    for t in range(rows):
        if exp.first[t + 1, 0]:
            continue
        s, n = int(exp.obs.policy[t, 0]) - START, int(exp.obs.policy[t + 1, 0]) - START
        a = int(exp.extras["raw_action"][t, 0])
        allowed = np.ones(A, bool) if exp.obs.mask is None else exp.obs.mask[t + 1, 0]
        best = np.where(allowed, q[n], -np.inf).max()
        ties = allowed & (q[n] == best)
        policy = epsilon * allowed / allowed.sum() + (1 - epsilon) * ties / ties.sum()
        if isinstance(algorithm, QLearning):
            follows = best
        elif algorithm.expected or t + 1 == rows or exp.first[t + 2, 0]:
            follows = policy @ q[n]
        else:
            follows = q[n, int(exp.extras["raw_action"][t + 1, 0])]
        visits[s, a] += 1
        rate = algorithm.learning_rate * visits[s, a] ** -algorithm.visit_exponent
        target = exp.reward[t, 0] + algorithm.discount * (0.0 if exp.terminated[t, 0] else follows)
        q[s, a] += rate * (target - q[s, a])
    return q


SINGLE: dict[str, Any] = {
    "q": QLearning(visit_exponent=0.6, learning_rate=0.7, epsilon_start=0.3, discount=0.9),
    "sarsa": SARSA(learning_rate=0.5, epsilon_start=0.3, discount=0.9),
    "expected": SARSA(expected=True, learning_rate=0.5, epsilon_start=0.3, discount=0.9),
}
LEARN = {name: jax.jit(algorithm.bind(SPEC).learn) for name, algorithm in SINGLE.items()}


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(SINGLE)))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_is_the_textbooks_update(seed: int, kind: str) -> None:
    algorithm = SINGLE[kind]
    agent = algorithm.bind(SPEC)
    exp = fragment(np.random.default_rng(seed), 12, 1, masked=kind != "q")
    before = agent.init(key_for(0, "init"))
    q = np.random.default_rng(seed + 1).integers(-2, 3, (S, A)).astype(np.float32)  # with ties
    before = before._replace(params={**before.params, "q": jax.numpy.asarray(q)[None]})
    after = LEARN[kind](before, exp, key_for(0, "learn")).state
    np.testing.assert_allclose(after.params["q"][0], textbook(algorithm, exp, q, 0.3), atol=1e-5)
    assert after.params["visits"].sum() == exp.weight.sum()


def test_equal_cells_of_one_row_move_as_if_in_turn() -> None:
    exp = fragment(np.random.default_rng(0), 1, 3)
    exp = exp._replace(
        obs=Observation(np.full((2, 3), START, np.int32)),
        first=np.zeros((2, 3), bool),
        terminated=np.ones((1, 3), bool),
        reward=np.float32([[1.0, 1.0, 4.0]]),
        extras={"raw_action": np.zeros((1, 3), np.int32)},
    )
    agent = QLearning(learning_rate=0.5).bind(SPEC)
    after = agent.learn(agent.init(key_for(0, "init")), exp, key_for(0, "learn")).state
    assert after.params["q"][0, 0, 0] == (1 - 0.5**3) * 2.0 and after.params["visits"][0, 0, 0] == 3


@pytest.mark.parametrize("exponent", [0.5, 0.75, 1.0])
def test_equal_cells_of_one_row_have_their_rates_in_turn(exponent: float) -> None:
    """The first visit of all has rate 1, and forgets what the table began with, however many there are."""
    visits = 64
    exp = fragment(np.random.default_rng(0), 1, visits)
    exp = exp._replace(
        obs=Observation(np.full((2, visits), START, np.int32)),
        first=np.zeros((2, visits), bool),
        terminated=np.ones((1, visits), bool),
        reward=np.full((1, visits), 5.0, np.float32),
        extras={"raw_action": np.zeros((1, visits), np.int32)},
    )
    agent = QLearning(learning_rate=1.0, visit_exponent=exponent, initial_value=100.0).bind(SPEC)
    state = agent.init(key_for(0, "init"))
    state = agent.learn(state, exp, key_for(0, "learn")).state
    assert state.params["q"][0, 0, 0] == 5.0 and state.params["q"][0, 0, 1] == 100.0
    # What they change of 1 on the way to 0, against one after the other.
    before, count, left = 7.0, 9, 1.0
    for k in range(count):
        left *= 1.0 - 0.5 * (before + k + 1.0) ** -exponent
    cfg = QLearning(learning_rate=0.5, visit_exponent=exponent)
    share = share_in_turn(cfg, np.float32([before, 0.0]), np.float32([count, 0.0]))
    np.testing.assert_allclose(share, [1.0 - left, 0.0], rtol=1e-5)


def test_double_q_learning_values_each_tables_choice_by_the_other() -> None:
    agent = QLearning(learning_rate=1.0, double=True, discount=0.5).bind(SPEC)
    before = agent.init(key_for(0, "init"))
    q = np.zeros((2, S, A), np.float32)
    q[0, 1], q[1, 1] = [3.0, 1.0, 0.0], [-5.0, 7.0, 0.0]
    before = before._replace(params={**before.params, "q": jax.numpy.asarray(q)})
    exp = fragment(np.random.default_rng(0), 1, 1)._replace(
        obs=Observation(np.array([[START], [START + 1]], np.int32)),
        first=np.zeros((2, 1), bool),
        terminated=np.zeros((1, 1), bool),
        reward=np.ones((1, 1), np.float32),
        extras={"raw_action": np.zeros((1, 1), np.int32)},
    )
    learn = jax.jit(agent.learn)
    learned = [
        tuple(np.asarray(learn(before, exp, key_for(0, "k", n)).state.params["q"][:, 0, 0]))
        for n in range(12)
    ]
    # The first table prefers action 0, which the second values at -5; the second 1, which the first has at 1.
    assert set(learned) == {(1 + 0.5 * -5, 0.0), (0.0, 1 + 0.5 * 1)}


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", ["double", pytest.param("sarsa", marks=pytest.mark.slow)])
def test_local_and_compiled_give_the_same_bits(name: str) -> None:
    env = MDPEnv(random_mdp(6, 3, 3, gamma=0.9, seed=0, terminals=1), max_steps=20)
    experiment = Experiment.of(Recipe(algorithm=ALGORITHMS[name], env={"env": env}), seed=0)
    states = []
    for on in (Local(envs=4, groups=2), Compiled(envs=4, groups=2)):
        run = on.start(experiment)
        for _ in range(4):
            run.iterate()
        states.append(fingerprint(run.learner.state))
    assert states[0] == states[1]


@pytest.mark.as_in_use
@pytest.mark.parametrize(
    "name", ["q", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sarsa", "double", "expected"))]
)
def test_cluster_and_parameter_server_give_the_same_bits(name: str) -> None:
    """What a row teaches is summed cell by cell, and half a row's sums are the same numbers."""
    env = MDPEnv(random_mdp(6, 3, 3, gamma=0.9, seed=0, terminals=1), max_steps=20)
    how: dict[str, Any] = {"envs": 4, "groups": 2}
    prints = set()
    for on in (
        Local(**how),
        Cluster(runners=2, inline=True, **how),
        ParameterServer(workers=2, mode="sync", inline=True, **how),
        ParameterServer(workers=1, mode="sync", inline=True, **how),
    ):
        with Trainer(ALGORITHMS[name], env, seed=0, on=on) as trainer:
            for _ in range(10):
                trainer.train()
            prints.add(trainer.fingerprint())
    assert len(prints) == 1


def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def train(trainer: Trainer) -> str:
        for _ in range(3):
            trainer.train()
        return trainer.fingerprint()

    with Trainer(ALGORITHMS["double"], "FrozenLake-v1", on=Local(envs=3)) as trainer:
        train(trainer)
        place = trainer.save(tmp_path / "save")
        expected = train(trainer)
    with Trainer.restore(place) as again:
        assert train(again) == expected


def test_explores_as_much_as_epsilon_says_and_breaks_ties_evenly() -> None:
    agent = QLearning(epsilon_start=0.4).bind(SPEC)
    n, state = 20_000, agent.init(key_for(0, "init"))
    q = np.zeros((1, S, A), np.float32)
    q[0, 0] = [1.0, 1.0, 0.0]
    params = agent.policy(state._replace(params={**state.params, "q": jax.numpy.asarray(q)}))
    from shoal.keys import fold
    from shoal.types import Acting

    acting = Acting(fold(key_for(0, "act"), np.arange(n)), np.arange(n), np.asarray(True), np.zeros(n))
    obs = Observation(np.full(n, START, np.int32))
    action, _, _ = agent.act(params, (), obs, np.zeros(n, bool), acting)
    share = np.bincount(np.asarray(action) + 1, minlength=A) / n
    np.testing.assert_allclose(share, [0.3 + 0.4 / 3, 0.3 + 0.4 / 3, 0.4 / 3], atol=0.012)
    action, _, _ = agent.act(params, (), obs, np.zeros(n, bool), acting._replace(explore=np.asarray(False)))
    assert set(np.asarray(action)) == {-1}


def test_says_what_it_cannot_do() -> None:
    with pytest.raises(
        ShoalError, match="needs Discrete observations and actions; the observations of x are Box"
    ):
        QLearning().bind(EnvSpec(id="x", observation=Box((2,)), action=Discrete(2)))
    with pytest.raises(ShoalError, match="the actions of x are Box"):
        SARSA().bind(EnvSpec(id="x", observation=Discrete(2), action=Box((2,))))
    with pytest.raises(ShoalError, match="QLearning: learning_rate must lie between 0 and 1"):
        QLearning(learning_rate=1.5)
    with pytest.raises(ShoalError, match="SARSA: rollout_length must be at least 1"):
        SARSA(rollout_length=0)
