// RUN: takt-opt %s -p 'partition-stages{plan="free"},schedule-periodic{plan="free"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s
// RUN: takt-opt %s -p 'partition-stages{plan="replicated"},schedule-periodic{plan="replicated"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s --check-prefix=COPIES

// Three operators of length 2 on two accelerators. Where each keeps its accelerator two of them meet, and the period
// is 4. Where each alternates between both, the area of 6 / 2 = 3 is reached: a pattern of two micro-batches beats
// every pattern of one. (Elementary: 3 is odd.)

takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @three scheduled <4 for 1, bound 4
// COPIES: takt.graph @three scheduled <3 for 1, bound 3 by "area"
// COPIES-COUNT-3: slot <1 on [0:1], [1:2] at
takt.graph @three moldable {
  %x = takt.input : tensor<1xi8>
  %a = takt.op(%x) cost <[1] time [2]> : (tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%x) cost <[1] time [2]> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%x) cost <[1] time [2]> : (tensor<1xi8>) -> tensor<1xi8>
  takt.output %a, %b, %c : tensor<1xi8>, tensor<1xi8>, tensor<1xi8>
}
