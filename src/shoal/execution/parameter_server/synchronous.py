"""A synchronous run: a Cluster's, with a learner whose state lies with parameter shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.execution import Iteration
from shoal.execution.cluster.synchronous import SynchronousRun
from shoal.execution.parameter_server.learner import ServerLearner
from shoal.execution.parameter_server.servers import Servers


@dataclass
class ServedRun:
    """Tells of the shards, too."""

    run: SynchronousRun
    learner: ServerLearner
    servers: Servers

    def iterate(self) -> Iteration:
        before = self.servers.spent
        done = self.run.iterate()
        apply = self.servers.spent - before
        return done._replace(
            metrics={**done.metrics, "gradients/bytes": np.array(self.learner.take_bytes())},
            spent={**done.spent, "apply": apply, **self.servers.figures()},
            events=[*done.events, *self.servers.take_events()],
        )

    def save(self) -> dict[str, Any]:
        return self.run.save()

    def load(self, saved: Mapping[str, np.ndarray], prefix: str) -> None:
        self.run.load(saved, prefix)

    def close(self) -> None:
        self.run.close()
