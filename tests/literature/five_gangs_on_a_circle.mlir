// RUN: takt-opt %s -p 'partition-stages{plan="free"},schedule-periodic{plan="free" effort=2},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s
// RUN: takt-opt %s -p 'partition-stages{plan="laminar"},schedule-periodic{plan="laminar"},verify-schedule{certificate=true}' \
// RUN:   | filecheck %s --check-prefix=NESTED

// Five operators of width 2 and length 4 on five accelerators. At most two run at once, so one after the other they
// take three rounds, 12, and nested blocks do no better. Periodically, each on two neighbours of a ring of five, they
// need 10: operators that meet form a ring of five too, whose circular chromatic number is 5/2 where its chromatic
// number is 3 (Vince, "Star chromatic number", Journal of Graph Theory 12, 1988). The area alone says 8.

takt.platform @p {accelerator = "a", accelerators = 5 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: takt.graph @five scheduled <10 for 1,
// CHECK-COUNT-5: slot <2 on
// NESTED: takt.graph @five scheduled <12 for 1,
takt.graph @five moldable {
  %x = takt.input : tensor<1xi8>
  %a = takt.op(%x) cost <[2] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%x) cost <[2] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%x) cost <[2] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %d = takt.op(%x) cost <[2] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  %e = takt.op(%x) cost <[2] time [4]> : (tensor<1xi8>) -> tensor<1xi8>
  takt.output %a, %b, %c, %d, %e : tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>
}
