// Compiled kernels: a folder of cubins and kernels.txt, one line a kernel, that scripts/plugin_kernels writes for one SM.
//   KEY SYMBOL FILE GRID_X GRID_Y GRID_Z THREADS SHARED SIZES...
// KEY says operator, fields, float type and shapes of a node (`key` in plugins.cpp); SIZES are its int32 arguments.
#pragma once
#include <cuda.h>

#include <string>
#include <vector>

namespace structsam {

class Kernel {
public:
    // Finds and loads the kernel of a key; throws std::runtime_error that names what is missing.
    explicit Kernel(std::string const& key);
    ~Kernel();
    Kernel(Kernel const&) = delete;
    Kernel& operator=(Kernel const&) = delete;
    // Arguments: inputs, sizes, outputs. False if the driver refuses the launch.
    bool launch(void const* const* inputs, int inputCount, void* const* outputs, int outputCount, CUstream stream);

private:
    CUmodule module_{};
    CUfunction function_{};
    unsigned grid_[3]{}, threads_{}, shared_{};
    std::vector<int> sizes_;
};

}  // namespace structsam
