#include "sandbox/zygote.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace restrl::sandbox {
namespace {

void close_if_open(int fd) {
  if (fd >= 0) close(fd);
}

void send_to_judge(int socket, const void* data, std::size_t size, int fd) {
  iovec part{const_cast<void*>(data), size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  }
  if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) _exit(0);  // the judge is gone
}

}  // namespace

Zygote::Zygote(int control, Params params) : control_(control), params_(std::move(params)) {
  if (params_.children && !params_.namespaces) throw SandboxError("children", "only in a pid namespace");
  go_first_out_of_memory();
  if (params_.namespaces) {
    own_pid_namespace_ = enter_namespaces(params_);
  } else {
    constexpr std::uint64_t kUnknown = 1 << 16;
    const std::uint64_t tasks = tasks_now();
    others_ = tasks > 0 ? tasks : kUnknown;
    if (params_.drop_user) become_nobody();
    if (chdir("/") != 0) throw SandboxError("chdir");  // not where the caller works
  }
  if (params_.landlock) ruleset_ = ruleset(false);
  zygote_ = getpid();
  confined_ = shared_flag();
  set_common_limits();
  no_new_privileges();
  if (params_.seccomp) {
    apply_zygote_seccomp(params_.namespaces, params_.children);
    filter_ = std::make_shared<CandidateFilter>(params_.children);
  }
}

int Zygote::ruleset(bool scratch) const {
  std::vector<std::string> readable = params_.readable;
  for (const char* device : {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}) {
    readable.emplace_back(device);
  }
  std::vector<std::string> writable{"/dev/null"};
  if (scratch) writable.emplace_back("/tmp");
  return make_landlock_ruleset(readable, writable, params_.programs);
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
    got = recvmsg(control_, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof asked) return false;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return false;
  int fds[kMaxDescriptors] = {-1, -1, -1};
  const std::size_t bytes = header->cmsg_len - CMSG_LEN(0);
  std::memcpy(fds, CMSG_DATA(header), bytes < sizeof fds ? bytes : sizeof fds);
  request = Request{asked, fds[0], fds[1], fds[2]};
  return true;
}

void Zygote::before_fork() const {
  *confined_ = false;
  if (own_pid_namespace_ < 0) return;
  // A second unshare is refused until the namespace for children is the own one again.
  if (setns(own_pid_namespace_, CLONE_NEWPID) != 0) throw SandboxError("return to the own pid namespace");
  if (unshare(CLONE_NEWPID) != 0) throw SandboxError("new pid namespace");
}

void Zygote::in_child(const Request& request) const {
  die_with_parent();  // in its own pid namespace it ends with that; without, a killed zygote would leave it
  if (own_pid_namespace_ < 0 && getppid() != zygote_) _exit(0);
  setsid();
  int rules = ruleset_;
  if (request.asked.kind == 's' && params_.namespaces && params_.scratch_bytes > 0) {
    if (unshare(CLONE_NEWNS) != 0) throw SandboxError("new mount namespace");
    mount_scratch(params_);
    if (chdir("/tmp") != 0) throw SandboxError("chdir to the scratch place");
    // A rule holds for the directory that is mounted when it is made, not for what lies under a mount.
    if (params_.landlock) rules = ruleset(true);
  }
  if (request.input >= 0 && dup2(request.input, 0) < 0) throw SandboxError("stdin");
  if (request.output >= 0 && dup2(request.output, 1) < 0) throw SandboxError("stdout");
  if (rules == kChannel) rules = dup(rules);
  if (dup2(request.channel, kChannel) < 0) throw SandboxError("channel");
  set_limits(params_, others_, request.asked.cpu_seconds);
  drop_capabilities();
  close_to_others();
  if (rules >= 0) apply_landlock(rules);
  if (syscall(SYS_close_range, static_cast<unsigned>(kChannel) + 1, ~0u, 0u) != 0)
    throw SandboxError("close_range");
  if (filter_) filter_->apply();
  *confined_ = true;
  munmap(confined_, sizeof *confined_);
}

void Zygote::in_parent(pid_t candidate, const Request& request) const {
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, candidate, 0));
  close_if_open(request.channel);
  close_if_open(request.input);
  close_if_open(request.output);
  Forked forked;
  forked.at_ns = monotonic_ns();
  send_to_judge(control_, &forked, sizeof forked, pidfd);
  close_if_open(pidfd);
  int status = 0;
  rusage usage{};
  while (wait4(candidate, &status, 0, &usage) < 0) {
    if (errno != EINTR) throw SandboxError("wait for a candidate");
  }
  Ended ended;
  ended.confined = *confined_;
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  ended.max_rss = static_cast<std::int32_t>(usage.ru_maxrss);
  ended.cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
                 usage.ru_stime.tv_usec;
  send_to_judge(control_, &ended, sizeof ended, -1);
}

}  // namespace restrl::sandbox
