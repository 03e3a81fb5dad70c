// RUN: takt-opt %s -p lower-to-programs | filecheck %s
// RUN: takt-opt %s -p insert-communication,lower-to-programs | filecheck %s
// RUN: takt-opt %s -p 'lower-to-programs{microbatches=1}' | filecheck %s --check-prefix=ONE
// RUN: takt-opt %s -p lower-to-programs | takt-opt | filecheck %s
// RUN: takt-opt %s -p lower-to-programs --print-op-generic | takt-opt | filecheck %s
// RUN: not takt-opt %s -p 'lower-to-programs{microbatches=0}' 2>&1 | filecheck %s --check-prefix=NONE
// RUN: not takt-opt %s -p lower-to-programs,lower-to-programs 2>&1 | filecheck %s --check-prefix=AGAIN

// A value on one accelerator goes to two: each gets a half and they gather the whole, which is faster here.
// NONE: 0 micro-batches: there must be at least 1
// AGAIN: this pass takes a graph at level 'scheduled' or 'communicating', this one is at level 'programs'

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 10000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"node" 2, latency 1, bandwidth 10000000000>, #takt.link<"all" 4, latency 2, bandwidth 1000000000>]}

// CHECK: takt.graph @m programs <60 for 1
takt.graph @m scheduled <60 for 1, bound 0 by "area", plan "stages", engine "hand", seed 0> {
  takt.stage 0 on [0:1]
  takt.stage 1 on [2:4]
  %x = takt.input : tensor<8xi8>
  %a = takt.op(%x) cost <[1] time [50]> stage 0 slot <1 on [0:1] at 0> : (tensor<8xi8>) -> tensor<32xi8>
  // CHECK: %a.to.2 = takt.broadcast %a to [2:4] over "all" at 50 for 38
  takt.reserve %a to [2:4] over "all" at 50 for 38 : tensor<32xi8>
  // CHECK: takt.op(%a.to.2)
  %b = takt.op(%a) cost <[2] time [40]> stage 1 slot <2 on [2:4] at 88> : (tensor<32xi8>) -> tensor<8xi8>
  takt.output %b : tensor<8xi8>
}

// CHECK: takt.program 0 microbatches 1 + 1 * any {
// CHECK-NEXT: prologue {
// CHECK-NEXT: compute 0 a of 0
// CHECK-NEXT: free in0 x of 0
// CHECK-NEXT: send 0->1 a of 0 bytes [0:16] to 2
// CHECK-NEXT: send 0->1 a of 0 bytes [16:32] to 3
// CHECK-NEXT: free 0 a of 0
// CHECK-NEXT: }
// CHECK-NEXT: kernel {
// CHECK-NEXT: compute 0 a of i + 1
// CHECK-NEXT: free in0 x of i + 1
// CHECK-NEXT: send 0->1 a of i + 1 bytes [0:16] to 2
// CHECK-NEXT: send 0->1 a of i + 1 bytes [16:32] to 3
// CHECK-NEXT: free 0 a of i + 1
// CHECK-NEXT: }
// CHECK-NEXT: epilogue {
// CHECK-NEXT: }
// CHECK-NEXT: }
// CHECK-NEXT: takt.program 2 microbatches 1 + 1 * any {
// CHECK-NEXT: prologue {
// CHECK-NEXT: recv 0->1 a of 0 bytes [0:16] from 0
// CHECK-NEXT: all_gather 0->1 a of 0 bytes [0:32] among [2:4]
// CHECK-NEXT: }
// CHECK-NEXT: kernel {
// CHECK-NEXT: compute 1 b of i
// CHECK-NEXT: free 0->1 a of i
// CHECK-NEXT: recv 0->1 a of i + 1 bytes [0:16] from 0
// CHECK-NEXT: all_gather 0->1 a of i + 1 bytes [0:32] among [2:4]
// CHECK-NEXT: }
// CHECK-NEXT: epilogue {
// CHECK-NEXT: compute 1 b of last
// CHECK-NEXT: free 0->1 a of last
// CHECK-NEXT: }

// ONE: takt.program 0 microbatches 1 + 1 * 0 {
// ONE: kernel {
// ONE-NEXT: }
// ONE: takt.program 2 microbatches 1 + 1 * 0 {
// ONE: epilogue {
// ONE-NEXT: compute 1 b of last
