#include "sam.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sam {
namespace {

// Pillow's weights of one target pixel: where they begin, and values of 22 bits behind the point.
struct Weights {
  int begin;
  std::vector<int> values;
};
constexpr int PRECISION = 32 - 8 - 2;

// Triangles, as wide as a target pixel is in the source, so that shrinking smooths.
std::vector<Weights> triangles(int source, int target) {
  std::vector<Weights> found;
  const double scale = double(source) / target, wide = std::max(scale, 1.0);
  for (int i = 0; i < target; ++i) {
    const double centre = (i + 0.5) * scale;
    const int begin = std::max(0, int(centre - wide + 0.5)), end = std::min(source, int(centre + wide + 0.5));
    std::vector<double> values;
    double sum = 0;
    for (int j = begin; j < end; ++j) {
      const double away = std::abs((j - centre + 0.5) * (1.0 / wide));
      values.push_back(away < 1 ? 1 - away : 0);
      sum += values.back();
    }
    Weights row{begin, {}};
    for (double value : values) row.values.push_back(int(0.5 + (sum != 0 ? value / sum : value) * (1 << PRECISION)));
    found.push_back(row);
  }
  return found;
}

uint8_t rounded(int value) { return uint8_t(std::clamp(value >> PRECISION, 0, 255)); }

Picture resized(const Picture& photo, int height, int width) {
  Picture across{photo.height, width, std::vector<uint8_t>(size_t(3) * photo.height * width)};
  const auto columns = triangles(photo.width, width), rows = triangles(photo.height, height);
  for (int y = 0; y < photo.height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) {
        int sum = 1 << (PRECISION - 1);
        for (size_t k = 0; k < columns[x].values.size(); ++k)
          sum += photo.pixels[(size_t(y) * photo.width + columns[x].begin + k) * 3 + c] * columns[x].values[k];
        across.pixels[(size_t(y) * width + x) * 3 + c] = rounded(sum);
      }
  Picture found{height, width, std::vector<uint8_t>(size_t(3) * height * width)};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < 3 * width; ++x) {
      int sum = 1 << (PRECISION - 1);
      for (size_t k = 0; k < rows[y].values.size(); ++k)
        sum += across.pixels[(rows[y].begin + k) * 3 * width + x] * rows[y].values[k];
      found.pixels[size_t(y) * 3 * width + x] = rounded(sum);
    }
  return found;
}

using Matrix = std::vector<std::vector<double>>;

// Rows interpolated linearly to `target` rows, corners not aligned; places are float32, as in PyTorch.
Matrix interpolated(const Matrix& values, int target) {
  const int size = int(values.size());
  const double step = float(size) / float(target);
  Matrix found(target, std::vector<double>(values[0].size()));
  for (int i = 0; i < target; ++i) {
    const float place = std::max(float((i + 0.5) * step - 0.5), 0.0f);
    const int low = int(place);
    const float weight = place - float(low);
    const auto &first = values[std::min(low, size - 1)], &second = values[std::min(low + 1, size - 1)];
    for (size_t j = 0; j < first.size(); ++j) found[i][j] = first[j] * (1 - weight) + second[j] * weight;
  }
  return found;
}

// `low` samples to `side`, of which the first `kept` become `original`; of each, the few weights that are not zero.
std::vector<std::vector<std::pair<int, float>>> interpolation(int low, int side, int kept, int original) {
  Matrix one(low, std::vector<double>(low, 0));
  for (int i = 0; i < low; ++i) one[i][i] = 1;
  Matrix square = interpolated(one, side);
  square.resize(kept);
  std::vector<std::vector<std::pair<int, float>>> found;
  for (const auto& row : interpolated(square, original)) {
    found.emplace_back();
    for (int k = 0; k < low; ++k)
      if (row[k] != 0) found.back().emplace_back(k, float(row[k]));
  }
  return found;
}

}  // namespace

Prepared prepare(const Picture& photo, int side) {
  static const float mean[] = {123.675f, 116.28f, 103.53f}, deviation[] = {58.395f, 57.12f, 57.375f};
  const double scale = side * 1.0 / std::max(photo.height, photo.width);
  Prepared found{side,
                 photo.height,
                 photo.width,
                 std::max(1, int(photo.height * scale + 0.5)),
                 std::max(1, int(photo.width * scale + 0.5)),
                 std::vector<float>(size_t(3) * side * side, 0.0f)};
  const Picture small = resized(photo, found.resized_height, found.resized_width);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < small.height; ++y)
      for (int x = 0; x < small.width; ++x)
        found.values[(size_t(c) * side + y) * side + x] =
            (float(small.pixels[(size_t(y) * small.width + x) * 3 + c]) - mean[c]) / deviation[c];
  return found;
}

std::vector<float> scaled(const std::vector<double>& points, const Prepared& photo) {
  const double x = double(photo.resized_width) / photo.width, y = double(photo.resized_height) / photo.height;
  std::vector<float> found;
  for (size_t i = 0; i < points.size(); ++i) found.push_back(float(points[i] * (i % 2 ? y : x)));
  return found;
}

Prompt prompt(const std::vector<double>& points, const std::vector<int64_t>& labels, const std::vector<double>& box,
              const Prepared& photo) {
  Prompt found{scaled(points, photo), labels};
  if (box.empty()) {
    found.coords.insert(found.coords.end(), {0, 0});
    found.labels.push_back(-1);
  } else {
    const auto corners = scaled(box, photo);
    found.coords.insert(found.coords.end(), corners.begin(), corners.end());
    found.labels.insert(found.labels.end(), {2, 3});
  }
  return found;
}

std::vector<float> upscaled(const float* logits, int low, const Prepared& photo) {
  const auto rows = interpolation(low, photo.side, photo.resized_height, photo.height);
  const auto columns = interpolation(low, photo.side, photo.resized_width, photo.width);
  std::vector<float> found(size_t(photo.height) * photo.width), half;
  for (int y = 0; y < photo.height; ++y) {
    half.assign(size_t(low), 0.0f);
    for (const auto& [k, weight] : rows[y])
      for (int x = 0; x < low; ++x) half[x] += weight * logits[k * low + x];
    for (int x = 0; x < photo.width; ++x) {
      float sum = 0;
      for (const auto& [k, weight] : columns[x]) sum += half[k] * weight;
      found[size_t(y) * photo.width + x] = sum;
    }
  }
  return found;
}

std::vector<uint8_t> above(const std::vector<float>& logits) {
  std::vector<uint8_t> found(logits.size());
  std::transform(logits.begin(), logits.end(), found.begin(), [](float value) { return uint8_t(value > 0); });
  return found;
}

}  // namespace sam
