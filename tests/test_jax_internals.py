"""JAX's private names: there in this version, and told in one line where they are not."""

import pathlib
import re

import jax
import pytest

import hybrid_jax
from hybrid_jax import jax_internals
from hybrid_jax.errors import IncompatibleError, explain


def test_the_installed_jax_has_what_is_used():
    assert jax_internals.distributed_state().num_processes == 1
    assert jax_internals.cluster() is None or jax_internals.cluster().get_process_count() >= 1


@pytest.mark.parametrize(
    ("module", "name", "attributes", "missing"),
    [
        ("jax._src.distribution", "global_state", (), "jax._src.distribution.global_state"),
        ("jax._src.distributed", "state_of_all", (), "jax._src.distributed.state_of_all"),
        ("jax._src.distributed", "global_state", ("client", "servant"), "jax._src.distributed.global_state.servant"),
    ],
)
def test_a_missing_name_is_one_line_with_the_version(module, name, attributes, missing):
    with pytest.raises(IncompatibleError) as caught:
        jax_internals.private(module, name, attributes)
    line, code = explain(caught.value)
    assert code == 1 and "\n" not in line
    assert missing in line and jax.__version__ in line and "constraints" in line


def test_no_other_module_takes_private_names():
    package = pathlib.Path(hybrid_jax.__file__).parent
    takers = [p.name for p in package.rglob("*.py") if re.search(r"(from|import) jax\._src", p.read_text())]
    assert takers == [] and "jax._src" in (package / "jax_internals.py").read_text()
