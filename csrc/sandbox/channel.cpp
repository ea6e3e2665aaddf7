#include "sandbox/channel.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

namespace restrl::sandbox {
namespace {

using Clock = std::chrono::steady_clock;

class Deadline {
 public:
  explicit Deadline(std::int64_t ms)
      : forever_(ms < 0), at_(ms < 0 ? Clock::time_point() : Clock::now() + std::chrono::milliseconds(ms)) {}

  bool forever() const { return forever_; }

  // Milliseconds for poll: rounded up, so that a wait never ends before the deadline.
  int left() const {
    if (forever_) return -1;
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(at_ - Clock::now()).count();
    return left <= 0 ? 0 : static_cast<int>(std::min<std::int64_t>((left + 999) / 1000, 1 << 30));
  }

 private:
  bool forever_;
  Clock::time_point at_;
};

// Reads until `size` bytes are there, of a message's beginning or (not `first`) of what follows at once.
Received read_all(int fd, char* data, std::size_t size, const Deadline& deadline, int keeper, bool first) {
  std::size_t have = 0;
  // Who has nothing else to look at waits in the call itself; a reader with a keeper asks for what takes a
  // while.
  const bool alone = deadline.forever() && keeper < 0;
  bool look = first && keeper >= 0;
  while (have < size) {
    const ssize_t n = look ? -1 : recv(fd, data + have, size - have, alone ? MSG_WAITALL : MSG_DONTWAIT);
    if (n > 0) {
      have += static_cast<std::size_t>(n);
      continue;
    }
    if (n == 0) return Received::closed;
    if (!std::exchange(look, false)) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return Received::closed;
    }
    const int left = deadline.left();
    if (left == 0) return have == 0 ? Received::timeout : Received::cut;
    pollfd watch[2] = {{fd, POLLIN, 0}, {keeper, 0, 0}};
    const int ready = poll(watch, keeper >= 0 ? 2 : 1, left);
    if (ready > 0 && keeper >= 0 && (watch[1].revents & (POLLHUP | POLLERR)) != 0) return Received::orphaned;
  }
  return Received::message;
}

}  // namespace

Received receive_message(int fd, std::string& out, std::int64_t timeout_ms, std::uint64_t max_bytes,
                         int keeper) {
  const Deadline deadline(timeout_ms);
  std::uint32_t size = 0;
  Received got = read_all(fd, reinterpret_cast<char*>(&size), sizeof size, deadline, keeper, true);
  if (got != Received::message) return got;
  if (size > max_bytes) return Received::too_long;
  out.resize(size);
  got = read_all(fd, out.data(), size, deadline, keeper, false);
  return got == Received::timeout ? Received::cut : got;
}

bool send_message(int fd, const char* data, std::size_t size, std::int64_t timeout_ms) {
  // A short message goes out in one piece, length and all. `send`, because a candidate may not `sendmsg`.
  constexpr std::size_t kShort = 1 << 12;
  char head[kShort];
  const auto length = static_cast<std::uint32_t>(size);
  std::memcpy(head, &length, sizeof length);
  const std::size_t with_head = std::min(size, kShort - sizeof length);
  if (with_head > 0) std::memcpy(head + sizeof length, data, with_head);

  const Deadline deadline(timeout_ms);
  const std::size_t first = sizeof length + with_head, total = sizeof length + size;
  std::size_t sent = 0;
  while (sent < total) {
    const char* from = sent < first ? head + sent : data + (sent - sizeof length);
    const std::size_t left_here = (sent < first ? first : total) - sent;
    const ssize_t n = send(fd, from, left_here, kNoSignal | MSG_DONTWAIT);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return false;
    const int left = deadline.left();
    if (left == 0) return false;
    pollfd watch{fd, POLLOUT, 0};
    poll(&watch, 1, left);
  }
  return true;
}

}  // namespace restrl::sandbox
