// RUN: takt-opt %s -p 'partition-stages{plan="laminar"},schedule-periodic{plan="laminar" solver="buddy"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s --check-prefix=LONGEST
// RUN: takt-opt %s -p 'partition-stages{plan="laminar"},schedule-periodic{plan="laminar"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s

// Graham's worst case for longest first on m = 3 machines: 2m + 1 jobs 5, 5, 4, 4, 3, 3, 3. Longest first ends at
// 4m - 1 = 11; 5 + 4, 5 + 4 and 3 + 3 + 3 end at 3m = 9: the ratio is 4/3 - 1/(3m) ("Bounds on multiprocessing timing
// anomalies", SIAM Journal on Applied Mathematics 17, 1969, Theorem 2). Width 1 and no order: the period is the makespan.

takt.platform @p {accelerator = "a", accelerators = 3 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// LONGEST: takt.graph @graham scheduled <11 for 1, bound 9 by "area"
// CHECK: takt.graph @graham scheduled <9 for 1, bound 9 by "area"
takt.graph @graham moldable {
  %x = takt.input : tensor<1xi8>
  %a = takt.op(%x) cost <[1] time [5]> : (tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%x) cost <[1] time [5]> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%x) cost <[1] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %d = takt.op(%x) cost <[1] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %e = takt.op(%x) cost <[1] time [3]> : (tensor<1xi8>) -> tensor<1xi8>
  %f = takt.op(%x) cost <[1] time [3]> : (tensor<1xi8>) -> tensor<1xi8>
  %g = takt.op(%x) cost <[1] time [3]> : (tensor<1xi8>) -> tensor<1xi8>
  takt.output %a, %b, %c, %d, %e, %f, %g : tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>
}
