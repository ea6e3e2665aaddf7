#include "search/forest.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "search/errors.h"
#include "search/random.h"

namespace restrl::search {
namespace {

void check_distinct(std::span<const RequestId> ids) {
  std::unordered_set<RequestId> seen;
  for (RequestId id : ids) {
    if (!seen.insert(id).second) throw RequestError("request " + std::to_string(id) + " is named twice");
  }
}

void check_scores(const char* what, RequestId id, const std::vector<double>& scores, std::size_t expected) {
  if (scores.size() != expected) {
    throw AnswerError("request " + std::to_string(id) + " needs " + std::to_string(expected) + " " + what +
                      " values, not " + std::to_string(scores.size()));
  }
  for (double score : scores) {
    if (!(std::abs(score) <= kLargestScore)) {
      throw AnswerError("request " + std::to_string(id) + " got a " + what +
                        " value that is not finite or beyond 1e200: " + std::to_string(score));
    }
  }
}

}  // namespace

Forest::Forest(const SearchParams& params, std::uint64_t seed) : params_(params), seed_(seed) {
  params_.validate();
}

TreeId Forest::add(std::string_view key, std::string_view state) {
  std::scoped_lock lock(mutex_);
  if (lanes_.size() >= kNone) throw LimitError("a forest holds at most 2^32 - 2 trees over its life");
  const auto id = static_cast<TreeId>(lanes_.size());
  lanes_.push_back(
      std::unique_ptr<Lane>(new Lane{.id = id, .tree = Tree(params_, seed_, text_stream(key), state)}));
  idle_.push_back(id);
  return id;
}

std::vector<Request> Forest::next(std::size_t max_requests, std::vector<std::string>* states) {
  std::scoped_lock lock(mutex_);
  std::vector<Request> requests;
  while (requests.size() < max_requests) {
    if (ready_.empty()) {
      if (idle_.empty()) break;
      Lane* lane = lanes_[idle_.front()].get();
      idle_.pop_front();
      if (lane == nullptr) continue;
      lane->idle = false;
      advance(*lane);
      continue;
    }
    const RequestId id = ready_.front();
    ready_.pop_front();
    const Slot& entry = slots_[static_cast<std::uint32_t>(id)];
    if (entry.simulation == nullptr || entry.generation != id >> 32) continue;  // cancelled meanwhile
    requests.push_back({id, entry.lane->id, entry.simulation->number, entry.simulation->samples,
                        params_.k - entry.simulation->samples});
    if (states != nullptr) states->push_back(entry.lane->tree.state(entry.simulation->node));
  }
  return requests;
}

void Forest::fulfil(std::span<const RequestId> ids, std::vector<Answer> answers) {
  if (ids.size() != answers.size()) {
    throw AnswerError(std::to_string(ids.size()) + " requests got " + std::to_string(answers.size()) +
                      " answers");
  }
  check_distinct(ids);
  std::scoped_lock lock(mutex_);
  std::vector<std::optional<Split>> splits(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) check(slot(ids[i]), ids[i], answers[i], splits[i]);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Slot& entry = slot(ids[i]);
    Lane& lane = *entry.lane;
    if (splits[i]) {
      entry.simulation->split = std::move(splits[i]);
      entry.simulation->texts = std::move(*answers[i].completions);  // which the split looks at
    }
    if (!answers[i].scores) continue;
    entry.simulation->scores = std::move(answers[i].scores);
    close_request(*entry.simulation);
    advance(lane);
  }
}

// Whether `answer` fits the request; `split` gets its completions taken apart.
void Forest::check(const Slot& entry, RequestId id, const Answer& answer, std::optional<Split>& split) const {
  const Simulation& simulation = *entry.simulation;
  // A request of no samples has its completions from the start; none given again is no mistake.
  if (answer.completions && (simulation.samples > 0 || !answer.completions->empty())) {
    if (simulation.split && simulation.samples > 0)
      throw AnswerError("request " + std::to_string(id) + " has its completions already");
    if (answer.completions->size() != simulation.samples) {
      throw AnswerError("request " + std::to_string(id) + " needs " + std::to_string(simulation.samples) +
                        " completions, not " + std::to_string(answer.completions->size()));
    }
    split = split_of(*entry.lane, simulation, *answer.completions);
  }
  if (!answer.scores) return;
  const Split* known = split ? &*split : simulation.split ? &*simulation.split : nullptr;
  if (known == nullptr)
    throw AnswerError("request " + std::to_string(id) + " got scores before its completions");
  check_scores("completion", id, answer.scores->completions, simulation.samples);
  check_scores("child", id, answer.scores->children,
               params_.mode == Mode::value ? known->children.size() : 0);
}

Split Forest::split_of(const Lane& lane, const Simulation& simulation,
                       const std::vector<std::string>& texts) const {
  Split split;
  lane.tree.inherit(simulation.node, split.texts);
  for (const std::string& text : texts) split.texts.push_back(to_text(text));
  split_texts(split, params_.step_ends);
  return split;
}

void Forest::cancel(std::span<const RequestId> ids) {
  check_distinct(ids);
  std::scoped_lock lock(mutex_);
  for (RequestId id : ids) slot(id);
  for (RequestId id : ids) {
    const Slot entry = slot(id);
    drop(*entry.lane, entry.simulation);
  }
}

void Forest::cancel_all() {
  std::scoped_lock lock(mutex_);
  for (const auto& lane : lanes_) {
    if (lane == nullptr) continue;
    std::vector<Simulation*> open;
    for (const auto& simulation : lane->window) {
      if (!simulation->answered()) open.push_back(simulation.get());
    }
    for (Simulation* simulation : open) drop(*lane, simulation);
  }
  ready_.clear();
}

std::size_t Forest::children(RequestId id) const {
  std::scoped_lock lock(mutex_);
  const Slot& entry = slot(id);
  if (!entry.simulation->split) {
    throw AnswerError("request " + std::to_string(id) + " has no completions yet");
  }
  return entry.simulation->split->children.size();
}

std::string Forest::state(RequestId id) const {
  std::scoped_lock lock(mutex_);
  const Slot& entry = slot(id);
  return entry.lane->tree.state(entry.simulation->node);
}

Expansion Forest::expansion(RequestId id) const {
  std::scoped_lock lock(mutex_);
  const Slot& entry = slot(id);
  if (!entry.simulation->split) {
    throw AnswerError("request " + std::to_string(id) + " has no completions yet");
  }
  const Split& split = *entry.simulation->split;
  Expansion expansion{entry.lane->tree.state(entry.simulation->node),
                      params_.k - entry.simulation->samples,
                      {},
                      split.child_of,
                      {}};
  for (const Text& text : split.texts) expansion.texts.push_back(text.str());
  for (const Split::Child& child : split.children) {
    expansion.children.push_back({split.line(child), child.terminal});
  }
  return expansion;
}

std::vector<TreeId> Forest::take_finished() {
  std::scoped_lock lock(mutex_);
  return std::exchange(finished_, {});
}

std::size_t Forest::in_flight() const {
  std::scoped_lock lock(mutex_);
  std::size_t sum = 0;
  for (const auto& lane : lanes_) sum += lane ? lane->window.size() : 0;
  return sum;
}

TreeStats Forest::stats(TreeId id) const {
  std::scoped_lock lock(mutex_);
  const Lane& tree = lane(id);
  TreeStats stats = tree.stats;
  stats.in_flight = static_cast<std::uint32_t>(tree.window.size());
  stats.nodes = tree.tree.size();
  stats.text_bytes = tree.tree.text_bytes();
  stats.bytes = tree.tree.bytes();
  return stats;
}

std::size_t Forest::nodes_in_flight(TreeId id) const {
  std::scoped_lock lock(mutex_);
  return lane(id).tree.nodes_in_flight();
}

TreeView Forest::view(TreeId id) const {
  std::scoped_lock lock(mutex_);
  return lane(id).tree.view();
}

void Forest::remove(TreeId id) {
  std::scoped_lock lock(mutex_);
  const Lane& tree = lane(id);
  if (!tree.window.empty()) {
    throw RequestError("tree " + std::to_string(id) + " has " + std::to_string(tree.window.size()) +
                       " simulations under way; cancel them before it is removed");
  }
  lanes_[id].reset();
}

Forest::Lane& Forest::lane(TreeId id) const {
  if (id >= lanes_.size() || lanes_[id] == nullptr) {
    throw RequestError("the forest has no tree " + std::to_string(id));
  }
  return *lanes_[id];
}

const Forest::Slot& Forest::slot(RequestId id) const {
  const auto index = static_cast<std::uint32_t>(id);
  if (index >= slots_.size() || slots_[index].simulation == nullptr || slots_[index].generation != id >> 32) {
    throw RequestError("request " + std::to_string(id) + " is not open: unknown, answered or cancelled");
  }
  return slots_[index];
}

void Forest::open_request(Lane& lane, Simulation& simulation) {
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  const std::uint32_t index = free_slots_.back();
  free_slots_.pop_back();
  slots_[index] = {slots_[index].generation, &lane, &simulation};
  simulation.slot = index;
  ready_.push_back(RequestId{slots_[index].generation} << 32 | index);
}

void Forest::close_request(Simulation& simulation) {
  Slot& entry = slots_[simulation.slot];
  entry = {entry.generation + 1, nullptr, nullptr};
  free_slots_.push_back(simulation.slot);
  simulation.slot = kNone;
}

// Takes an unanswered simulation out of its window; the lane waits in idle_ until next() comes to it.
void Forest::drop(Lane& lane, Simulation* simulation) {
  close_request(*simulation);
  const std::uint32_t samples = simulation->samples;
  std::erase_if(lane.window, [&](const auto& entry) { return entry.get() == simulation; });
  --lane.started;
  lane.samples -= samples;
  lane.spent = false;
  lane.collided = false;
  if (!lane.idle) idle_.push_back(lane.id);
  lane.idle = true;
  advance(lane);
}

bool Forest::budget_left(const Lane& lane) const { return lane.started < params_.simulations && !lane.spent; }

// Selects one simulation into the window; false if there is no room, no budget, or a collision.
bool Forest::start_one(Lane& lane) {
  if (lane.idle || lane.collided || lane.window.size() >= params_.leaves_in_flight || !budget_left(lane))
    return false;
  const NodeId node = lane.tree.select(lane.next_number);
  const bool terminal = lane.tree.terminal(node);
  if (!terminal && lane.tree.in_flight(node) > 0) {
    ++lane.stats.collisions;
    lane.collided = true;
    return false;
  }
  const std::uint32_t samples = terminal ? 0 : params_.k - lane.tree.inherited(node);
  if (params_.max_samples != 0 && samples > params_.max_samples - lane.samples) {
    lane.spent = true;
    return false;
  }
  const std::uint32_t own = terminal ? 1 : params_.k;
  const std::uint32_t path = terminal ? 1 : params_.mode == Mode::value ? params_.k : samples;
  lane.window.push_back(
      std::unique_ptr<Simulation>(new Simulation{.number = lane.next_number,
                                                 .node = node,
                                                 .terminal = terminal,
                                                 .samples = samples,
                                                 .loss = VirtualLoss(lane.tree, node, own, path)}));
  ++lane.next_number;
  ++lane.started;
  lane.samples += samples;
  if (terminal) return true;
  Simulation& simulation = *lane.window.back();
  if (samples == 0) simulation.split = split_of(lane, simulation, {});
  if (samples == 0 && params_.mode != Mode::value) {
    simulation.scores.emplace();  // nothing to ask for
  } else {
    open_request(lane, simulation);
  }
  return true;
}

// Applies the oldest simulation if it is answered (any answered one if the order is free).
bool Forest::apply_one(Lane& lane) {
  const auto end = params_.in_order && !lane.window.empty() ? lane.window.begin() + 1 : lane.window.end();
  const auto found =
      std::find_if(lane.window.begin(), end, [](const auto& simulation) { return simulation->answered(); });
  if (found == end) return false;
  // Out of the window first: should expand() throw, the simulation is given up and its virtual loss with it.
  const std::unique_ptr<Simulation> simulation = std::move(*found);
  lane.window.erase(found);
  lane.collided = false;
  Visits visits;
  if (simulation->terminal) {
    const Visit visit = lane.tree.terminal_visit(simulation->node);
    visits = {visit, visit};
    ++lane.stats.terminal_visits;
  } else {
    visits = lane.tree.expand(simulation->node, simulation->number, *simulation->split,
                              simulation->scores->completions, simulation->scores->children);
    ++lane.stats.expansions;
    lane.stats.completions += params_.k;
    lane.stats.samples += simulation->samples;
    lane.stats.reused += params_.k - simulation->samples;
  }
  lane.tree.back_up(simulation->node, visits.own, visits.path, std::move(simulation->loss));
  ++lane.stats.simulations;
  return true;
}

void Forest::advance(Lane& lane) {
  do {
    while (start_one(lane)) {
    }
  } while (apply_one(lane));
  if (lane.window.empty() && lane.tree.in_flight(kRoot) != 0) {
    throw std::logic_error(
        "a tree at rest has virtual loss left");  // a bug of the forest, no caller's mistake
  }
  if (lane.window.empty() && !budget_left(lane) && !lane.finished) {
    lane.finished = true;
    finished_.push_back(lane.id);
  }
}

}  // namespace restrl::search
