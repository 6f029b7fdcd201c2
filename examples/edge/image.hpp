// An image of 8 bits a channel, RGB, rows from the top.
#pragma once

#include <cstdint>
#include <vector>

struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;  // [height * width * 3]
};
