"""One process of several that add up arrays: with JAX as learners do, or with PyTorch over gloo alone.

The child of `learners.py exchange`; it imports neither Shoal nor Ray, to run in a peer's environment too.
Rank 0 prints one line of JSON: bytes -> seconds of each repetition.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def jax_sum(rank: int, count: int, port: int) -> Callable[[int], Callable[[], Any]]:
    os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": "1"}
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank, cluster_detection_method="deactivate")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    add = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec()
        )
    )

    def of(size: int) -> Callable[[], Any]:
        own = NamedSharding(mesh, PartitionSpec("x"))
        whole = (count, size // 4)
        x = jax.make_array_from_callback(whole, own, lambda part: np.ones((1, whole[1]), np.float32))
        return lambda: add(x).block_until_ready()

    return of


def torch_sum(rank: int, count: int, port: int) -> Callable[[int], Callable[[], Any]]:
    import torch  # type: ignore[import-not-found]
    import torch.distributed as together  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    together.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)

    def of(size: int) -> Callable[[], Any]:
        x = torch.ones(size // 4)
        return lambda: together.all_reduce(x)

    return of


def main() -> None:
    how, rank, count, port, sizes, repeats = json.loads(sys.argv[1])
    of = {"jax": jax_sum, "torch": torch_sum}[how](rank, count, port)
    found: dict[int, list[float]] = {}
    for size in sizes:
        add = of(size)
        for _ in range(3):
            add()
        found[size] = []
        for _ in range(repeats):
            begun = time.perf_counter()
            add()
            found[size].append(time.perf_counter() - begun)
    if rank == 0:
        print("BENCH " + json.dumps(found), flush=True)
    time.sleep(0.2)  # the first to end would take the others' connections along
    os._exit(0)


if __name__ == "__main__":
    main()
