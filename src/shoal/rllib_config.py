"""RLlib's configuration of PPO in Shoal's words: `translate`, which `bridge.PPOTrainer` uses.

Keys that are left out take Shoal's defaults, but for the shape of an iteration, which is RLlib's: 2 workers
of 1 environment, 4000 steps, minibatches of about 128. A key that Shoal cannot honour is refused with one
line; none is ignored that would have changed what is learned. (Names and defaults are those of RLlib 1,
rllib/agents/trainer.py and rllib/agents/ppo/ppo.py; later names of the same things are known too.)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.algorithms.ppo import PPO
from shoal.envs.source import is_jax_env
from shoal.errors import ShoalError, did_you_mean
from shoal.execution.local import Local

# RLlib's keys and the settings of PPO that they become.
_ALGORITHM = {
    "lr": "learning_rate",
    "gamma": "discount",
    "lambda": "gae_lambda",
    "clip_param": "clip",
    "vf_clip_param": "value_clip",  # as the first versions had it: the value is clipped
    "vf_loss_coeff": "value_coefficient",
    "entropy_coeff": "entropy_coefficient",
    "grad_clip": "max_grad_norm",
    "kl_target": "target_kl",
    "num_sgd_iter": "epochs",
}
_MODEL = ("fcnet_hiddens", "fcnet_activation", "vf_share_layers", "use_lstm", "lstm_cell_size")
_SHAPE = (
    "num_workers",
    "num_envs_per_worker",
    "train_batch_size",
    "sgd_minibatch_size",
    "rollout_fragment_length",
)
_OTHER = ("env", "env_config", "framework", "model", "seed", "horizon", "observation_filter", "explore")
_ALIASES = {
    "num_rollout_workers": "num_workers",
    "num_env_runners": "num_workers",
    "num_envs_per_env_runner": "num_envs_per_worker",
    "minibatch_size": "sgd_minibatch_size",
    "num_epochs": "num_sgd_iter",
    "lambda_": "lambda",
}
# Where and how loudly it runs: nothing that is learned depends on these, so any value will do.
_WITHOUT_EFFECT = (
    "log_level",
    "num_cpus_per_worker",
    "num_cpus_for_driver",
    "num_gpus_per_worker",
    "ignore_worker_failures",
    "recreate_failed_workers",
    "create_env_on_driver",
    "log_sys_usage",
    "disable_env_checking",
    "eager_tracing",
)
# Keys that have one value here. Those values are accepted, and the reason is given for others.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_gpus": ((0,), "JAX uses the GPU that it finds (pip install 'shoal[cuda]'); leave it out"),
    "kl_coeff": ((0,), "Shoal's PPO has no KL penalty; leave it out (kl_target stops an update early)"),
    "batch_mode": (("truncate_episodes",), "Shoal learns from fragments and bootstraps where they are cut"),
    "use_gae": ((True,), "Shoal's PPO always uses GAE; lambda=1.0 gives plain returns"),
    "use_critic": ((True,), "Shoal's PPO always has a critic; shoal.REINFORCE(baseline=False) has none"),
    "shuffle_sequences": ((True,), "Shoal always shuffles"),
    "clip_actions": ((True,), "actions always lie within the bounds of their space"),
    "normalize_actions": ((True,), "actions are always scaled to the bounds of their space"),
    "lr_schedule": ((), "shoal.PPO(anneal_steps=...) lets the learning rate fall linearly to 0"),
    "entropy_coeff_schedule": ((), "the entropy bonus is constant"),
    "evaluation_interval": ((), "call evaluate(), or use shoal.Trainer(evaluate_every=...)"),
    "callbacks": ((), "call train() in a loop of your own and look at each result"),
    "multiagent": ((), "Shoal trains one policy"),
}
_KNOWN = {*_ALGORITHM, *_SHAPE, *_OTHER, *_WITHOUT_EFFECT, *_FIXED}
_BATCH, _MINIBATCH = 4000, 128  # RLlib's defaults


@dataclass(frozen=True, kw_only=True)
class Translated:
    """What a configuration of RLlib's means here. options: further arguments of `Trainer`; notes: what the
    user should be told, a line each."""

    algorithm: PPO
    env: Any
    on: Local
    options: dict[str, Any]
    explore: bool
    notes: tuple[str, ...]


def translate(config: Mapping[str, Any]) -> Translated:
    """RLlib's configuration in Shoal's words. Raises ShoalError for what has no counterpart."""
    given = _known(config)
    if given.get("env") is None:
        raise ShoalError('config needs an environment, such as {"env": "CartPole-v1"}')
    notes = []
    framework = given.get("framework", "jax")
    if framework not in ("jax", None):
        if framework not in (known := ("jax", "tf", "tf2", "tfe", "torch")):
            raise ShoalError(f"unknown framework {framework!r}: {did_you_mean(str(framework), known)}")
        notes.append(f"framework={framework!r} is accepted, but Shoal computes in JAX")
    workers = _count(given, "num_workers", 2, least=0)
    if workers:
        notes.append(f"num_workers={workers}: they are {workers} groups of environments in this process")
    model, model_notes = _model(given.get("model") or {})
    envs = max(workers, 1) * _count(given, "num_envs_per_worker", 1)
    rows, minibatches = _shape(given, envs, "memory" in model)
    settings = {_ALGORITHM[key]: value for key, value in given.items() if key in _ALGORITHM}
    if "epochs" in settings:
        settings["epochs"] = _count(given, "num_sgd_iter", 1)
    options: dict[str, Any] = {"env_kwargs": _env_kwargs(given["env"], given.get("env_config") or {})}
    if given.get("seed") is not None:
        options["seed"] = _count(given, "seed", 0, least=0)
    if given.get("horizon") is not None:
        options["time_limit"] = _count(given, "horizon", 1)
    filters = {"NoFilter": False, "MeanStdFilter": True}
    if (chosen := given.get("observation_filter", "NoFilter")) not in filters:
        raise ShoalError(f"unknown observation_filter {chosen!r}: {did_you_mean(str(chosen), filters)}")
    return Translated(
        algorithm=PPO(rollout_length=rows, minibatches=minibatches, **settings, **model),
        env=given["env"],
        on=Local(envs=envs, groups=max(workers, 1)),
        options=options | {"normalize_observations": filters[chosen]},
        explore=bool(given.get("explore", False)),
        notes=(*notes, *model_notes),
    )


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration under one name for each thing, every key known."""
    given: dict[str, Any] = {}
    for key, value in config.items():
        name = _ALIASES.get(key, key)
        if name not in _KNOWN:
            raise ShoalError(f"unknown key {key!r} in config: {_nearest(key, (*_KNOWN, *_ALIASES))}")
        if name in given:
            raise ShoalError(f"config gives {name!r} twice, under two of its names")
        if name in _FIXED:
            accepted, why = _FIXED[name]
            if value is not None and value not in accepted:
                raise ShoalError(f"{key}={value!r} is not possible: {why}")
        elif name in _ALGORITHM and value is not None and not _is_number(value):
            raise ShoalError(f"{key} must be a number, got {value!r}")
        given[name] = value
    # None stands for "no clipping", "no limit" where RLlib has it so; elsewhere for the default.
    without = ("grad_clip", "vf_clip_param", "kl_target")
    return {key: value for key, value in given.items() if value is not None or key in without}


def _nearest(key: str, candidates: Any) -> str:
    near = did_you_mean(str(key), candidates)
    return (
        near if near.startswith("did") else "shoal.Trainer and shoal.PPO know more settings than this bridge"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _count(given: Mapping[str, Any], key: str, default: int, *, least: int = 1) -> int:
    return _whole(given.get(key, default), key, least)


def _whole(value: Any, what: str, least: int) -> int:
    if not _is_number(value) or value != int(value) or value < least:
        raise ShoalError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _model(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """PPO's settings of the network, and what to say of them."""
    for key in model:
        if key == "max_seq_len":
            raise ShoalError("model max_seq_len is not possible: a memory learns from whole fragments")
        if key not in _MODEL:
            raise ShoalError(f"unknown key {key!r} in config['model']: {_nearest(key, _MODEL)}")
    settings: dict[str, Any] = {}
    if "fcnet_hiddens" in model:
        settings["hidden"] = tuple(
            _whole(width, "a width in fcnet_hiddens", 1) for width in model["fcnet_hiddens"]
        )
    if "fcnet_activation" in model:
        settings["activation"] = {"swish": "silu"}.get(model["fcnet_activation"], model["fcnet_activation"])
    if "vf_share_layers" in model:
        settings["shared"] = bool(model["vf_share_layers"])
    if not model.get("use_lstm"):
        return settings, []
    settings["memory"] = _count(model, "lstm_cell_size", 256)
    return settings, [f"use_lstm: the memory is a GRU of {settings['memory']} units"]


def _shape(given: Mapping[str, Any], envs: int, recurrent: bool) -> tuple[int, int]:
    """(rows of a fragment, minibatches) from RLlib's three sizes, which must divide each other.

    An iteration takes one fragment of every environment, of train_batch_size / envs rows; RLlib's shorter
    fragments lie end to end in it. Without memory a minibatch holds single steps, with it whole fragments.
    A train_batch_size that is not given is 4000, rounded up to what the others divide.
    """
    length = given.get("rollout_fragment_length", "auto")
    chunk = 1 if length == "auto" else _count(given, "rollout_fragment_length", 1)
    size = _count(given, "sgd_minibatch_size", 1) if "sgd_minibatch_size" in given else None
    unit = envs * chunk if size is None or recurrent else math.lcm(envs * chunk, size)
    batch = _count(given, "train_batch_size", -(-_BATCH // unit) * unit)
    if batch % unit:
        sizes = [f"{envs} environments"] + ([] if chunk == 1 else [f"rollout_fragment_length={chunk}"])
        of = " times ".join(sizes) + ("" if unit == envs * chunk else f", and of sgd_minibatch_size={size}")
        near = -(-batch // unit) * unit
        raise ShoalError(f"train_batch_size={batch} must be a multiple of {of}; {near} is one")
    whole = envs if recurrent else batch  # what the minibatches divide among them
    if size is None:
        counts = [n for n in range(1, whole + 1) if whole % n == 0]
        return batch // envs, min(counts, key=lambda n: abs(math.log(batch / n / _MINIBATCH)))
    if batch % size or whole % (batch // size):
        sizes = ", ".join(str(batch // n) for n in range(1, envs + 1) if envs % n == 0)
        raise ShoalError(
            f"sgd_minibatch_size={size} is not possible: with use_lstm a minibatch holds whole fragments, so "
            f"train_batch_size={batch} and {envs} environments allow {sizes}"
        )
    return batch // envs, batch // size


def _env_kwargs(env: Any, env_config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by which an environment gets its env_config: keywords for a registered one, the first
    argument for a class or a function, as RLlib hands it over."""
    if isinstance(env, str) or is_jax_env(env):
        return dict(env_config)
    if not callable(env):
        raise ShoalError(f"env must be an id, a class or a function, got {env!r}")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(env).parameters.values() if p.kind in named]
    if env_config and not parameters:
        raise ShoalError("env_config is given, but the environment takes no argument")
    needed = parameters and (env_config or parameters[0].default is inspect.Parameter.empty)
    return {parameters[0].name: dict(env_config)} if needed else {}
