#include "pictures.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace sam {
namespace {

constexpr int64_t MOST_PIXELS = 1 << 27;
using Bytes = std::vector<uint8_t>;

uint32_t big_endian(const uint8_t* p) {
  return uint32_t(p[0]) << 24 | uint32_t(p[1]) << 16 | uint32_t(p[2]) << 8 | uint32_t(p[3]);
}

// ---- Deflate, RFC 1951

struct Bits {
  const Bytes& data;
  size_t place;
  uint32_t held = 0;
  int count = 0;

  uint32_t take(int wanted) {
    while (count < wanted) {
      if (place >= data.size()) throw BadInput("the picture ends too early");
      held |= uint32_t(data[place++]) << count;
      count += 8;
    }
    const uint32_t found = held & ((1u << wanted) - 1);
    held >>= wanted;
    count -= wanted;
    return found;
  }
};

// Canonical Huffman codes: how many of each length, and symbols in their order.
struct Codes {
  std::array<int, 16> counts{};
  std::vector<int> symbols;

  explicit Codes(const std::vector<int>& lengths) {
    for (int length : lengths) ++counts[length];
    counts[0] = 0;
    for (int length = 1; length < 16; ++length)
      for (size_t i = 0; i < lengths.size(); ++i)
        if (lengths[i] == length) symbols.push_back(int(i));
  }

  int next(Bits& bits) const {
    int code = 0, first = 0, index = 0;
    for (int length = 1; length < 16; ++length) {
      code |= int(bits.take(1));
      if (code - first < counts[length]) return symbols[index + code - first];
      index += counts[length];
      first = (first + counts[length]) << 1;
      code <<= 1;
    }
    throw BadInput("the picture has a code that does not exist");
  }
};

void copied(Bits& bits, const Codes& literals, const Codes& distances, size_t most, Bytes& out) {
  static const int base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const int extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
  for (;;) {
    const int symbol = literals.next(bits);
    if (symbol == 256) return;
    if (symbol < 256) {
      out.push_back(uint8_t(symbol));
    } else {
      if (symbol > 285) throw BadInput("the picture has a length that does not exist");
      const size_t length = base[symbol - 257] + bits.take(extra[symbol - 257]);
      const int code = distances.next(bits);
      if (code > 29) throw BadInput("the picture has a distance that does not exist");
      const int more = code < 2 ? 0 : code / 2 - 1;
      const size_t distance = (code < 2 ? code : ((2 + code % 2) << more)) + 1 + bits.take(more);
      if (distance > out.size()) throw BadInput("the picture refers to what is before it");
      for (size_t i = 0; i < length; ++i) out.push_back(out[out.size() - distance]);
    }
    if (out.size() > most) throw BadInput("the picture is larger than its header says");
  }
}

void dynamic_block(Bits& bits, size_t most, Bytes& out) {
  static const int order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  const size_t literals = bits.take(5) + 257, distances = bits.take(5) + 1, given = bits.take(4) + 4;
  std::vector<int> lengths(19, 0);
  for (size_t i = 0; i < given; ++i) lengths[order[i]] = int(bits.take(3));
  const Codes codes(lengths);
  lengths.clear();
  while (lengths.size() < literals + distances) {
    const int symbol = codes.next(bits);
    if (symbol < 16) {
      lengths.push_back(symbol);
      continue;
    }
    if (symbol == 16 && lengths.empty()) throw BadInput("the picture repeats nothing");
    const int value = symbol == 16 ? lengths.back() : 0;
    const int times = symbol == 16 ? 3 + bits.take(2) : symbol == 17 ? 3 + bits.take(3) : 11 + bits.take(7);
    lengths.insert(lengths.end(), times, value);
  }
  if (lengths.size() > literals + distances) throw BadInput("the picture has too many lengths");
  const auto middle = lengths.begin() + literals;
  copied(bits, Codes({lengths.begin(), middle}), Codes({middle, lengths.end()}), most, out);
}

void fixed_block(Bits& bits, size_t most, Bytes& out) {
  std::vector<int> lengths(288, 8);
  std::fill(lengths.begin() + 144, lengths.begin() + 256, 9);
  std::fill(lengths.begin() + 256, lengths.begin() + 280, 7);
  copied(bits, Codes(lengths), Codes(std::vector<int>(30, 5)), most, out);
}

Bytes inflated(const Bytes& data, size_t most) {
  Bits bits{data, 2};  // zlib's two bytes
  Bytes out;
  out.reserve(most);
  for (bool last = false; !last;) {
    last = bits.take(1);
    switch (bits.take(2)) {
      case 0: {
        bits.held = 0;  // to the next byte
        bits.count = 0;
        const uint32_t size = bits.take(16), check = bits.take(16);
        if ((size ^ check) != 0xffff) throw BadInput("the picture's stored block is damaged");
        for (uint32_t i = 0; i < size; ++i) out.push_back(uint8_t(bits.take(8)));
        break;
      }
      case 1: fixed_block(bits, most, out); break;
      case 2: dynamic_block(bits, most, out); break;
      default: throw BadInput("the picture has a block that does not exist");
    }
    if (out.size() > most) throw BadInput("the picture is larger than its header says");
  }
  return out;
}

// ---- PNG

void unfilter(Bytes& rows, int height, size_t stride, int step) {
  Bytes above(stride, 0);
  for (int y = 0; y < height; ++y) {
    uint8_t* row = rows.data() + y * (stride + 1);
    const int kind = *row++;
    for (size_t x = 0; x < stride; ++x) {
      const int left = x < size_t(step) ? 0 : row[x - step], up = above[x];
      const int corner = x < size_t(step) ? 0 : above[x - step];
      int guess = 0;
      if (kind == 1) guess = left;
      if (kind == 2) guess = up;
      if (kind == 3) guess = (left + up) / 2;
      if (kind == 4) {
        const int a = std::abs(up - corner), b = std::abs(left - corner), c = std::abs(left + up - 2 * corner);
        guess = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      if (kind > 4) throw BadInput("the picture has a filter that does not exist");
      row[x] = uint8_t(row[x] + guess);
    }
    std::copy(row, row + stride, above.begin());
  }
}

Picture sized(int64_t width, int64_t height) {
  if (width < 1 || height < 1 || width * height > MOST_PIXELS) throw BadInput("the picture has too many pixels, or none");
  return {int(height), int(width), Bytes(size_t(3 * width * height))};
}

Picture png(const Bytes& data) {
  Bytes packed, palette;
  Picture found;
  int kind = -1;
  for (size_t place = 8; place + 12 <= data.size();) {
    const size_t size = big_endian(&data[place]);
    const uint8_t* body = &data[place] + 8;
    if (size > data.size() - place - 12) throw BadInput("the picture ends too early");
    const std::string name(body - 4, body);
    if (name == "IHDR" && size == 13) {
      found = sized(big_endian(body), big_endian(body + 4));
      kind = body[9];
      if (body[8] != 8 || body[12] != 0) throw BadInput("only PNGs of 8 bits, not interlaced, are read");
    }
    if (name == "PLTE") palette.assign(body, body + size);
    if (name == "IDAT") packed.insert(packed.end(), body, body + size);
    if (name == "IEND") break;
    place += size + 12;
  }
  static const int channels[] = {1, 0, 3, 1, 2, 0, 4};
  const int step = kind >= 0 && kind <= 6 ? channels[kind] : 0;
  if (step == 0) throw BadInput("the picture has no header, or colours that do not exist");
  if (kind == 3 && palette.size() < 3) throw BadInput("the picture has no palette");
  const size_t stride = size_t(step) * found.width;
  Bytes rows = inflated(packed, (stride + 1) * found.height);
  if (rows.size() != (stride + 1) * found.height) throw BadInput("the picture ends too early");
  unfilter(rows, found.height, stride, step);
  for (int y = 0; y < found.height; ++y)
    for (int x = 0; x < found.width; ++x) {
      const uint8_t* from = &rows[y * (stride + 1) + 1 + size_t(x) * step];
      uint8_t* to = &found.pixels[(size_t(y) * found.width + x) * 3];
      if (kind == 3 && (from[0] + 1u) * 3 > palette.size()) throw BadInput("the picture has a colour that does not exist");
      for (int c = 0; c < 3; ++c) to[c] = kind == 3 ? palette[from[0] * 3 + c] : step < 3 ? from[0] : from[c];
    }
  return found;
}

// ---- PPM, NPY

Picture ppm(const Bytes& data) {
  int64_t numbers[3];
  size_t place = 2;
  for (int64_t& number : numbers) {
    while (place < data.size() && (std::isspace(data[place]) || data[place] == '#')) {
      if (data[place] == '#')
        while (place < data.size() && data[place] != '\n') ++place;
      else
        ++place;
    }
    number = 0;
    while (place < data.size() && std::isdigit(data[place]) && number < MOST_PIXELS) number = 10 * number + data[place++] - '0';
  }
  ++place;
  Picture found = sized(numbers[0], numbers[1]);
  if (numbers[2] != 255 || data.size() < place + found.pixels.size()) throw BadInput("this PPM is not P6 of 255, or ends too early");
  std::copy_n(data.begin() + long(place), found.pixels.size(), found.pixels.begin());
  return found;
}

// Where the values of an NPY begin; its type and shape.
size_t npy_header(const Bytes& data, const std::string& type, std::vector<int64_t>* shape) {
  if (data.size() < 12 || std::memcmp(data.data(), "\x93NUMPY", 6) != 0) throw BadInput("this is no NPY file");
  const bool first = data[6] == 1;
  const size_t size = first ? data[8] | data[9] << 8 : data[8] | data[9] << 8 | data[10] << 16 | size_t(data[11]) << 24;
  const size_t begin = first ? 10 : 12;
  if (size > data.size() - begin) throw BadInput("the NPY file ends too early");
  const std::string header(data.begin() + long(begin), data.begin() + long(begin + size));
  size_t place = header.find("'shape': (");
  if (header.find("'" + type + "'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos ||
      place == std::string::npos)
    throw BadInput("this NPY file is not " + type + " in C order");
  shape->clear();
  int64_t count = 1;
  for (place += 10; place < header.size() && header[place] != ')';) {
    if (!std::isdigit(uint8_t(header[place]))) {
      ++place;
      continue;
    }
    int64_t number = 0;
    while (std::isdigit(uint8_t(header[place])) && number < int64_t(1) << 32) number = 10 * number + header[place++] - '0';
    shape->push_back(number);
    count *= number;
    if (count > int64_t(1) << 31) throw BadInput("the NPY file is too large");
  }
  if (size_t(count) * (type == "<f4" ? 4 : 1) != data.size() - begin - size) throw BadInput("the NPY file has another size");
  return begin + size;
}

uint32_t crc_of(const uint8_t* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

void append(Bytes& out, uint32_t number) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(uint8_t(number >> shift));
}

void chunk(Bytes& out, const char* name, const Bytes& body) {
  append(out, uint32_t(body.size()));
  const size_t begin = out.size();
  out.insert(out.end(), name, name + 4);
  out.insert(out.end(), body.begin(), body.end());
  append(out, crc_of(&out[begin], out.size() - begin));
}

}  // namespace

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw BadInput(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
  if (!file.flush()) throw BadInput(path + " cannot be written");
}

Picture read_picture(const std::string& path) {
  const Bytes data = read_file(path);
  try {
    if (data.size() > 8 && std::memcmp(data.data(), "\x89PNG\r\n\x1a\n", 8) == 0) return png(data);
    if (data.size() > 8 && data[0] == 'P' && data[1] == '6') return ppm(data);
    std::vector<int64_t> shape;
    const size_t begin = npy_header(data, "|u1", &shape);
    if (shape.size() != 3 || shape[2] != 3) throw BadInput("its shape is not (height, width, 3)");
    Picture found = sized(shape[1], shape[0]);
    std::copy(data.begin() + long(begin), data.end(), found.pixels.begin());
    return found;
  } catch (const BadInput& error) {
    throw BadInput(path + ": " + error.what());
  }
}

void write_mask(const std::string& path, const Bytes& mask, int height, int width) {
  Bytes header, rows, packed{0x78, 0x01}, out{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  append(header, uint32_t(width));
  append(header, uint32_t(height));
  header.insert(header.end(), {8, 0, 0, 0, 0});
  for (int y = 0; y < height; ++y) {
    rows.push_back(0);
    for (int x = 0; x < width; ++x) rows.push_back(mask[size_t(y) * width + x] ? 255 : 0);
  }
  uint32_t a = 1, b = 0;  // Adler-32
  for (uint8_t value : rows) {
    a = (a + value) % 65521;
    b = (b + a) % 65521;
  }
  for (size_t begin = 0; begin < rows.size(); begin += 65535) {  // stored blocks: nothing is compressed
    const size_t size = std::min<size_t>(65535, rows.size() - begin);
    packed.push_back(begin + size == rows.size());
    for (size_t word : {size, size ^ 0xffff}) {
      packed.push_back(uint8_t(word));
      packed.push_back(uint8_t(word >> 8));
    }
    packed.insert(packed.end(), rows.begin() + long(begin), rows.begin() + long(begin + size));
  }
  append(packed, b << 16 | a);
  chunk(out, "IHDR", header);
  chunk(out, "IDAT", packed);
  chunk(out, "IEND", {});
  write_file(path, out);
}

void write_npy(const std::string& path, const std::vector<float>& values, const std::vector<int64_t>& shape) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int64_t side : shape) header += std::to_string(side) + ", ";
  header += "), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  Bytes out{0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, uint8_t(header.size()), uint8_t(header.size() >> 8)};
  out.insert(out.end(), header.begin(), header.end());
  const auto* raw = reinterpret_cast<const uint8_t*>(values.data());  // Jetsons and x86 are little-endian
  out.insert(out.end(), raw, raw + values.size() * sizeof(float));
  write_file(path, out);
}

std::vector<float> read_npy(const std::string& path, std::vector<int64_t>* shape) {
  const Bytes data = read_file(path);
  const size_t begin = npy_header(data, "<f4", shape);
  std::vector<float> values((data.size() - begin) / sizeof(float));
  std::memcpy(values.data(), &data[begin], values.size() * sizeof(float));
  return values;
}

}  // namespace sam
