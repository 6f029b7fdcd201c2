#include "jpeg.hpp"

#include <csetjmp>
#include <cstdio>
#include <memory>
#include <stdexcept>

#include <jpeglib.h>

namespace {

constexpr std::int64_t kMaxPixels = 100'000'000;

struct Errors {
  jpeg_error_mgr manager;  // first member: libjpeg passes only its address
  std::jmp_buf stop;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void stop(j_common_ptr decoder) {
  auto* errors = reinterpret_cast<Errors*>(decoder->err);
  decoder->err->format_message(decoder, errors->message);
  std::longjmp(errors->stop, 1);
}

void note(j_common_ptr decoder, int level) {
  // a warning means that data is missing or damaged, which Pillow refuses too
  if (level < 0) stop(decoder);
}

// No object with a destructor in this function: longjmp skips destructors.
bool decode(std::FILE* file, jpeg_decompress_struct& decoder, Errors& errors, Image& image) {
  if (setjmp(errors.stop)) return false;
  jpeg_create_decompress(&decoder);
  jpeg_stdio_src(&decoder, file);
  jpeg_read_header(&decoder, TRUE);
  if (decoder.num_components != 1 && decoder.num_components != 3) {
    std::snprintf(errors.message, sizeof errors.message, "%d colour components, 1 or 3 are read",
                  decoder.num_components);
    return false;
  }
  if (std::int64_t{decoder.image_width} * decoder.image_height > kMaxPixels) {
    std::snprintf(errors.message, sizeof errors.message, "more than 100 000 000 pixels");
    return false;
  }
  decoder.out_color_space = JCS_RGB;
  decoder.dct_method = JDCT_ISLOW;
  decoder.do_fancy_upsampling = TRUE;
  jpeg_start_decompress(&decoder);
  image.width = static_cast<int>(decoder.output_width);
  image.height = static_cast<int>(decoder.output_height);
  image.pixels.resize(std::size_t{3} * image.width * image.height);
  while (decoder.output_scanline < decoder.output_height) {
    JSAMPROW row = image.pixels.data() + std::size_t{3} * image.width * decoder.output_scanline;
    jpeg_read_scanlines(&decoder, &row, 1);
  }
  jpeg_finish_decompress(&decoder);
  return true;
}

}  // namespace

Image read_jpeg(const std::string& path) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) throw std::runtime_error("no file that can be read");
  Errors errors{};
  jpeg_decompress_struct decoder{};
  decoder.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = stop;
  errors.manager.emit_message = note;
  Image image;
  const bool decoded = decode(file.get(), decoder, errors, image);
  jpeg_destroy_decompress(&decoder);
  if (!decoded) throw std::runtime_error(errors.message);
  return image;
}
