// RUN: takt-opt %s -p verify-schedule | filecheck %s
// RUN: takt-opt %s -p 'verify-schedule{certificate=true}' | filecheck %s
// RUN: takt-opt %s -p 'verify-schedule{certificate=true work=1.5}' | filecheck %s

// Two operators on two accelerators: 9000 ns is the longest, 14000 ns of area the least. The bound is proved from
// the tables alone, and the module is left as it is.

takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @m scheduled <9000 for 1, bound 9000 by "longest operation", plan "stages", engine "alignment", seed 0>
takt.graph @m scheduled <9000 for 1, bound 9000 by "longest operation", plan "stages", engine "alignment", seed 0> {
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  %x = takt.input : tensor<8xi8>
  // CHECK: %a = takt.op{{.*}} stage 0 slot <1 on [0:1] at 0>
  %a = takt.op(%x) cost <[1] time [5000] params [20] output [4]> stage 0 slot <1 on [0:1] at 0> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %b = takt.op{{.*}} stage 1 slot <1 on [1:2] at 5000>
  %b = takt.op(%a) cost <[1] time [9000] params [20] output [4]> stage 1 slot <1 on [1:2] at 5000> : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %b : tensor<8xi8>
}
