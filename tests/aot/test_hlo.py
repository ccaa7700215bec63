"""What is read in the text of a compiled program: collectives, kernels, bytes."""

import pytest

from hybrid_jax.aot import hlo, kernels, worker

# As the TPU compiler prints: a loop of noted length, one whose condition tells, a channel cut into pieces by fusions,
# an all-reduce that is a reduce-scatter, an update in place, results outside of HBM (S(1)), a transfer to a slice.
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%start (p: bf16[8,4]) -> (bf16[8,4], bf16[16,4]) {
  %p = bf16[8,4]{1,0} parameter(0)
  %g.1 = bf16[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}
  ROOT %t = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) tuple(%p, %g.1)
}

%done (p: bf16[8,4]) -> bf16[16,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %g.2 = bf16[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}
}

%async_collective_fusion.9 (p: bf16[8,4]) -> bf16[8,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %g.3 = bf16[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}
  ROOT %more = bf16[8,4]{1,0} negate(%p)
}

%scatter (p: f32[64]) -> f32[32] {
  %p = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%p), channel_id=8, replica_groups=[4,2]<=[8], to_apply=%add
  %i = s32[] constant(0)
  ROOT %part = f32[32]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={32}
}

%update (p: f32[10,64], q: f32[1,64]) -> f32[10,64] {
  %p = f32[10,64]{1,0} parameter(0)
  %q = f32[1,64]{1,0} parameter(1)
  %i = s32[] constant(0)
  ROOT %d = f32[10,64]{1,0} dynamic-update-slice(%p, %q, %i, %i)
}

%body (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %s = (s32[], f32[64]{0}) parameter(0)
  %w = f32[64]{0} get-tuple-element(%s), index=1
  %in_vmem = f32[64]{0:T(128)S(1)} negate(%w)
  %async-collective-start = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) fusion(%w), kind=kCustom, calls=%start
  %async-collective-done = bf16[16,4]{1,0:S(1)} fusion(%w), kind=kCustom, calls=%done
  %fusion.9 = bf16[8,4]{1,0:S(1)} fusion(%w), kind=kOutput, calls=%async_collective_fusion.9
  %fusion.1 = f32[32]{0} fusion(%w), kind=kCustom, calls=%scatter
  %fusion.2 = f32[10,64]{1,0} fusion(%w, %w), kind=kLoop, calls=%update
  ROOT %out = (s32[], f32[64]{0}) tuple(%w, %w)
}

%condition (s: (s32[], f32[64])) -> pred[] {
  %s = (s32[], f32[64]{0}) parameter(0)
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%s, %n), direction=LT
}

ENTRY %main (w: f32[64]) -> f32[64] {
  %w = f32[64]{0} parameter(0)
  %loop = (s32[], f32[64]{0}) while(%w), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce-start = f32[64]{0} all-reduce-start(%w), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %all-reduce-done = f32[64]{0} all-reduce-done(%all-reduce-start)
  %cp = (f32[64]{0}, f32[64]{0}, u32[], u32[]) collective-permute-start(%w), channel_id=2, source_target_pairs={{0,1}}
  %a2a = (f32[8]{0}, f32[8]{0}) all-to-all(%w, %w), channel_id=3, replica_groups={{0,1}}
  %send = (f32[64]{0:T(128)}, u32[], token[]) send(%w, %w), channel_id=4
  ROOT %result = f32[64]{0} copy(%w)
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    found = hlo.count(PROGRAM)
    kinds = {kind: (c["count"], c["bytes"], c["moved_bytes"]) for kind, c in found["collectives"].items()}
    assert kinds == {
        "all_reduce": (1, 256, 384),
        "all_gather": (5, 5 * 128, 5 * 64),
        "reduce_scatter": (5, 5 * 128, 5 * 128),
        "all_to_all": (1, 64, 32),
        "collective_permute": (1, 256, 256),
    }
    assert found["between_slices"] == {"count": 1, "bytes": 256}
    # The result, two collectives, and in each turn the scattered part, the updated row and the comparison.
    assert found["hbm_written_bytes"] == 256 + 256 + 64 + 5 * (128 + 256 + 1)


def test_without_a_note_the_loops_condition_tells_how_often_it_runs():
    text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert hlo.count(text)["collectives"]["all_gather"]["count"] == 3


# As the GPU compiler prints: several arrays in one asynchronous collective, operands before results.
GPU_PROGRAM = """HloModule jit_step

ENTRY %main (w: f32[64]) -> f32[64] {
  %w = f32[64]{0} parameter(0)
  %g = ((bf16[8,4]{1,0}, f32[8]{0}), (bf16[16,4]{1,0}, f32[16]{0})) all-gather-start(%w, %w), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'b'}
  %g.done = (bf16[16,4]{1,0}, f32[16]{0}) all-gather-done(%g)
  %r = ((f32[32,8]{1,0}), f32[4,8]{1,0}) reduce-scatter-start(%w), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  %r.done = f32[4,8]{1,0} reduce-scatter-done(%r)
  %a = f32[64]{0} all-reduce-start(%w), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %a.done = f32[64]{0} all-reduce-done(%a)
  %t = ((bf16[1,2]{1,0}), bf16[1,2]{1,0}) all-to-all-start(%w), channel_id=4, replica_groups=[4,2]<=[8], dimensions={1}
  %t.done = bf16[1,2]{1,0} all-to-all-done(%t)
  %f = (bf16[2,2]{1,0}, u8[0]{0}) custom-call(%w), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %result = f32[64]{0} copy(%w)
}
"""  # noqa: E501


def test_asynchronous_collectives_of_gpus_are_counted():
    found = hlo.count(GPU_PROGRAM)["collectives"]
    kinds = {kind: (c["count"], c["bytes"]) for kind, c in found.items()}
    assert kinds == {
        "all_reduce": (1, 256), "all_gather": (1, 192), "reduce_scatter": (1, 128), "all_to_all": (1, 4),
        "collective_permute": (0, 0),
    }  # fmt: skip
    assert worker.attention_form(GPU_PROGRAM) == "cudnn" and worker.attention_form(PROGRAM) == "plain"
    assert worker.attention_form('custom-call(), custom_call_target="tpu_custom_call"') == "splash"


# A loop of two turns with a product into a stack of results, whose slice another stream updates; a fused look-up.
KERNELS = """HloModule jit_step

%update (p0: f32[8,64], p1: s32[], p2: f32[1,64]) -> f32[8,64] {
  %p0 = f32[8,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,64]{1,0} parameter(2)
  ROOT %u = f32[8,64]{1,0} dynamic-update-slice(%p0, %p2, %p1, %p1)
}

%look (q0: f32[100,64], q1: s32[5,1]) -> f32[5,64] {
  %q0 = f32[100,64]{1,0} parameter(0)
  %q1 = s32[5,1]{1,0} parameter(1)
  ROOT %g = f32[5,64]{1,0} gather(%q0, %q1), offset_dims={1}
}

%multiply (a: bf16[16,32], b: bf16[32,64]) -> f32[16,64] {
  %a = bf16[16,32]{1,0} parameter(0)
  %b = bf16[32,64]{1,0} parameter(1)
  ROOT %d = f32[16,64]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[16,32], w: bf16[32,64], t: f32[100,64], i: s32[5,1], s: f32[8,64], n: s32[], r: f32[1,64]) -> f32[16,64] {
  %x = bf16[16,32]{1,0} parameter(0)
  %w = bf16[32,64]{1,0} parameter(1)
  %t = f32[100,64]{1,0} parameter(2)
  %i = s32[5,1]{1,0} parameter(3)
  %s = f32[8,64]{1,0} parameter(4)
  %n = s32[] parameter(5)
  %r = f32[1,64]{1,0} parameter(6)
  %start = ((f32[8,64]{1,0}, s32[], f32[1,64]{1,0}), f32[8,64]{1,0}, u32[]) fusion-start(%s, %n, %r), kind=kLoop, calls=%update
  %done = f32[8,64]{1,0} fusion-done(%start)
  %found = f32[5,64]{1,0} fusion(%t, %i), kind=kLoop, calls=%look, metadata={op_name="jit(step)/look"}
  ROOT %y = f32[16,64]{1,0} fusion(%x, %w), kind=kCustom, calls=%multiply
}
"""  # noqa: E501


def test_kernels_read_and_write_what_they_touch():
    assert hlo.count(KERNELS)["hbm_written_bytes"] == 4 * (64 + 5 * 64 + 16 * 64)
    found = kernels.kernels(KERNELS)
    moved = [k.moved_bytes for k in found]
    # The row and its place, which both are read, and the row written; the look-up's rows twice and its places.
    assert moved == [4 + 2 * 4 * 64, 2 * 4 * 5 * 64 + 20, 2 * 16 * 32 + 2 * 32 * 64 + 4 * 16 * 64]
    assert [k.flops for k in found] == [0, 0, 2 * 16 * 32 * 64] and found[1].name == "jit(step)/look"
    # The product is bound by arithmetic at this rate, the two others by memory.
    assert kernels.seconds(found, 1e6, 1e9, 0.5) == pytest.approx(1.5 + (516 + 2580) / 1e9 + 0.065536)
    told = kernels.estimate(KERNELS, 65536, 1e6, 1e9)
    assert told["bound_by"] == "compute" and told["kernels"] == 3 and told["step_seconds"][0] < told["step_seconds"][1]


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[2,3]{1,0:T(8,128)}", 24), ("bf16[16]{0}", 32), ("pred[]", 1), ("s4[3]{0:T(8,128)(4,1)E(4)}", 1),
     ("(f32[2]{0}, /*index=5*/(u8[3]{0}, s32[]))", 15), ("token[]", 0), ("f8e4m3fn[4]{0}", 4)],
)  # fmt: skip
def test_sizes_of_printed_shapes(shape, size):
    assert hlo.shape_bytes(shape) == size


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2},{3,4,5}}", 3), ("[2,3]<=[6]", 3), ("[4]<=[4]", 4), ("mesh['a'=4,'b'=2], device_ids=([2]) {'a','b'}", 8),
     ("mesh['a'=8] {'a':(1)4}", 4)],
)  # fmt: skip
def test_sizes_of_groups_in_every_notation(groups, size):
    assert hlo.group_size(hlo.Instruction("x", "f32[]", "all-reduce", f"%w), replica_groups={groups}", False)) == size
