// Seeds of the fuzzer: bodies of snapshots (without head and checksum) of small
// searches of all kinds.
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "search/dummy.h"
#include "search/forest.h"
#include "search/snapshot.h"

using namespace restrl::search;

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "fuzz_seeds FOLDER\n");
    return 2;
  }
  int number = 0;
  for (std::uint32_t kind = 0; kind < 48; ++kind) {
    SearchParams params = SearchParams::defaults(static_cast<Mode>(kind % 3));
    params.simulations = 12 + kind;
    params.k = 1 + kind % 4;
    params.num_decisions = 1 + kind % 3;
    params.leaves_in_flight = kind % 5 == 0 ? 1 : 4;
    params.reuse = kind % 2 == 1;
    params.in_order = kind % 7 != 0;
    params.virtual_loss = kind % 4 < 2 ? LossRule::loss : LossRule::unobserved;
    params.max_samples = kind % 6 == 0 ? 20 : 0;
    if (kind % 8 == 0) params.step_ends = {"\n", "= "};
    Forest forest(params, kind);
    const TreeId tree = forest.add("k", "a\n");
    for (std::uint32_t round = 0; round < kind % 6; ++round) {
      std::vector<Request> asked;
      for (const Request& request : forest.next(3)) {
        if (!request.completed) asked.push_back(request);
      }
      if (round % 2 == 1 && asked.size() > 1) {  // one more is left with its completions only
        const std::vector<std::string> texts = dummy_texts(0, asked.back(), 4);
        const std::vector<Sampled> samples(texts.begin(), texts.end());
        Answers answers;
        answers.completions = Flat<Sampled>{samples};
        forest.fulfil(std::vector{asked.back().id}, answers);
        asked.pop_back();
        std::swap(asked.front(), asked.back());
      }
      answer_dummy(forest, 0, asked, 4);
    }
    const std::string bytes = save(forest, tree);
    std::ofstream file(std::string(arguments[1]) + "/seed" + std::to_string(number++), std::ios::binary);
    file << bytes.substr(20, bytes.size() - 28);
    if (!file) return 1;
  }
}
