"""Compiles a training step of the JAX reference for TPU v4 chips that need not be there, and says what XLA made of it.

``python tests/tpu/compile.py '{"shape": {"layers": 118, ...}, ...}' --program FILE``: a process of its own, as libtpu
gives no memory back. The case is JSON, see ``case.Case``; one line of JSON is printed, and the compiled program is
written to ``FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no cloud machine to ask
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing is touched that two processes could not share
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference import palm, pods
from tpu.case import Case


def compile_case(case: Case):
    """The compiled training step."""
    slices = {"num_slices": case.pods} if case.pods > 1 else {}
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"v4:{case.topology}", chip_config_name="megacore", **slices
    )
    mesh = Mesh(np.array(topology.devices).reshape(case.pods, case.data, case.model), ("pod", "data", "model"))
    lies = pods.shardings(mesh)
    weights = {
        name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=lies[name])
        for name, size in pods.weight_shapes(case.shape).items()
    }
    rows = NamedSharding(mesh, PartitionSpec(palm.BATCH))
    tokens = jax.ShapeDtypeStruct((case.sequences * case.pods * case.data, case.length), jnp.int32, sharding=rows)
    number = jax.ShapeDtypeStruct((), jnp.float32)

    def step(params, state, token_ids, targets, k):
        return pods.train_step(
            params, state, token_ids, targets, k, case.shape, mesh=mesh, dtype=jnp.bfloat16, recompute=case.recompute
        )

    state = {"v": lies, "m": lies}
    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(lies, state, whole, whole))
    return jitted.lower(weights, {"v": weights, "m": weights}, tokens, tokens, number).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", help="JSON")
    parser.add_argument("--program", metavar="FILE", help="where to write the text of the compiled program")
    options = parser.parse_args()
    start = time.monotonic()
    case = json.loads(options.case)
    compiled = compile_case(Case(**{**case, "shape": palm.Shape(**case["shape"])}))
    memory = compiled.memory_analysis()
    if options.program:
        Path(options.program).write_text(compiled.as_text())
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "flops": (compiled.cost_analysis() or {}).get("flops"),
        "seconds": time.monotonic() - start,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
