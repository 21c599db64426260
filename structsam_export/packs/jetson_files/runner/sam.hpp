// What is before the encoder and behind the decoder, as structsam-export's Python runtime computes it.
#pragma once

#include "pictures.hpp"

namespace sam {

// A photo in the encoder's square: float32 (3, side, side), and the sizes that masks need.
struct Prepared {
  int side = 0, height = 0, width = 0;            // of the square, of the photo
  int resized_height = 0, resized_width = 0;      // of the photo in the square
  std::vector<float> values;
};

// The longest side becomes `side`, with Pillow's bilinear filter, rows first; normalised; zeros below or beside.
Prepared prepare(const Picture& photo, int side);

// Points x, y in the photo's pixels, in encoder pixels.
std::vector<float> scaled(const std::vector<double>& points, const Prepared& photo);

// Prompt points as the decoder takes them; label 1 foreground, 0 background, 2 and 3 corners of a box, -1 padding.
struct Prompt {
  std::vector<float> coords;
  std::vector<int64_t> labels;
};

// Points (x, y each) with labels, and a box (x0 y0 x1 y1) or nothing; without a box a padding point ends it.
Prompt prompt(const std::vector<double>& points, const std::vector<int64_t>& labels, const std::vector<double>& box,
              const Prepared& photo);

// Logits (low, low) in the photo's size: to the square, cropped, to the photo, each linearly.
std::vector<float> upscaled(const float* logits, int low, const Prepared& photo);

// The mask, 0 and 1: logits above zero.
std::vector<uint8_t> above(const std::vector<float>& logits);

}  // namespace sam
