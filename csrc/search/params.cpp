#include "search/params.h"

#include <iomanip>
#include <sstream>
#include <string>

#include "search/errors.h"

namespace restrl::search {
namespace {

template <typename T>
[[noreturn]] void out_of_range(const char* field, T value, const char* limits) {
  std::ostringstream message;
  message << "search parameter " << field << " = " << value << " must be " << limits;
  throw ParamError(message.str());
}

void check_count(const char* field, std::uint32_t value, std::uint32_t lowest, std::uint32_t highest) {
  if (value < lowest || value > highest) {
    const std::string limits = "between " + std::to_string(lowest) + " and " + std::to_string(highest);
    out_of_range(field, value, limits.c_str());
  }
}

}  // namespace

std::string_view name(Mode mode) {
  switch (mode) {
    case Mode::collect:
      return "collect";
    case Mode::value:
      return "value";
    case Mode::outcome:
      break;
  }
  return "outcome";
}

std::string_view name(Ties ties) { return ties == Ties::seeded ? "seeded" : "first"; }

std::string_view name(LossRule rule) { return rule == LossRule::loss ? "loss" : "unobserved"; }

Mode parse_mode(std::string_view text) {
  for (Mode mode : {Mode::collect, Mode::value, Mode::outcome}) {
    if (text == name(mode)) return mode;
  }
  out_of_range("mode", std::quoted(text), "\"collect\", \"value\" or \"outcome\"");
}

Ties parse_ties(std::string_view text) {
  for (Ties ties : {Ties::seeded, Ties::first}) {
    if (text == name(ties)) return ties;
  }
  out_of_range("ties", std::quoted(text), "\"seeded\" or \"first\"");
}

LossRule parse_loss_rule(std::string_view text) {
  for (LossRule rule : {LossRule::loss, LossRule::unobserved}) {
    if (text == name(rule)) return rule;
  }
  out_of_range("virtual_loss", std::quoted(text), "\"loss\" or \"unobserved\"");
}

SearchParams SearchParams::defaults(Mode mode) {
  SearchParams params;
  params.mode = mode;
  if (mode != Mode::collect) {
    params.simulations = 20;
    params.num_decisions = 5;
    params.c = 0.1;
  }
  return params;
}

void SearchParams::validate() const {
  constexpr std::uint32_t kMany = 0x7fffffff;
  constexpr std::uint32_t kFew = 0xffff;
  check_count("simulations", simulations, 1, kMany);
  check_count("max_samples", max_samples, 0, kMany);
  check_count("k", k, 1, kFew);
  check_count("num_decisions", num_decisions, 1, kFew);
  check_count("leaves_in_flight", leaves_in_flight, 1, kFew);
  if (std::uint64_t{leaves_in_flight} * k > kFew) {
    out_of_range("leaves_in_flight", leaves_in_flight,
                 ("at most " + std::to_string(kFew / k) + " with k = " + std::to_string(k)).c_str());
  }
  // Within these, and scores within kLargestScore, no UCT value overflows.
  if (!(c >= 0 && c <= 1e100)) out_of_range("c", c, "between 0 and 1e100");
  if (step_ends.empty()) out_of_range("step_ends", "()", "at least one string");
  for (const std::string& end : step_ends) {
    if (end.empty()) out_of_range("step_ends", "('')", "strings that are not empty");
  }
  if (!(eps >= 1e-100 && eps <= 1e100)) out_of_range("eps", eps, "between 1e-100 and 1e100");
}

}  // namespace restrl::search
