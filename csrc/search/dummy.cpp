#include "search/dummy.h"

#include <array>
#include <string_view>
#include <thread>
#include <utility>

#include "search/random.h"

namespace restrl::search {
namespace {

constexpr std::array<std::string_view, 8> kLines = {
    "x = 1\n",      "x += 2\n",   "y = x\n",   "\n", "for i in range(3):\n",
    "    x *= i\n", "y -= x  \n", "print(x)\n"};

}  // namespace

std::vector<std::string> dummy_completions(std::uint64_t seed, std::uint64_t stream, std::uint32_t k,
                                           std::uint32_t ends) {
  std::vector<std::string> completions(k);
  for (std::uint32_t i = 0; i < k; ++i) {
    std::uint64_t bits = draw(seed, stream, i, 0);
    const bool last = ends != 0 && bits % ends == 0;
    const std::uint64_t lines = last ? 1 : 1 + bits / 16 % 3;
    bits >>= 8;
    for (std::uint64_t j = 0; j < lines; ++j, bits >>= 3) completions[i] += kLines[bits % kLines.size()];
    if (!last) completions[i] += "return x\n";
  }
  return completions;
}

double dummy_score(std::uint64_t seed, std::uint64_t stream) {
  return static_cast<double>(draw(seed, stream, 0, 1) % 17) / 16;
}

std::vector<std::string> dummy_texts(std::uint64_t seed, const Request& request, std::uint32_t ends) {
  return dummy_completions(seed, draw(seed, request.tree, request.simulation, 2), request.k, ends);
}

Scores dummy_scores(std::uint64_t seed, const Request& request, std::size_t children) {
  const std::uint64_t stream = draw(seed, request.tree, request.simulation, 2);
  Scores scores;
  for (std::uint32_t i = 0; i < request.k; ++i) {
    scores.completions.push_back(dummy_score(seed, stream ^ mix(i)));
  }
  for (std::size_t i = 0; i < children; ++i) {
    scores.children.push_back(dummy_score(seed, stream ^ mix(request.k + i)));
  }
  return scores;
}

void answer_dummy(Forest& forest, std::uint64_t seed, std::span<const Request> requests, std::uint32_t ends) {
  std::vector<RequestId> ids;
  std::vector<std::string> texts;
  for (const Request& request : requests) {
    ids.push_back(request.id);
    for (std::string& text : dummy_texts(seed, request, ends)) texts.push_back(std::move(text));
  }
  const std::vector<Sampled> completions(texts.begin(), texts.end());
  forest.fulfil(ids,
                {.completions = Flat<Sampled>{completions}, .completion_values = {}, .child_values = {}});
  std::vector<double> values, child_values;
  for (const Request& request : requests) {
    const bool by_children = forest.params().mode == Mode::value;
    const Scores scores = dummy_scores(seed, request, by_children ? forest.children(request.id) : 0);
    values.insert(values.end(), scores.completions.begin(), scores.completions.end());
    child_values.insert(child_values.end(), scores.children.begin(), scores.children.end());
  }
  forest.fulfil(ids, {.completions = {},
                      .completion_values = Flat<double>{values},
                      .child_values = Flat<double>{child_values}});
}

std::uint64_t run_dummy(Forest& forest, std::uint64_t seed, std::size_t batch, std::uint32_t ends) {
  std::uint64_t answered = 0;
  for (;;) {
    const std::vector<Request> requests = forest.next(batch);
    if (requests.empty()) {
      if (forest.in_flight() == 0) return answered;
      std::this_thread::yield();  // another thread holds the requests that
                                  // everything waits for
      continue;
    }
    answer_dummy(forest, seed, requests, ends);
    answered += requests.size();
  }
}

}  // namespace restrl::search
