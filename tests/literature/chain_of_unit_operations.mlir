// RUN: takt-opt %s -p 'partition-stages{plan="stages"},schedule-periodic{plan="stages"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s
// RUN: takt-opt %s -p 'partition-stages{plan="free"},schedule-periodic{plan="free"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s --check-prefix=FREE

// A chain of seven unit operators on three accelerators: the period is ceil(7 / 3) = 3, since no accelerator can run
// less than the mean number of them, and stages of three, two and two reach it. (Elementary.)

takt.platform @p {accelerator = "a", accelerators = 3 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @chain scheduled <3 for 1, bound 3 by "area"
// FREE: takt.graph @chain scheduled <3 for 1, bound 3 by "area"
takt.graph @chain moldable {
  %x = takt.input : tensor<1xi8>
  %a = takt.op(%x) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%a) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%b) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %d = takt.op(%c) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %e = takt.op(%d) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %f = takt.op(%e) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  %g = takt.op(%f) cost <[1] time [1]> : (tensor<1xi8>) -> tensor<1xi8>
  takt.output %g : tensor<1xi8>
}
