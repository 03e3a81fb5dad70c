// RUN: takt-opt %s -p expand-training,recompute-activations | filecheck %s
// RUN: takt-opt %s -p 'expand-training,recompute-activations{policy=full}' | filecheck %s --check-prefix=FULL
// RUN: takt-opt %s -p 'expand-training,recompute-activations{policy=none}' | filecheck %s --check-prefix=NONE
// RUN: not takt-opt %s -p recompute-activations 2>&1 | filecheck %s --check-prefix=FORWARD
// RUN: not takt-opt %s -p 'expand-training,recompute-activations,recompute-activations' 2>&1 | filecheck %s --check-prefix=TWICE
// RUN: taktc --pass-help recompute-activations | filecheck %s --check-prefix=HELP

// NONE-NOT: takt.recompute
// FORWARD: graph @m has no backward operators that could read recomputed values
// TWICE: graph @m has recomputed values already
// HELP: policy=

takt.graph @m model {
  %x = takt.input : tensor<4x8xbf16>
  %t = takt.input : tensor<4x8xbf16>
  %a = takt.linear(%x) {features = 8} params 128 block <"layer", 0> : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  // CHECK: %b = takt.gelu(%a) group "b" block
  %b = takt.gelu(%a) block <"layer", 0> : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  %c = takt.linear(%b) {features = 8} params 128 block <"layer", 0> : (tensor<4x8xbf16>) -> tensor<4x8xbf16>
  %l = takt.mse_loss(%c, %t) : (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<f32>
  // What the loss reads is kept.
  // CHECK: %l.I = takt.input_gradient(%c, %t)
  // FULL: %l.I = takt.input_gradient(%c, %t)
  // CHECK: %c.I = takt.input_gradient(%l.I)
  // The copy awaits the gradient that arrives at the weight gradient that it is for.
  // CHECK-NEXT: %b.R = takt.recompute(%a, %l.I) of <"gelu" (tensor<4x8xbf16>) -> tensor<4x8xbf16>, gradients [] to []> group "b" block <"layer", 0> : (tensor<4x8xbf16>, tensor<4x8xbf16>) -> tensor<4x8xbf16>
  // CHECK-NEXT: %c.W = takt.weight_gradient(%l.I, %b.R)
  // CHECK-NEXT: %b.I = takt.input_gradient(%c.I, %a)
  // CHECK-NEXT: %a.W = takt.weight_gradient(%b.I, %x)
  // All but the input of the block; the second copy follows the first and awaits nothing.
  // FULL: %a.R = takt.recompute(%x, %l.I) of <"linear" {features = 8 : i64} (tensor<4x8xbf16>) -> tensor<4x8xbf16>, gradients [] to []> params 128 group "a"
  // FULL-NEXT: %b.R = takt.recompute(%a.R) of <"gelu"
  // FULL-NEXT: %c.W = takt.weight_gradient(%l.I, %b.R)
  // FULL-NEXT: %b.I = takt.input_gradient(%c.I, %a.R)
  // FULL-NEXT: %a.W = takt.weight_gradient(%b.I, %x)
  takt.output %l : tensor<f32>
}
