// Masks of a picture with both engines:
//   sam_runner encoder.engine decoder.engine photo.png mask.png --point 320,240 [--point 10,20,0] [--box 100,80,400,300]
// Writes the mask that the model thinks best of. Exit codes: 0, 2 usage, 4 TensorRT or CUDA, 5 a file.
#include <chrono>
#include <iostream>
#include <sstream>

#include "engine.hpp"
#include "sam.hpp"

namespace {

std::vector<double> numbers(const std::string& text) {
  std::vector<double> found;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) found.push_back(std::stod(part));
  return found;
}

double milliseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - since).count();
}

int run(const std::vector<std::string>& given) {
  std::vector<double> points, box;
  std::vector<int64_t> labels;
  for (size_t i = 4; i + 1 < given.size(); i += 2) {
    const auto values = numbers(given[i + 1]);
    if (given[i] == "--point" && (values.size() == 2 || values.size() == 3)) {
      points.insert(points.end(), values.begin(), values.begin() + 2);
      labels.push_back(values.size() == 3 ? int64_t(values[2]) : 1);
    } else if (given[i] == "--box" && values.size() == 4) {
      box = values;
    } else {
      throw std::invalid_argument(given[i] + " " + given[i + 1] + " is no prompt");
    }
  }
  if (given.size() < 6 || given.size() % 2 || labels.size() > 14)
    throw std::invalid_argument("sam_runner ENCODER DECODER PHOTO MASK --point X,Y[,LABEL] --box X0,Y0,X1,Y1; 14 points at most");
  const auto picture = sam::read_picture(given[2]);
  sam::Engine encoder(given[0]), decoder(given[1]);
  auto began = std::chrono::steady_clock::now();
  auto photo = sam::prepare(picture, encoder.side("image"));
  const double preparing = milliseconds(began);
  began = std::chrono::steady_clock::now();
  auto embedding = encoder.run({{"image", {{1, 3, photo.side, photo.side}, photo.values, {}}}}).at("image_embeddings");
  const double encoding = milliseconds(began);
  const auto prompt = sam::prompt(points, labels, box, photo);
  const int64_t count = int64_t(prompt.labels.size()), side = 4 * embedding.shape.at(3);
  began = std::chrono::steady_clock::now();
  const auto found = decoder.run({{"image_embeddings", embedding},
                                  {"point_coords", {{1, count, 2}, prompt.coords, {}}},
                                  {"point_labels", {{1, count}, {}, prompt.labels}},
                                  {"mask_input", {{1, 1, side, side}, std::vector<float>(size_t(side * side)), {}}},
                                  {"has_mask_input", {{1}, {0}, {}}}});
  const double decoding = milliseconds(began);
  const auto& scores = found.at("iou_predictions").floats;
  size_t best = 1;  // the first one is for prompts without ambiguity, as SAM has it
  for (size_t i = 2; i < scores.size(); ++i)
    if (scores[i] > scores[best]) best = i;
  const auto& logits = found.at("low_res_masks").floats;
  const auto mask = sam::above(sam::upscaled(&logits.at(best * size_t(side * side)), int(side), photo));
  sam::write_mask(given[3], mask, photo.height, photo.width);
  std::cout << given[3] << ": predicted IoU " << scores.at(best) << "; prepare " << preparing << " ms, encoder " << encoding
            << " ms, decoder " << decoding << " ms, copies included\n";
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run({words + 1, words + count});
  } catch (const sam::BadInput& error) {
    std::cerr << error.what() << "\n";
    return 5;
  } catch (const sam::Environment& error) {
    std::cerr << error.what() << "\n";
    return 4;
  } catch (const std::invalid_argument& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
