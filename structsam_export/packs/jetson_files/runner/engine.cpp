#include "engine.hpp"

#include <cuda_runtime_api.h>

#include <iostream>

namespace sam {
namespace {

void done(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Environment(std::string(what) + ": " + cudaGetErrorString(status));
}

// Memory of the GPU.
struct Memory {
  void* address = nullptr;
  explicit Memory(size_t size) { done(cudaMalloc(&address, size > 0 ? size : 1), "cudaMalloc"); }
  ~Memory() { cudaFree(address); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

size_t count_of(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t side : shape) count *= size_t(side);
  return count;
}

}  // namespace

void Engine::Log::log(Severity severity, const char* text) noexcept {
  if (severity <= Severity::kERROR) std::cerr << text << "\n";
}

Engine::Engine(const std::string& path) : runtime_(nvinfer1::createInferRuntime(log_)) {
  if (!runtime_) throw Environment("TensorRT cannot be started");
  const auto bytes = read_file(path);
  engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
  if (!engine_) throw BadInput(path + " is no engine of this TensorRT and this device. Run build.sh again.");
  context_.reset(engine_->createExecutionContext());
  if (!context_) throw Environment(path + " gets no memory to run");
}

int Engine::side(const char* name) const {
  const auto shape = engine_->getTensorShape(name);
  if (shape.nbDims != 4 || shape.d[2] != shape.d[3] || shape.d[3] < 1) throw BadInput(std::string(name) + " is no square photo");
  return int(shape.d[3]);
}

std::map<std::string, Tensor> Engine::run(const std::map<std::string, Tensor>& inputs) {
  std::map<std::string, Tensor> found;
  std::vector<std::unique_ptr<Memory>> held;
  std::map<std::string, void*> places;
  for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    const auto type = engine_->getTensorDataType(name);
    if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) {
      if (type != nvinfer1::DataType::kFLOAT) throw BadInput(std::string(name) + " is not float32");
      found[name] = {};
      continue;
    }
    const auto given = inputs.find(name);
    if (given == inputs.end()) throw BadInput(std::string("the engine wants another input: ") + name);
    const Tensor& tensor = given->second;
    const bool whole = tensor.floats.empty();
    if (type != (whole ? nvinfer1::DataType::kINT64 : nvinfer1::DataType::kFLOAT))
      throw BadInput(std::string(name) + " has another type in the engine");
    nvinfer1::Dims shape{};
    shape.nbDims = int32_t(tensor.shape.size());
    for (size_t k = 0; k < tensor.shape.size(); ++k) shape.d[k] = tensor.shape[k];
    if (!context_->setInputShape(name, shape)) throw BadInput(std::string("the engine takes no ") + name + " of this shape");
    const void* values = whole ? static_cast<const void*>(tensor.integers.data()) : tensor.floats.data();
    const size_t size = count_of(tensor.shape) * (whole ? sizeof(int64_t) : sizeof(float));
    held.push_back(std::make_unique<Memory>(size));
    done(cudaMemcpy(held.back()->address, values, size, cudaMemcpyHostToDevice), "cudaMemcpy");
    context_->setTensorAddress(name, held.back()->address);
  }
  for (auto& [name, tensor] : found) {  // shapes of outputs are known when all inputs have theirs
    const auto shape = context_->getTensorShape(name.c_str());
    tensor.shape.assign(shape.d, shape.d + shape.nbDims);
    tensor.floats.resize(count_of(tensor.shape));
    held.push_back(std::make_unique<Memory>(tensor.floats.size() * sizeof(float)));
    places[name] = held.back()->address;
    context_->setTensorAddress(name.c_str(), places[name]);
  }
  if (!context_->enqueueV3(nullptr)) throw Environment("the engine does not run");
  done(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  for (auto& [name, tensor] : found)
    done(cudaMemcpy(tensor.floats.data(), places[name], tensor.floats.size() * sizeof(float), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return found;
}

}  // namespace sam
