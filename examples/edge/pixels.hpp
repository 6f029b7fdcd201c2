#pragma once

#include "image.hpp"
#include "manifest.hpp"

// Resize and crop as fedapt's Python runtime does it with Pillow, to the bit.
// Returns manifest.height x manifest.width; throws std::runtime_error if that is too large.
Image prepare(const Image& image, const Manifest& manifest);
