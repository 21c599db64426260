// What the fused operators are: fields, types, shapes. The same as ../operators.py, which the tests compare this with.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace structsam {

constexpr char const* kNamespace = "structsam";
constexpr char const* kVersion = "1";

// Types of tensors: one float type that all T share, another that all R share, or a fixed one.
enum class Kind { kT, kR, kFloat32, kInt32 };

struct Operator {
    char const* name;
    std::vector<char const*> fields;
    std::vector<Kind> inputs;
    std::vector<Kind> outputs;
};

inline std::vector<Operator> const& operators() {
    using K = Kind;
    static std::vector<Operator> const all{
        {"TokenEnergy", {"heads"}, {K::kT}, {K::kFloat32}},
        {"MergePlan", {"window_h", "window_w", "merged"}, {K::kFloat32}, {K::kInt32, K::kInt32}},
        {"TokenMerge", {"window_h", "window_w", "merged"}, {K::kT, K::kInt32}, {K::kT}},
        {"TokenUnmerge", {"window_h", "window_w"}, {K::kT, K::kInt32, K::kR}, {K::kR}},
        {"RelposAttention",
         {"heads", "window_h", "window_w", "aligned"},
         {K::kT, K::kT, K::kT, K::kT, K::kInt32},
         {K::kT}},
    };
    return all;
}

struct Fields {
    int32_t heads{}, window_h{}, window_w{}, merged{}, aligned{};
    int32_t* find(std::string const& name) {
        if (name == "heads") return &heads;
        if (name == "window_h") return &window_h;
        if (name == "window_w") return &window_w;
        if (name == "merged") return &merged;
        if (name == "aligned") return &aligned;
        return nullptr;
    }
};

}  // namespace structsam
