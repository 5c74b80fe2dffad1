// How weights are packed, and what a warp does with a step of them. A pair is 16 rows by 32 columns: two A fragments of mma.m16n8k16. Lane l has rows l / 4 and l / 4 + 8 of
// it. Each format defines the same names:
//   STEP columns of a step, PAIRS of them, STEP_WORDS of 16 bytes; Held, a lane's share, with load_once and load_again, whose `from` is the step's word `lane`;
//   NATURAL: a lane's columns are those of mma in their order, else the eight columns 8 (l % 4) .. + 7, which one load of 16 bytes brings;
//   SPREAD: a fragment's codes of the latter four of those eight count sixteenfold;
//   Totals: what a lane's activations of a pair have to be summed up for, with totals_of;
//   multiply: adds the products of a pair with a lane's activations of it, into two sums, which halves the dependency chain, or into one;
//   value_of: one value of a step.
{% if tiles.weights.operand() == "f16" %}{% include "weights/operand_f16.cuh" %}
{% else %}{% include "weights/operand_bf16.cuh" %}
{% endif %}{% match tiles.weights %}{% when crate::Format::BF16 | crate::Format::F16 %}{% include "weights/whole.cuh" %}
{% when crate::Format::Q8_0 %}{% include "weights/scaled.cuh" %}
{% include "weights/q8_0.cuh" %}
{% when crate::Format::Q4_0 %}{% include "weights/scaled.cuh" %}
{% include "weights/q4_0.cuh" %}
{% when crate::Format::Q4_1 %}{% include "weights/scaled.cuh" %}
{% include "weights/q4_1.cuh" %}
{% when crate::Format::Q4K | crate::Format::Q5K %}{% include "weights/scaled.cuh" %}
{% include "weights/q4_k.cuh" %}
{% when crate::Format::Q6K %}{% include "weights/scaled.cuh" %}
{% include "weights/q6_k.cuh" %}
{% when crate::Format::Int4x128 %}{% include "weights/scaled.cuh" %}
{% include "weights/int4_128.cuh" %}
{% when crate::Format::Q5_0 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_five.cuh" %}
{% include "weights/scale_f16.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Q5_1 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_five.cuh" %}
{% include "weights/scale_f16_offset.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Q2K %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_two.cuh" %}
{% include "weights/scale_q2_k.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Q3K %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_three.cuh" %}
{% include "weights/scale_signed_16.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Iq4Nl %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_table.cuh" %}
{% include "weights/scale_f16.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Iq4Xs %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_table.cuh" %}
{% include "weights/scale_signed_32.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Mxfp4 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_e2m1.cuh" %}
{% include "weights/scale_e8m0.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Nvfp4 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_e2m1.cuh" %}
{% include "weights/scale_f32.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Fp8 | crate::Format::Fp8x128 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_e4m3.cuh" %}
{% include "weights/scale_f32.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Int8 | crate::Format::Int8x128 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_bytes.cuh" %}
{% include "weights/scale_f32.cuh" %}
{% include "weights/blocks.cuh" %}
{% when crate::Format::Int4x32 %}{% include "weights/scaled.cuh" %}
{% include "weights/coded.cuh" %}
{% include "weights/codes_nibbles.cuh" %}
{% include "weights/scale_zero.cuh" %}
{% include "weights/blocks.cuh" %}
{%- when _ %}
#error "no kernel reads {{ tiles.weights.name() }} weights"
{%- endmatch %}
template <typename Sum, typename Step>
DEVICE void multiply(Sum& sum, Step& held, int pair, const Vec4& x) {
  multiply(sum, held, pair, x, totals_of(x));
}
static_assert(STEP == {{ tiles.packed().columns }} && STEP_WORDS * 16 == {{ tiles.packed().bytes }} && PAIRS * 32 == STEP, "as they are packed");
