// The steps around the engines alone, to compare them with another implementation.
//   steps prepare PHOTO SIDE OUT.npy              float32 (1, 3, SIDE, SIDE)
//   steps scale PHOTO SIDE X Y OUT.npy            float32 (1, 2)
//   steps upscale PHOTO SIDE LOGITS.npy OUT.npy MASK.png   logits (low, low) -> (height, width), and the mask
#include <iostream>

#include "sam.hpp"

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  try {
    if (given.size() < 4) throw std::invalid_argument("steps prepare|scale|upscale PHOTO SIDE ...");
    const auto photo = sam::prepare(sam::read_picture(given[1]), std::stoi(given[2]));
    if (given[0] == "prepare") {
      sam::write_npy(given[3], photo.values, {1, 3, photo.side, photo.side});
    } else if (given[0] == "scale" && given.size() == 6) {
      sam::write_npy(given[5], sam::scaled({std::stod(given[3]), std::stod(given[4])}, photo), {1, 2});
    } else if (given[0] == "upscale" && given.size() == 6) {
      std::vector<int64_t> shape;
      const auto logits = sam::read_npy(given[3], &shape);
      if (shape.size() != 2 || shape[0] != shape[1]) throw sam::BadInput("logits are not (low, low)");
      const auto found = sam::upscaled(logits.data(), int(shape[0]), photo);
      sam::write_npy(given[4], found, {photo.height, photo.width});
      sam::write_mask(given[5], sam::above(found), photo.height, photo.width);
    } else {
      throw std::invalid_argument("steps prepare|scale|upscale PHOTO SIDE ...");
    }
  } catch (const sam::BadInput& error) {
    std::cerr << error.what() << "\n";
    return 5;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
  return 0;
}
