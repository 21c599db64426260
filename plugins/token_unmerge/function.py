"""TokenUnmerge in ONNX's own operators: what runtimes without the plugin compute."""

DOMAIN, OP = "structsam", "TokenUnmerge"

# y (B * windows, n, D), slot (B * windows, N) int32, residual (B, H, W, D) -> residual + y at every token's slot.
TEXT = """
<domain: "structsam", opset_import: ["" : {opset}]>
TokenUnmerge <window_h, window_w, plugin_namespace, plugin_version> (y, slot, residual) => (out)
{{
  h = Constant <value_int: int = @window_h> ()
  w = Constant <value_int: int = @window_w> ()
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  zero1 = Constant <value = int64[1] {{0}}> ()
  one1 = Constant <value = int64[1] {{1}}> ()
  two1 = Constant <value = int64[1] {{2}}> ()
  rest1 = Constant <value = int64[1] {{-1}}> ()
  begin2 = Constant <value = int64[2] {{0, 0}}> ()
  axes12 = Constant <value = int64[2] {{1, 2}}> ()
  h1 = Unsqueeze (h, zero1)
  w1 = Unsqueeze (w, zero1)
  window = Concat <axis = 0> (h1, w1)
  images1 = Shape <start = 0, end = 1> (residual)
  grid = Shape <start = 1, end = 3> (residual)
  depth1 = Shape <start = 3, end = 4> (residual)
  less = Sub (window, one1)
  more = Add (grid, less)
  counts = Div (more, window)
  covered = Mul (counts, window)
  rows1 = Slice (counts, zero1, one1)
  columns1 = Slice (counts, one1, two1)
  apart = Concat <axis = 0> (images1, rows1, columns1, h1, w1)
  together = Concat <axis = 0> (images1, covered)

  slot_long = Cast <to = 7> (slot)
  calls1 = Shape <start = 0, end = 1> (y)
  calls = Squeeze (calls1, zero1)
  call = Range (zero, calls, one)
  n1 = Shape <start = 1, end = 2> (y)
  starts = Mul (call, n1)
  start = Unsqueeze (starts, one1)
  row = Add (slot_long, start)
  s0 = Reshape (row, apart)
  s1 = Transpose <perm = [0, 1, 3, 2, 4]> (s0)
  s2 = Reshape (s1, together)
  s3 = Slice (s2, begin2, grid, axes12)
  flat = Concat <axis = 0> (rest1, depth1)
  rows = Reshape (y, flat)
  tokens = Gather (rows, s3)
  like = CastLike (tokens, residual)
  out = Add (residual, like)
}}
"""
