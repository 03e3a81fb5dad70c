// RUN: takt-opt %s -p 'restrict-allotments{to=2}' | filecheck %s
// RUN: takt-opt %s -p 'restrict-allotments{to=2},restrict-allotments{to=2}' | filecheck %s
// RUN: takt-opt %s -p 'partition-stages{stages=1 allotments=stage},restrict-allotments{to=2}' | filecheck %s --check-prefix=LATER
// RUN: takt-opt %s -p 'restrict-allotments{to=2},partition-stages{allotments=stage},schedule-periodic{allotments=stage},verify-schedule{certificate=true}' | filecheck %s --check-prefix=SCHEDULED
// RUN: not takt-opt %s -p 'restrict-allotments{to=4}' 2>&1 | filecheck %s --check-prefix=NONE
// RUN: not takt-opt %s -p 'restrict-allotments{to=2},partition-stages,schedule-periodic,restrict-allotments{to=2}' 2>&1 | filecheck %s --check-prefix=LATE
// RUN: not takt-opt %s -p restrict-allotments 2>&1 | filecheck %s --check-prefix=REQUIRED
// RUN: taktc --pass-help restrict-allotments | filecheck %s --check-prefix=HELP

// Five accelerators; on two accelerators each, the operators take 5, 10 and 9 us in two stages. One accelerator
// stays idle: no stage is three wide.

// CHECK: takt.graph @m moldable
// LATER: takt.graph @m staged
// LATER-NEXT: takt.stage 0 on [0:2]
// SCHEDULED: takt.graph @m scheduled
// SCHEDULED-SAME: 15000
// SCHEDULED-NEXT: takt.stage 0 on [0:2]
// SCHEDULED-NEXT: takt.stage 1 on [2:4]
// SCHEDULED-NOT: takt.stage
// NONE: 'a' (op) cannot run on 4 accelerators, only on 1 or 2
// NONE: hint: all operators can run on 1 or 2
// NONE: 'c' (op) cannot run on 4 accelerators, only on 1, 2 or 3
// NONE-NOT: cannot run
// LATE: this pass takes a graph at level moldable or staged, this one is at level 'scheduled'
// REQUIRED: restrict-allotments
// HELP: to=an integer
// HELP-NEXT: the number of accelerators that every operator runs on

takt.platform @p {accelerator = "a", accelerators = 5 : i64, memory = 970 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

takt.graph @m moldable {
  %x = takt.input : tensor<8xi8>
  // CHECK: %a = takt.op(%x) cost <[2] time [5000] params [20] output [4]> :
  // LATER: %a = takt.op(%x) cost <[2] time [5000] params [20] output [4]> stage 0 :
  // SCHEDULED: %a = takt.op(%x) {{.*}}stage 0 slot <2 on [0:2] at 0>
  %a = takt.op(%x) cost <[1, 2] time [8000, 5000] params [40, 20] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %b = takt.op(%a) cost <[2] time [10000] params [40] output [4]> :
  // SCHEDULED: %b = takt.op(%a) {{.*}}stage 0 slot <2 on [0:2] at 5000>
  %b = takt.op(%a) cost <[1, 2] time [19000, 10000] params [80, 40] output [8, 4]> : (tensor<8xi8>) -> tensor<8xi8>
  // CHECK: %c = takt.op(%a, %b) cost <[2] time [9500] params [20] output [4]> :
  // SCHEDULED: %c = takt.op(%a, %b) {{.*}}stage 1 slot <2 on [2:4] at {{[0-9]+}}>
  %c = takt.op(%a, %b) cost <[1, 2, 3] time [9000, 9500, 9000] params [40, 20, 10] output [8, 4, 2]> : (tensor<8xi8>, tensor<8xi8>) -> tensor<8xi8>
  takt.output %c : tensor<8xi8>
}
