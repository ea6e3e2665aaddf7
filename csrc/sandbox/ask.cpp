// What judge and zygote say to each other about a candidate, on every system (zygote.h).
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "sandbox/zygote.h"

namespace restrl::sandbox {
namespace {

#if defined(MSG_CMSG_CLOEXEC)
constexpr int kCloseOnExec = MSG_CMSG_CLOEXEC;
#else
constexpr int kCloseOnExec = 0;  // judges start no program but zygotes, which close what they do not know
#endif

}  // namespace

bool* shared_flag() {
  void* page = mmap(nullptr, sizeof(bool), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) throw SandboxError("shared flag");
  return static_cast<bool*>(page);
}

std::int64_t monotonic_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

int ask(int control, const Asked& asked, const std::vector<int>& fds) {
  int ends[2];
  if (fds.size() + 1 > kMaxDescriptors) throw SandboxError("ask", "too many descriptors");
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) throw SandboxError("channel");
  for (int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  std::vector<int> given{ends[1]};
  given.insert(given.end(), fds.begin(), fds.end());
  iovec part{const_cast<Asked*>(&asked), sizeof asked};
  alignas(cmsghdr) char space[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = space;
  message.msg_controllen = CMSG_SPACE(given.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(given.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), given.data(), given.size() * sizeof(int));
  ssize_t sent = 0;
  do {
    sent = sendmsg(control, &message, kNoSignal);
  } while (sent < 0 && errno == EINTR);
  const int reason = errno;
  close(ends[1]);
  if (sent == sizeof asked) return ends[0];
  close(ends[0]);
  errno = reason;
  throw SandboxError("ask the zygote");
}

Received receive_report(int control, void* out, std::size_t size, std::int64_t timeout_ms, int& fd) {
  const std::int64_t end = monotonic_ns() + timeout_ms * 1000000;
  std::size_t have = 0;
  fd = -1;
  while (have < size) {
    pollfd watch{control, POLLIN, 0};
    const std::int64_t left = (end - monotonic_ns()) / 1000000;
    const int ready = poll(&watch, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30)));
    if (ready == 0) return have == 0 ? Received::timeout : Received::cut;
    if (ready < 0) {
      if (errno == EINTR) continue;
      return Received::closed;
    }
    iovec part{static_cast<char*>(out) + have, size - have};
    alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    const ssize_t got = recvmsg(control, &message, MSG_DONTWAIT | kCloseOnExec);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return Received::closed;
    have += static_cast<std::size_t>(got);
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header != nullptr && header->cmsg_type == SCM_RIGHTS) std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  }
  return Received::message;
}

}  // namespace restrl::sandbox
