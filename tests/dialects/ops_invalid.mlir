// Malformed text: each case ends with the line, the column and the words of its message.
// A case stands in a graph unless it begins with "module:".

%c = takt.op() cost <[1, 2] time [5]> : () -> tensor<0xi8>
// error: 1:21: 2 allotments but 1 entries of 'time'
// -----
%c = takt.op() cost <[2, 1] time [5, 6]> : () -> tensor<0xi8>
// error: 1:21: allotments must be positive and increasing, got [2, 1]
// -----
%c = takt.op() cost <[] time []> : () -> tensor<0xi8>
// error: 1:21: a cost table needs at least one allotment
// -----
%c = takt.op() cost <[1] time [-5]> : () -> tensor<0xi8>
// error: 1:21: 'time' must not be negative, got [-5]
// -----
%c = takt.op() cost <[1] time [9223372036854775808]> : () -> tensor<0xi8>
// error: 1:32: 9223372036854775808 does not fit in 64 bits
// -----
%c = takt.op() cost <[1] times [5]> : () -> tensor<0xi8>
// error: 1:26: Expected 'time'
// -----
%c = takt.op() cost <[1] time [true]> : () -> tensor<0xi8>
// error: 1:32: Expected integer literal
// -----
%c = takt.op() cost #takt.cost<[1] time [5]> : () -> tensor<0xi8>
// error: 1:21: '<' expected
// -----
%c = takt.op() {table = #takt.cost<[1, 1] time [5, 5]>} : () -> tensor<0xi8>
// error: 1:17: 'op' has no argument 'table' (it has: none)
// -----
%c = takt.op() attributes {table = #takt.cost<[1, 1] time [5, 5]>} : () -> tensor<0xi8>
// error: 1:46: allotments must be positive and increasing, got [1, 1]
// -----
%c = takt.op() block <"decoder", -1> : () -> tensor<0xi8>
// error: 1:22: 'index' must be a 64-bit integer of at least 0, got -1
// -----
%c = takt.op() block <decoder, 1> : () -> tensor<0xi8>
// error: 1:23: string literal expected
// -----
%c = takt.op() slot <1 on [8:4] at 0> : () -> tensor<0xi8>
// error: 1:28: 8:4 is no range of accelerators
// -----
%c = takt.op() slot <1 on [0:99999999999] at 0> : () -> tensor<0xi8>
// error: 1:28: 0:99999999999 is no range of accelerators
// -----
%c = takt.op() slot <1 on [-1:2] at 0> : () -> tensor<0xi8>
// error: 1:28: -1:2 is no range of accelerators
// -----
%c = takt.op() slot <1 on [] at 0> : () -> tensor<0xi8>
// error: 1:27: a set of accelerators must not be empty
// -----
%c = takt.op() slot <2 on [4:6, 5:7] at 0> : () -> tensor<0xi8>
// error: 1:33: range 5:7 must start after accelerator 5
// -----
%c = takt.op() slot <2 on [4:6, 0:2] at 0> : () -> tensor<0xi8>
// error: 1:33: range 0:2 must start after accelerator 5
// -----
%c = takt.op() slot <0 on [4:6] at 0> : () -> tensor<0xi8>
// error: 1:21: 'allotment' must be a 64-bit integer of at least 1, got 0
// -----
%c = takt.op() stage 99999999999999999999 : () -> tensor<0xi8>
// error: 1:22: 99999999999999999999 does not fit in 64 bits
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.linear(%x) : (tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:17: 'linear' needs the argument 'features'
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.linear(%x) {feature = 3} : (tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:23: 'linear' has no argument 'feature' (it has: features, bias, split)
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.linear(%x) {features = 3, features = 3} : (tensor<4xbf16>) -> tensor<3xbf16>
// error: 2:37: argument 'features' is given twice
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.linear(%x) {features = 0} : (tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:23: argument 'features' must be an integer of at least 1
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.linear(%x) {features = 4, split = "rows"} : (tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:37: argument 'split' must be one of "column", "row"
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.reshape(%x) {shape = [2, 0]} : (tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:24: argument 'shape' must be a list of integers of at least 1
// -----
%x = takt.input : tensor<4xbf16>
%y = takt.gelu(%x) : (tensor<4xbf16>, tensor<4xbf16>) -> tensor<4xbf16>
// error: 2:15: expected 2 operand types but had 1
// -----
%x = takt.input : i32
// error: 1:17: i32 should be of base attribute tensor
// -----
takt.stage 0 on [3:3]
// error: 1:18: 3:3 is no range of accelerators
// -----
takt.stage zero on [3:4]
// error: 1:12: Expected integer literal
// -----
module: takt.graph @g finished { takt.output }
// error: 1:15: unknown level 'finished' (levels are model, moldable, staged, scheduled, communicating, programs)
// -----
module: takt.graph @g scheduled <0 for 1, bound 0 by "area", plan "", engine "", seed 0> { takt.output }
// error: 1:25: 'pattern' must be a 64-bit integer of at least 1, got 0
// -----
module: takt.graph @g scheduled <5 for 0, bound 0 by "area", plan "", engine "", seed 0> { takt.output }
// error: 1:25: 'microbatches' must be a 64-bit integer of at least 1, got 0
// -----
module: takt.graph @g model { ^a: takt.output ^b: takt.output }
// error: 1:21: a graph has one block, got 2
// -----
module: takt.platform @p {accelerator = 4, accelerators = 4 : i64, memory = 1 : i64, bandwidth = 1 : i64, launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64, links = []}
// error: 1:15: 4 : i64 should be of base attribute string
// -----
module: takt.platform @p {links = [#takt.link<"node" 0, latency 1, bandwidth 1>]}
// error: 1:38: 'size' must be a 64-bit integer of at least 1, got 0
// -----
module: takt.program 0 microbatches 2 + 1 * many {
// error: 1:37: Expected
// -----
module: takt.program 0 microbatches 2 + 1 * 2
// error: 2:1: expected the sections of a program in braces
// -----
module: takt.program 0 microbatches 2 + 0 * 2 {
prologue {
}
kernel {
}
epilogue {
}
}
// error: 1:14: 'step' of a program must not be 0
// -----
module: takt.program 0 microbatches 2 + 1 * any { prologue {
}
// error: 1:43: expected a new line, got 'prologue {'
// -----
module: takt.program 0 microbatches 2 + 1 * any {
kernel {
}
// error: 2:1: expected 'prologue {'
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {

// error: 4:1: expected the end of a program
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
jump 0 a of 0
}
kernel {

}
epilogue {

}
}
// error: 3:1: 'jump 0 a of 0' is no instruction
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
compute 0 a of i
}
kernel {

}
epilogue {

}
}
// error: 3:1: a micro-batch of the prologue starts with a number
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {

}
kernel {
  compute 0 a of 1
}
epilogue {

}
}
// error: 6:3: a micro-batch of the kernel starts with 'i'
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {

}
kernel {

}
epilogue {
compute 0 a of i + 1
}
}
// error: 9:1: a micro-batch of the epilogue starts with 'last'
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
send 0->1 a of 0 bytes [0:1] from 2
}
kernel {

}
epilogue {

}
}
// error: 3:1: 'send 0->1 a of 0 bytes [0:1] from 2' does not say what a send needs to
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
send 0->1 a of 0 to 2
}
kernel {

}
epilogue {

}
}
// error: 3:1: 'send 0->1 a of 0 to 2' does not say what a send needs to
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
compute 0 a, 1 b of 0
}
kernel {

}
epilogue {

}
}
// error: 3:1: a compute is about one value
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
compute 0 a of 0
free 0 b of 0
}
kernel {

}
epilogue {

}
}
// error: 4:1: 'b' has another name before: 'a'
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
all_gather 0->1 a of 0 bytes [0:2] among [3:2]
}
kernel {

}
epilogue {

}
}
// error: 3:1: '[3:2]' is no set of accelerators
// -----
module: takt.program 0 microbatches 2 + 1 * any {
prologue {
send 0 a of 0 bytes [0:2] to 1
}
kernel {

}
epilogue {

}
}
// error: 1:14: instruction 0 of the prologue is none: [1, 0, 0, 0, 0, 1, 0, 2]
// -----
module: takt.platform @p {measured = [#takt.measured<reduce on 8 [1, 2] time [1, 2]>]}
// error: 1:45: collectives are all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, got 'reduce'
// -----
module: takt.platform @p {measured = [#takt.measured<broadcast on 1 [1, 2] time [1, 2]>]}
// error: 1:45: a collective takes 2 to 1048576 accelerators
// -----
module: takt.platform @p {measured = [#takt.measured<broadcast on 2 [1] time [1]>]}
// error: 1:45: a measured table has two sizes or more, and a time for each, got [1]
// -----
module: takt.platform @p {measured = [#takt.measured<broadcast on 2 [2, 1] time [1, 1]>]}
// error: 1:45: measured sizes are positive and increase, and times are not negative
