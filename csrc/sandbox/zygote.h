// The zygote's side of one candidate: take a request, fork, hand back the pidfd, wait, report.
//
//   judge ── Asked + [channel, stdin?, stdout?] ──► zygote ── fork ──► candidate (channel on 3, no other
//         ◄── Forked + pidfd ─────────────────────────┤                          descriptor)
//         ◄── Ended ── after it is reaped ────────────┘
//
// The zygote never sees a program, its inputs or a test: those travel on the channel, which the judge writes
// to without waiting. It reads Forked only when it needs the pidfd, so that a verdict has few changes of
// process.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "sandbox/channel.h"
#include "sandbox/confine.h"

namespace restrl::sandbox {

// What the judge writes, in host byte order.
struct __attribute__((packed)) Asked {
  char kind = 0;  // 'f', or 's': with a /tmp of its own to write to, which costs a mount namespace
  std::uint32_t cpu_seconds = 0;  // its limit; 0 for the usual one
};

struct Request {
  Asked asked;
  int channel = -1;
  int input = -1;   // becomes descriptor 0
  int output = -1;  // becomes descriptor 1
};

// What the judge reads, one after the other for each candidate.
struct __attribute__((packed)) Forked {
  char kind = 'F';
  std::int32_t pid = 0;    // where the system has no pidfd, which comes with the message
  std::int64_t at_ns = 0;  // monotonic time
};
struct __attribute__((packed)) Ended {
  char kind = 'X';
  bool confined = false;     // whether its set-up came to its end; it cannot be told by what runs after that
  std::int32_t code = 0;     // exit code, or -signal
  std::int32_t max_rss = 0;  // KiB
  std::int64_t cpu_us = 0;   // user + system time
};

class Zygote {
 public:
  // `control` is the socket to the judge. Enters the namespaces if `params` asks for them.
  Zygote(int control, Params params);

  bool receive(Request& request) const;  // false: the judge is gone
  void before_fork() const;
  void in_child(const Request& request) const;                    // confines; throws SandboxError
  void in_parent(pid_t candidate, const Request& request) const;  // returns when it has ended

 private:
  int ruleset(bool scratch) const;

  int control_;
  Params params_;
  int own_pid_namespace_ = -1;
  int ruleset_ = -1;
  std::uint64_t others_ = 0;  // tasks that may share the candidates' user
  pid_t zygote_ = -1;
  std::shared_ptr<CandidateFilter> filter_;
  // Shared with the candidate until it is confined: it says so here, and unmaps it before anything else runs.
  bool* confined_ = nullptr;
};

inline constexpr int kMaxDescriptors = 3;  // that travel with a request

bool* shared_flag();  // false, in memory that forks share. Throws SandboxError
std::int64_t monotonic_ns();

// -- the judge's side

// Asks for a candidate that gets `fds` (stdin, stdout); its channel. Throws SandboxError.
int ask(int control, const Asked& asked, const std::vector<int>& fds);

// Reads a Forked or Ended; `fd` is what came with it, or -1.
Received receive_report(int control, void* out, std::size_t size, std::int64_t timeout_ms, int& fd);

inline constexpr int kChannel = 3;        // where a candidate finds its channel
inline constexpr int kSetUpFailed = 125;  // exit code of a child that could not be confined

}  // namespace restrl::sandbox
