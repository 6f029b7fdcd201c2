// fedapt-edge [--threads N] [--time] MODEL IMAGE...
//
// Classifies JPEG files with a model that `fedapt export` wrote. Prints a line of JSON for each, with the
// keys of `fedapt-runtime classify`; --time adds a line on standard error.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "jpeg.hpp"
#include "model.hpp"
#include "pixels.hpp"

namespace {

constexpr std::size_t kTopK = 5;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct Options {
  int threads = 0;
  bool time = false;
  std::vector<std::string> files;  // the model first
};

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--threads" && i + 1 < count) {
      options.threads = std::stoi(words[++i]);
    } else if (word == "--time") {
      options.time = true;
    } else {
      options.files.push_back(word);
    }
  }
  if (options.files.size() < 2) throw std::invalid_argument("");
  return options;
}

Json describe(const std::string& path, const Answer& answer, const Manifest& manifest) {
  std::vector<std::size_t> order(manifest.classes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return answer.probabilities[a] > answer.probabilities[b];
  });
  Json top = Json::array(), weights = Json::object();
  for (std::size_t i = 0; i < std::min(kTopK, order.size()); ++i) {
    top.push_back({manifest.classes[order[i]], answer.probabilities[order[i]]});
  }
  for (std::size_t i = 0; i < manifest.domains.size(); ++i) {
    weights[manifest.domains[i]] = answer.domain_weights[i];
  }
  const auto largest = std::max_element(answer.domain_weights.begin(), answer.domain_weights.end());
  return {{"path", path},
          {"label", top[0][0]},
          {"score", top[0][1]},
          {"top_k", top},
          {"routed_to", manifest.domains[largest - answer.domain_weights.begin()]},
          {"domain_weights", weights},
          {"error", nullptr}};
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int run(const Options& options) {
  const auto start = Clock::now();
  const Model model(options.files[0], options.threads);
  const double load_s = seconds_since(start);
  const auto begin = Clock::now();
  for (std::size_t i = 1; i < options.files.size(); ++i) {
    const std::string& path = options.files[i];
    Json row;
    try {
      Image image = prepare(read_jpeg(path), model.manifest());
      row = describe(path, model.classify(image), model.manifest());
    } catch (const std::exception& error) {
      row = {{"path", path}, {"label", nullptr}, {"error", error.what()}};
    }
    // a file's name need not be UTF-8
    std::cout << row.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
  if (options.time) {
    const double rate = (options.files.size() - 1) / seconds_since(begin);
    std::cerr << Json{{"load_s", load_s}, {"images_per_s", rate}}.dump() << '\n';
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  Options options;
  try {
    options = parse(count, words);
  } catch (const std::exception&) {
    std::cerr << "usage: fedapt-edge [--threads N] [--time] MODEL IMAGE...\n";
    return 2;
  }
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::cerr << options.files[0] << ": " << error.what() << '\n';
    return 8;
  }
}
