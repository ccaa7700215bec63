"""The arithmetic of what accelerators must communicate at least, and the tables of what they do."""

import pytest

from benchmarks.accelerators import tables
from hybrid_jax.aot import hlo

GIB, MIB = 2**30, 2**20
PARAMETERS = 1000


@pytest.mark.parametrize(
    ("mesh", "least"),
    [
        ({"data": 1, "fsdp": 1}, (0, 0, 0)),
        # 2 x 3/4 of the gradients; 3/4 of 2 x 8 embeddings of 32 float32 numbers.
        ({"data": 4, "fsdp": 1}, (1536, 1536, 6000)),
        # Weights twice over two devices, gradients once; a half of them over the other two.
        ({"data": 2, "fsdp": 2}, (1536 + 4000, 1536 + 2000, 2000)),
    ],
)
def test_the_least_that_is_moved(tiny_config, mesh, least):
    config = tiny_config()
    config.train.batch_size = 8
    config.model.projection_dims = (16, 32)
    config.model.dtype = "float32"
    found = tables.minimum(config, mesh, PARAMETERS)
    assert tuple(found[kind] for kind in tables.KINDS[:3]) == least
    config.model.dtype = "bfloat16"
    config.objective.contrastive_weight = 0.0
    half = tables.minimum(config, {"data": 1, "fsdp": 2}, PARAMETERS)
    assert half["all_gather"] == 2 * half["reduce_scatter"] == 2000 and half["all_reduce"] == 0


PROGRAM = """HloModule jit_step

%fused (a: bf16[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %c.1 = bf16[8,4]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%body (s: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %s = (s32[], bf16[8,16]) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element(%s), index=1
  %w = bf16[16,4]{1,0} constant({...})
  %f = bf16[8,4]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused
  ROOT %t = (s32[], bf16[8,16]) tuple(%s, %x)
}

%condition (s: (s32[], bf16[8,16])) -> pred[] {
  %s = (s32[], bf16[8,16]) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (x: f32[3,8,16]) -> f32[3,8,5] {
  %x = f32[3,8,16]{2,1,0} parameter(0)
  %y = f32[3,16,5]{2,1,0} constant({...})
  %z = (s32[], bf16[8,16]) while(%i), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %b = f32[3,8,5]{2,1,0} convolution(%x, %y), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf
  %g = (f32[8,5], s8[99]) custom-call(%u, %v), CUBLAS
  %u = f32[8,16]{1,0} parameter(1)
  %v = f32[16,5]{1,0} parameter(2)
  ROOT %d = f32[3,8,5]{2,1,0} dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
}
""".replace(
    "CUBLAS", 'custom_call_target="__cublas$gemm", backend_config={"dimensions":{"lhs_contracting_dimensions":["1"]}}'
)


def test_products_are_counted_as_often_as_their_loop_runs():
    batched = 2 * 3 * 8 * 16 * 5
    assert hlo.flops(PROGRAM) == 7 * 2 * 8 * 16 * 4 + batched + 2 * 8 * 16 * 5 + batched


def test_holes_and_padding_of_a_window_are_no_products():
    assert hlo.meetings(5, 5, 3, 1, (1, 1), 1, 1) == 13
    assert hlo.meetings(4, 4, 4, 3, (0, 0), 4, 1) == 4


def test_tables_name_ratios_and_what_is_missing(tiny_config):
    kinds = {kind: {"count": 0, "bytes": 0, "moved_bytes": 0} for kind in tables.KINDS}
    kinds["all_reduce"] = {"count": 3, "bytes": 0, "moved_bytes": 3 * MIB}
    answer = {
        "devices": 2, "mesh": {"data": 2, "fsdp": 1}, "parameters": MIB // 4, "flops": 10.0, "collectives": kinds,
        "peak_bytes_per_device": 2 * GIB, "available_bytes_per_device": 16 * GIB, "compile_seconds": 9.0,
        "temporaries_bytes_per_device": GIB, "hbm_written_bytes": 5e9, "compiled_flops_per_device": 6,
        "program_bytes_per_device": MIB, "attention": "plain",
    }  # fmt: skip
    config = tiny_config()
    config.objective.contrastive_weight, config.model.dtype = 0.0, "float32"
    assert "| a | 2 | 0.3 | 2.00 of 16.00 | 1.00 | 10.0 | 1.20 | 9 |" in tables.sizes([("a", answer)])
    assert "| a | not compiled |" in tables.sizes([("a", None)])
    table = tables.collectives([("a", config, answer), ("b", config, None)])
    assert "| a | all_reduce | 3 | 3.00 | 1.00 | 3.00 |" in table and "| b |" not in table
    large = answer | {"collectives": None, "peak_bytes_per_device": 20 * GIB}
    switched = tables.switches([("remat", ("a", large), ("b", answer))])
    assert "| remat | without | a | does not fit: 20.0 of 16.00 |" in switched
    assert "| remat | with | b | 1.00 | 10.0 | 1.20 | 3.0 | 1 | 9 |" in switched
