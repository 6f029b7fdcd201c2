// The manifest of a fused model: JSON in the ONNX file's metadata, under the key "fedapt".
#pragma once

#include <string>
#include <vector>

struct Manifest {
  std::vector<std::string> classes;
  std::vector<std::string> domains;
  int height = 0;
  int width = 0;
  bool bicubic = true;  // else bilinear
  bool squash = false;  // else the shorter side is resized, and the centre cropped
};

// Throws std::runtime_error if the JSON is damaged or of a newer schema.
Manifest parse_manifest(const std::string& json);
