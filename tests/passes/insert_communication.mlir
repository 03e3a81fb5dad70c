// RUN: takt-opt %s -p insert-communication | filecheck %s
// RUN: takt-opt %s -p insert-communication | takt-opt -p verify-level | filecheck %s
// RUN: takt-opt %s -p insert-communication --print-op-generic | takt-opt | filecheck %s
// RUN: not takt-opt %s -p insert-communication,insert-communication 2>&1 | filecheck %s --check-prefix=AGAIN

// A skip connection: %a is read next door and two sets further, and by the next micro-batch. Each destination
// gets one transfer; what the next micro-batch reads elsewhere arrives in a state of its own. Through buffers, the
// value leaves once and lands where and when it is wanted.
// AGAIN: this pass takes a graph at level 'scheduled', this one is at level 'communicating'

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 10000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"all" 4, latency 2, bandwidth 1000000000>], transfers = "buffered"}

// CHECK: takt.graph @m communicating <100 for 1
takt.graph @m scheduled <100 for 1, bound 0 by "area", plan "stages", engine "hand", seed 0> {
  takt.stage 0 on [0:2]
  takt.stage 1 on [2:3]
  takt.stage 2 on [3:4]
  %x = takt.input : tensor<8xi8>
  // CHECK: %s = takt.state @s distance 1 : tensor<8xi8>
  // CHECK-NEXT: %s.to.2 = takt.state @s.to.2 distance 1 : tensor<8xi8>
  %s = takt.state @s distance 1 : tensor<8xi8>
  // CHECK-NEXT: %a = takt.op(%x)
  // CHECK-NEXT: %a.to.2 = takt.gather %a to [2:3] over "all" at 40 for 10 landing 50 : tensor<8xi8>
  // CHECK-NEXT: %a.to.3 = takt.gather %a to [3:4] over "all" at 40 for 10 landing 70 : tensor<8xi8>
  %a = takt.op(%x) cost <[2] time [40]> sharded [0] stage 0 slot <2 on [0:2] at 0> : (tensor<8xi8>) -> tensor<8xi8>
  takt.reserve %a to [2:3] over "all" at 40 for 10 landing 50 : tensor<8xi8>
  takt.reserve %a to [3:4] over "all" at 40 for 10 landing 70 : tensor<8xi8>
  // CHECK-NEXT: %b = takt.op(%a.to.2, %s.to.2)
  // CHECK-NEXT: %b.to.3 = takt.send_recv %b to [3:4] over "all" at 100 for 10 landing 110 : tensor<8xi8>
  %b = takt.op(%a, %s) cost <[1] time [40]> stage 1 slot <1 on [2:3] at 60> : (tensor<8xi8>, tensor<8xi8>) -> tensor<8xi8>
  takt.reserve %b to [3:4] over "all" at 100 for 10 landing 110 : tensor<8xi8>
  // CHECK-NEXT: %c = takt.op(%b.to.3, %a.to.3)
  %c = takt.op(%b, %a) cost <[1] time [40]> stage 2 slot <1 on [3:4] at 120> : (tensor<8xi8>, tensor<8xi8>) -> tensor<8xi8>
  // CHECK: takt.next @s, %a : tensor<8xi8>
  // CHECK-NEXT: takt.next @s.to.2, %a.to.2 : tensor<8xi8>
  takt.next @s, %a : tensor<8xi8>
  takt.output %c : tensor<8xi8>
}
