"""`check_env`: does an environment keep what Shoal promises to be built on?"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from shoal.envs import Source, resolve
from shoal.envs.form import check_observation, check_reset, check_step
from shoal.errors import ShoalError, told
from shoal.spaces import Discrete, zeros
from shoal.testing.groups import check_group, check_types
from shoal.testing.tiny import as_gymnasium
from shoal.types import EnvSpec, JaxEnv

_EPISODES, _STEPS, _ROWS = 8, 200, 120  # played at most: of one instance, and of a group
_HEAVY, _FEWER = 10_000, 5  # numbers in an observation from which all of these are so many times fewer


@dataclass(frozen=True, kw_only=True)
class EnvReport:
    """What `check_env` found out of an environment that passed.

    journal: how a group of it is saved: "state" (whole), "journal" (each episode's seed and actions), "fresh"
    (the same, and a new instance for each episode, because episodes depend on earlier ones) or "vector" (one
    journal for all rows). episodes, steps: how much was played. passed: the names of the checks.
    """

    spec: EnvSpec
    journal: str
    episodes: int
    steps: int
    passed: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.spec.id}: {len(self.passed)} checks passed ({self.episodes} episodes, {self.steps} steps)"
        ]
        return "\n".join([*lines, *(f"  ok  {name}" for name in self.passed), f"  saved by: {self.journal}"])


def check_env(
    env: Any,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
    time_limit: int | None = None,
    vector: bool = False,
) -> EnvReport:
    """Play an environment and look for what would spoil training, or make it impossible to repeat.

    The arguments are those of `shoal.envs.resolve`. Checked are, on one instance: the form of what `reset`
    and `step` give; shapes, dtypes and bounds of observations; NaN and infinity; whether `step` resets by
    itself, which throws the final observation away (told from how observations look, so only where episodes
    end within 200 steps and are more than one step long); whether equal seeds give equal episodes, also in an
    instance with a past; and on a group: the convention for time of `shoal.types`, and whether a saved group
    continues bit for bit.

    Returns a report; raises ShoalError, one line, at the first fault.
    """
    given = {
        "env_kwargs": env_kwargs,
        "wrappers": wrappers,
        "time_limit": time_limit,
        "vector": vector,
    }
    source = resolve(env, **given, journal="journal")
    name, passed, episodes, steps = source.spec.id, [], 0, 0
    heavy = sum(x.size for x in jax.tree.leaves(zeros(source.spec.observation))) > _HEAVY
    fewer = _FEWER if heavy else 1
    if not vector:
        make = _maker(source)
        if source.jax_env is not None and source.journal == "state":
            _check_jax(source.jax_env)
            passed.append("reset and step can be traced, with one structure and one dtype each")
        played = _play(make, name, fewer)
        episodes, steps = len(played), sum(len(e.rewards) for e in played)
        passed.append("observations have the space's shape and dtype, lie in its bounds and are finite")
        _check_no_reset_within(played, name)
        passed.append("step does not reset by itself")
        if source.journal != "state":
            source = resolve(env, **given, journal=_probe(make, name, heavy))
        else:
            _probe(make, name, heavy)
        passed.append("equal seeds give equal episodes")
    count = check_group(source, _ROWS // fewer)
    passed.append("groups keep the convention for time")
    passed.append("a saved group continues bit for bit")
    return EnvReport(
        spec=source.spec,
        journal=source.journal,
        episodes=episodes,
        steps=steps + count,
        passed=tuple(passed),
    )


def _maker(source: Source) -> Callable[[], Any]:
    """Makes one bare Gymnasium environment of the source."""
    if source.journal == "state":
        only = as_gymnasium(_masks_apart(source.jax_env))  # pure functions: an instance has no past
        return lambda: only

    def make() -> Any:
        group: Any = source.make_group(0, 0, 1)
        return group.envs[0]

    return make


def _masks_apart(env: Any) -> JaxEnv:
    """Masks of other than Discrete actions have no flat form in Gymnasium: the group's checks see them."""
    if not env.spec.masked or isinstance(env.spec.action, Discrete):
        return env

    @dataclass(frozen=True)
    class WithoutMask:
        spec: EnvSpec

        def reset(self, key: Any) -> Any:
            state, obs = env.reset(key)
            return state, obs._replace(mask=None)

        def step(self, state: Any, action: Any, key: Any) -> Any:
            state, obs, *rest = env.step(state, action, key)
            return state, obs._replace(mask=None), *rest

    return WithoutMask(dataclasses.replace(env.spec, masked=False))


def _probe(make: Callable[[], Any], name: str, heavy: bool) -> str:
    from shoal.envs.journal import probe

    mode = probe(make, heavy=heavy)
    if mode == "none":
        raise ShoalError(
            f"{name}: two instances reset with the same seed play differently; everything random must "
            "come from self.np_random, which reset(seed=...) seeds"
        )
    return mode


# One instance


@dataclass
class _Episode:
    """One episode as played. after: whether the step after its end was again done (None: it did not end)."""

    observations: list[np.ndarray]
    rewards: list[float]
    after: bool | None = None


def _play(make: Callable[[], Any], name: str, fewer: int) -> list[_Episode]:
    """A few episodes of random actions; raises at the first thing that has not its form."""
    env = make()
    episodes = []
    try:
        env.action_space.seed(0)
        for seed in range(max(3, _EPISODES // fewer)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                episodes.append(_episode(env, seed, _STEPS // fewer, name))
    finally:
        env.close()
    return episodes


def _episode(env: Any, seed: int, steps: int, name: str) -> _Episode:
    result = _guarded(lambda: env.reset(seed=seed), f"{name}: reset(seed={seed})")
    check_reset(result, name)
    obs, info = result
    check_observation(env.observation_space, obs, f"{name}: the observation of reset")
    episode = _Episode([_features(env.observation_space, obs)], [])
    for t in range(steps):
        try:
            action = _action(env.action_space, obs, info)
        except Exception as error:
            raise ShoalError(
                f"{name}: no action can be sampled with the mask before step {t + 1}: {told(error)}"
            ) from error
        result = _guarded(lambda action=action: env.step(action), f"{name}: step {t + 1}")
        check_step(result, name, f"step {t + 1}")
        obs, reward, terminated, truncated, info = result
        check_observation(env.observation_space, obs, f"{name}: the observation of step {t + 1}")
        episode.observations.append(_features(env.observation_space, obs))
        episode.rewards.append(float(reward))
        if terminated or truncated:
            try:
                _, _, *flags, _ = env.step(action)
                episode.after = bool(flags[0] or flags[1])
            except Exception:  # to refuse a step after the end is an environment's right
                episode.after = True
            break
    return episode


def _guarded(call: Callable[[], Any], doing: str) -> Any:
    try:
        return call()
    except Exception as error:
        raise ShoalError(f"{doing} raised {told(error)}") from error


def _action(space: Any, obs: Any, info: Mapping[str, Any]) -> Any:
    """A random action that the mask allows, if there is one."""
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    mask = info.get("action_mask", mask)
    if mask is None:
        return space.sample()
    if hasattr(space, "nvec") and not isinstance(mask, tuple):
        mask = tuple(np.split(np.asarray(mask), np.cumsum(space.nvec)[:-1]))
    as_bytes = (
        tuple(np.asarray(m, np.int8) for m in mask) if isinstance(mask, tuple) else np.asarray(mask, np.int8)
    )
    return space.sample(mask=as_bytes)


def _features(space: Any, value: Any) -> np.ndarray:
    """An observation as one vector of numbers."""
    parts = getattr(space, "spaces", None)
    if parts is None:
        return np.array(value, np.float64).reshape(-1)
    keys = sorted(parts) if hasattr(parts, "items") else range(len(parts))
    return np.concatenate([np.zeros(0), *(_features(parts[k], value[k]) for k in keys if k != "action_mask")])


def _check_no_reset_within(episodes: list[_Episode], name: str) -> None:
    """Raise where episodes end with the first observation of the next one.

    That is: in all episodes that ended (three at least) the last observation is as near to those of resets as
    these are to each other, which observations within an episode mostly are not; and the environment then
    plays on as if nothing had ended.
    """
    ended = [e for e in episodes if e.after is not None and len(e.rewards) > 1]
    within = [x for e in ended for x in e.observations[1:-1]]
    if len(ended) < 3 or any(e.after for e in ended):
        return
    scale = np.std(np.stack([x for e in episodes for x in e.observations]), axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    starts = [e.observations[0] / scale for e in episodes]

    def nearest(x: np.ndarray, others: list[np.ndarray]) -> float:
        return min(float(np.linalg.norm(x - other)) for other in others)

    spread = max(nearest(x, starts[:i] + starts[i + 1 :]) for i, x in enumerate(starts))
    like_a_start = [nearest(e.observations[-1] / scale, starts) <= 1.5 * spread for e in ended]
    also_within = [nearest(x / scale, starts) <= 1.5 * spread for x in within]
    if all(like_a_start) and np.mean(also_within) < 0.5:
        raise ShoalError(
            f"{name}: step seems to reset by itself: where an episode ends, its observation is one of a "
            "reset; give the final observation, and leave resetting to whoever steps"
        )


def _check_jax(env: JaxEnv) -> None:
    """Raise where a JaxEnv can't be traced, or its types are not those of its specification."""
    name, key = env.spec.id, jax.ShapeDtypeStruct((2,), np.uint32)
    state, obs = _guarded(lambda: jax.eval_shape(env.reset, key), f"{name}: reset")
    check_types(env.spec, obs, f"{name}: the observation of reset", ())
    action = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), zeros(env.spec.action))
    stepped = _guarded(lambda: jax.eval_shape(env.step, state, action, key), f"{name}: step")
    if not (isinstance(stepped, tuple) and len(stepped) == 5):
        raise ShoalError(f"{name}: step must give (state, observation, reward, terminated, truncated)")
    after, obs, reward, *flags = stepped
    check_types(env.spec, obs, f"{name}: the observation of step", ())
    if jax.tree.structure(after) != jax.tree.structure(state):
        raise ShoalError(f"{name}: step gives a state of another structure than reset")
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ShoalError(
                f"{name}: step makes {new.dtype}{list(new.shape)} of a state's {old.dtype}{list(old.shape)}"
            )
    if reward.shape != () or reward.dtype.kind not in "fiu":
        raise ShoalError(f"{name}: the reward must be one number, not {reward.dtype}{list(reward.shape)}")
    for word, flag in zip(("terminated", "truncated"), flags, strict=True):
        if flag.shape != () or flag.dtype != bool:
            raise ShoalError(f"{name}: {word} must be one bool, not {flag.dtype}{list(flag.shape)}")
