// Every operation of the dialect, as it is printed. Read and printed again, the text stays as it is.
builtin.module {
  takt.platform @small {accelerator = "tiny", accelerators = 4 : i64, memory = 1048576 : i64, bandwidth = 1000000000 : i64, launch = 1000 : i64, peak = {bf16 = 1000000000000 : i64}, compute_efficiency = 7.000000e-01 : f64, memory_efficiency = 1.000000e+00 : f64, saturation = 0 : i64, links = [#takt.link<"node" 2, latency 500, bandwidth 1000000000>, #takt.link<"cluster" 4, latency 900, bandwidth 100000000>]}
  takt.graph @every scheduled <2000 for 2, bound 990 by "area", plan "stages", engine "hand", seed 7> {
    takt.stage 0 on [0:2]
    takt.stage 1 on [2:3, 4:6]
    %ids = takt.input : tensor<2x8xi32>
    %image = takt.input : tensor<1x4x8x8xbf16>
    %x = takt.embedding(%ids) {vocab = 100, dim = 6} params 1200 block <"stem", 0> : (tensor<2x8xi32>) -> tensor<2x8x6xbf16>
    %linear = takt.linear(%x) {features = 6, bias = true, split = "row"} params 84 block <"decoder", 3> cost <[1, 2] time [812000, 430000] params [84, 42] output [192, 96] workspace [0, 5]> stage 0 shared 1 slot <2 on [0:2] at 0> : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %matmul = takt.matmul(%x, %linear) {transpose_b = true} stage 1 slot <2 on [2:3, 4:5], [5:7] at 9000> : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x8xbf16>
    %attention = takt.attention(%x, %x, %x) {heads = 2, kv_heads = 2, causal = true} : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %layer_norm = takt.layer_norm(%x) params 24 : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %rms_norm = takt.rms_norm(%x) params 12 : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %batch_norm = takt.batch_norm(%image) params 32 : (tensor<1x4x8x8xbf16>) -> tensor<1x4x8x8xbf16>
    %softmax = takt.softmax(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %position = takt.position_embedding(%x) params 96 : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %rotary = takt.rotary(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %add = takt.add(%x, %x) : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %sub = takt.sub(%x, %add) : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %mul = takt.mul(%x, %sub) : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %residual = takt.residual(%x, %mul) : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %gelu = takt.gelu(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %relu = takt.relu(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %silu = takt.silu(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %tanh = takt.tanh(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %sigmoid = takt.sigmoid(%x) : (tensor<2x8x6xbf16>) -> tensor<2x8x6xbf16>
    %router = takt.router(%x) {experts = 4, top_k = 2} params 48 : (tensor<2x8x6xbf16>) -> tensor<2x8x4xbf16>
    %experts = takt.experts(%x, %router) {experts = 4, top_k = 2, hidden = 9, gated = false} params 864 : (tensor<2x8x6xbf16>, tensor<2x8x4xbf16>) -> tensor<2x8x6xbf16>
    %conv2d = takt.conv2d(%image) {channels = 6, kernel = 3, stride = 2, padding = 1, groups = 2, bias = true} params 228 : (tensor<1x4x8x8xbf16>) -> tensor<1x6x4x4xbf16>
    %max_pool = takt.max_pool(%image) {kernel = 3, stride = 2, padding = 1} : (tensor<1x4x8x8xbf16>) -> tensor<1x4x4x4xbf16>
    %avg_pool = takt.avg_pool(%image) {kernel = 2, stride = 2} : (tensor<1x4x8x8xbf16>) -> tensor<1x4x4x4xbf16>
    %global = takt.global_avg_pool(%image) : (tensor<1x4x8x8xbf16>) -> tensor<1x4xbf16>
    %concat = takt.concat(%x, %add, %sub) {axis = -1} : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<2x8x18xbf16>
    %split, %split.1, %split.2 = takt.split(%x) {parts = 3, axis = 2} : (tensor<2x8x6xbf16>) -> (tensor<2x8x2xbf16>, tensor<2x8x2xbf16>, tensor<2x8x2xbf16>)
    %reshape = takt.reshape(%x) {shape = [96]} : (tensor<2x8x6xbf16>) -> tensor<96xbf16>
    %transpose = takt.transpose(%x) {order = [2, 0, 1]} : (tensor<2x8x6xbf16>) -> tensor<6x2x8xbf16>
    %slice = takt.slice(%x) {axis = 1, start = 5, length = 3} : (tensor<2x8x6xbf16>) -> tensor<2x3x6xbf16>
    %reduce = takt.reduce(%x) {axis = 1, kind = "mean"} attributes {note = "kept"} : (tensor<2x8x6xbf16>) -> tensor<2x6xbf16>
    %labels = takt.input : tensor<2x8xi32>
    %cross_entropy = takt.cross_entropy(%x, %labels) : (tensor<2x8x6xbf16>, tensor<2x8xi32>) -> tensor<f32>
    %mse_loss = takt.mse_loss(%x, %x) : (tensor<2x8x6xbf16>, tensor<2x8x6xbf16>) -> tensor<f32>
    %opaque, %second = takt.op(%x, %ids) cost <[1, 3] time [9, 4]> : (tensor<2x8x6xbf16>, tensor<2x8xi32>) -> (tensor<0xi8>, tensor<12xi8>)
    %source = takt.op() cost <[2] time [0]> : () -> tensor<1xi8>
    takt.output %cross_entropy, %second : tensor<f32>, tensor<12xi8>
  }
  takt.program 0 microbatches 2 + 1 * any attributes {note = "kept"} {
    prologue {
      compute 0 x of 0
      free in0 ids of 0
      send 0->1 x of 0 bytes [0:96] to 2
      copy 0->1 x of 0 bytes [96:192]
    }
    kernel {
      recv 17:1->2 split of i bytes [0:0] from 1
      all_gather 17:1->2 split of i + 2 bytes [0:64] among [0:2, 3:4]
      all_gather 17:1->3 split of i + 2 bytes [0:64] among [0:3]
    }
    epilogue {
      free 0 x, 0->1 x, 17:1->2 split of last
      free 0 x of last - 1
    }
  }
  takt.program 3 microbatches 0 + 2 * 9 {
    prologue {
    }
    kernel {
    }
    epilogue {
    }
  }
}
