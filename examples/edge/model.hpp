// A fused model in ONNX Runtime, through its C API.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

#include "image.hpp"
#include "manifest.hpp"

struct Answer {
  std::vector<float> probabilities;   // of the manifest's classes
  std::vector<float> domain_weights;  // of its domains
};

class Model {
 public:
  // `threads` of one run; 0 takes every core. Throws std::runtime_error.
  Model(const std::string& path, int threads);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Manifest& manifest() const { return manifest_; }

  // `image` has the manifest's size. Throws std::runtime_error.
  Answer classify(Image& image) const;

 private:
  void check(OrtStatus* status) const;
  std::string read_metadata() const;

  const OrtApi* api_;
  OrtEnv* environment_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  Manifest manifest_;
};
