// The zygote where the system has no namespaces, Landlock or seccomp (macOS): POSIX calls only.
//
// Candidates get resource limits and nothing else: isolation `none`, which a user has to allow. What a pidfd,
// the parent-death signal and packets do on Linux, a process id, a hung-up socket and messages of known
// length do here.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "sandbox/channel.h"
#include "sandbox/confine.h"
#include "sandbox/zygote.h"

namespace restrl::sandbox {
namespace {

constexpr int kHighest = 256;  // a zygote opens no descriptor above it
int ended_pipe[2] = {-1, -1};  // a byte comes whenever a child ends

void on_child(int) {
  const int reason = errno;
  if (write(ended_pipe[1], "", 1) < 0) errno = reason;
  errno = reason;
}

void at_most(int resource, rlim_t value) {
  rlimit now{};
  getrlimit(resource, &now);
  const rlim_t top = now.rlim_max == RLIM_INFINITY ? value : std::min(now.rlim_max, value);
  const rlimit wanted{top, top};
  if (setrlimit(resource, &wanted) != 0 && resource != RLIMIT_AS) throw SandboxError("setrlimit");
}

void send_all(int socket, const void* data, std::size_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = send(socket, from, size, kNoSignal);
    if (sent < 0 && errno != EINTR) _exit(0);  // the judge is gone
    if (sent > 0) from += sent, size -= static_cast<std::size_t>(sent);
  }
}

}  // namespace

SandboxError::SandboxError(const std::string& step) : SandboxError(step, std::strerror(errno)) {}

SandboxError::SandboxError(const std::string& step, const std::string& reason)
    : std::runtime_error(step + ": " + reason) {}

int landlock_version() { return 0; }
std::uint64_t own_address_space() { return 0; }
void die_with_parent() {}  // the judge's own thread and the zygote's poll see to it

Zygote::Zygote(int control, Params params) : control_(control), params_(std::move(params)) {
  if (params_.namespaces || params_.landlock || params_.seccomp)
    throw SandboxError("confinement", "not on this system");
  if (chdir("/") != 0 || pipe(ended_pipe) != 0) throw SandboxError("set-up");
  for (int end : ended_pipe) fcntl(end, F_SETFL, O_NONBLOCK);
  struct sigaction action{};
  action.sa_handler = on_child;
  action.sa_flags = SA_RESTART;
  if (sigaction(SIGCHLD, &action, nullptr) != 0) throw SandboxError("sigaction");
  zygote_ = getpid();
  confined_ = shared_flag();
}

bool Zygote::receive(Request& request) const {
  Asked asked;
  iovec part{&asked, sizeof asked};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do {
    got = recvmsg(control_, &message, MSG_WAITALL);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof asked) return false;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return false;
  int fds[kMaxDescriptors] = {-1, -1, -1};
  const std::size_t bytes = header->cmsg_len - CMSG_LEN(0);
  std::memcpy(fds, CMSG_DATA(header), std::min(bytes, sizeof fds));
  request = Request{asked, fds[0], fds[1], fds[2]};
  return true;
}

void Zygote::before_fork() const { *confined_ = false; }

void Zygote::in_child(const Request& request) const {
  signal(SIGCHLD, SIG_DFL);
  setsid();  // a group of its own: killed as one
  if (request.input >= 0 && dup2(request.input, 0) < 0) throw SandboxError("stdin");
  if (request.output >= 0 && dup2(request.output, 1) < 0) throw SandboxError("stdout");
  if (dup2(request.channel, kChannel) < 0) throw SandboxError("channel");
  for (int fd = kChannel + 1; fd < kHighest; ++fd) close(fd);
  const rlim_t cpu = request.asked.cpu_seconds > 0 ? request.asked.cpu_seconds : params_.cpu_seconds;
  at_most(RLIMIT_CORE, 0);
  at_most(RLIMIT_FSIZE, 64 << 20);
  at_most(RLIMIT_AS, params_.memory_bytes);  // macOS may refuse it
  at_most(RLIMIT_CPU, cpu);
  at_most(RLIMIT_NOFILE, params_.open_files);
  *confined_ = true;
  munmap(confined_, sizeof *confined_);
}

void Zygote::in_parent(pid_t candidate, const Request& request) const {
  for (int fd : {request.channel, request.input, request.output}) {
    if (fd >= 0) close(fd);
  }
  Forked forked;
  forked.pid = static_cast<std::int32_t>(candidate);
  forked.at_ns = monotonic_ns();
  send_all(control_, &forked, sizeof forked);
  siginfo_t info{};
  while (info.si_pid == 0) {
    pollfd watch[2] = {{ended_pipe[0], POLLIN, 0}, {control_, 0, 0}};
    poll(watch, 2, 1000);
    char drained[64];
    while (read(ended_pipe[0], drained, sizeof drained) > 0) {
    }
    if ((watch[1].revents & (POLLHUP | POLLERR)) != 0) kill(candidate, SIGKILL);  // nobody waits for it
    if (waitid(P_PID, static_cast<id_t>(candidate), &info, WEXITED | WNOHANG | WNOWAIT) != 0 &&
        errno != EINTR)
      throw SandboxError("wait for a candidate");
  }
  kill(-candidate, SIGKILL);  // what it left in its group; its number is its own until it is reaped
  int status = 0;
  rusage usage{};
  while (wait4(candidate, &status, 0, &usage) < 0) {
    if (errno != EINTR) throw SandboxError("reap a candidate");
  }
  Ended ended;
  ended.confined = *confined_;
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
#if defined(__APPLE__)
  ended.max_rss = static_cast<std::int32_t>(usage.ru_maxrss >> 10);  // bytes there
#else
  ended.max_rss = static_cast<std::int32_t>(usage.ru_maxrss);
#endif
  ended.cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
                 usage.ru_stime.tv_usec;
  send_all(control_, &ended, sizeof ended);
}

}  // namespace restrl::sandbox
