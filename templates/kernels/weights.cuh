// How weights are packed, and what a warp does with a step of them. Each format has a file that defines the same names.
{% match tiles.weights %}{% when crate::Format::BF16 %}{% include "weights/bf16.cuh" %}
{% when _ %}#error "no kernel reads {{ tiles.weights.name() }} weights"
{% endmatch %}static_assert(STEP == {{ tiles.packed().columns }} && STEP_WORDS * 16 == {{ tiles.packed().bytes }}, "as they are packed");
