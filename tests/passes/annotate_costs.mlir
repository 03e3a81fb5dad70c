// RUN: takt-opt %s -p annotate-costs | filecheck %s

// A Megatron-style MLP on one node of four: the column-split product leaves its result split, gelu
// works on the parts, the row-split product pays the all-reduce (times 36457 ns on four).

// CHECK: takt.graph @mlp moldable

takt.platform @node {accelerator = "a", accelerators = 4 : i64, memory = 1000000000 : i64,
  bandwidth = 1000000000000 : i64, launch = 1000 : i64, peak = {bf16 = 100000000000000 : i64},
  compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"node" 4, latency 5000, bandwidth 100000000000>]}

takt.graph @mlp model {
  %x = takt.input : tensor<1x1024x1024xbf16>
  // CHECK: %up = takt.linear(%x) {features = 1024} params 2097152 cost <[1, 2, 4] time [22475, 11737, 6369] params [2097152, 1048576, 524288] output [2097152, 1048576, 524288]> sharded [0] :
  %up = takt.linear(%x) {features = 1024} params 2097152 : (tensor<1x1024x1024xbf16>) -> tensor<1x1024x1024xbf16>
  // CHECK: %h = takt.gelu(%up) cost <[1, 2, 4] time [5194, 3097, 2049] output [2097152, 1048576, 524288]> sharded [0] :
  %h = takt.gelu(%up) : (tensor<1x1024x1024xbf16>) -> tensor<1x1024x1024xbf16>
  // CHECK: %down = takt.linear(%h) {features = 1024, split = "row"} params 2097152 cost <[1, 2, 4] time [22475, 37709, 42826] params [2097152, 1048576, 524288] output [2097152, 2097152, 2097152]> :
  %down = takt.linear(%h) {features = 1024, split = "row"} params 2097152 : (tensor<1x1024x1024xbf16>) -> tensor<1x1024x1024xbf16>
  // A table written in the model stays as it is.
  // CHECK: %end = takt.op(%down) cost <[1, 2] time [9000, 6000]>
  %end = takt.op(%down) cost <[1, 2] time [9000, 6000]> : (tensor<1x1024x1024xbf16>) -> tensor<0xi8>
  takt.output %end : tensor<0xi8>
}
