// RUN: takt-opt %s -p lower-to-programs | filecheck %s
// RUN: takt-opt %s -p lower-to-programs | takt-opt | filecheck %s
// RUN: takt-opt %s -p lower-to-programs --print-op-generic | takt-opt | filecheck %s
// RUN: takt-opt %s -p 'lower-to-programs{microbatches=4}' | filecheck %s --check-prefix=TWO
// RUN: not takt-opt %s -p 'lower-to-programs{microbatches=3}' 2>&1 | filecheck %s --check-prefix=HALF

// HALF: 3 micro-batches are no whole steps: the schedule is a step of 2
// HALF: run a multiple of 2 micro-batches, such as 2 or 4

takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = 10000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"node" 2, latency 2, bandwidth 1000000000>]}

// The second accelerator begins a step later than the first, and ends it when the first is in the next.
// CHECK: takt.graph @m programs <95 step of 2
takt.graph @m scheduled <95 step of 2, bound 0 by "area", plan "1F1B", engine "hand", seed 0> {
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) group "a" cost <[1] time [10]> stage 0 slot <1 on [0:1] at [0, 10]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %a.to.1 = takt.send_recv %a to [1:2] over "node" at [10, 30] for 10
  takt.reserve %a to [1:2] over "node" at [10, 30] for 10 : tensor<8xi8>
  // CHECK: takt.op(%a.to.1)
  %b = takt.op(%a) group "b" cost <[1] time [10]> stage 1 slot <1 on [1:2] at [20, 40]> : (tensor<8xi8>) -> tensor<8xi8>
  %b.I = takt.op(%b) group "b" cost <[1] time [10]> stage 1 slot <1 on [1:2] at [30, 50]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %b.I.to.0 = takt.send_recv %b.I to [0:1] over "node" at [40, 60] for 10
  takt.reserve %b.I to [0:1] over "node" at [40, 60] for 10 : tensor<8xi8>
  %b.W = takt.op(%b) group "b" cost <[1] time [15]> stage 1 slot <1 on [1:2] at [60, 75]> : (tensor<8xi8>) -> tensor<0xi8>
  %a.W = takt.op(%b.I) group "a" cost <[1] time [20]> stage 0 slot <1 on [0:1] at [50, 70]> : (tensor<8xi8>) -> tensor<0xi8>
  %b.step = takt.optimizer_step(%b.W) group "b" cost <[1] time [5]> stage 1 slot <1 on [1:2] at 96> : (tensor<0xi8>) -> tensor<0xi8>
  %a.step = takt.optimizer_step(%a.W) group "a" cost <[1] time [5]> stage 0 slot <1 on [0:1] at 90> : (tensor<0xi8>) -> tensor<0xi8>
  takt.output %b : tensor<8xi8>
}

// CHECK: takt.program 0 microbatches 2 + 2 * any {
// TWO: takt.program 0 microbatches 2 + 2 * 1 {
// CHECK-NEXT: prologue {
// CHECK-NEXT: compute 0 a of 0
// CHECK-NEXT: free in0 x of 0
// CHECK-NEXT: compute 0 a of 1
