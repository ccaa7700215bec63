"""`python -m hybrid_jax`, the same as `python -m hybrid_jax.main`."""

from hybrid_jax.main import main

main()
