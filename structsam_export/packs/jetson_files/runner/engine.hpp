// A TensorRT engine (10.x or 11.x) whose inputs and outputs are in host memory.
#pragma once

#include <NvInfer.h>

#include <map>
#include <memory>

#include "pictures.hpp"

namespace sam {

// TensorRT or CUDA refuses; exit code 4.
struct Environment : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Values of float32 or int64 with their shape.
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int64_t> integers;  // where `floats` is empty
};

class Engine {
 public:
  // Throws BadInput where the file is no engine of this TensorRT and this device.
  explicit Engine(const std::string& path);

  // Side of a square input of a fixed shape (1, 3, S, S).
  int side(const char* name) const;

  // Outputs by name. Throws BadInput for a shape or type that the engine does not take.
  std::map<std::string, Tensor> run(const std::map<std::string, Tensor>& inputs);

 private:
  struct Log : nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override;
  };
  // In this order: what is made from another one goes first.
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

}  // namespace sam
