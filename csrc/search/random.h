// Counter-based randomness: a draw depends on what it is for, never on how many draws came before it.
#pragma once

#include <cstdint>
#include <string_view>

namespace restrl::search {

// The finaliser of splitmix64 (Steele, Lea, Flood 2014) after one step of its Weyl sequence.
constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// FNV-1a, 64 bits: a tree's stream is that of its key, so it does not depend on the tree's neighbours.
constexpr std::uint64_t text_stream(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (char byte : text) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
  return hash;
}

// What all draws of one tree begin with.
constexpr std::uint64_t draw_key(std::uint64_t seed, std::uint64_t stream) { return mix(mix(seed) ^ stream); }

constexpr std::uint64_t draw(std::uint64_t key, std::uint64_t simulation, std::uint64_t depth) {
  return mix(mix(key ^ simulation) ^ depth);
}

constexpr std::uint64_t draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t simulation,
                             std::uint64_t depth) {
  return draw(draw_key(seed, stream), simulation, depth);
}

}  // namespace restrl::search
