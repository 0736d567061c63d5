"""Collectives as programs for TPUs, for CUDA and for CPUs write them, and how often they run."""

import pytest

from benchmarks.ahead._collectives import moved, sent

# A loop that counts to 5 by 1 (how a TPU's program says it), and in it one over chips, by 2 to 4.
# A gather begins before the inner loop, goes on beside its products and ends after it.
TPU = """\
HloModule jit_step

%begin (param.1: bf16[7,11]) -> (bf16[7,11], bf16[28,11]) {
  %param.1 = bf16[7,11]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[28,11]{1,0:T(8,128)} all-gather(%param.1), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[7,11]{1,0}, bf16[28,11]{1,0:T(8,128)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (param.2: bf16[7,11]) -> bf16[28,11] {
  %param.2 = bf16[7,11]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[28,11]{1,0} all-gather(%param.2), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
}

%inner_condition (param.3: (bf16[3,13], u32[])) -> pred[] {
  %constant.3 = u32[]{:T(128)} constant(4)
  %param.3 = (bf16[3,13]{1,0}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.3 = u32[]{:T(128)} get-tuple-element(%param.3), index=1
  ROOT %compare.3 = pred[]{:T(512)} compare(%get-tuple-element.3, %constant.3), direction=LT
}

%inner_body (param.4: (bf16[3,13], u32[])) -> (bf16[3,13], u32[]) {
  %param.4 = (bf16[3,13]{1,0}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.4 = bf16[3,13]{1,0} get-tuple-element(%param.4), index=0
  %get-tuple-element.5 = u32[]{:T(128)} get-tuple-element(%param.4), index=1
  %collective-permute-start = (bf16[3,13]{1,0:T(8,128)}, bf16[3,13]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.4), channel_id=5, source_target_pairs={{0,1},{1,0}}, metadata={op_name="jit(step)/q_proj/dot_general"}
  %collective-permute-done = bf16[3,13]{1,0:T(8,128)} collective-permute-done(%collective-permute-start)
  %fusion.5 = bf16[28,11]{1,0} fusion(%get-tuple-element.4), kind=kOutput, calls=%beside
  %constant.4 = u32[]{:T(128)} constant(2)
  %add.4 = u32[]{:T(128)} add(%get-tuple-element.5, %constant.4)
  ROOT %tuple.4 = (bf16[3,13]{1,0}, u32[]{:T(128)}) tuple(%collective-permute-done, /*index=1*/%add.4)
}

%condition (param.5: (s32[], bf16[3,13])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(5)
  %param.5 = (s32[]{:T(128)}, bf16[3,13]{1,0}) parameter(0)
  %get-tuple-element.6 = s32[]{:T(128)} get-tuple-element(%param.5), index=0
  ROOT %lt.5 = pred[]{:T(512)} compare(%get-tuple-element.6, %constant.5), direction=LT
}

%body (param.6: (s32[], bf16[3,13])) -> (s32[], bf16[3,13]) {
  %param.6 = (s32[]{:T(128)}, bf16[3,13]{1,0}) parameter(0)
  %get-tuple-element.7 = s32[]{:T(128)} get-tuple-element(%param.6), index=0
  %async-collective-start = (bf16[7,11]{1,0}, bf16[28,11]{1,0}) fusion(%param.6), kind=kCustom, calls=%begin
  %while.6 = (bf16[3,13]{1,0}, u32[]{:T(128)}) while(%param.6), condition=%inner_condition, body=%inner_body
  %constant.6 = s32[]{:T(128)} constant(1)
  %add.6 = s32[]{:T(128)} add(%get-tuple-element.7, %constant.6)
  ROOT %tuple.6 = (s32[]{:T(128)}, bf16[3,13]{1,0}) tuple(%add.6, %param.6)
}

ENTRY %main (param.7: (s32[], bf16[3,13])) -> (s32[], bf16[3,13]) {
  %param.7 = (s32[]{:T(128)}, bf16[3,13]{1,0}) parameter(0)
  ROOT %while.7 = (s32[]{:T(128)}, bf16[3,13]{1,0}) while(%param.7), condition=%condition, body=%body
}
"""  # noqa: E501

# Collectives that have begun say what goes in and what comes out; a loop says how often it turns.
CUDA = """\
HloModule jit_step

%wrapped (p: f32[12,5]) -> f32[3,5] {
  %p = f32[12,5]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = f32[3,5]{1,0} reduce-scatter(%p), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}, to_apply=%add
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p.1: f32[12,5]) -> f32[12,5] {
  %p.1 = f32[12,5]{1,0} parameter(0)
  %all-gather-start = ((bf16[3,5]{1,0}, bf16[5,2]{0,1}), (bf16[12,5]{1,0}, /*index=1*/bf16[20,2]{0,1})) all-gather-start(%p.1, %p.1), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %all-gather-done = (bf16[12,5]{1,0}, bf16[20,2]{0,1}) all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[12,5]{1,0}), (f32[3,5]{1,0})) reduce-scatter-start(%p.1), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
  %all-reduce-start = f32[12,5]{1,0} all-reduce-start(%p.1), channel_id=3, replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%add
  ROOT %all-reduce-done = f32[12,5]{1,0} all-reduce-done(%all-reduce-start)
}

ENTRY %main (p.2: f32[12,5]) -> f32[12,5] {
  %p.2 = f32[12,5]{1,0} parameter(0)
  %async-start = ((f32[12,5]{1,0}), f32[3,5]{1,0}) async-start(%p.2), calls=%wrapped
  %async-done = f32[3,5]{1,0} async-done(%async-start), calls=%wrapped
  %all-to-all = f32[12,5]{1,0} all-to-all(%p.2), dimensions={0}
  ROOT %while = f32[12,5]{1,0} while(%p.2), condition=%never, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


def told(text):
    return {each.name: (each.shapes, each.chips, each.times) for each in moved(text, 8)}


def test_a_tpus_loops_count_by_their_steps_and_a_gather_beside_products_counts_once():
    assert told(TPU) == {
        "all-gather": (((28, 11),), 4, 5),
        "collective-permute": (((3, 13),), 8, 5 * 2),
    }
    assert sent(moved(TPU, 8)) == {
        "all-gather": 5 * 28 * 11 * 2 * 3 / 4,
        "collective-permute": 10 * 3 * 13 * 2,
    }


def test_the_operation_behind_a_collective_is_known():
    origins = {each.name: each.origin for each in moved(TPU, 8)}
    assert origins == {"all-gather": "", "collective-permute": "jit(step)/q_proj/dot_general"}


def test_what_has_begun_is_counted_by_what_comes_out():
    found = moved(CUDA, 8)
    scattered = [each for each in found if each.name == "reduce-scatter"]
    assert {(each.shapes, each.chips, each.times) for each in scattered} == {
        (((3, 5),), 4, 1),
        (((3, 5),), 4, 3),
    }
    assert told(CUDA) | {"reduce-scatter": None} == {
        "all-gather": (((12, 5), (20, 2)), 4, 3),
        "all-reduce": (((12, 5),), 2, 3),
        "reduce-scatter": None,
        "all-to-all": (((12, 5),), 8, 1),
    }
    assert sent(found) == {
        "reduce-scatter": (1 + 3) * 3 * (3 * 5 * 4),
        "all-gather": 3 * (12 * 5 + 20 * 2) * 2 * 3 / 4,
        "all-reduce": 3 * 2 * (12 * 5 * 4) / 2,
        "all-to-all": 12 * 5 * 4 * 7 / 8,
    }


def test_a_part_of_a_meshs_axis_is_a_group_of_that_size():
    line = CUDA.replace("{'b'}", "{'b','c':(2)2}")
    assert told(line)["all-reduce"][1] == 4


def test_a_loop_whose_turns_are_not_known_is_an_error():
    with pytest.raises(ValueError, match="inner_condition"):
        moved(TPU.replace("add(%get-tuple-element.5", "multiply(%get-tuple-element.5"), 8)
