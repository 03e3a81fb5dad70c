// RUN: takt-opt %s -p 'partition-stages{plan="laminar"},schedule-periodic{plan="laminar"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s

// Three equal stages; forward, input gradient and weight gradient of a stage share its parameters and so its
// accelerator. The period is TF + TB + TW = 3 + 4 + 2 us: no accelerator waits in the steady state, whatever the order
// in which micro-batches pass (Qi, Wan, Huang, Lin, "Zero bubble pipeline parallelism", ICLR 2024; 1F1B has the same
// steady state, its bubbles are those of a finite batch).

takt.platform @p {accelerator = "a", accelerators = 3 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @zero_bubble scheduled <9000 for 1, bound 9000 by
takt.graph @zero_bubble moldable {
  %x = takt.input : tensor<1xi8>
  %f0 = takt.op(%x) group "s0" cost <[1] time [3000]> : (tensor<1xi8>) -> tensor<1xi8>
  %f1 = takt.op(%f0) group "s1" cost <[1] time [3000]> : (tensor<1xi8>) -> tensor<1xi8>
  %f2 = takt.op(%f1) group "s2" cost <[1] time [3000]> : (tensor<1xi8>) -> tensor<1xi8>
  %b2 = takt.op(%f2) group "s2" cost <[1] time [4000]> : (tensor<1xi8>) -> tensor<1xi8>
  %w2 = takt.op(%f2, %f1) group "s2" cost <[1] time [2000]> : (tensor<1xi8>, tensor<1xi8>) -> tensor<1xi8>
  %b1 = takt.op(%b2) group "s1" cost <[1] time [4000]> : (tensor<1xi8>) -> tensor<1xi8>
  %w1 = takt.op(%b2, %f0) group "s1" cost <[1] time [2000]> : (tensor<1xi8>, tensor<1xi8>) -> tensor<1xi8>
  %b0 = takt.op(%b1) group "s0" cost <[1] time [4000]> : (tensor<1xi8>) -> tensor<1xi8>
  %w0 = takt.op(%b1, %x) group "s0" cost <[1] time [2000]> : (tensor<1xi8>, tensor<1xi8>) -> tensor<1xi8>
  takt.output %w0, %w1, %w2 : tensor<1xi8>, tensor<1xi8>, tensor<1xi8>
}
