// What goes into a forest and comes out of it as plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "search/tree_data.h"

namespace restrl::search {

using TreeId = std::uint32_t;
using RequestId = std::uint64_t;  // generation << 32 | place: an old id is never
                                  // mistaken for a new one

// A leaf to expand: sample k completions of its state.
struct Request {
  RequestId id;
  TreeId tree;
  std::uint32_t simulation;  // number of the simulation in its tree, from 0;
                             // never used twice
  std::uint32_t k;           // completions to draw; 0 if all are reused (value mode: its
                             // children want scores)
  std::uint32_t reused;      // completions the leaf has already; k + reused = params.k
  bool completed = false;    // all are there (reused, or of a snapshot): only scores are asked
};

// A completion as it was sampled, cut at the stop strings. With an owner its bytes stay where they are (see
// Forest::fulfil), else they are copied.
struct Sampled {
  Sampled(std::string_view text, void* text_owner = nullptr) : utf8(text), owner(text_owner) {}
  std::string_view utf8;
  void* owner;
};

// The rows of several requests, one after the other; `lengths` has one entry per request, or none where every
// request gets as many as it needs.
template <typename T>
struct Flat {
  std::span<const T> items;
  std::span<const std::uint32_t> lengths{};
};

// Completions, scores or both; what is left out comes with a later call (or came with an earlier one).
struct Answers {
  std::optional<Flat<Sampled>> completions{};       // request.k each
  std::optional<Flat<double>> completion_values{};  // request.k each: the reused ones keep theirs
  std::optional<Flat<double>> child_values;         // value mode: one for each child
};

// Bytes of the first step of a text, which is a completion without the white space at its end, and a newline:
// at least 1; the whole text is one last step if it says text.size() or more. Depends on the text alone.
using Splitter = std::function<std::size_t(std::string_view text)>;

// A completion's bytes with an owner, as Forest::fulfil() takes them.
using Keep = std::function<Sampled(std::string_view utf8)>;

// What has to be scored: a completion's program is `state` + its text, a child's is `state` + its line.
struct Expansion {
  struct Child {
    std::string line;
    bool terminal;
  };
  std::string state;
  std::uint32_t reused;
  std::vector<std::string> texts;  // [params.k], the reused ones first
  std::vector<std::uint32_t> child_of;
  std::vector<Child> children;
};

struct TreeStats {
  std::uint32_t simulations = 0;      // applied, terminal visits included
  std::uint32_t expansions = 0;       // applied
  std::uint32_t terminal_visits = 0;  // applied
  std::uint32_t completions = 0;      // of the applied expansions: samples + reused
  std::uint32_t samples = 0;          // of them drawn from the policy
  std::uint32_t reused = 0;           // of them what followed a step of a completion further up
  std::uint32_t collisions = 0;
  std::uint32_t in_flight = 0;  // simulations under way
  std::uint64_t nodes = 0;
  std::uint64_t text_bytes = 0;
  std::uint64_t bytes = 0;  // memory besides text
};

// A simulation under way, as plain data. Its leaf is child `child` of expansion `expansion` in TreeDump, the
// root where that is kNone.
struct PendingImage {
  std::uint32_t number;
  std::uint32_t expansion;
  std::uint32_t child;
  bool has_completions = false;
  bool has_values = false;               // it waits for those before it
  std::vector<std::string> completions;  // the drawn ones, without white space at their ends
  std::vector<double> completion_values;
  std::vector<double> child_values;
};

// A tree with its window, as plain data: Forest::insert() goes on exactly where Forest::image() was taken.
struct TreeImage {
  std::string key;
  TreeDump tree;
  std::vector<PendingImage> window;  // oldest first
  std::uint32_t next_number = 0;     // of simulations; larger than all in `tree` and `window`
  bool idle = true;                  // selects nothing before next() comes to it
  bool collided = false;             // selecting again would meet a leaf in flight
  bool spent = false;                // a selected leaf needed more samples than were left
  TreeStats stats;                   // what was applied, and collisions; the rest is not read
};

}  // namespace restrl::search
