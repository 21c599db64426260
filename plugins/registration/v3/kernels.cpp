#include "kernels.h"

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace structsam {
namespace {

void check(CUresult result, std::string const& what) {
    if (result == CUDA_SUCCESS) return;
    char const* text = nullptr;
    cuGetErrorString(result, &text);
    throw std::runtime_error(what + ": " + (text ? text : "unknown error"));
}

std::string folder() {
    char const* given = std::getenv("STRUCTSAM_KERNELS");
    if (!given) throw std::runtime_error("Set STRUCTSAM_KERNELS to the folder that scripts/plugin_kernels wrote for this GPU.");
    return given;
}

}  // namespace

Kernel::Kernel(std::string const& key) {
    std::string const place = folder();
    std::ifstream list(place + "/kernels.txt");
    std::string line, found, symbol, file;
    while (found != key && std::getline(list, line)) {
        std::istringstream words(line);
        words >> found;
        if (found != key) continue;
        words >> symbol >> file >> grid_[0] >> grid_[1] >> grid_[2] >> threads_ >> shared_;
        for (int size; words >> size;) sizes_.push_back(size);
    }
    if (found != key) throw std::runtime_error(place + "/kernels.txt has no kernel for " + key);
    // A plain name: nothing outside of the folder is loaded.
    if (file.empty() || file.find('/') != std::string::npos) throw std::runtime_error("no file name: " + file);
    std::ifstream code(place + "/" + file, std::ios::binary);
    std::stringstream bytes;
    bytes << code.rdbuf();
    check(cuModuleLoadData(&module_, bytes.str().c_str()), place + "/" + file);
    check(cuModuleGetFunction(&function_, module_, symbol.c_str()), symbol);
    if (shared_ > 48 * 1024) {
        auto const most = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        check(cuFuncSetAttribute(function_, most, static_cast<int>(shared_)), symbol + " needs more shared memory");
    }
}

Kernel::~Kernel() {
    if (module_) cuModuleUnload(module_);
}

bool Kernel::launch(void const* const* inputs, int inputCount, void* const* outputs, int outputCount, CUstream stream) {
    std::vector<CUdeviceptr> pointers;
    for (int i = 0; i < inputCount; ++i) pointers.push_back(reinterpret_cast<CUdeviceptr>(inputs[i]));
    for (int i = 0; i < outputCount; ++i) pointers.push_back(reinterpret_cast<CUdeviceptr>(outputs[i]));
    std::vector<void*> arguments;
    for (int i = 0; i < inputCount; ++i) arguments.push_back(&pointers[i]);
    for (int& size : sizes_) arguments.push_back(&size);
    for (int i = 0; i < outputCount; ++i) arguments.push_back(&pointers[inputCount + i]);
    return cuLaunchKernel(function_, grid_[0], grid_[1], grid_[2], threads_, 1, 1, shared_, stream, arguments.data(),
                          nullptr) == CUDA_SUCCESS;
}

}  // namespace structsam
