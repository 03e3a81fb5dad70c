// RUN: not takt-opt %s -p verify-schedule 2>&1 | filecheck %s

// Seven unit operators of width 3 on the lines of the Fano plane, whose seven points are the accelerators (line i:
// points i, i + 1, i + 3 modulo 7). Any two lines meet in a point, so no two operators run at once, and with these
// sets a period of 6 is too short: the last runs when the first does. (The sets are those of
// fano_plane.mlir, where the source is named.)

takt.platform @p {accelerator = "a", accelerators = 7 : i64, memory = 1000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = []}

// CHECK: 'g' (start 0 ns{{.*}} overlap on accelerator
// CHECK-SAME: modulo the pattern of 6 ns
takt.graph @fano scheduled <6 for 1, bound 3 by "area", plan "free", engine "hand", seed 0> {
  takt.stage 0 on [0:7]
  %x = takt.input : tensor<1xi8>
  %a = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [0:2, 3:4] at 0> : (tensor<1xi8>) -> tensor<1xi8>
  %b = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [1:3, 4:5] at 1> : (tensor<1xi8>) -> tensor<1xi8>
  %c = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [2:4, 5:6] at 2> : (tensor<1xi8>) -> tensor<1xi8>
  %d = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [3:5, 6:7] at 3> : (tensor<1xi8>) -> tensor<1xi8>
  %e = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [0:1, 4:6] at 4> : (tensor<1xi8>) -> tensor<1xi8>
  %f = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [1:2, 5:7] at 5> : (tensor<1xi8>) -> tensor<1xi8>
  %g = takt.op(%x) cost <[3] time [1]> stage 0 slot <3 on [0:1, 2:3, 6:7] at 0> : (tensor<1xi8>) -> tensor<1xi8>
  takt.output %a, %b, %c, %d, %e, %f, %g : tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>, tensor<1xi8>
}
