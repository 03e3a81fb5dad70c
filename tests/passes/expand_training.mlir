// RUN: takt-opt %s -p expand-training | filecheck %s
// RUN: takt-opt %s -p 'expand-training{optimizer=sgd precision=full}' | filecheck %s --check-prefix=SGD
// RUN: takt-opt %s -p 'expand-training{backward=3.0}' | filecheck %s --check-prefix=RATIO
// RUN: not takt-opt %s -p expand-training,expand-training 2>&1 | filecheck %s --check-prefix=TWICE
// RUN: taktc --pass-help expand-training | filecheck %s --check-prefix=HELP

// CHECK: takt.graph @m model training <adam, mixed>
// SGD: takt.graph @m model training <sgd, full>
// RATIO: %c.I = {{.*}} cost <[1] time [12000]
// TWICE: graph @m has its backward operators already
// HELP: optimizer=

takt.graph @m model {
  %x = takt.input : tensor<4x8xbf16>
  %y = takt.input : tensor<4x8xbf16>
  // CHECK: %a = takt.linear(%x) {features = 8} params 128 group "a" :
  %a = takt.linear(%x) {features = 8} params 128 : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  // CHECK: %b = takt.relu(%a) group "b" :
  %b = takt.relu(%a) : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  %c = takt.gelu(%b) cost <[1] time [4000] output [64]> : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  // A sum hands its gradient on, to both operands; it is in no group.
  // CHECK: %d = takt.add(%a, %c) :
  %d = takt.add(%a, %c) : (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<4x8xbf16>
  // CHECK: %l = takt.mse_loss(%d, %y) group "l" :
  %l = takt.mse_loss(%d, %y) : (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<f32>
  // CHECK-NEXT: %l.I = takt.input_gradient(%d, %y) of <"mse_loss" (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<f32>, gradients [] to [0]> group "l" :
  // A written table: no parameters, so I takes all of it, twice as long.
  // CHECK-NEXT: %c.I = takt.input_gradient(%l.I, %b) of <"gelu" (tensor<4x8xbf16>) -> tensor<4x8xbf16>, gradients [0] to [0]> group "c" cost <[1] time [8000] output [64]> :
  // CHECK-NEXT: %b.I = takt.input_gradient(%c.I, %b) of <"relu" (tensor<4x8xbf16>) -> tensor<4x8xbf16>, gradients [0] to [0]> group "b" :
  // CHECK-NEXT: %a.sum = takt.add(%l.I, %b.I) group "a" :
  // No input needs a gradient, so the first product has that of its weight only.
  // CHECK-NEXT: %a.W = takt.weight_gradient(%a.sum, %x) of <"linear" {features = 8 : i64} (tensor<4x8xbf16>) -> tensor<4x8xbf16>, gradients [0] to []> params 128 group "a" : (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<0xi8>
  // CHECK-NEXT: %a.step = takt.optimizer_step(%a.W) params 128 group "a" : (tensor<0xi8>) -> tensor<0xi8>
  // CHECK-NEXT: takt.output %l : tensor<f32>
  takt.output %l : tensor<f32>
}
