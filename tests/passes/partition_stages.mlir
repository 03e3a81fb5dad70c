// RUN: takt-opt %s -p partition-stages | filecheck %s
// RUN: takt-opt %s -p 'partition-stages{stages=2}' | filecheck %s --check-prefix=TWO
// RUN: takt-opt %s -p 'partition-stages{plan="operators"}' | filecheck %s --check-prefix=ONE
// RUN: not takt-opt %s -p 'partition-stages{memory-reserve=950}' 2>&1 | filecheck %s --check-prefix=FULL
// RUN: not takt-opt %s -p 'partition-stages{stages=9}' 2>&1 | filecheck %s --check-prefix=MANY

// Four accelerators in two nodes. The least period is 10 us: one stage of two accelerators for the heavy
// operator, one accelerator each for what stands before and after it.

// CHECK: takt.graph @m staged
// CHECK-NEXT: takt.stage 0 on [0:1]
// CHECK-NEXT: takt.stage 1 on [2:4]
// CHECK-NEXT: takt.stage 2 on [1:2]
// TWO: takt.graph @m staged
// TWO-NEXT: takt.stage 0 on [0:2]
// TWO-NEXT: takt.stage 1 on [2:3]
// ONE: takt.graph @m staged
// ONE-NEXT: takt.stage 0 on [0:4]
// FULL: the parameters do not fit
// FULL-SAME: 990 bytes on each of 4 accelerators (950 of them reserved for live values), the platform has 970: 20 bytes are missing
// MANY: 3 operations on 4 accelerators cannot be cut into 9 contiguous stages

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 970 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"node" 2, latency 0, bandwidth 1000000000000>,
    #takt.link<"all" 4, latency 0, bandwidth 1000000000000>]}

takt.graph @m moldable {
  %x = takt.input : tensor<8xi8>
  // CHECK: %a = takt.op{{.*}} stage 0 :
  // TWO: %a = takt.op{{.*}} stage 0 :
  // ONE: %a = takt.op{{.*}} stage 0 :
  %a = takt.op(%x) cost <[1, 2] time [8000, 5000] params [40, 20] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %b = takt.op{{.*}} stage 1 :
  // TWO: %b = takt.op{{.*}} stage 0 :
  // ONE: %b = takt.op{{.*}} stage 0 :
  %b = takt.op(%a) cost <[1, 2] time [19000, 10000] params [80, 40] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %c = takt.op{{.*}} stage 2 :
  // TWO: %c = takt.op{{.*}} stage 1 :
  // ONE: %c = takt.op{{.*}} stage 0 :
  %c = takt.op(%a, %b) cost <[1, 2] time [9000, 9500] params [40, 20] output [8, 4]> : (tensor<8xi8>, tensor<8xi8>) -> tensor<8xi8>
  takt.output %c : tensor<8xi8>
}
