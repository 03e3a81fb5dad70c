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

// Weight gradients of the second accelerator, and its optimizer step, wait until the next step of the first has begun.
// CHECK: takt.graph @m programs training <sgd, mixed> <131 step of 2
takt.graph @m scheduled training <sgd, mixed> <131 step of 2, bound 0 by "area", plan "1F1B", engine "hand", seed 0> {
  takt.stage 0 on [0:1]
  takt.stage 1 on [1:2]
  takt.stage 2 on [0:1]
  %x = takt.input : tensor<2x4xbf16>
  %a = takt.linear(%x) {features = 4} params 32 group "a" cost <[1] time [10]> stage 0 slot <1 on [0:1] at [0, 10]> : (tensor<2x4xbf16>) -> tensor<2x4xbf16>
  // CHECK: %a.to.1 = takt.send_recv %a to [1:2] over "node" at [10, 28] for 18
  takt.reserve %a to [1:2] over "node" at [10, 28] for 18 : tensor<2x4xbf16>
  // CHECK: takt.linear(%a.to.1)
  %b = takt.linear(%a) {features = 4} params 32 group "b" cost <[1] time [10]> stage 1 slot <1 on [1:2] at [28, 58]> : (tensor<2x4xbf16>) -> tensor<2x4xbf16>
  %l = takt.mse_loss(%b, %x) group "l" cost <[1] time [5]> stage 1 slot <1 on [1:2] at [38, 68]> : (tensor<2x4xbf16>, tensor<2x4xbf16>) -> tensor<f32>
  %l.I = takt.input_gradient(%b, %x) of <"mse_loss" (tensor<2x4xbf16>, tensor<2x4xbf16>) -> tensor<f32>, gradients [] to [0]> group "l" cost <[1] time [5]> stage 1 slot <1 on [1:2] at [43, 73]> : (tensor<2x4xbf16>, tensor<2x4xbf16>) -> tensor<2x4xbf16>
  %b.I = takt.input_gradient(%l.I) of <"linear" {features = 4 : i64} (tensor<2x4xbf16>) -> tensor<2x4xbf16>, gradients [0] to [0]> params 32 group "b" cost <[1] time [10]> stage 1 slot <1 on [1:2] at [48, 78]> : (tensor<2x4xbf16>) -> tensor<2x4xbf16>
  // CHECK: %b.I.to.0 = takt.send_recv %b.I to [0:1] over "node" at [58, 88] for 18
  takt.reserve %b.I to [0:1] over "node" at [58, 88] for 18 : tensor<2x4xbf16>
  %b.W = takt.weight_gradient(%l.I, %a) of <"linear" {features = 4 : i64} (tensor<2x4xbf16>) -> tensor<2x4xbf16>, gradients [0] to []> params 32 group "b" cost <[1] time [10]> stage 1 slot <1 on [1:2] at [88, 133]> : (tensor<2x4xbf16>, tensor<2x4xbf16>) -> tensor<0xi8>
  %a.W = takt.weight_gradient(%b.I, %x) of <"linear" {features = 4 : i64} (tensor<2x4xbf16>) -> tensor<2x4xbf16>, gradients [0] to []> params 32 group "a" cost <[1] time [20]> stage 2 slot <1 on [0:1] at [76, 106]> : (tensor<2x4xbf16>, tensor<2x4xbf16>) -> tensor<0xi8>
  %b.step = takt.optimizer_step(%b.W) params 32 group "b" cost <[1] time [7]> stage 1 slot <1 on [1:2] at 143> : (tensor<0xi8>) -> tensor<0xi8>
  %a.step = takt.optimizer_step(%a.W) params 32 group "a" cost <[1] time [5]> stage 0 slot <1 on [0:1] at 126> : (tensor<0xi8>) -> tensor<0xi8>
  takt.output %l : tensor<f32>
}

// CHECK: takt.program 0 microbatches 2 + 2 * any {
// TWO: takt.program 0 microbatches 2 + 2 * 1 {
// CHECK-NEXT: prologue {
// CHECK-NEXT: compute 0 a of 0
// CHECK-NEXT: send 0->1 a of 0 bytes [0:16] to 1
// CHECK-NEXT: free 0 a of 0
// CHECK-NEXT: compute 0 a of 1
// CHECK-NEXT: send 0->1 a of 1 bytes [0:16] to 1
// CHECK-NEXT: free 0 a of 1
// CHECK-NEXT: recv 4->1 b.I of 0 bytes [0:16] from 1
// CHECK-NEXT: compute 6 a.W of 0
// CHECK-NEXT: free in0 x, 4->1 b.I, 6 a.W of 0
// CHECK-NEXT: recv 4->1 b.I of 1 bytes [0:16] from 1
// CHECK-NEXT: compute 6 a.W of 1
// CHECK-NEXT: free in0 x, 4->1 b.I, 6 a.W of 1
// CHECK-NEXT: update 1 a.step after 1
// CHECK-NEXT: }
// CHECK-NEXT: kernel {
// CHECK-NEXT: compute 0 a of i + 2
// CHECK-NEXT: send 0->1 a of i + 2 bytes [0:16] to 1
// CHECK-NEXT: free 0 a of i + 2
// CHECK-NEXT: compute 0 a of i + 3
// CHECK-NEXT: send 0->1 a of i + 3 bytes [0:16] to 1
// CHECK-NEXT: free 0 a of i + 3
// CHECK-NEXT: recv 4->1 b.I of i + 2 bytes [0:16] from 1
// CHECK-NEXT: compute 6 a.W of i + 2
// CHECK-NEXT: free in0 x, 4->1 b.I, 6 a.W of i + 2
// CHECK-NEXT: recv 4->1 b.I of i + 3 bytes [0:16] from 1
// CHECK-NEXT: compute 6 a.W of i + 3
// CHECK-NEXT: free in0 x, 4->1 b.I, 6 a.W of i + 3
// CHECK-NEXT: update 1 a.step after i + 3
// CHECK-NEXT: }
// CHECK-NEXT: epilogue {
// CHECK-NEXT: }
// CHECK-NEXT: }
// CHECK-NEXT: takt.program 1 microbatches 2 + 2 * any {
// CHECK-NEXT: prologue {
// CHECK-NEXT: recv 0->1 a of 0 bytes [0:16] from 0
// CHECK-NEXT: compute 1 b of 0
// CHECK-NEXT: recv 0->1 a of 1 bytes [0:16] from 0
// CHECK-NEXT: compute 2 l of 0
// CHECK-NEXT: compute 3 l.I of 0
// CHECK-NEXT: free in0 x, 1 b of 0
// CHECK-NEXT: compute 4 b.I of 0
// CHECK-NEXT: send 4->1 b.I of 0 bytes [0:16] to 0
// CHECK-NEXT: free 4 b.I of 0
// CHECK-NEXT: compute 1 b of 1
// CHECK-NEXT: compute 2 l of 1
// CHECK-NEXT: compute 3 l.I of 1
// CHECK-NEXT: free in0 x, 1 b of 1
// CHECK-NEXT: compute 4 b.I of 1
// CHECK-NEXT: compute 5 b.W of 0
// CHECK-NEXT: free 0->1 a, 3 l.I, 5 b.W of 0
// CHECK-NEXT: send 4->1 b.I of 1 bytes [0:16] to 0
// CHECK-NEXT: free 4 b.I of 1
// CHECK-NEXT: }
// CHECK-NEXT: kernel {
// CHECK-NEXT: compute 5 b.W of i + 1
// CHECK-NEXT: free 0->1 a, 3 l.I, 5 b.W of i + 1
// CHECK-NEXT: recv 0->1 a of i + 2 bytes [0:16] from 0
// CHECK-NEXT: update 0 b.step after i + 1
// CHECK-NEXT: compute 1 b of i + 2
// CHECK-NEXT: recv 0->1 a of i + 3 bytes [0:16] from 0
// CHECK-NEXT: compute 2 l of i + 2
// CHECK-NEXT: compute 3 l.I of i + 2
// CHECK-NEXT: free in0 x, 1 b of i + 2
// CHECK-NEXT: compute 4 b.I of i + 2
// CHECK-NEXT: send 4->1 b.I of i + 2 bytes [0:16] to 0
// CHECK-NEXT: free 4 b.I of i + 2
// CHECK-NEXT: compute 1 b of i + 3
// CHECK-NEXT: compute 2 l of i + 3
// CHECK-NEXT: compute 3 l.I of i + 3
// CHECK-NEXT: free in0 x, 1 b of i + 3
// CHECK-NEXT: compute 4 b.I of i + 3
// CHECK-NEXT: compute 5 b.W of i + 2
// CHECK-NEXT: free 0->1 a, 3 l.I, 5 b.W of i + 2
// CHECK-NEXT: send 4->1 b.I of i + 3 bytes [0:16] to 0
// CHECK-NEXT: free 4 b.I of i + 3
// CHECK-NEXT: }
// CHECK-NEXT: epilogue {
// CHECK-NEXT: compute 5 b.W of last
// CHECK-NEXT: free 0->1 a, 3 l.I, 5 b.W of last
// CHECK-NEXT: update 0 b.step after last
// CHECK-NEXT: }
// CHECK-NEXT: }
