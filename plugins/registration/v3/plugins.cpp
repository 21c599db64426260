// IPluginV3 of the fused operators. One class for all of them: they differ by a table (operators.h) and their kernels.
#include <NvInfer.h>

#include <cstring>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "operators.h"

namespace structsam {

using namespace nvinfer1;

bool allowed(Kind kind, DataType type, DataType first) {
    if (kind == Kind::kFloat32) return type == DataType::kFLOAT;
    if (kind == Kind::kInt32) return type == DataType::kINT32;
    bool const isFloat = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
    return isFloat && type == first;
}

char const* typeName(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return "float32";
        case DataType::kHALF: return "float16";
        case DataType::kBF16: return "bfloat16";
        default: return "int32";
    }
}

class Fused : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    Fused(Operator const& op, Fields fields) : op_(op), fields_(fields) {
        for (char const* name : op_.fields)
            serialized_.emplace_back(name, fields_.find(name), PluginFieldType::kINT32, 1);
        collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
    }

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        if (type == PluginCapabilityType::kBUILD) return static_cast<IPluginV3OneBuild*>(this);
        if (type == PluginCapabilityType::kRUNTIME) return static_cast<IPluginV3OneRuntime*>(this);
        return static_cast<IPluginV3OneCore*>(this);
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) Fused(op_, fields_); }
    AsciiChar const* getPluginName() const noexcept override { return op_.name; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(op_.outputs.size()); }
    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        return 0;
    }
    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t inputs,
                                   int32_t) noexcept override {
        auto const kindOf = [&](int32_t i) { return i < inputs ? op_.inputs[i] : op_.outputs[i - inputs]; };
        int32_t first = 0;
        while (kindOf(first) != kindOf(pos)) ++first;
        auto const& own = inOut[pos].desc;
        return own.format == TensorFormat::kLINEAR && allowed(kindOf(pos), own.type, inOut[first].desc.type);
    }
    int32_t getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t) const noexcept override {
        for (int32_t i = 0; i < outputs; ++i) {
            Kind const kind = op_.outputs[i];
            size_t first = 0;
            while (first < op_.inputs.size() && op_.inputs[first] != kind) ++first;
            out[i] = kind == Kind::kInt32 ? DataType::kINT32 : kind == Kind::kFloat32 ? DataType::kFLOAT : in[first];
        }
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t, DimsExprs const*, int32_t, DimsExprs* out, int32_t,
                            IExprBuilder& builder) noexcept override {
        std::string const name = op_.name;
        int32_t const tokens = fields_.window_h * fields_.window_w;
        if (name == "TokenEnergy") {
            out[0].nbDims = 3;
            for (int i = 0; i < 3; ++i) out[0].d[i] = in[0].d[i];
        } else if (name == "MergePlan") {
            auto const windows = [&](int axis, int32_t size) {
                return builder.operation(DimensionOperation::kCEIL_DIV, *in[0].d[axis], *builder.constant(size));
            };
            auto const* across = builder.operation(DimensionOperation::kPROD, *windows(1, fields_.window_h),
                                                   *windows(2, fields_.window_w));
            auto const* calls = builder.operation(DimensionOperation::kPROD, *in[0].d[0], *across);
            for (int i = 0; i < 2; ++i) {
                out[i].nbDims = 2;
                out[i].d[0] = calls;
            }
            out[0].d[1] = builder.constant(tokens - 3 * fields_.merged);
            out[1].d[1] = builder.constant(tokens);
        } else if (name == "TokenMerge") {
            out[0].nbDims = 3;
            out[0].d[0] = in[1].d[0];
            out[0].d[1] = in[1].d[1];
            out[0].d[2] = in[0].d[3];
        } else {
            out[0] = in[name == "TokenUnmerge" ? 2 : 0];
        }
        return 0;
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }
    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*, int32_t) noexcept override {
        try {
            std::string const wanted = key(in, inputs);
            if (wanted != loaded_) kernel_ = std::make_unique<Kernel>(wanted);
            loaded_ = wanted;
        } catch (std::exception const& error) {
            getLogger()->log(ILogger::Severity::kERROR, error.what());
            return 1;
        }
        return 0;
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const* inputs, void* const* outputs,
                    void*, cudaStream_t stream) noexcept override {
        bool const done = kernel_ && kernel_->launch(inputs, static_cast<int>(op_.inputs.size()), outputs,
                                                     static_cast<int>(op_.outputs.size()), stream);
        return done ? 0 : 1;
    }

private:
    // RelposAttention:heads=12,window_h=14,...:float16,float32:25x100x768,...  (float types of T and R, shapes of inputs)
    std::string key(PluginTensorDesc const* in, int32_t inputs) {
        std::ostringstream text;
        text << op_.name << ':';
        for (size_t i = 0; i < op_.fields.size(); ++i)
            text << (i ? "," : "") << op_.fields[i] << '=' << *fields_.find(op_.fields[i]);
        for (int32_t i = 0; i < inputs; ++i) text << (i ? "," : ":") << typeName(in[i].type);
        for (int32_t i = 0; i < inputs; ++i) {
            text << (i ? "," : ":");
            for (int32_t k = 0; k < in[i].dims.nbDims; ++k) text << (k ? "x" : "") << in[i].dims.d[k];
        }
        return text.str();
    }

    Operator const& op_;
    Fields fields_;
    std::vector<PluginField> serialized_;
    PluginFieldCollection collection_{};
    std::unique_ptr<Kernel> kernel_;
    std::string loaded_;
};

class Creator : public IPluginCreatorV3One {
public:
    explicit Creator(Operator const& op) : op_(op) {
        for (char const* name : op_.fields) fields_.emplace_back(name, nullptr, PluginFieldType::kINT32, 1);
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        Fields fields;
        for (int32_t i = 0; i < given->nbFields; ++i) {
            auto const& field = given->fields[i];
            if (int32_t* place = fields.find(field.name)) {
                if (field.type == PluginFieldType::kINT32)
                    *place = *static_cast<int32_t const*>(field.data);
                else if (field.type == PluginFieldType::kINT64)
                    *place = static_cast<int32_t>(*static_cast<int64_t const*>(field.data));
            }
        }
        return new (std::nothrow) Fused(op_, fields);
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    AsciiChar const* getPluginName() const noexcept override { return op_.name; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    Operator const& op_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

}  // namespace structsam

// What TensorRT calls after it has opened a library.
extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static std::vector<std::unique_ptr<structsam::Creator>> const made = [] {
        std::vector<std::unique_ptr<structsam::Creator>> all;
        for (auto const& op : structsam::operators()) all.push_back(std::make_unique<structsam::Creator>(op));
        return all;
    }();
    static std::vector<nvinfer1::IPluginCreatorInterface*> const pointers = [] {
        std::vector<nvinfer1::IPluginCreatorInterface*> all;
        for (auto const& one : made) all.push_back(one.get());
        return all;
    }();
    count = static_cast<int32_t>(pointers.size());
    return pointers.data();
}
