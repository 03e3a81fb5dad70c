// RUN: takt-opt %s -p schedule-periodic | filecheck %s
// RUN: takt-opt %s -p 'schedule-periodic{plan="laminar" seed=7}' | filecheck %s --check-prefix=NESTED

// The first block runs stages 0 and 2, the second stage 1: there and back. In order, each stage would have to
// wait for the other block; on the circle the period is the load of the first block.

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @m scheduled <10000 for 1, bound 9000 by "area", plan "stages", engine "alignment", seed 0>
// NESTED: takt.graph @m scheduled <10000 for 1, bound 9000 by "area", plan "laminar", engine "cp-sat, least of its plan", seed 7>
takt.graph @m staged {
  takt.stage 0 on [0:2]
  takt.stage 1 on [2:4]
  takt.stage 2 on [0:2]
  %x = takt.input : tensor<8xi8>
  // CHECK: %a = takt.op{{.*}} stage 0 slot <2 on [0:2] at 0>
  // NESTED: %a = takt.op{{.*}} stage 0 slot <2 on [0:2] at 0>
  %a = takt.op(%x) cost <[1, 2] time [8000, 5000] params [40, 20] output [8, 4]> stage 0 : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %b = takt.op{{.*}} stage 1 slot <1 on [2:3] at 5000>
  // NESTED: %b = takt.op{{.*}} stage 1 slot <1 on [2:3] at 5000>
  %b = takt.op(%a) cost <[1, 3] time [9000, 8000] params [80, 40] output [8, 4]> stage 1 : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %c = takt.op{{.*}} stage 2 slot <2 on [0:2] at 15000>
  // NESTED: %c = takt.op{{.*}} stage 2 slot <2 on [0:2] at 15000>
  %c = takt.op(%b) cost <[2] time [5000] params [20] output [4]> stage 2 : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %c : tensor<8xi8>
}
