"""Made-up experience of several environments, and what a replay of it must hold, found by plain loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.replay import Layout
from shoal.spaces import Box, Discrete
from shoal.types import EnvSpec, Observation, Replay, Trajectory

ENDS = ("goes on", "terminates", "is cut")


def spec(frames: int = 1) -> EnvSpec:
    shape = (frames, 2) if frames > 1 else (2,)
    return EnvSpec(id="made-up", observation=Box(shape), action=Discrete(3), frames=frames)


def layout(envs: int, frames: int = 1, **plan: Any) -> Layout:
    return Layout.of(Replay(**{"batch_size": 8, "train_every": 1, **plan}), spec(frames), envs)


@dataclass
class History:
    """All rows of B environments, [R (+ 1), B, ...]; frame [R + 1, B, 2] is another one in every row."""

    frame: np.ndarray
    first: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    memory: np.ndarray
    frames: int

    def stack(self, t: int, b: int) -> np.ndarray:
        """What the policy saw: the frames of row t's episode up to t, the first one repeated before it."""
        seen, row = [], t
        for _ in range(self.frames):
            seen.append(self.frame[row, b])
            row -= not self.first[row, b] and row > 0
        return np.stack(seen[::-1]) if self.frames > 1 else seen[0]

    def fragment(self, start: int, rows: int) -> Trajectory:
        end, envs = start + rows, range(self.first.shape[1])
        stacks = np.array([[self.stack(t, b) for b in envs] for t in range(start, end + 1)])
        raw = {"a": self.action[start:end], "b": (self.action[start:end] * 0.5).astype(np.float32)}
        return Trajectory(
            obs=Observation(stacks, critic=self.frame[start : end + 1, :, :1], mask=stacks[..., 0] > 0),
            first=self.first[start : end + 1],
            action=self.action[start:end] + 1,
            reward=self.reward[start:end],
            terminated=self.terminated[start:end],
            version=np.zeros((rows, len(envs)), np.int32),
            extras={"raw_action": raw, "log_prob": self.reward[start:end]},
            carry={"h": self.memory[start]},
        )


def history(seed: int, rows: int, envs: int, frames: int = 1, ends: float = 0.25) -> History:
    """Episodes that terminate or are cut at random; the row after an end only resets."""
    rng = np.random.default_rng(seed)
    first = np.zeros((rows + 1, envs), bool)
    first[0] = True
    terminated = np.zeros((rows, envs), bool)
    for b in range(envs):
        over = False
        for t in range(rows):
            if over:  # this row's action does nothing, and a new episode begins behind it
                first[t + 1, b], over = True, False
                continue
            end = rng.choice(ENDS, p=[1 - ends, ends / 2, ends / 2])
            over, terminated[t, b] = end != "goes on", end == "terminates"
    frame = np.stack(np.meshgrid(np.arange(rows + 1), np.arange(envs), indexing="ij"), -1) + 1
    return History(
        frame=frame.astype(np.float32),
        first=first,
        action=rng.integers(0, 3, (rows, envs)).astype(np.int32),
        reward=np.where(first[1:], 0, rng.normal(size=(rows, envs))).astype(np.float32),
        terminated=terminated,
        memory=rng.normal(size=(rows + 1, envs, 3)).astype(np.float32),
        frames=frames,
    )


def kept(layout: Layout, head: int) -> int:
    """The oldest row (of the whole history) that is still stored when `head` rows were inserted."""
    return max(0, head - (layout.rows - 1))


def known(layout: Layout, past: History, head: int, t: int, b: int) -> bool:
    """Whether all frames of row t are still stored."""
    row = t
    for _ in range(layout.frames - 1):
        row -= not past.first[row, b]
    return row >= kept(layout, head)


def transitions(layout: Layout, past: History, head: int) -> dict[int, dict[str, Any]]:
    """Every transition that can be drawn after `head` rows, by its index."""
    found = {}
    for b in range(layout.envs):
        for t in range(kept(layout, head), head):
            if past.first[t + 1, b] or not known(layout, past, head, t, b):
                continue
            rewards, row, ended = [], t, False
            while len(rewards) < layout.n_step and row < head and not past.first[row + 1, b]:
                rewards.append(past.reward[row, b])
                ended = bool(past.terminated[row, b])
                row += 1
                if ended:
                    break
            found[t % layout.rows * layout.envs + b] = {
                "obs": past.stack(t, b),
                "critic": past.frame[t, b, :1],
                "action": past.action[t, b],
                "reward": np.array(rewards + [0.0] * (layout.n_step - len(rewards)), np.float32),
                "steps": len(rewards),
                "terminated": ended,
                "next_obs": past.stack(row, b),
            }
    return found


def sequences(layout: Layout, past: History, head: int) -> dict[int, Trajectory]:
    """Every stretch that can be drawn after `head` rows, by its index."""
    found = {}
    for t in range(0, head - layout.sequence + 1, layout.fragment):
        if t < kept(layout, head):
            continue
        whole = past.fragment(t, layout.sequence)
        for b in range(layout.envs):
            if known(layout, past, head, t, b):
                found[t % layout.rows // layout.fragment * layout.envs + b] = (whole, b)
    return found


def chi_square(expected: np.ndarray, counts: np.ndarray) -> float:
    """(chi^2 - its mean) / its standard deviation. What is never expected must never occur."""
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)
