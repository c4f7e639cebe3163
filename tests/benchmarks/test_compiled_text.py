"""What is read from the text of compiled programs."""

import pytest

from benchmarks.compiled_text import Kernel, host_transfers, instructions, kernels, largest, repeated_traffic, shapes

# As libtpu writes it, shortened: 64 heads of 40, 4096 tokens.
SPLASH = r"""HloModule jit_splash, is_scheduled=true

%fused_computation (param_0: bf16[64,40,4096]) -> bf16[64,40,4096] {
  %param_0 = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %negate.1 = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)} negate(%param_0)
}

%turn.3 (state: (s32[], f32[256,128])) -> (s32[], f32[256,128]) {
  %state = (s32[]{:T(128)}, f32[256,128]{1,0:T(8,128)}) parameter(0)
  %array = f32[256,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %copy-start.1 = (f32[256,128]{1,0:T(8,128)S(1)}, f32[256,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%array)
  ROOT %next = (s32[]{:T(128)}, f32[256,128]{1,0:T(8,128)}) tuple(%index, %array)
}

%turns.2 (state.1: (s32[], f32[256,128])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  ROOT %lt.0 = pred[]{:T(512)} compare(%index.1, %constant.1), direction=LT
}

ENTRY %main.3 (q: bf16[64,40,4096], k: bf16[64,40,4096], v: bf16[64,40,4096]) -> bf16[64,4096,40] {
  %q = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %k = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)} parameter(1)
  %v = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)} parameter(2)
  %fusion = bf16[64,40,4096]{2,1,0:T(8,128)(2,1)S(1)} fusion(%q), kind=kLoop, calls=%fused_computation
  %splash_mha_fwd_no_residuals.1 = (f32[512,128]{1,0:T(8,128)}, bf16[64,4096,40]{2,1,0:T(8,128)(2,1)}) custom-call(%fusion, %k, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 512, \"block_kv\": 2048, \"block_kv_compute\": 512}"
}}
  %while.1 = (s32[]{:T(128)}, f32[256,128]{1,0:T(8,128)}) while(%tuple.1), condition=%turns.2, body=%turn.3, metadata={}
  ROOT %out = bf16[64,4096,40]{2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mha_fwd_no_residuals.1), index=1
}
"""  # noqa: E501 (as the compiler writes it)


def test_an_array_in_memory_is_filled_up_to_whole_tiles() -> None:
    [narrow] = shapes("bf16[64,4096,40]{2,1,0:T(8,128)(2,1)}")
    [turned] = shapes("bf16[8,4096,8,40]{1,3,2,0:T(8,128)(2,1)S(1)}")
    assert narrow.bytes == 64 * 4096 * 128 * 2
    assert turned.bytes == 8 * 4096 * 8 * 40 * 2
    assert (narrow.on_chip, turned.on_chip) == (False, True)


def test_the_kernels_of_a_program_are_found_with_their_blocks() -> None:
    assert kernels(SPLASH) == [Kernel((64, 4096, 40), 4096, 2, 512, 2048)]


def test_keys_in_one_block_are_read_once() -> None:
    # Two heads, 1024 queries and 512 keys of width 128, bfloat16: 2 * 2 * 128 times (1024 + 1024 + 512 + 512).
    assert Kernel((2, 1024, 128), 512, 2, 256, 512).traffic == 2 * 2 * 128 * 3072


def test_keys_in_several_blocks_are_read_again_for_each_block_of_queries() -> None:
    # As above, and for each of the four blocks of queries all keys and values again.
    assert Kernel((2, 1024, 128), 512, 2, 256, 256).traffic == 2 * 2 * 128 * (2048 + 4 * 1024)


def test_results_narrower_than_a_register_are_written_with_all_its_lanes() -> None:
    assert Kernel((1, 512, 40), 512, 2, 512, 512).traffic == 2 * 512 * (40 + 128 + 40 + 40)


def test_both_products_of_attention_are_counted() -> None:
    assert Kernel((64, 4096, 40), 4096, 2, 512, 4096).flops == 2 * (2 * 64 * 4096 * 4096 * 40)


def test_what_stays_on_the_chip_is_no_traffic() -> None:
    fusion = next(each for each in instructions(SPLASH) if each.name == "fusion")
    assert fusion.traffic == 64 * 40 * 4096 * 2


def test_a_copy_onto_the_chip_is_read_once() -> None:
    copy = next(each for each in instructions(SPLASH) if each.name == "copy-start.1")
    assert copy.traffic == 256 * 128 * 4


def test_a_loop_of_known_length_counts_for_each_turn_after_the_first() -> None:
    assert repeated_traffic(SPLASH) == 4 * 256 * 128 * 4


def test_the_largest_instructions_come_first_and_inside_fusions_there_are_none() -> None:
    assert [name for _, name in largest(SPLASH, 2)] == ["splash_mha_fwd_no_residuals.1", "fusion"]


@pytest.mark.parametrize(
    "line",
    [
        "  %infeed.1 = ((f32[2]{0}), token[]) infeed(%token)",
        "  %send.1 = (f32[2]{0}, u32[], token[]) send(%x, %token), channel_id=1",
        "  ROOT %recv-done.1 = (f32[2]{0}, token[]) recv-done(%recv.1), channel_id=1",
        '  %call.1 = f32[2]{0} custom-call(%x), custom_call_target="xla_python_cpu_callback"',
        '  %call.2 = f32[2]{0} custom-call(%x), custom_call_target="MoveToHost"',
        "  %copy-start.1 = (f32[2]{0:T(128)S(5)}, f32[2]{0:T(128)}, u32[]) copy-start(%x)",
    ],
)
def test_transfers_between_device_and_host_are_found(line: str) -> None:
    assert len(host_transfers(f"ENTRY %main () -> f32[] {{\n{line}\n}}")) == 1


def test_a_program_without_transfers_has_none() -> None:
    assert host_transfers(SPLASH) == []
