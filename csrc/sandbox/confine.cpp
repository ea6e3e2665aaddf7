#include "sandbox/confine.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

namespace restrl::sandbox {

SandboxError::SandboxError(const std::string& step) : SandboxError(step, std::strerror(errno)) {}

SandboxError::SandboxError(const std::string& step, const std::string& reason)
    : std::runtime_error(step + ": " + reason) {}

namespace {

void limit(int resource, const char* name, std::uint64_t soft, std::uint64_t hard) {
  rlimit now{};
  getrlimit(static_cast<__rlimit_resource>(resource), &now);
  // An unprivileged process may only lower its hard limit.
  const rlim_t top = now.rlim_max == RLIM_INFINITY ? hard : std::min<rlim_t>(now.rlim_max, hard);
  const rlimit value{std::min<rlim_t>(soft, top), top};
  if (setrlimit(static_cast<__rlimit_resource>(resource), &value) != 0) throw SandboxError(name);
}

}  // namespace

void set_common_limits() {
  limit(RLIMIT_CORE, "RLIMIT_CORE", 0, 0);
  limit(RLIMIT_FSIZE, "RLIMIT_FSIZE", 64 << 20, 64 << 20);
  limit(RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE", 0, 0);
  limit(RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", 0, 0);
  // POSIX timers take from this count, which all processes of a user share.
  limit(RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING", 64, 64);
}

void set_limits(const Params& params, std::uint64_t others, std::uint64_t cpu_seconds) {
  const std::uint64_t cpu = cpu_seconds > 0 ? cpu_seconds : params.cpu_seconds;
  limit(RLIMIT_AS, "RLIMIT_AS", params.memory_bytes, params.memory_bytes);
  limit(RLIMIT_CPU, "RLIMIT_CPU", cpu, cpu + 1);
  // Not the zygote's: how many descriptors a user may have under way in messages is read from the sender's.
  limit(RLIMIT_NOFILE, "RLIMIT_NOFILE", params.open_files, params.open_files);
  // Threads count with all processes of a user, outside a user namespace of one's own.
  limit(RLIMIT_NPROC, "RLIMIT_NPROC", params.processes + others, params.processes + others);
}

std::uint64_t tasks_now() {
  std::FILE* file = std::fopen("/proc/loadavg", "re");
  if (file == nullptr) return 0;
  unsigned long long tasks = 0;
  const int read = std::fscanf(file, "%*f %*f %*f %*u/%llu", &tasks);
  std::fclose(file);
  return read == 1 ? tasks : 0;
}

void go_first_out_of_memory() {
  std::FILE* file = std::fopen("/proc/self/oom_score_adj", "we");
  if (file == nullptr) return;  // a hint to the kernel, not a wall
  std::fputs("1000", file);
  std::fclose(file);
}

void close_to_others() {
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) throw SandboxError("not dumpable");
}

std::uint64_t own_address_space() {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) throw SandboxError("/proc/self/statm");
  unsigned long long pages = 0;
  const int read = std::fscanf(file, "%llu", &pages);
  std::fclose(file);
  if (read != 1) throw SandboxError("/proc/self/statm", "not a number");
  return pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

void drop_capabilities() {
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2]{};
  if (syscall(SYS_capset, &header, none) != 0) throw SandboxError("capset");
}

void no_new_privileges() {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) throw SandboxError("no_new_privs");
}

void die_with_parent() {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) throw SandboxError("parent death signal");
}

}  // namespace restrl::sandbox
