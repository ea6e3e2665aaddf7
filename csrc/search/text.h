// From sampled completions to actions: where a line ends and which samples share a child.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace restrl::search {

// `utf8` without the white space at its end, white space being what Python's str.rstrip() removes.
std::string_view rstrip(std::string_view utf8);

// The k completions of one expansion, taken apart.
//
//   texts      completion without trailing white space, plus one newline: what follows the node's state
//   child_of   completion -> child
//   children   in the order of their first completion
struct Split {
  struct Child {
    std::uint32_t completion;   // the first one that leads here; its text begins with the child's line
    std::uint32_t line_length;  // bytes, newline included
    std::uint32_t count;        // completions that lead here
    bool terminal;              // that first completion was one last line
  };
  std::vector<std::string> texts;
  std::vector<std::uint32_t> child_of;
  std::vector<Child> children;

  std::string_view line(const Child& child) const {
    return std::string_view(texts[child.completion]).substr(0, child.line_length);
  }
};

// Throws LimitError for a completion of 4 GiB or more.
Split split_completions(const std::vector<std::string>& completions);

}  // namespace restrl::search
