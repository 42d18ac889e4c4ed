"""What other libraries call Shoal's settings, for hints: `meant`.

Names of Stable-Baselines3, CleanRL and RLlib, in the words of the command line, and those here that stand for
the same thing, though perhaps counted otherwise. The first that exists is the one to propose.
"""

from __future__ import annotations

from collections.abc import Collection

from shoal.errors import did_you_mean

_HERE: dict[str, tuple[str, ...]] = {
    "lr": ("learning-rate",),
    "gamma": ("discount",),
    "total-timesteps": ("steps",),
    "timesteps": ("steps",),
    "n-envs": ("envs",),
    "num-envs": ("envs",),
    "num-workers": ("runners",),
    "num-env-runners": ("runners",),
    "n-steps": ("rollout-length",),
    "num-steps": ("rollout-length",),
    "rollout-fragment-length": ("rollout-length",),
    "n-epochs": ("epochs",),
    "num-epochs": ("epochs",),
    "update-epochs": ("epochs",),
    "num-sgd-iter": ("epochs",),
    "num-minibatches": ("minibatches",),
    "minibatch-size": ("batch-size", "minibatches"),
    "batch-size": ("minibatches",),
    "train-batch-size": ("batch-size", "rollout-length"),
    "clip-range": ("clip",),
    "clip-coef": ("clip",),
    "clip-param": ("clip",),
    "ent-coef": ("entropy-coefficient", "initial-temperature"),
    "entropy-coeff": ("entropy-coefficient",),
    "vf-coef": ("value-coefficient",),
    "vf-loss-coeff": ("value-coefficient",),
    "grad-clip": ("max-grad-norm",),
    "lambda": ("gae-lambda",),
    "anneal-lr": ("anneal-steps",),
    "buffer-size": ("capacity",),
    "train-freq": ("train-every",),
    "train-frequency": ("train-every",),
    "policy-frequency": ("policy-delay",),
    "target-update-interval": ("target-every",),
    "target-network-frequency": ("target-every",),
    "exploration-fraction": ("epsilon-steps",),
    "exploration-initial-eps": ("epsilon-start",),
    "exploration-final-eps": ("epsilon-end",),
    "alpha": ("initial-temperature", "priority-exponent"),
    "policy-noise": ("target-noise",),
    "noise-clip": ("target-noise-clip",),
    "net-arch": ("hidden",),
    "use-lstm": ("memory",),
}


_COUNTED = {
    "minibatches": "their number, not their size",
    "rollout-length": "rows of each environment",
    "epsilon-steps": "in environment steps",
    "anneal-steps": "environment steps until it is 0",
    "target-every": "in gradient steps",
    "train-every": "in steps of all environments together",
    "hidden": "widths, as in --hidden 64 64",
    "memory": "units of a GRU",
}


def meant(word: str, known: Collection[str]) -> str:
    """A hint for a flag that does not exist, both without their dashes."""
    here = next((name for name in _HERE.get(word, ()) if name in known), None)
    if here is not None:
        return f"here it is --{here}" + (f" ({_COUNTED[here]})" if here in _COUNTED else "")
    near = did_you_mean(word, known)
    return near.replace("'", "'--", 1) if near.startswith("did") else "--help lists them all"
