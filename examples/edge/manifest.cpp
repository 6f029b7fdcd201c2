#include "manifest.hpp"

#include <stdexcept>

#include <nlohmann/json.hpp>

namespace {

constexpr int kSchema = 1;

// The member that `value` chooses; throws on any other value.
bool is_first(const std::string& value, const char* first, const char* second) {
  if (value != first && value != second) throw std::runtime_error("unknown preprocessing " + value);
  return value == first;
}

}  // namespace

Manifest parse_manifest(const std::string& json) {
  try {
    const auto fields = nlohmann::json::parse(json);
    const int schema = fields.at("schema").get<int>();
    if (schema != kSchema) throw std::runtime_error("schema " + std::to_string(schema));
    Manifest manifest;
    fields.at("classes").get_to(manifest.classes);
    fields.at("domains").get_to(manifest.domains);
    const auto& preprocessing = fields.at("preprocessing");
    manifest.height = preprocessing.at("size").at(0).get<int>();
    manifest.width = preprocessing.at("size").at(1).get<int>();
    manifest.bicubic = is_first(preprocessing.at("interpolation"), "bicubic", "bilinear");
    manifest.squash = is_first(preprocessing.at("resize_mode"), "squash", "shortest");
    return manifest;
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string("a manifest that cannot be read: ") + error.what());
  }
}
