"""PaLM, its loss and its optimizer, written again in JAX from the papers: the independent witness of the parity tests.

Nothing here imports ``mindspore_palm``, and nothing in ``mindspore_palm`` imports this.
"""

from functools import partial

import jax

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""``jax.jit`` that compiles in half the time. Without it, JAX compiles every op of a function by itself."""
