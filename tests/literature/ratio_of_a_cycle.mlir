// RUN: takt-opt %s -p 'partition-stages{plan="free"},schedule-periodic{plan="free"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s

// A value returns after two micro-batches through operators of 3, 2 and 2 us: the period is at least the greatest ratio
// of time to distance of a cycle, 7/2 us, however many accelerators there are (Reiter, "Scheduling parallel
// computations", Journal of the ACM 15, 1968). With four of them nothing else is in the way.

takt.platform @p {accelerator = "a", accelerators = 4 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @reiter scheduled <3500 for 1, bound 3500 by "recurrence"
takt.graph @reiter moldable {
  %x = takt.input : tensor<1xi8>
  %s = takt.state @s distance 2 : tensor<1xi8>
  %a = takt.op(%x, %s) cost <[1] time [3000]> : (tensor<1xi8>, tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%a) cost <[1] time [2000]> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%b) cost <[1] time [2000]> : (tensor<1xi8>) -> tensor<1xi8>
  takt.next @s, %c : tensor<1xi8>
  takt.output %c : tensor<1xi8>
}
