#pragma once

#include <string>

#include "image.hpp"

// Decode a JPEG file as Pillow does: accurate DCT, smooth chroma; EXIF orientation and colour profiles
// are ignored. Throws std::runtime_error.
Image read_jpeg(const std::string& path);
