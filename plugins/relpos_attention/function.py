"""RelposAttention in ONNX's own operators: what runtimes without the plugin compute."""

DOMAIN, OP = "structsam", "RelposAttention"

# q, k, v (B, n, D), rel (B, n, heads, 2h - 1 + 2w - 1), pos (B, n) int32 -> (B, n, D). Queries carry the bias of every
# line, keys a one-hot of theirs, so that no (n, n) map of a bias is made.
TEXT = """
<domain: "structsam", opset_import: ["" : {opset}]>
RelposAttention <heads, window_h, window_w, aligned, plugin_namespace, plugin_version> (q, k, v, rel, pos) => (out)
{{
  heads = Constant <value_int: int = @heads> ()
  h = Constant <value_int: int = @window_h> ()
  w = Constant <value_int: int = @window_w> ()
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  zero1 = Constant <value = int64[1] {{0}}> ()
  two1 = Constant <value = int64[1] {{2}}> ()
  zero2 = Constant <value = int64[2] {{0, 0}}> ()
  rest1 = Constant <value = int64[1] {{-1}}> ()
  heads1 = Unsqueeze (heads, zero1)
  split = Concat <axis = 0> (zero2, heads1, rest1)
  joined = Concat <axis = 0> (zero2, rest1)
  q4 = Reshape (q, split)
  k4 = Reshape (k, split)
  v4 = Reshape (v, split)

  place = Cast <to = 7> (pos)
  row = Div (place, w)
  row_start = Mul (row, w)
  column = Sub (place, row_start)
  row3 = Unsqueeze (row, two1)
  column3 = Unsqueeze (column, two1)
  rows = Range (zero, h, one)
  columns = Range (zero, w, one)
  last_row = Sub (h, one)
  last_column = Sub (w, one)
  by_row = Sub (row3, rows)
  by_column = Sub (column3, columns)
  at_row = Add (by_row, last_row)
  beyond = Add (h, last_row)
  shift = Add (beyond, last_column)
  at_column = Add (by_column, shift)
  at3 = Concat <axis = 2> (at_row, at_column)
  at4 = Unsqueeze (at3, two1)
  ones = Constant <value = int64[2] {{1, 1}}> ()
  one1 = Constant <value = int64[1] {{1}}> ()
  every_head = Concat <axis = 0> (ones, heads1, one1)
  at = Expand (at4, every_head)
  lines = GatherElements <axis = 3> (rel, at)
  on_row = Equal (row3, rows)
  on_column = Equal (column3, columns)
  on = Concat <axis = 2> (on_row, on_column)
  onehot3 = CastLike (on, k)
  onehot4 = Unsqueeze (onehot3, two1)
  onehot = Expand (onehot4, every_head)

  left = Concat <axis = 3> (q4, lines)
  right = Concat <axis = 3> (k4, onehot)
  left_heads = Transpose <perm = [0, 2, 1, 3]> (left)
  right_heads = Transpose <perm = [0, 2, 3, 1]> (right)
  v_heads = Transpose <perm = [0, 2, 1, 3]> (v4)
  scores = MatMul (left_heads, right_heads)
  weights = Softmax <axis = -1> (scores)
  y = MatMul (weights, v_heads)
  y4 = Transpose <perm = [0, 2, 1, 3]> (y)
  out = Reshape (y4, joined)
}}
"""
