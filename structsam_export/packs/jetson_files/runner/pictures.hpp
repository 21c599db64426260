// Pictures and arrays in files: PNG (8 bits, not interlaced) and PPM in, PNG of one channel and NPY out.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sam {

// A file that cannot be used; exit code 5.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// RGB, rows from the top, 3 bytes a pixel.
struct Picture {
  int height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

std::vector<uint8_t> read_file(const std::string& path);
void write_file(const std::string& path, const std::vector<uint8_t>& bytes);

// A PNG, a PPM (P6, 255) or a uint8 (h, w, 3) NPY, by its first bytes. Palette and grey become RGB, alpha is dropped.
// Throws BadInput.
Picture read_picture(const std::string& path);

// A mask of 0 and 1 as a PNG of 0 and 255.
void write_mask(const std::string& path, const std::vector<uint8_t>& mask, int height, int width);

// float32, C order.
void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<int64_t>& shape);
// Throws BadInput where it is no float32 array in C order.
std::vector<float> read_npy(const std::string& path, std::vector<int64_t>* shape);

}  // namespace sam
