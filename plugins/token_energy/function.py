"""TokenEnergy in ONNX's own operators: what runtimes without the plugin compute."""

DOMAIN, OP = "structsam", "TokenEnergy"

# y (B, H, W, D) -> energy (B, H, W) float32; attribute heads.
TEXT = """
<domain: "structsam", opset_import: ["" : {opset}]>
TokenEnergy <heads, plugin_namespace, plugin_version> (y) => (energy)
{{
  heads = Constant <value_int: int = @heads> ()
  zero1 = Constant <value = int64[1] {{0}}> ()
  three0 = Constant <value = int64[3] {{0, 0, 0}}> ()
  rest = Constant <value = int64[1] {{-1}}> ()
  heads1 = Unsqueeze (heads, zero1)
  split = Concat <axis = 0> (three0, heads1, rest)
  wide = Cast <to = 1> (y)
  apart = Reshape (wide, split)
  axis3 = Constant <value = int64[1] {{3}}> ()
  mean = ReduceMean <keepdims = 0> (apart, axis3)
  front = Transpose <perm = [0, 3, 1, 2]> (mean)
  border = Constant <value = int64[8] {{0, 0, 1, 1, 0, 0, 1, 1}}> ()
  padded = Pad <mode = "edge"> (front, border)
  images = Shape <start = 0, end = 1> (y)
  grid = Shape <start = 1, end = 3> (y)
  bordered = Shape <start = 2, end = 4> (padded)
  one1 = Constant <value = int64[1] {{1}}> ()
  single = Concat <axis = 0> (rest, one1, bordered)
  channels = Reshape (padded, single)
  sobel = Constant <value = float[2, 1, 3, 3] {{-1, 0, 1, -2, 0, 2, -1, 0, 1, -1, -2, -1, 0, 0, 0, 1, 2, 1}}> ()
  edges = Conv (channels, sobel)
  together = Concat <axis = 0> (images, rest, grid)
  all = Reshape (edges, together)
  norm = ReduceL2 <keepdims = 0> (all, one1)
  width = Shape <start = 3, end = 4> (mean)
  width_float = Cast <to = 1> (width)
  root = Sqrt (width_float)
  energy = Div (norm, root)
}}
"""
