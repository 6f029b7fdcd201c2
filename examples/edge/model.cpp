#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace {

const OrtApi* find_api() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) throw std::runtime_error("the library is older than the header");
  return api;
}

std::vector<float> softmax(std::vector<float> values) {
  const float most = *std::max_element(values.begin(), values.end());
  for (float& value : values) value = std::exp(value - most);
  const float total = std::accumulate(values.begin(), values.end(), 0.0f);
  for (float& value : values) value /= total;
  return values;
}

bool is_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

}  // namespace

Model::Model(const std::string& path, int threads) : api_(find_api()) {
  check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "fedapt", &environment_));
  check(api_->DisableTelemetryEvents(environment_));
  OrtSessionOptions* options = nullptr;
  check(api_->CreateSessionOptions(&options));
  std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> owned(options, api_->ReleaseSessionOptions);
  check(api_->SetIntraOpNumThreads(options, threads));
  check(api_->CreateSession(environment_, path.c_str(), options, &session_));
  check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  manifest_ = parse_manifest(read_metadata());
}

Model::~Model() {
  if (memory_) api_->ReleaseMemoryInfo(memory_);
  if (session_) api_->ReleaseSession(session_);
  if (environment_) api_->ReleaseEnv(environment_);
}

void Model::check(OrtStatus* status) const {
  if (status == nullptr) return;
  const std::string message = api_->GetErrorMessage(status);
  api_->ReleaseStatus(status);
  throw std::runtime_error(message);
}

std::string Model::read_metadata() const {
  OrtModelMetadata* metadata = nullptr;
  check(api_->SessionGetModelMetadata(session_, &metadata));
  std::unique_ptr<OrtModelMetadata, void (*)(OrtModelMetadata*)> owned(metadata, api_->ReleaseModelMetadata);
  OrtAllocator* allocator = nullptr;
  check(api_->GetAllocatorWithDefaultOptions(&allocator));
  char* text = nullptr;
  check(api_->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "fedapt", &text));
  if (text == nullptr) throw std::runtime_error("no model that `fedapt export` wrote");
  const std::string json = text;
  check(api_->AllocatorFree(allocator, text));
  return json;
}

Answer Model::classify(Image& image) const {
  const std::int64_t shape[] = {1, manifest_.height, manifest_.width, 3};
  OrtValue* input = nullptr;
  check(api_->CreateTensorWithDataAsOrtValue(memory_, image.pixels.data(), image.pixels.size(), shape, 4,
                                             ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &input));
  const char* inputs[] = {"images"};
  const char* outputs[] = {"logits", "domain_weights"};
  OrtValue* results[] = {nullptr, nullptr};
  OrtStatus* status = api_->Run(session_, nullptr, inputs, &input, 1, outputs, 2, results);
  api_->ReleaseValue(input);
  check(status);
  Answer answer;
  std::vector<float>* parts[] = {&answer.probabilities, &answer.domain_weights};
  const std::size_t sizes[] = {manifest_.classes.size(), manifest_.domains.size()};
  for (int i = 0; i < 2; ++i) {
    std::unique_ptr<OrtValue, void (*)(OrtValue*)> owned(results[i], api_->ReleaseValue);
    float* values = nullptr;
    check(api_->GetTensorMutableData(results[i], reinterpret_cast<void**>(&values)));
    parts[i]->assign(values, values + sizes[i]);
  }
  answer.probabilities = softmax(std::move(answer.probabilities));
  if (!is_finite(answer.probabilities) || !is_finite(answer.domain_weights)) {
    throw std::runtime_error("the model returned NaN or infinity");
  }
  return answer;
}
