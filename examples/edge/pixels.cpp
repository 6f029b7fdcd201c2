// Pillow resamples one axis, rounds to 8 bits, and resamples the other. Its weights are integers with
// 22 fractional bits, so the same integers here give the same pixels. The order of the axes is that of
// Pillow 13; older versions take columns first.
//
// Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`, `bicubic_filter` with a = -0.5,
// `ImagingResampleHorizontal_8bpc`).

#include "pixels.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

constexpr int kBits = 32 - 8 - 2;
constexpr int kHalf = 1 << (kBits - 1);
constexpr double kMaxPixels = 100e6;

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double triangle(double x) { return std::max(1 - std::abs(x), 0.0); }

std::uint8_t clip(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

// The input pixels of each output pixel along one axis.
struct Weights {
  std::vector<int> starts;
  std::vector<std::vector<int>> values;

  int size() const { return static_cast<int>(starts.size()); }
  int first() const { return starts.front(); }
  int last() const { return starts.back() + static_cast<int>(values.back().size()); }
};

// Weights of the results `from` to `from + count` of an axis that is resampled to `new_length`.
Weights weigh(int length, int new_length, int from, int count, bool bicubic) {
  Weights weights;
  const double scale = static_cast<double>(length) / new_length;
  const double filter_scale = std::max(scale, 1.0);
  const double support = (bicubic ? 2.0 : 1.0) * filter_scale;
  for (int i = from; i < from + count; ++i) {
    if (length == new_length) {  // Pillow does not resample such an axis
      weights.starts.push_back(i);
      weights.values.push_back({1 << kBits});
      continue;
    }
    const double centre = (i + 0.5) * scale;
    const double inverse = 1.0 / filter_scale;
    const int start = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int end = std::min(static_cast<int>(centre + support + 0.5), length);
    std::vector<double> exact;
    double total = 0;
    for (int x = start; x < end; ++x) {
      const double distance = (x - centre + 0.5) * inverse;
      exact.push_back(bicubic ? cubic(distance) : triangle(distance));
      total += exact.back();
    }
    std::vector<int> integers;
    for (double weight : exact) {
      if (total != 0) weight /= total;
      integers.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kBits)));
    }
    weights.starts.push_back(start);
    weights.values.push_back(std::move(integers));
  }
  return weights;
}

// Rows `first` to `last` of `image`, which lacks the first `skipped` columns.
Image resample_columns(const Image& image, int first, int last, const Weights& weights, int skipped) {
  Image out{weights.size(), last - first, {}};
  out.pixels.reserve(std::size_t{3} * out.width * out.height);
  for (int y = first; y < last; ++y) {
    const std::uint8_t* row = image.pixels.data() + std::size_t{3} * image.width * y;
    for (int x = 0; x < out.width; ++x) {
      const std::uint8_t* pixel = row + 3 * (weights.starts[x] - skipped);
      int red = kHalf, green = kHalf, blue = kHalf;
      for (int weight : weights.values[x]) {
        red += pixel[0] * weight;
        green += pixel[1] * weight;
        blue += pixel[2] * weight;
        pixel += 3;
      }
      out.pixels.insert(out.pixels.end(), {clip(red), clip(green), clip(blue)});
    }
  }
  return out;
}

// Columns `first` to `last` of `image`, which lacks the first `skipped` rows.
Image resample_rows(const Image& image, int first, int last, const Weights& weights, int skipped) {
  Image out{last - first, weights.size(), {}};
  const std::size_t length = std::size_t{3} * out.width;
  out.pixels.resize(length * out.height);
  std::vector<int> sums(length);
  for (int y = 0; y < out.height; ++y) {
    std::fill(sums.begin(), sums.end(), kHalf);
    int at = weights.starts[y] - skipped;
    for (int weight : weights.values[y]) {
      const std::uint8_t* row = image.pixels.data() + 3 * (std::size_t(at++) * image.width + first);
      for (std::size_t x = 0; x < length; ++x) sums[x] += row[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.pixels.begin() + length * y, clip);
  }
  return out;
}

// The first of `size` pixels in the centre of `length`; halves go to the even number.
int crop_offset(int length, int size) {
  const int twice = length - size;
  const int floor = twice >= 0 ? twice / 2 : (twice - 1) / 2;
  return twice % 2 == 0 ? floor : floor + (floor & 1);
}

}  // namespace

Image prepare(const Image& image, const Manifest& manifest) {
  const int columns = manifest.width, rows = manifest.height;
  int new_width = columns, new_height = rows, left = 0, top = 0;
  if (!manifest.squash) {
    const int shorter = std::min(image.width, image.height);
    const double scale = std::max(1.0, static_cast<double>(rows) / shorter);
    if (static_cast<double>(image.width) * image.height * scale * scale > kMaxPixels) {
      throw std::runtime_error("too many pixels when resized");
    }
    const double product = static_cast<double>(rows) * std::max(image.width, image.height);
    const int longer = static_cast<int>(product / shorter);
    (image.width <= image.height ? new_height : new_width) = longer;
    left = crop_offset(new_width, columns);
    top = crop_offset(new_height, rows);
  }
  const Weights across = weigh(image.width, new_width, left, columns, manifest.bicubic);
  const Weights down = weigh(image.height, new_height, top, rows, manifest.bicubic);
  // the axis that shrinks more comes first
  if (new_height < image.height && image.height - new_height > 2 * (image.width - new_width)) {
    const Image between = resample_rows(image, across.first(), across.last(), down, 0);
    return resample_columns(between, 0, rows, across, across.first());
  }
  const Image between = resample_columns(image, down.first(), down.last(), across, 0);
  return resample_rows(between, 0, columns, down, down.first());
}
