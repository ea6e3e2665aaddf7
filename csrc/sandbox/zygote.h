// The zygote's side of one candidate: take a request, fork, hand back the pidfd, wait, report.
//
//   judge ── Asked + [channel, stdin?, stdout?] ──► zygote ── fork ──► candidate (channel on 3, no other
//         ◄── 'F' + pidfd ────────────────────────────┤                          descriptor)
//         ◄── 'X' + Ended ── after it is reaped ──────┘
//
// The zygote never sees a program, its inputs or a test: those travel on the channel.
#pragma once

#include <sys/types.h>

#include <string>

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

// How a candidate ended, as sent to the judge (host byte order; both ends are one machine).
struct Ended {
  std::int32_t code = 0;     // exit code, or -signal
  std::int32_t max_rss = 0;  // KiB
  std::int64_t cpu_us = 0;   // user + system time
};

class Zygote {
 public:
  // `control` is the socket to the judge. Enters the namespaces if `params` asks for them.
  Zygote(int control, const Params& params);

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
};

inline constexpr int kChannel = 3;        // where a candidate finds its channel
inline constexpr int kSetUpFailed = 125;  // exit code of a child that could not be confined

}  // namespace restrl::sandbox
