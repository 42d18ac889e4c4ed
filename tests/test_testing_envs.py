"""check_env finds every planted fault and passes what is healthy; tiny environments keep their answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.vector import AutoresetMode

from shoal.envs import vectorize
from shoal.errors import ShoalError
from shoal.keys import fold, key_for
from shoal.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from shoal.testing import Constant, Identity, Masked, Recall, as_gymnasium, check_env, sample
from shoal.testing.tiny import allowed, choices, sample_mask

# Gymnasium environments with one fault each


class Walk(gymnasium.Env):
    """A random walk that ends where it leaves [-0.6, 0.6]: healthy."""

    observation_space = gym_spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym_spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.move = float(self.np_random.uniform(-0.05, 0.05)), 0.0
        return self.shown(), {}

    def shown(self) -> Any:
        return np.array([self.x, self.move], np.float32)

    def step(self, action: Any) -> Any:
        self.move = 0.1 * (2 * int(action) - 1) + float(self.np_random.uniform(-0.05, 0.05))
        self.x += self.move
        return self.shown(), 1.0, abs(self.x) > 0.6, False, {}


class WrongDtype(Walk):
    def shown(self) -> Any:
        return np.array([self.x, self.move])


class WrongShape(Walk):
    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs[:1], *rest


class LeavesItsSpace(Walk):
    def shown(self) -> Any:
        return np.array([self.x, 20 * self.move], np.float32)


class NotANumber(Walk):
    def shown(self) -> Any:
        return np.array([self.x, np.nan if self.move > 0.14 else self.move], np.float32)


class InfiniteReward(Walk):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, np.float64("inf") if self.x > 0.3 else 0.0, *rest


class RewardOfNothing(Walk):
    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, np.ones(1), *rest


class FlagThatIsANumber(Walk):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, *rest = super().step(action)
        return obs, reward, int(terminated), *rest


class FourThings(Walk):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class Raises(Walk):
    def step(self, action: Any) -> Any:
        if self.x > 0.4:
            raise RuntimeError("the simulator fell over")
        return super().step(action)


class ResetsItself(Walk):
    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return (self.reset()[0] if terminated else obs), reward, terminated, truncated, info


class IgnoresItsSeed(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=np.random.default_rng().integers(2**31).item())


class Remembers(Walk):
    lives = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.lives += 1
        self.x += 1e-4 * self.lives
        return self.shown(), {}


class NoSuchState(gymnasium.Env):
    observation_space = gym_spaces.Discrete(3)
    action_space = gym_spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.int64(0), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.int64(self.t), 0.0, self.t > 5, False, {}


class MasksAll(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], {"action_mask": np.ones(2, np.int8)}

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"action_mask": np.zeros(2, np.int8)}


class NothingLeft(Walk):
    """Forbids all where the episode has ended, as games do."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], {"action_mask": np.ones(2, np.int8)}

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"action_mask": np.full(2, not (rest[2] or rest[3]), np.int8)}


class MaskOfCounts(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], {"action_mask": np.array([3, 1])}


GYMNASIUM_FAULTS: dict[Any, str] = {
    WrongDtype: "WrongDtype: the observation of reset has dtype float64, its space says float32",
    WrongShape: r"the observation of step 1 has shape \(1,\), its space says \(2,\)",
    LeavesItsSpace: r"the observation of step 1 leaves its space: .* at index \[1\] is not in \[-1.0, 1.0\]",
    NotANumber: r"the observation of step \d+ holds nan",
    InfiniteReward: r"the reward of step \d+ is inf",
    RewardOfNothing: r"the reward of step 1 must be one number, not an array of shape \(1,\)",
    FlagThatIsANumber: r"terminated of step 1 must be a bool, not 0 \(int\)",
    FourThings: r"step must give \(observation, reward, terminated, truncated, info dict\)",
    Raises: r"step \d+ raised RuntimeError: the simulator fell over",
    ResetsItself: "step seems to reset by itself",
    IgnoresItsSeed: "reset with the same seed play differently",
    NoSuchState: r"the observation of step 3 leaves its space: .*3.* is not in Discrete\(3\)",
    MasksAll: "allows no",
    MaskOfCounts: "MaskOfCounts: no action can be sampled with the mask before step 1",
}


@pytest.mark.filterwarnings("ignore:.*does not repeat itself.*:RuntimeWarning")
@pytest.mark.parametrize("env", GYMNASIUM_FAULTS)
def test_check_env_finds(env: Any) -> None:
    with pytest.raises(ShoalError, match=GYMNASIUM_FAULTS[env]) as caught:
        check_env(env)
    assert "\n" not in str(caught.value)
    assert env.__name__ in str(caught.value)


def test_check_env_tells_which_journal_is_needed() -> None:
    assert check_env(Walk).journal == "journal"
    assert check_env(Remembers).journal == "fresh"
    assert check_env(NothingLeft).spec.masked
    report = check_env(Walk, time_limit=4)
    assert report.spec.max_episode_steps == 4
    assert "step does not reset by itself" in str(report)
    assert "saved by: journal" in str(report)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "shoal/GridWorld-v0"])
def test_healthy_environments_of_gymnasium_pass(env: str) -> None:
    report = check_env(env)
    assert report.journal == "journal"
    assert len(report.passed) == 5
    assert report.steps > 100


class Lying(gymnasium.vector.VectorEnv):
    """A vector environment that says it resets on the next step and does so at once."""

    def __init__(self, num_envs: int, honest: bool = True, **_: Any) -> None:
        self.num_envs = num_envs
        mode = AutoresetMode.NEXT_STEP if honest else AutoresetMode.SAME_STEP
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = gym_spaces.Box(0, 9, (1,), np.float32)
        self.single_action_space = gym_spaces.Discrete(2)
        self.observation_space = gym_spaces.Box(0, 9, (num_envs, 1), np.float32)
        self.action_space = gym_spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> Any:
        self.t = (self.t + 1) % 5
        obs = np.full((self.num_envs, 1), self.t, np.float32)
        done = np.full(self.num_envs, self.t == 0)
        return obs, np.ones(self.num_envs), done, np.zeros_like(done), {}


@pytest.fixture
def vectors() -> Any:
    for name, kwargs in (("Lying-v0", {}), ("SameStep-v0", {"honest": False})):
        gymnasium.register(name, entry_point=Walk, vector_entry_point=Lying, kwargs=kwargs)
    yield
    for name in ("Lying-v0", "SameStep-v0"):
        gymnasium.registry.pop(name)


def test_vector_environments_that_reset_at_once_are_found(vectors: Any) -> None:
    with pytest.raises(ShoalError, match="stepped and reset at once"):
        check_env("Lying-v0", vector=True)
    with pytest.raises(ShoalError, match="NEXT_STEP"):
        check_env("SameStep-v0", vector=True)
    assert check_env("CartPole-v1", vector=True).journal == "vector"


# Environments in JAX


@dataclasses.dataclass(frozen=True)
class Faulty:
    """Constant, with one function's result changed."""

    change: Any
    of: str = "step"

    @property
    def spec(self) -> Any:
        return dataclasses.replace(Constant().spec, id="faulty")

    def reset(self, key: Any) -> Any:
        out = Constant(ends=0.3).reset(key)
        return self.change(*out) if self.of == "reset" else out

    def step(self, state: Any, action: Any, key: Any) -> Any:
        out = Constant(ends=0.3).step(state, action, key)
        return self.change(*out) if self.of == "step" else out


def show(policy: Any) -> Any:
    return lambda state, obs, *rest: (state, obs._replace(policy=policy(state)), *rest)


JAX_FAULTS: dict[str, tuple[Faulty, str]] = {
    "dtype": (
        Faulty(show(lambda s: jnp.ones(1, jnp.int32)), "reset"),
        r"the observation of reset: \.policy is int32\[1\], the specification says float32\[1\]",
    ),
    "shape": (Faulty(show(lambda s: jnp.ones(2))), r"\.policy is float32\[2\]"),
    "structure": (Faulty(show(lambda s: {"x": jnp.ones(1)})), "the observation of step has the structure"),
    "no Observation": (Faulty(lambda s, o, *rest: (s, o.policy, *rest)), "must be a shoal.types.Observation"),
    "bounds": (Faulty(show(lambda s: jnp.ones(1) * (s.t + 1))), "leaves its space"),
    "nan": (Faulty(show(lambda s: jnp.full(1, jnp.nan))), "holds nan"),
    "state": (
        Faulty(lambda s, *rest: (s._replace(t=s.t.astype(jnp.float32)), *rest)),
        r"step makes float32\[\] of a state's int32\[\]",
    ),
    "state's structure": (Faulty(lambda s, *rest: ((s, s), *rest)), "a state of another structure"),
    "reward": (
        Faulty(lambda s, o, r, *rest: (s, o, jnp.ones(1), *rest)),
        r"the reward must be one number, not float32\[1\]",
    ),
    "flag": (
        Faulty(lambda s, o, r, d, t: (s, o, r, d.astype(jnp.float32), t)),
        r"terminated must be one bool, not float32\[\]",
    ),
    "four things": (Faulty(lambda *out: out[:4]), "step must give"),
    "not traceable": (
        Faulty(lambda s, o, r, d, t: (s, o, float(r + s.t), d, t)),
        "step raised ConcretizationTypeError",
    ),
}


@pytest.mark.parametrize("name", JAX_FAULTS)
def test_check_env_finds_in_jax(name: str) -> None:
    env, message = JAX_FAULTS[name]
    with pytest.raises(ShoalError, match=f"^faulty: .*{message}") as caught:
        check_env(env)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class ResetsItselfInJax:
    """Cart-pole whose step gives the first observation of the next episode."""

    def __post_init__(self) -> None:
        from shoal.envs import CartPole

        object.__setattr__(self, "env", CartPole())

    @property
    def spec(self) -> Any:
        return self.env.spec  # type: ignore[attr-defined]

    def reset(self, key: Any) -> Any:
        return self.env.reset(key)  # type: ignore[attr-defined]

    def step(self, state: Any, action: Any, key: Any) -> Any:
        state, obs, reward, terminated, truncated = self.env.step(state, action, key)  # type: ignore[attr-defined]
        fresh = self.env.reset(fold(key, 1))  # type: ignore[attr-defined]
        state, obs = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), fresh, (state, obs))
        return state, obs, reward, terminated, truncated


def test_check_env_finds_a_reset_within_step_in_jax() -> None:
    with pytest.raises(ShoalError, match="step seems to reset by itself"):
        check_env(ResetsItselfInJax())


@pytest.mark.parametrize("env", ["jax:CartPole-v1", Recall(), Masked(MultiDiscrete((2, 3), (1, 5)))])
def test_healthy_environments_in_jax_pass(env: Any) -> None:
    report = check_env(env)
    assert report.journal == "state"
    assert len(report.passed) == 6


# The tiny environments

MANY = Tuple(
    (
        Box((2,), -1.0, (2.0, 3.0)),
        Box((2, 2), 0, 255, "uint8"),
        Box((2,)),
        Discrete(5, -2),
        Dict.of({"a": MultiDiscrete((2, 3), (1, -1)), "b": MultiBinary((2, 2)), "c": Box(())}),
    )
)


def play(env: Any, choose: Any, rows: int = 60, size: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reward, first, terminated), each [rows, size], of a policy choose(Step, t) -> action."""
    vector = vectorize(env, size)
    step_on = jax.jit(vector.step)
    vstate, step = jax.jit(vector.start)(key_for(0, "play"))
    found = []
    for t in range(rows):
        vstate, step = step_on(vstate, choose(jax.tree.map(np.asarray, step), t))
        found.append((step.reward, step.first, step.terminated))
    reward, first, terminated = (
        np.stack([np.asarray(x) for x in column]) for column in zip(*found, strict=True)
    )
    return reward, first, terminated


def test_constant_is_worth_what_it_says() -> None:
    reward, first, terminated = play(Constant(length=5), lambda step, t: np.zeros(4, np.int32))
    assert not terminated.any()
    assert first[5::6].all()
    assert first.sum() == 4 * 10
    assert (reward == ~first).all()
    assert Constant().value(0.9) == pytest.approx(10)
    assert Constant(ends=0.5).value(0.9) == pytest.approx(1 / 0.55)
    _, first, terminated = play(
        Constant(length=50, ends=0.2), lambda step, t: np.zeros(4, np.int32), rows=400
    )
    assert terminated.sum() / (~first).sum() == pytest.approx(0.2, abs=0.03)


def test_doing_what_it_sees_is_best_in_identity() -> None:
    reward, first, terminated = play(Identity(MANY, length=4), lambda step, t: step.obs.policy, rows=15)
    np.testing.assert_allclose(reward, ~first)
    assert terminated[3::5].all()
    assert terminated.sum() == 4 * 3
    reward, first, _ = play(Identity(Discrete(4)), lambda step, t: np.full(4, t % 4), rows=300)
    assert reward.sum() / (~first).sum() == pytest.approx(0.25, abs=0.05)


def test_recall_needs_memory() -> None:
    cue = np.zeros(4, np.int32)

    def remember(step: Any, t: int) -> np.ndarray:
        cue[:] = np.where(step.first, step.obs.policy - 1, cue)
        return cue.copy()

    reward, _, terminated = play(Recall(delay=3), remember)
    assert terminated.sum() == 4 * 12
    assert (reward == terminated).all()
    reward, _, terminated = play(Recall(delay=3), lambda step, t: step.obs.policy % 2, rows=400)
    assert reward.sum() / terminated.sum() == pytest.approx(0.5, abs=0.1)
    reward, _, terminated = play(Recall(delay=0, choices=3), lambda step, t: step.obs.policy - 1)
    assert (reward == terminated).all()


@pytest.mark.parametrize("action", [Discrete(5, -2), MultiDiscrete((2, 3), (1, 5)), MultiBinary((3,))])
def test_masked_rewards_the_highest_allowed_and_punishes_the_forbidden(action: Any) -> None:
    widths = choices(action)
    ends = np.cumsum(widths)

    def shaped(parts: list[np.ndarray]) -> np.ndarray:
        flat = np.stack(parts, -1)
        if isinstance(action, MultiBinary):
            return flat.astype(np.int8)
        start = np.asarray(action.start or 0, np.int32)
        return (flat[:, 0] if isinstance(action, Discrete) else flat) + start

    def pick(step: Any, best: bool) -> np.ndarray:
        options = [step.obs.mask[:, end - n : end] for n, end in zip(widths, ends, strict=True)]
        if best:
            return shaped([m.shape[1] - 1 - m[:, ::-1].argmax(1) for m in options])
        return shaped([m.argmin(1) for m in options])  # the first forbidden one, if there is one

    env = Masked(action, length=7)
    reward, first, terminated = play(env, lambda step, t: pick(step, True), rows=24)
    assert (reward == ~first).all()
    assert terminated[6::8].all()
    reward, first, _ = play(env, lambda step, t: pick(step, False), rows=24)
    assert (reward[~first] == -10).mean() > 0.5


def test_samples_are_members_and_the_same_in_numpy_and_jax() -> None:
    keys = fold(key_for(0, "sample"), np.arange(200))
    ours = sample(MANY, keys)
    theirs = jax.jit(lambda k: sample(MANY, k))(keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
    assert jax.tree.map(lambda x: x.dtype, ours) == jax.tree.map(lambda x: np.dtype(x.dtype), theirs)
    box, image, wide, number, rest = ours
    assert (box >= -1).all()
    assert (box <= [2, 3]).all()
    assert image.dtype == np.uint8
    assert image.max() > 240
    assert image.min() < 15
    assert np.abs(wide).max() <= 1
    assert sorted(np.unique(number)) == [-2, -1, 0, 1, 2]
    assert np.unique(rest["a"][:, 1]).tolist() == [-1, 0, 1]
    assert rest["b"].mean() == pytest.approx(0.5, abs=0.06)
    for action in (Discrete(3, 4), MultiDiscrete((2, 3), (1, 5)), MultiBinary((3,))):
        mask = sample_mask(action, keys)
        np.testing.assert_array_equal(mask, jax.jit(lambda k, a=action: sample_mask(a, k))(keys))
        taken = allowed(action, mask, keys)
        start = np.asarray(getattr(action, "start", 0) or 0)
        flat = taken.reshape(200, -1).astype(int) - start
        for k, (n, end) in enumerate(zip(choices(action), np.cumsum(choices(action)), strict=True)):
            part = mask[:, end - n : end]
            assert part.any(1).all()
            assert part[np.arange(200), flat[:, k]].all()
    with pytest.raises(ShoalError, match="a Box action space has no mask"):
        choices(Box(()))


def test_the_gymnasium_face_is_the_same_environment() -> None:
    for env in (
        Identity(Tuple((Discrete(3), Box((2,), -1.0, 1.0)))),
        Masked(Discrete(4)),
        Constant(length=3),
    ):
        host = as_gymnasium(env)
        obs, info = host.reset(seed=3)
        assert host.observation_space.contains(obs)
        again, _ = as_gymnasium(env).reset(seed=3)
        jax.tree.map(np.testing.assert_array_equal, obs, again)
        host.action_space.seed(0)
        for t in range(40):
            action = (
                host.action_space.sample(mask=info["action_mask"]) if info else host.action_space.sample()
            )
            obs, reward, terminated, truncated, info = host.step(action)
            assert host.observation_space.contains(obs)
            assert isinstance(reward, float)
            assert (terminated or truncated) == (t + 1 == env.spec.max_episode_steps)
            if terminated or truncated:
                break
    with pytest.raises(ShoalError, match="only masks of Discrete actions"):
        as_gymnasium(Masked(MultiBinary((2,))))


def test_the_gymnasium_face_passes_with_its_masks() -> None:
    assert check_env(lambda: as_gymnasium(Masked())).spec.masked
