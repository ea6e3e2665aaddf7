// What confines a child before it runs untrusted code. Linux system calls only: no Python, no allocation
// games.
//
// Two tiers. Tier 1: user, pid, mount, network and ipc namespaces (namespaces.cpp). Tier 2: Landlock
// (landlock.cpp), seccomp (seccomp.cpp), resource limits and no_new_privs (confine.cpp). A *zygote* calls
// `enter_namespaces` once and then, for each candidate, `before_fork`, fork and `confine_child` (zygote.cpp).
// Everything here is meant for a single-threaded process.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

struct sock_filter;  // linux/filter.h

namespace restrl::sandbox {

// A set-up step that the kernel refused; `what()` names the step and the reason.
class SandboxError : public std::runtime_error {
 public:
  explicit SandboxError(const std::string& step);                    // reason = errno
  SandboxError(const std::string& step, const std::string& reason);  // reason given
};

struct Params {
  bool namespaces = true;                  // tier 1
  bool landlock = true;                    // tier 2: file system
  bool seccomp = true;                     // tier 2: system calls
  bool drop_user = false;                  // started as root: become `kNobody`, who can read Python's files
  bool children = false;                   // may start programs: only in a pid namespace of its own (tier 1)
  std::vector<std::string> readable;       // absolute paths a candidate may read (directories or files)
  std::uint64_t memory_bytes = 1 << 30;    // address space of a candidate, the interpreter's included
  std::uint64_t cpu_seconds = 60;          // second line behind the wall limit, where a request names none
  std::vector<std::string> programs;       // what it may then execute (directories), libraries included
  std::uint64_t scratch_bytes = 16 << 20;  // size of a candidate's own /tmp (tier 1 only), 0 = none
  std::uint64_t open_files = 128;
  std::uint64_t processes = 256;  // threads of one candidate, its children included; see set_limits
};

inline constexpr unsigned kNobody = 65534;

// Whether the kernel has Landlock, and its version (0: not at all).
int landlock_version();

// A ruleset that lets `readable` be read and executed and `writable` be changed; nothing else. Returns its
// descriptor.
int make_landlock_ruleset(const std::vector<std::string>& readable, const std::vector<std::string>& writable,
                          const std::vector<std::string>& executable = {});
void apply_landlock(int ruleset);

// Together: only the system calls an ordinary single-process program needs; signals to itself only; no new
// processes. The first is the zygote's, inherited by its candidates; the second is put on by each.
// `own_files`: all that a candidate can write to is its own, so it may change modes and times.
// `children`: it may fork, execute and signal what is in its pid namespace; nothing else is let through.
void apply_zygote_seccomp(bool own_files, bool children = false);

// Made by the zygote, so that a child of it has nothing to allocate.
class CandidateFilter {
 public:
  explicit CandidateFilter(bool children = false);
  ~CandidateFilter();
  void apply();  // to this process, which is then the only one that it may signal

 private:
  std::vector<sock_filter> code_;
  std::vector<std::size_t> self_;  // the instructions that compare with the process
};

// For a zygote started by root: give up root's user, groups and capabilities for `kNobody`'s.
void become_nobody();

// New user, mount, network, ipc, uts and pid namespaces, a root of read-only binds of `readable`.
// Returns in the new pid namespace's init; the calling process stays behind as its keeper and never returns.
// Gives the descriptor of the new pid namespace. Started by root, becomes `kNobody` on the way where it can.
int enter_namespaces(const Params& params);

// The candidate's own /tmp: empty but for those of `readable` that lie below it.
void mount_scratch(const Params& params);

// Address space this process has mapped (bytes).
std::uint64_t own_address_space();

// Tasks on this machine now (threads count), 0 if it does not say.
std::uint64_t tasks_now();

// `others`: tasks that may count against this process's limit of them, because it shares its user with them.
// `cpu_seconds`: 0 for those of `params`.
void set_limits(const Params& params, std::uint64_t others, std::uint64_t cpu_seconds = 0);

// Those limits that a zygote shares with its candidates; they inherit them.
void set_common_limits();
void drop_capabilities();
void no_new_privileges();

// Where the machine runs out of memory, this process and its children go first.
void go_first_out_of_memory();

// No core dumps, not even to a program that collects them; no other process may look into this one.
void close_to_others();

// Ends this process when its parent ends.
void die_with_parent();

}  // namespace restrl::sandbox
