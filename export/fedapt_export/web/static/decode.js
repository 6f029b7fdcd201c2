// Image file -> uint8 array, as fedapt_runtime/preprocess.py reads it. The browser decodes the file.
// EXIF orientation and colour profiles are ignored, as in training.

import { prepare, refuseSize } from "./pixels.js";

const ASCII = new TextDecoder("latin1");

/**
 * Decode, resize and crop an image file.
 *
 * @param {Blob} image a file of a format that the browser decodes
 * @param {object} preprocessing preprocessing in the manifest
 * @returns {Promise<Uint8Array>} RGB, [height * width * 3] of the manifest's size
 * @throws {Error} the browser cannot decode the file, or the image is too large
 */
export async function decode(image, preprocessing) {
  const bytes = new Uint8Array(await image.arrayBuffer());
  if (!bytes.length) throw new Error("an empty file");
  forgetOrientation(bytes);
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type: image.type }), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("not an image that this browser can decode");
  }
  const { width, height } = bitmap;
  try {
    const refusal = refuseSize(width, height, preprocessing);
    if (refusal) throw new Error(refusal);
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    return prepare(data, width, height, preprocessing, hasPalette(bytes));
  } finally {
    bitmap.close();
  }
}

/** Whether Pillow decodes the image to indices into a palette, or to single bits. */
export function hasPalette(bytes) {
  if (ASCII.decode(bytes.subarray(0, 4)) === "GIF8") return true;
  if (ASCII.decode(bytes.subarray(1, 4)) !== "PNG") return false;
  const [depth, colour] = [bytes[24], bytes[25]];
  return colour === 3 || (colour === 0 && depth === 1);
}

/**
 * Set the EXIF orientation of a JPEG, PNG or WebP to 1, in place.
 *
 * `imageOrientation` of `createImageBitmap` cannot do this: "none" differs between browsers.
 * Source: CIPA DC-008 (EXIF), 4.5.4 and 4.6.2; TIFF 6.0, section 2.
 */
export function forgetOrientation(bytes) {
  for (const [start, end] of exifBlocks(bytes)) {
    const view = new DataView(bytes.buffer, bytes.byteOffset + start, end - start);
    if (view.byteLength < 8) continue;
    const little = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, little);
    if (directory + 2 > view.byteLength) continue;
    const entries = view.getUint16(directory, little);
    for (let at = directory + 2; at < directory + 2 + 12 * entries && at + 12 <= view.byteLength; at += 12) {
      if (view.getUint16(at, little) === 0x0112) view.setUint16(at + 8, 1, little);
    }
  }
}

/** Start and end of each TIFF structure with EXIF data, in bytes. */
function* exifBlocks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const kind = ASCII.decode(bytes.subarray(0, 12));
  if (kind.startsWith("\xff\xd8")) {
    for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
      const end = Math.min(at + 2 + view.getUint16(at + 2), bytes.length);
      const isExif = bytes[at + 1] === 0xe1 && ASCII.decode(bytes.subarray(at + 4, at + 10)) === "Exif\0\0";
      if (isExif) yield [at + 10, end];
      at = end;
    }
  } else if (kind.startsWith("\x89PNG")) {
    for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
      const end = at + 8 + view.getUint32(at);
      // the chunk's checksum becomes wrong, so decoders skip this optional chunk
      if (ASCII.decode(bytes.subarray(at + 4, at + 8)) === "eXIf") yield [at + 8, Math.min(end, bytes.length)];
    }
  } else if (kind.startsWith("RIFF") && kind.endsWith("WEBP")) {
    for (let at = 12; at + 8 <= bytes.length; ) {
      const size = view.getUint32(at + 4, true);
      const start = at + 8 + (ASCII.decode(bytes.subarray(at + 8, at + 14)) === "Exif\0\0" ? 6 : 0);
      if (ASCII.decode(bytes.subarray(at, at + 4)) === "EXIF") yield [start, Math.min(at + 8 + size, bytes.length)];
      at += 8 + size + (size & 1);
    }
  }
}
