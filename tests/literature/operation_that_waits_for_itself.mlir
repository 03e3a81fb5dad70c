// RUN: takt-opt %s -p 'partition-stages{plan="stages"},schedule-periodic{plan="stages"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s

// An operator of length 3 that reads its own result of the micro-batch before: period 3 on any platform. After the
// case "self_arc" of the scheduling tests of CIRCT (github.com/llvm/circt, test/Scheduling), whose initiation interval
// is 3 as well.

takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @self_arc scheduled <3 for 1, bound 3
takt.graph @self_arc moldable {
  %x = takt.input : tensor<1xi8>
  %s = takt.state @s distance 1 : tensor<1xi8>
  %a = takt.op(%x, %s) cost <[1] time [3]> : (tensor<1xi8>, tensor<1xi8>) -> tensor<1xi8>
  takt.next @s, %a : tensor<1xi8>
  takt.output %a : tensor<1xi8>
}
