// RUN: takt-opt %s -p schedule-periodic | filecheck %s
// RUN: takt-opt %s -p 'schedule-periodic,insert-communication' | filecheck %s --check-prefix=MOVED

// A value for two stages is reserved one transfer for each: %a goes to [1:2] first, which reads it first, and to
// [2:4] cut in two, whose halves the two gather. Where sets agree (%c to %d) nothing moves.

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 1000000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"all" 4, latency 100, bandwidth 1000000000>]}

// CHECK: takt.graph @m scheduled <10000 for 1, bound 10000 by "longest operation"
takt.graph @m staged {
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  takt.stage 2 on [2:4]
  %x = takt.input : tensor<8xi8>
  // CHECK: %a = takt.op{{.*}} slot <1 on [0:1] at 0>
  // CHECK-NEXT: takt.reserve %a to [1:2] over "all" at 10000 for 2100 : tensor<2000xi8>
  // CHECK-NEXT: takt.reserve %a to [2:4] over "all" at 12100 for 3200
  // MOVED: %a.to.1 = takt.send_recv %a to [1:2] over "all" at 10000 for 2100 : tensor<2000xi8>
  // MOVED-NEXT: %a.to.2 = takt.broadcast %a to [2:4] over "all" at 12100 for 3200
  %a = takt.op(%x) cost <[1] time [10000] output [2000]> stage 0 : (tensor<8xi8>) -> tensor<2000xi8>
  // CHECK: %b = takt.op{{.*}} slot <1 on [1:2] at 12100>
  // CHECK-NEXT: takt.reserve %b to [2:4] over "all" at 19100 for
  // MOVED: %b = takt.op(%a.to.1)
  %b = takt.op(%a) cost <[1] time [7000] output [8]> stage 1 : (tensor<2000xi8>) -> tensor<8xi8>
  // CHECK: %c = takt.op
  // CHECK-NEXT: %d = takt.op
  // MOVED: %c = takt.op(%a.to.2, %b.to.2)
  // MOVED-NEXT: %d = takt.op(%c)
  %c = takt.op(%a, %b) cost <[2] time [5000] output [8]> stage 2 : (tensor<2000xi8>, tensor<8xi8>) -> tensor<8xi8>
  %d = takt.op(%c) cost <[2] time [5000] output [8]> stage 2 : (tensor<8xi8>) -> tensor<8xi8>
  takt.output %d : tensor<8xi8>
}
