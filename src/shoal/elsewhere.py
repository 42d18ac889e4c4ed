"""What other libraries call Shoal's settings, for hints: `meant`.

Names of Stable-Baselines3, CleanRL and RLlib, in the words of the command line, and those here that stand for
the same thing, though perhaps counted otherwise. The first that exists is the one to propose.
"""

from __future__ import annotations

from collections.abc import Collection

from shoal.errors import did_you_mean

_HERE: dict[str, tuple[str, ...]] = {
    # The run.
    "total-timesteps": ("steps",),
    "timesteps": ("steps",),
    "n-envs": ("envs",),
    "num-envs": ("envs",),
    "num-envs-per-worker": ("envs",),
    "num-envs-per-env-runner": ("envs",),
    "num-workers": ("runners",),
    "num-rollout-workers": ("runners",),
    "num-env-runners": ("runners",),
    "n-env-runners": ("runners",),
    "num-cpus-per-env-runner": ("cpus",),
    "num-learners": ("learners",),
    "env-config": ("env-kwargs",),
    "horizon": ("time-limit",),
    "max-episode-steps": ("time-limit",),
    "norm-obs": ("normalize-observations",),
    "observation-filter": ("normalize-observations",),
    "norm-reward": ("scale-rewards",),
    "eval-freq": ("evaluate-every",),
    "evaluation-interval": ("evaluate-every",),
    "n-eval-episodes": ("evaluate-episodes",),
    "evaluation-duration": ("evaluate-episodes",),
    "save-freq": ("checkpoint-every",),
    "exp-name": ("run-dir",),
    "tensorboard-log": ("run-dir",),
    "track": ("sink",),
    # Every algorithm.
    "lr": ("learning-rate",),
    "policy-lr": ("learning-rate",),
    "actor-lr": ("learning-rate",),
    "q-lr": ("critic-learning-rate", "learning-rate"),
    "critic-lr": ("critic-learning-rate", "learning-rate"),
    "alpha-lr": ("temperature-learning-rate",),
    "anneal-lr": ("anneal-steps",),
    "gamma": ("discount",),
    "grad-clip": ("max-grad-norm",),
    "net-arch": ("hidden",),
    "policy-kwargs": ("hidden",),
    "fcnet-hiddens": ("hidden",),
    "fcnet-activation": ("activation",),
    "activation-fn": ("activation",),
    "vf-share-layers": ("shared",),
    "use-lstm": ("memory",),
    "lstm-cell-size": ("memory",),
    # Policy gradients.
    "n-steps": ("n-step", "rollout-length"),
    "num-steps": ("rollout-length",),
    "rollout-fragment-length": ("rollout-length",),
    "n-epochs": ("epochs",),
    "num-epochs": ("epochs",),
    "update-epochs": ("epochs",),
    "num-sgd-iter": ("epochs",),
    "num-minibatches": ("minibatches",),
    "minibatch-size": ("batch-size", "minibatches"),
    "sgd-minibatch-size": ("batch-size", "minibatches"),
    "batch-size": ("minibatches",),
    "train-batch-size": ("batch-size", "rollout-length"),
    "clip-range": ("clip",),
    "clip-coef": ("clip",),
    "clip-param": ("clip",),
    "clip-vloss": ("value-clip",),
    "clip-range-vf": ("value-clip",),
    "vf-clip-param": ("value-clip",),
    "ent-coef": ("entropy-coefficient", "initial-temperature"),
    "entropy-coef": ("entropy-coefficient",),
    "entropy-coeff": ("entropy-coefficient",),
    "vf-coef": ("value-coefficient",),
    "vf-loss-coeff": ("value-coefficient",),
    "lambda": ("gae-lambda",),
    "norm-adv": ("normalize-advantages",),
    "normalize-advantage": ("normalize-advantages",),
    "kl-target": ("target-kl",),
    # Algorithms with a replay.
    "buffer-size": ("capacity",),
    "train-freq": ("train-every",),
    "train-frequency": ("train-every",),
    "policy-frequency": ("policy-delay",),
    "target-update-interval": ("target-every",),
    "target-network-frequency": ("target-every",),
    "target-network-update-freq": ("target-every",),
    "num-steps-sampled-before-learning-starts": ("learning-starts",),
    "tau": ("target-tau", "tau"),
    "epsilon": ("epsilon-start",),
    "start-e": ("epsilon-start",),
    "exploration-initial-eps": ("epsilon-start",),
    "end-e": ("epsilon-end",),
    "exploration-final-eps": ("epsilon-end",),
    "exploration-fraction": ("epsilon-steps",),
    "alpha": ("initial-temperature", "priority-exponent"),
    "autotune": ("temperature-learning-rate",),
    "prioritized-replay-alpha": ("priority-exponent",),
    "prioritized-replay-beta": ("importance-exponent",),
    "double-q": ("double",),
    "n-atoms": ("atoms",),
    "num-atoms": ("atoms",),
    "n-critics": ("critics",),
    "twin-q": ("critics",),
    "action-noise": ("exploration-noise",),
    "policy-noise": ("target-noise",),
    "target-policy-noise": ("target-noise",),
    "noise-clip": ("target-noise-clip",),
}

_COUNTED = {
    "envs": "in all",
    "runners": "with --on cluster",
    "sink": "as in --sink wandb",
    "minibatches": "their number, not their size",
    "rollout-length": "rows of each environment",
    "value-clip": "in reward units",
    "epsilon-steps": "in environment steps",
    "anneal-steps": "environment steps until it is 0",
    "target-every": "in gradient steps",
    "train-every": "in steps of all environments together",
    "temperature-learning-rate": "0 keeps the temperature as it begins",
    "hidden": "widths, as in --hidden 64 64",
    "memory": "units of a GRU",
}

_NONE = {
    "capture-video": "shoal evaluate RUN --video records an episode",
    "cuda": "JAX uses the GPU that it finds",
    "device": "JAX uses the GPU that it finds",
    "env-id": "the environment stands behind the algorithm, without a flag",
    "kl-coeff": "there is no KL penalty here",
    "save-model": "a run directory has checkpoints",
    "sde-sample-freq": "there is no state-dependent exploration here",
    "torch-deterministic": "equal seeds and settings always give equal runs",
    "use-sde": "there is no state-dependent exploration here",
}

_CLOSE = 0.75  # of difflib's measure: below it words are proposed that have nothing to do with each other


def meant(word: str, known: Collection[str]) -> str:
    """A hint for a flag that does not exist, both without their dashes."""
    switch = word.removeprefix("no-")
    names = _HERE.get(switch, ())
    here = next((name for name in names if name in known), None)
    if here is not None:
        off = "no-" if switch != word and f"no-{here}" in known else ""
        return f"here it is --{off}{here}" + (f" ({_COUNTED[here]})" if here in _COUNTED else "")
    if names:
        return f"there is none here (elsewhere: {', '.join(f'--{name}' for name in names)})"
    if switch in _NONE:
        return _NONE[switch]
    near = did_you_mean(word, known, _CLOSE)
    return near.replace("'", "'--", 1) if near.startswith("did") else "--help lists them all"
